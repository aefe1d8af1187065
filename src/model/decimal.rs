//! JSON numbers by their decimal text, without a detour through floats.

/// A JSON number scaled by a power of ten and floored to an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floored {
    /// The greatest integer not above the scaled number.
    pub floor: i128,
    /// Whether nothing was cut off.
    pub is_exact: bool,
}

/// `text · 10^scale`, floored. `None` when the result does not fit 37 digits.
///
/// `text` must be a well-formed JSON number.
///
/// ```
/// use thalweg::model::decimal::scaled;
/// assert_eq!(scaled("9007199254740993.0", 0).unwrap().floor, 9_007_199_254_740_993);
/// assert_eq!(scaled("-1.5", 0).unwrap().floor, -2);
/// assert_eq!(scaled("1.25e1", 1).unwrap().floor, 125);
/// ```
pub fn scaled(text: &str, scale: i64) -> Option<Floored> {
    let bytes = text.as_bytes();
    let (is_negative, bytes) = match bytes.first() {
        Some(b'-') => (true, &bytes[1..]),
        _ => (false, bytes),
    };
    let split = bytes.iter().position(|b| matches!(b, b'e' | b'E')).unwrap_or(bytes.len());
    let exponent = exponent_of(&bytes[(split + 1).min(bytes.len())..]);
    let mantissa = &bytes[..split];
    let point = mantissa.iter().position(|b| *b == b'.').unwrap_or(mantissa.len());
    let digits = || mantissa.iter().filter(|b| **b != b'.').map(|b| i128::from(*b - b'0'));
    // Digits that stand before the decimal point once everything is scaled.
    let whole = (point as i64).saturating_add(exponent).saturating_add(scale);
    let mut magnitude: i128 = 0;
    let mut is_exact = true;
    let mut position = 0_i64;
    for digit in digits() {
        if position < whole {
            magnitude = magnitude.checked_mul(10)?.checked_add(digit)?;
            if magnitude > LIMIT {
                return None;
            }
        } else if digit != 0 {
            is_exact = false;
        }
        position += 1;
    }
    if magnitude != 0 {
        for _ in position..whole {
            magnitude = magnitude.checked_mul(10).filter(|m| *m <= LIMIT)?;
        }
    }
    let floor = match (is_negative, is_exact) {
        (false, _) => magnitude,
        (true, true) => -magnitude,
        (true, false) => -magnitude - 1,
    };
    Some(Floored { floor, is_exact })
}

const LIMIT: i128 = 10_i128.pow(37);

fn exponent_of(bytes: &[u8]) -> i64 {
    let (sign, digits) = match bytes.first() {
        Some(b'-') => (-1, &bytes[1..]),
        Some(b'+') => (1, &bytes[1..]),
        _ => (1, bytes),
    };
    // A far exponent saturates: beyond it every non-zero number is out of range or below one.
    let magnitude = digits.iter().fold(0_i64, |n, b| (n * 10 + i64::from(*b - b'0')).min(1_000_000_000));
    sign * magnitude
}

/// The number as an `int64`, when it is integral and in range.
pub fn int64(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() <= 18 && bytes.iter().all(u8::is_ascii_digit) {
        return Some(bytes.iter().fold(0, |n, b| n * 10 + i64::from(*b - b'0')));
    }
    let floored = scaled(text, 0)?;
    if floored.is_exact { i64::try_from(floored.floor).ok() } else { None }
}

/// The nearest double, when it is finite; −0.0 becomes 0.0.
pub fn float64(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    number.is_finite().then_some(number + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_by_decimal_text() {
        for (text, want) in [
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("5e0", Some(5)),
            ("50e-1", Some(5)),
            ("0.5e1", Some(5)),
            ("-0.0", Some(0)),
            ("5.5", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("-9223372036854775808.0", Some(i64::MIN)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("1e400", None),
            ("1e-400", None),
            ("0e999999999999", Some(0)),
            ("1000000000000000000000e-20", Some(10)),
        ] {
            assert_eq!(int64(text), want, "{text}");
        }
    }

    #[test]
    fn floats_are_finite_and_have_one_zero() {
        assert_eq!(float64("1e309"), None);
        assert_eq!(float64("-0.0").map(f64::to_bits), Some(0));
        assert_eq!(float64("1.7976931348623157e308"), Some(f64::MAX));
    }
}
