//! This file reads and writes points in time, and finds the starts of calendar units. Only the
//! offsets of zones come from a library.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use crate::config::definitions::TimeFormat;
use crate::model::aggregate::CalendarUnit;

use super::json::Json;
use super::number::{scaled_floor, to_int64};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
/// Milliseconds of an hour.
pub(super) const HOUR: i64 = 60 * MINUTE;
/// Milliseconds of a day.
pub(super) const DAY: i64 = 24 * HOUR;
/// The first millisecond of the year 1.
const EARLIEST: i64 = -62_135_596_800_000;
/// The last millisecond of the year 9999.
const LATEST: i64 = 253_402_300_799_999;

/// The zone of this name.
pub(super) fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|error| format!("`{name}` is no time zone: {error}"))
}

fn milliseconds(offset: Offset) -> i64 {
    i64::from(offset.seconds()) * SECOND
}

/// The offset of `zone` at an instant.
fn offset_at(instant: i64, zone: &TimeZone) -> i64 {
    // Offsets change at whole seconds. The library's range ends a day before ours.
    let nearest = if instant < 0 { Timestamp::MIN } else { Timestamp::MAX };
    let timestamp = Timestamp::from_second(instant.div_euclid(SECOND)).unwrap_or(nearest);
    milliseconds(zone.to_offset(timestamp))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn day_of(year: i64, month: i64, day: i64) -> i64 {
    // Years are counted from March, so that the leap day is their last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a day counted from 1970-01-01.
fn date_of(day: i64) -> (i64, i64, i64) {
    // The guess is never too late, and early by a few decades at most.
    let mut year = 1970 + day.div_euclid(366).min(day.div_euclid(365));
    while day_of(year + 1, 1, 1) <= day {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && day_of(year, month + 1, 1) <= day {
        month += 1;
    }
    (year, month, day - day_of(year, month, 1) + 1)
}

fn days_of_month(year: i64, month: i64) -> i64 {
    let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    day_of(next_year, next_month, 1) - day_of(year, month, 1)
}

/// A time on a clock that hangs on a wall somewhere.
struct LocalTime {
    /// Day from 1970-01-01.
    day: i64,
    /// Milliseconds since midnight.
    since_midnight: i64,
}

impl LocalTime {
    /// What the clock would show in Greenwich, as milliseconds.
    fn as_universal(&self) -> i64 {
        self.day * DAY + self.since_midnight
    }

    /// The offsets that `zone` has for it.
    fn offsets(&self, zone: &TimeZone) -> Option<AmbiguousOffset> {
        let (year, month, day) = date_of(self.day);
        let date = Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, i8::try_from(day).ok()?);
        let hour = i8::try_from(self.since_midnight / HOUR).ok()?;
        let minute = i8::try_from(self.since_midnight / MINUTE % 60).ok()?;
        let second = i8::try_from(self.since_midnight / SECOND % 60).ok()?;
        let local: DateTime = date.ok()?.at(hour, minute, second, 0);
        Some(zone.to_ambiguous_timestamp(local).offset())
    }

    /// The instant; a time that is skipped or repeated takes the offset before the change.
    fn instant(&self, zone: &TimeZone) -> Option<i64> {
        let offset = match self.offsets(zone)? {
            AmbiguousOffset::Unambiguous { offset } => offset,
            AmbiguousOffset::Gap { before, .. } | AmbiguousOffset::Fold { before, .. } => before,
        };
        Some(self.as_universal() - milliseconds(offset))
    }
}

fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Only the first few digits of a fraction are ever asked for.
    Some(bytes.iter().fold(0, |number, byte| number * 10 + i64::from(byte - b'0')))
}

/// Reads RFC 3339; without an offset it is local to the zone of this name.
pub(super) fn parse_rfc3339(text: &str, zone_name: Option<&str>) -> Option<i64> {
    let bytes = text.as_bytes();
    let (clock, rest) = bytes.split_at_checked(19)?;
    for (at, allowed) in [(4, "-"), (7, "-"), (10, "Tt "), (13, ":"), (16, ":")] {
        if !allowed.as_bytes().contains(&clock[at]) {
            return None;
        }
    }
    let (year, month) = (digits(&clock[..4])?, digits(&clock[5..7])?);
    let (day, hour) = (digits(&clock[8..10])?, digits(&clock[11..13])?);
    let (minute, second) = (digits(&clock[14..16])?, digits(&clock[17..19])?);
    let is_date = year >= 1 && (1..=12).contains(&month) && day >= 1;
    if !is_date || day > days_of_month(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, offset) = split_fraction(rest)?;
    let local = LocalTime {
        day: day_of(year, month, day),
        since_midnight: hour * HOUR + minute * MINUTE + second * SECOND + fraction,
    };
    let instant = match (offset, zone_name) {
        ([], Some(name)) => local.instant(&zone(name).ok()?)?,
        _ => local.as_universal() - parse_offset(offset)?,
    };
    (EARLIEST..=LATEST).contains(&instant).then_some(instant)
}

/// The milliseconds of a fraction, if there is one, and what stands behind it.
fn split_fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some(behind) = rest.strip_prefix(b".") else {
        return Some((0, rest));
    };
    let length = behind.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length == 0 {
        return None;
    }
    let kept = length.min(3);
    let milliseconds = digits(&behind[..kept])? * [1, 100, 10, 1][kept];
    Some((milliseconds, &behind[length..]))
}

