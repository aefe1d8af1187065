//! Event time as text: RFC 3339 in, RFC 3339 out; local times by zone; durations.

use jiff::civil;
use jiff::tz::{AmbiguousOffset, TimeZone};

use super::Millis;

/// 0001-01-01T00:00:00Z.
pub const MIN: Millis = -62_135_596_800_000;
/// 9999-12-31T23:59:59.999Z.
pub const MAX: Millis = 253_402_300_799_999;

/// One day.
pub const DAY: Millis = 86_400_000;
/// One hour.
pub const HOUR: Millis = 3_600_000;

/// `t` if it lies within the years 0001 to 9999.
pub fn in_range(t: i128) -> Option<Millis> {
    Millis::try_from(t).ok().filter(|t| (MIN..=MAX).contains(t))
}

/// Parses RFC 3339 text; text without an offset is local to `zone`, if there is one.
///
/// Finer fractions are floored to the millisecond. A local time that the zone skips or repeats
/// takes the offset in force before the change.
///
/// ```
/// use thalweg::model::time::parse_rfc3339;
/// assert_eq!(parse_rfc3339("1970-01-01T00:00:01.0019Z", None), Some(1001));
/// assert_eq!(parse_rfc3339("1970-01-01 01:00:00+01:00", None), Some(0));
/// assert_eq!(parse_rfc3339("1970-01-01T00:00:00", None), None);
/// ```
pub fn parse_rfc3339(text: &str, zone: Option<&TimeZone>) -> Option<Millis> {
    let b = text.as_bytes();
    if b.len() < 19 || b[4] != b'-' || b[7] != b'-' || b[13] != b':' || b[16] != b':' {
        return None;
    }
    if !matches!(b[10], b'T' | b't' | b' ') {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        b[range].iter().try_fold(0, |n, c| c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0')))
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    if day < 1 || day > days_in_month(year, month) {
        return None;
    }
    let (millis, rest) = fraction(&b[19..])?;
    let local =
        (days_from_civil(year, month, day) * 24 + hour) * HOUR + (minute * 60 + second) * 1000 + millis;
    let offset = match rest {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let two = |a: &u8, b: &u8| {
                (a.is_ascii_digit() && b.is_ascii_digit())
                    .then(|| i64::from(a - b'0') * 10 + i64::from(b - b'0'))
            };
            let (h, m) = (two(h1, h2)?, two(m1, m2)?);
            if h > 23 || m > 59 {
                return None;
            }
            let magnitude = (h * 60 + m) * 60_000;
            if *sign == b'-' { -magnitude } else { magnitude }
        }
        [] => return in_range(local_to_utc(local, zone?)?.into()),
        _ => return None,
    };
    in_range((local - offset).into())
}

/// Milliseconds of a `.123…` fraction, floored, and what follows it.
fn fraction(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.', digits)) = bytes.split_first() else {
        return Some((0, bytes));
    };
    let n = digits.iter().take_while(|c| c.is_ascii_digit()).count();
    if n == 0 {
        return None;
    }
    let millis = (0..3).fold(0, |m, i| m * 10 + if i < n { i64::from(digits[i] - b'0') } else { 0 });
    Some((millis, &digits[n..]))
}

fn local_to_utc(local: Millis, zone: &TimeZone) -> Option<Millis> {
    let date_time = civil_of(local)?;
    let offset = match zone.to_ambiguous_timestamp(date_time).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Gap { before, .. } | AmbiguousOffset::Fold { before, .. } => before,
    };
    Some(local - i64::from(offset.seconds()) * 1000)
}

/// Calendar fields of a local time given as if it were UTC.
fn civil_of(local: Millis) -> Option<civil::DateTime> {
    let (year, month, day) = civil_from_days(local.div_euclid(DAY));
    let date = civil::Date::new(year.try_into().ok()?, month as i8, day as i8).ok()?;
    let in_day = local.rem_euclid(DAY);
    let (hour, minute, second) = (in_day / HOUR, in_day / 60_000 % 60, in_day / 1000 % 60);
    let nanos = (in_day % 1000) as i32 * 1_000_000;
    Some(date.at(hour as i8, minute as i8, second as i8, nanos))
}

/// What `zone` is ahead of UTC at `t`. jiff's own timestamps end a day before the year 9999 does, in
/// which no zone changes any more.
fn offset_at(t: Millis, zone: &TimeZone) -> Millis {
    let at = jiff::Timestamp::from_millisecond(t).unwrap_or(jiff::Timestamp::MAX);
    i64::from(zone.to_offset(at).seconds()) * 1000
}

/// Calendar fields of `t` in `zone`; none where that is a year after 9999.
pub fn civil_in(t: Millis, zone: &TimeZone) -> Option<civil::DateTime> {
    civil_of(t + offset_at(t, zone))
}

/// The first instant of the day `date` in `zone`: its midnight, or where that is skipped, the
/// first instant after it.
pub fn start_of_day(date: civil::Date, zone: &TimeZone) -> Option<Millis> {
    match date.to_zoned(zone.clone()).and_then(|day| day.start_of_day()) {
        Ok(start) => Some(start.timestamp().as_millisecond()),
        Err(_) => {
            let days = days_from_civil(date.year().into(), date.month().into(), date.day().into());
            local_to_utc(days * DAY, zone)
        }
    }
}

/// Days since 1970-01-01 of a proleptic Gregorian date (Howard Hinnant, *chrono-compatible
/// low-level date algorithms*).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Year, month and day of a number of days since 1970-01-01 (the inverse of the above).
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

