//! This file reads numbers by their decimal text, digit by digit (SEMANTICS §3).

/// An exponent that is far beyond every type, and still far from the end of its own.
const FAR: i64 = 1_000_000_000_000;

/// A decimal number: its digits, times a power of ten.
struct Decimal {
    is_negative: bool,
    /// Digits without zeros at either end; the number 0 has none.
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Takes the text of a JSON number apart.
    fn of(text: &str) -> Self {
        let (mantissa, written) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let is_negative = mantissa.starts_with('-');
        let unsigned = mantissa.trim_start_matches('-');
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let all = format!("{whole}{fraction}");
        let significant = all.trim_end_matches('0');
        let dropped = all.len() - significant.len();
        Self {
            is_negative,
            digits: significant.trim_start_matches('0').to_owned(),
            exponent: exponent(written) + dropped as i64 - fraction.len() as i64,
        }
    }

    fn signed(&self, magnitude: i128) -> i128 {
        if self.is_negative { -magnitude } else { magnitude }
    }
}

fn exponent(written: &str) -> i64 {
    let is_negative = written.starts_with('-');
    let digits = written.trim_start_matches(['+', '-']).trim_start_matches('0');
    // What does not parse is zero: its zeros have been trimmed away.
    let magnitude = if digits.len() > 12 { FAR } else { digits.parse().unwrap_or(0) };
    if is_negative { -magnitude } else { magnitude }
}

/// `digits` with `zeros` zeros behind them; there are few enough of both.
fn whole(digits: &str, zeros: i64) -> Option<i128> {
    let power = 10_i128.checked_pow(u32::try_from(zeros).ok()?)?;
    digits.parse::<i128>().ok()?.checked_mul(power)
}

/// The number, when it is integral and fits an int64.
pub(super) fn to_int64(text: &str) -> Option<i64> {
    let decimal = Decimal::of(text);
    if decimal.digits.is_empty() {
        return Some(0);
    }
    if decimal.exponent < 0 || decimal.digits.len() as i64 + decimal.exponent > 20 {
        return None;
    }
    let magnitude = whole(&decimal.digits, decimal.exponent)?;
    i64::try_from(decimal.signed(magnitude)).ok()
}

/// The greatest integer that is not above the number times 10 to the power of `shift`, unless it
/// is absurdly far from zero.
pub(super) fn scaled_floor(text: &str, shift: i64) -> Option<i128> {
    let decimal = Decimal::of(text);
    if decimal.digits.is_empty() {
        return Some(0);
    }
    let exponent = decimal.exponent + shift;
    let digits_before_point = decimal.digits.len() as i64 + exponent;
    if digits_before_point > 30 {
        return None;
    }
    if exponent >= 0 {
        return Some(decimal.signed(whole(&decimal.digits, exponent)?));
    }
    let magnitude = match usize::try_from(digits_before_point) {
        Ok(count) if count > 0 => whole(&decimal.digits[..count], 0)?,
        _ => 0,
    };
    // The last digit is not zero and stands behind the point, so that a fraction is cut off.
    Some(if decimal.is_negative { -magnitude - 1 } else { magnitude })
}

/// Length of the JSON number at the start of `bytes`.
pub(super) fn json_number_length(bytes: &[u8]) -> Option<usize> {
    let digits_from = |from: usize| bytes.iter().skip(from).take_while(|byte| byte.is_ascii_digit()).count();
    let start = usize::from(bytes.first() == Some(&b'-'));
    let whole = if bytes.get(start) == Some(&b'0') { 1 } else { digits_from(start) };
    if whole == 0 {
        return None;
    }
    let mut end = start + whole;
    if bytes.get(end) == Some(&b'.') {
        let fraction = digits_from(end + 1);
        if fraction == 0 {
            return None;
        }
        end += 1 + fraction;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let digits = digits_from(end + 1 + sign);
        if digits == 0 {
            return None;
        }
        end += 1 + sign + digits;
    }
    Some(end)
}

/// Whether all of `text` is a JSON number.
pub(super) fn is_json_number(text: &str) -> bool {
    json_number_length(text.as_bytes()) == Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_by_their_decimal_text() {
        for text in ["5", "5.0", "5e0", "0.5e1", "50e-1", "5E+00"] {
            assert_eq!(to_int64(text), Some(5), "{text}");
        }
        assert_eq!(to_int64("9007199254740993.0"), Some(9_007_199_254_740_993));
        assert_eq!(to_int64("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(to_int64("9223372036854775808"), None);
        assert_eq!(to_int64("5.5"), None);
        assert_eq!(to_int64("1e400"), None);
        assert_eq!(to_int64("0e999999999999999"), Some(0));
        assert_eq!(to_int64("1000000000000000000000000000000e-30"), Some(1));
    }

    #[test]
    fn fractions_of_seconds_are_floored_to_the_millisecond() {
        assert_eq!(scaled_floor("1.9999", 3), Some(1999));
        assert_eq!(scaled_floor("-0.0001", 3), Some(-1));
        assert_eq!(scaled_floor("-1", 3), Some(-1000));
        assert_eq!(scaled_floor("-1.0009", 3), Some(-1001));
        assert_eq!(scaled_floor("-12.3456e2", 3), Some(-1_234_560));
        assert_eq!(scaled_floor("1e-9999", 3), Some(0));
        assert_eq!(scaled_floor("-1e-9999", 3), Some(-1));
        assert_eq!(scaled_floor("1e9999", 3), None);
    }
}
