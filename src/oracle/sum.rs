//! This file adds floats exactly: the result is the float nearest to the true sum.

/// 2⁻⁶⁴, by which floats shrink without losing digits that could matter beside huge ones.
const SHRINK: f64 = 1.0 / 18_446_744_073_709_551_616.0;

/// The sum of floats; none when it is not finite, or one of them is not.
pub(super) fn exact_sum(numbers: &[f64]) -> Option<f64> {
    if !numbers.iter().all(|number| number.is_finite()) {
        return None;
    }
    let sum = rounded(&parts(numbers.iter().copied()));
    if sum.is_finite() {
        return Some(sum + 0.0);
    }
    // Only a sum on the way was too large, perhaps.
    let sum = rounded(&parts(numbers.iter().map(|number| number * SHRINK))) / SHRINK;
    sum.is_finite().then_some(sum + 0.0)
}

/// The sum of the magnitudes; infinite when it is too large for a float.
pub(super) fn magnitude_sum(numbers: &[f64]) -> f64 {
    let magnitudes: Vec<f64> = numbers.iter().map(|number| number.abs()).collect();
    exact_sum(&magnitudes).unwrap_or(f64::INFINITY)
}

/// Floats, of ascending magnitude and without common digits, that have the same sum exactly
/// (Shewchuk 1997).
fn parts(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut parts: Vec<f64> = Vec::new();
    for number in numbers {
        let mut carried = number;
        let mut remaining = Vec::new();
        for part in parts {
            let (large, small) = if carried.abs() < part.abs() { (part, carried) } else { (carried, part) };
            let high = large + small;
            let low = small - (high - large);
            if low != 0.0 {
                remaining.push(low);
            }
            carried = high;
        }
        remaining.push(carried);
        parts = remaining;
    }
    parts
}

/// The float nearest to the sum of such parts.
fn rounded(parts: &[f64]) -> f64 {
    let mut rest = parts.iter().rev().copied();
    let mut sum = rest.next().unwrap_or(0.0);
    while let Some(part) = rest.next() {
        let high = sum + part;
        let low = part - (high - sum);
        sum = high;
        if low == 0.0 {
            continue;
        }
        // Halfway between two floats, the sign of what is left over decides.
        let next = rest.next().unwrap_or(0.0);
        if (low < 0.0 && next < 0.0) || (low > 0.0 && next > 0.0) {
            let doubled = low * 2.0;
            let other = sum + doubled;
            if other - sum == doubled {
                sum = other;
            }
        }
        break;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_what_cancels_out() {
        assert_eq!(exact_sum(&[1e16, 1.0, -1e16]), Some(1.0));
        assert_eq!(exact_sum(&[0.1; 10]), Some(1.0));
        assert_eq!(exact_sum(&[1.7e308, 1.7e308, -1.7e308]), Some(1.7e308));
        assert_eq!(exact_sum(&[1.7e308, 1.7e308]), None);
        assert_eq!(exact_sum(&[]), Some(0.0));
        assert_eq!(magnitude_sum(&[-1e308, 1e308]), f64::INFINITY);
    }
}