/// RFC 3339 in UTC, with at most three fraction digits and none that are not needed. Times outside
/// the years 0001 to 9999 are shown as the nearest that is inside.
pub fn format_rfc3339(t: Millis) -> String {
    let mut text = String::with_capacity(24);
    push_rfc3339(&mut text, t);
    text
}

/// Appends [`format_rfc3339`] to `out`. Answers hold one per value: `format!` is ten times slower.
pub fn push_rfc3339(out: &mut String, t: Millis) {
    let t = t.clamp(MIN, MAX);
    let (year, month, day) = civil_from_days(t.div_euclid(DAY));
    let in_day = t.rem_euclid(DAY);
    let (hour, minute) = (in_day / HOUR, in_day / 60_000 % 60);
    let (second, millis) = (in_day / 1000 % 60, in_day % 1000);
    for (number, width, after) in
        [(year, 4, '-'), (month, 2, '-'), (day, 2, 'T'), (hour, 2, ':'), (minute, 2, ':')]
    {
        push_digits(out, number, width);
        out.push(after);
    }
    push_digits(out, second, 2);
    if millis != 0 {
        out.push('.');
        push_digits(out, millis, 3);
        out.truncate(out.trim_end_matches('0').len());
    }
    out.push('Z');
}

fn push_digits(out: &mut String, number: i64, width: u32) {
    for place in (0..width).rev() {
        out.push(char::from(b'0' + (number / 10_i64.pow(place) % 10) as u8));
    }
}

/// Parses `250ms 10s 5m 24h 7d`: a whole number and one unit. `None` when it is anything else.
pub fn parse_duration(text: &str) -> Option<Millis> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let count: i64 = text[..unit_at].parse().ok()?;
    let unit = match &text[unit_at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => HOUR,
        "d" => DAY,
        _ => return None,
    };
    count.checked_mul(unit).filter(|d| *d <= MAX)
}

/// The shortest spelling that [`parse_duration`] reads back.
pub fn format_duration(d: Millis) -> String {
    for (unit, name) in [(DAY, "d"), (HOUR, "h"), (60_000, "m"), (1000, "s")] {
        if d != 0 && d % unit == 0 {
            return format!("{}{name}", d / unit);
        }
    }
    format!("{d}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_edges() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1969-12-31T23:59:59.9999Z", Some(-1)),
            ("2013-07-01T10:00:00.5-04:00", Some(1_372_687_200_500)),
            ("2016-12-31T23:59:60Z", None),
            ("2015-02-29T00:00:00Z", None),
            ("2016-02-29t00:00:00z", Some(1_456_704_000_000)),
            ("0001-01-01T00:00:00Z", Some(MIN)),
            ("0001-01-01T00:00:00+00:01", None),
            ("9999-12-31T23:59:59.999999Z", Some(MAX)),
            ("9999-12-31T23:59:59-00:01", None),
            ("1970-01-01T00:00:00.Z", None),
            ("1970-01-01T00:00:00", None),
            ("1970-01-01T00:00:00+0100", None),
            ("+970-01-01T00:00:00Z", None),
        ] {
            assert_eq!(parse_rfc3339(text, None), want, "{text}");
        }
    }

    #[test]
    fn local_times_take_the_offset_before_a_change() {
        let zone = TimeZone::get("America/New_York").expect("bundled zone");
        let at = |text| parse_rfc3339(text, Some(&zone)).map(format_rfc3339);
        assert_eq!(at("2013-07-01 10:00:00").as_deref(), Some("2013-07-01T14:00:00Z"));
        // Skipped: 02:30 on 2013-03-10 with the offset −5 of before.
        assert_eq!(at("2013-03-10T02:30:00").as_deref(), Some("2013-03-10T07:30:00Z"));
        // Repeated: 01:30 on 2013-11-03 with the offset −4 of before.
        assert_eq!(at("2013-11-03T01:30:00").as_deref(), Some("2013-11-03T05:30:00Z"));
        assert_eq!(at("2013-11-03T01:30:00Z").as_deref(), Some("2013-11-03T01:30:00Z"));
    }

    #[test]
    fn agrees_with_jiff_from_the_year_1_to_9999() {
        let mut t = MIN;
        while t <= MAX - 2 * DAY {
            let text = format_rfc3339(t);
            let jiff: jiff::Timestamp = text.parse().expect("jiff reads it");
            assert_eq!(jiff.as_millisecond(), t, "{text}");
            assert_eq!(parse_rfc3339(&text, None), Some(t), "{text}");
            t += 5 * DAY + 12_345_678;
        }
    }

    #[test]
    fn the_last_day_of_the_year_9999_is_a_day() {
        let zone = TimeZone::get("America/New_York").expect("bundled zone");
        let at = parse_rfc3339("9999-12-31T00:00:00", Some(&zone)).expect("a time");
        assert_eq!(format_rfc3339(at), "9999-12-31T05:00:00Z");
        let local = civil_in(at, &zone).expect("in the year 9999");
        assert_eq!((local.month(), local.day(), local.hour()), (12, 31, 0));
        assert_eq!(start_of_day(local.date(), &zone), Some(at));
        assert_eq!(start_of_day(local.date(), &TimeZone::UTC), Some(MAX + 1 - DAY));
    }

    #[test]
    fn durations() {
        for (text, want) in
            [("250ms", Some(250)), ("24h", Some(DAY)), ("7d", Some(7 * DAY)), ("1", None), ("h", None)]
        {
            assert_eq!(parse_duration(text), want, "{text}");
        }
        assert_eq!(format_duration(90_000), "90s");
        assert_eq!(format_duration(DAY), "1d");
    }
}
