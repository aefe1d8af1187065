//! Starts of calendar units in a zone.

use jiff::civil;
use jiff::tz::TimeZone;

use crate::model::{CalendarUnit, Millis, time};

/// A calendar unit in a zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    /// The unit.
    pub unit: CalendarUnit,
    /// The zone.
    pub zone: TimeZone,
}

impl Calendar {
    /// The first instant of the unit that holds `now`.
    pub fn start(&self, now: Millis) -> Millis {
        let Some(local) = time::civil_in(now, &self.zone) else {
            return now;
        };
        let day = local.date();
        let first = match self.unit {
            CalendarUnit::Hour => {
                let into = i64::from(local.minute()) * 60_000
                    + i64::from(local.second()) * 1000
                    + now.rem_euclid(1000);
                return now - into;
            }
            CalendarUnit::Day => Some(day),
            CalendarUnit::Week => monday(day),
            CalendarUnit::Month => Some(day.first_of_month()),
        };
        first.and_then(|date| time::start_of_day(date, &self.zone)).unwrap_or(time::MIN)
    }

    /// The longest that the unit can be.
    pub fn longest(&self) -> Millis {
        match self.unit {
            CalendarUnit::Hour => time::HOUR,
            CalendarUnit::Day => 25 * time::HOUR,
            CalendarUnit::Week => 7 * time::DAY + time::HOUR,
            CalendarUnit::Month => 31 * time::DAY + time::HOUR,
        }
    }
}

fn monday(day: civil::Date) -> Option<civil::Date> {
    let since = jiff::Span::new().days(day.weekday().to_monday_zero_offset());
    day.checked_sub(since).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(unit: CalendarUnit, zone: &str, now: &str) -> String {
        let zone = TimeZone::get(zone).expect("bundled zone");
        let now = time::parse_rfc3339(now, None).expect("a time");
        time::format_rfc3339(Calendar { unit, zone }.start(now))
    }

    #[test]
    fn units_start_in_their_zone() {
        let new_york = "America/New_York";
        for (unit, zone, now, want) in [
            (CalendarUnit::Day, "UTC", "2013-07-01T00:00:00Z", "2013-07-01T00:00:00Z"),
            (CalendarUnit::Day, new_york, "2013-07-01T03:59:59Z", "2013-06-30T04:00:00Z"),
            (CalendarUnit::Week, "UTC", "2013-07-07T23:00:00Z", "2013-07-01T00:00:00Z"),
            (CalendarUnit::Month, new_york, "2013-11-30T10:00:00Z", "2013-11-01T04:00:00Z"),
            (CalendarUnit::Hour, "Asia/Kolkata", "2013-07-01T10:45:00.5Z", "2013-07-01T10:30:00Z"),
            (CalendarUnit::Day, "UTC", "9999-12-31T03:00:00Z", "9999-12-31T00:00:00Z"),
            (CalendarUnit::Week, "UTC", "9999-12-31T03:00:00Z", "9999-12-27T00:00:00Z"),
            // The day's midnight is skipped: it starts at 01:00 local time.
            (CalendarUnit::Day, "America/Sao_Paulo", "2017-10-15T12:00:00Z", "2017-10-15T03:00:00Z"),
        ] {
            assert_eq!(start(unit, zone, now), want, "{unit:?} {zone} {now}");
        }
    }
}