/// `Z`, or an offset such as `+01:00`, in milliseconds.
fn parse_offset(text: &[u8]) -> Option<i64> {
    let sign = match text {
        [b'Z' | b'z'] => return Some(0),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    if text.len() != 6 || text[3] != b':' {
        return None;
    }
    let (hours, minutes) = (digits(&text[1..3])?, digits(&text[4..])?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * HOUR + minutes * MINUTE))
}

/// Reads a JSON value as a point in time; none when it is no such value or out of range.
pub(super) fn read_time(json: &Json, format: &TimeFormat) -> Option<i64> {
    let instant = match (format, json) {
        (TimeFormat::Rfc3339 { zone }, Json::Text { text, .. }) => parse_rfc3339(text, zone.as_deref())?,
        (TimeFormat::UnixSeconds, Json::Number(text)) => i64::try_from(scaled_floor(text, 3)?).ok()?,
        (TimeFormat::UnixMillis, Json::Number(text)) => to_int64(text)?,
        (TimeFormat::UnixMicros, Json::Number(text)) => to_int64(text)?.div_euclid(1000),
        _ => return None,
    };
    (EARLIEST..=LATEST).contains(&instant).then_some(instant)
}

/// RFC 3339 in UTC, with a fraction only where there is one.
pub(super) fn format_rfc3339(instant: i64) -> String {
    let (year, month, day) = date_of(instant.div_euclid(DAY));
    let since_midnight = instant.rem_euclid(DAY);
    let (hour, minute) = (since_midnight / HOUR, since_midnight / MINUTE % 60);
    let second = since_midnight / SECOND % 60;
    let fraction = match since_midnight % SECOND {
        0 => String::new(),
        milliseconds => format!(".{milliseconds:03}"),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// What the functions of expressions ask of a point in time.
pub(super) struct LocalParts {
    /// From 0 to 23.
    pub(super) hour: i64,
    /// From 1, Monday, to 7.
    pub(super) weekday: i64,
    /// From 1 to 31.
    pub(super) day: i64,
    /// From 1 to 12.
    pub(super) month: i64,
}

/// The parts of an instant in a zone, or in UTC.
pub(super) fn local_parts(instant: i64, zone: Option<&TimeZone>) -> LocalParts {
    let local = instant + zone.map_or(0, |zone| offset_at(instant, zone));
    let days = local.div_euclid(DAY);
    let (_, month, day) = date_of(days);
    LocalParts { hour: local.rem_euclid(DAY) / HOUR, weekday: monday_index(days) + 1, day, month }
}

/// 0 for a Monday, 6 for a Sunday.
fn monday_index(day: i64) -> i64 {
    // 1970-01-01 was a Thursday.
    (day + 3).rem_euclid(7)
}

/// The first instant of the unit that holds `now`, in a zone.
pub(super) fn unit_start(unit: CalendarUnit, now: i64, zone: &TimeZone) -> i64 {
    let offset = offset_at(now, zone);
    let today = (now + offset).div_euclid(DAY);
    match unit {
        CalendarUnit::Hour => (now + offset).div_euclid(HOUR) * HOUR - offset,
        CalendarUnit::Day => start_of_day(today, zone),
        CalendarUnit::Week => start_of_day(today - monday_index(today), zone),
        CalendarUnit::Month => {
            let (year, month, _) = date_of(today);
            start_of_day(day_of(year, month, 1), zone)
        }
    }
}

/// The first instant of a local day, also where its midnight is skipped or repeated.
fn start_of_day(day: i64, zone: &TimeZone) -> i64 {
    let midnight = LocalTime { day, since_midnight: 0 };
    let universal = midnight.as_universal();
    match midnight.offsets(zone) {
        None => universal,
        Some(AmbiguousOffset::Unambiguous { offset }) => universal - milliseconds(offset),
        Some(AmbiguousOffset::Fold { before, .. }) => universal - milliseconds(before),
        Some(AmbiguousOffset::Gap { before, after }) => {
            // The change lies between these two; its instant is the first one of the day.
            let after = milliseconds(after);
            let (mut early, mut late) = (universal - after, universal - milliseconds(before));
            while early < late {
                let middle = (early + late).div_euclid(2);
                if offset_at(middle, zone) >= after {
                    late = middle;
                } else {
                    early = middle + 1;
                }
            }
            late
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        parse_rfc3339(text, None).expect("it is a point in time")
    }

    #[test]
    fn points_in_time_need_an_offset_or_a_zone() {
        assert_eq!(at("1970-01-01t01:00:00.0019+01:00"), 1);
        assert_eq!(at("1969-12-31 23:59:59.9999z"), -1);
        assert_eq!(at("9999-12-31T23:59:59.999Z"), LATEST);
        assert_eq!(format_rfc3339(at("2024-02-29T23:59:59.05Z")), "2024-02-29T23:59:59.050Z");
        for wrong in [
            "1970-01-01T00:00:00",
            "1970-01-01T00:00:60Z",
            "1970-02-30T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:00:00.Z",
            "0001-01-01T00:00:00+00:01",
            "1970-01-01T00:00:00+0100",
            "1970-01-01T00:00:00Z\n",
        ] {
            assert_eq!(parse_rfc3339(wrong, None), None, "{wrong}");
        }
        let zone = Some("America/New_York");
        // Skipped: the offset before the change is −05:00. Repeated: it is −04:00.
        assert_eq!(parse_rfc3339("2024-03-10T02:30:00", zone), Some(at("2024-03-10T07:30:00Z")));
        assert_eq!(parse_rfc3339("2024-11-03T01:30:00", zone), Some(at("2024-11-03T05:30:00Z")));
    }

    #[test]
    fn calendar_units_start_where_the_clocks_say() {
        let (new_york, sao_paulo) = ("America/New_York", "America/Sao_Paulo");
        for (unit, name, now, start) in [
            (CalendarUnit::Week, "UTC", "2024-03-13T12:34:56Z", "2024-03-11T00:00:00Z"),
            (CalendarUnit::Month, new_york, "2024-03-15T00:00:00Z", "2024-03-01T05:00:00Z"),
            (CalendarUnit::Hour, "Asia/Kolkata", "2024-03-13T12:34:00Z", "2024-03-13T12:30:00Z"),
            // These days lose their midnight, the last one because the day before is lost.
            (CalendarUnit::Day, sao_paulo, "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z"),
            (CalendarUnit::Day, "America/Toronto", "1919-03-31T12:00:00Z", "1919-03-31T04:30:00Z"),
            (CalendarUnit::Day, "Pacific/Apia", "2011-12-30T11:00:00Z", "2011-12-30T10:00:00Z"),
            // This one has two midnights.
            (CalendarUnit::Day, "America/Havana", "2024-11-03T12:00:00Z", "2024-11-03T04:00:00Z"),
        ] {
            let zone = zone(name).expect("the zone is bundled");
            assert_eq!(format_rfc3339(unit_start(unit, at(now), &zone)), start, "{name} {now}");
        }
    }
}
