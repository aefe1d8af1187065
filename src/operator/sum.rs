//! Compensated sums that do not overflow on the way.
//!
//! Neumaier's variant of Kahan's algorithm (A. Neumaier, 1974) on two scales: numbers of 2^900
//! and above are summed divided by 2^200, so that a sum whose result is finite is found although
//! its partial sums are not. Four words: sum and compensation, then the same of scaled numbers.

/// Numbers from here on are summed scaled.
const BIG: f64 = 8.452_712_498_170_644e270; // 2^900
/// The scale: 2^−200.
const SCALE: f64 = 6.223_015_277_861_142e-61;

fn add_to(pair: &mut [u64], x: f64) {
    let sum = f64::from_bits(pair[0]);
    let total = sum + x;
    let lost = if sum.abs() >= x.abs() { (sum - total) + x } else { (x - total) + sum };
    pair[0] = total.to_bits();
    pair[1] = (f64::from_bits(pair[1]) + lost).to_bits();
}

/// Adds `x`.
pub(super) fn add(words: &mut [u64], x: f64) {
    if x.abs() < BIG {
        add_to(&mut words[..2], x);
    } else {
        add_to(&mut words[2..4], x * SCALE);
    }
}

/// Adds another sum. A small total that has grown past [`BIG`] moves to the large scale.
pub(super) fn merge(words: &mut [u64], other: &[u64]) {
    for word in &other[..2] {
        add(words, f64::from_bits(*word));
    }
    for word in &other[2..4] {
        add_to(&mut words[2..4], f64::from_bits(*word));
    }
}

/// Adds `x` to a sum of two words, one of each scale, that is not compensated.
pub(super) fn add_plain(words: &mut [u64], x: f64) {
    let (slot, x) = if x.abs() < BIG { (0, x) } else { (1, x * SCALE) };
    words[slot] = (f64::from_bits(words[slot]) + x).to_bits();
}

/// Adds another such sum.
pub(super) fn merge_plain(words: &mut [u64], other: &[u64]) {
    add_plain(words, f64::from_bits(other[0]));
    words[1] = (f64::from_bits(words[1]) + f64::from_bits(other[1])).to_bits();
}

/// Multiplies such a sum.
pub(super) fn scale_plain(words: &mut [u64], by: f64) {
    for word in &mut words[..2] {
        *word = (f64::from_bits(*word) * by).to_bits();
    }
}

/// The value of such a sum; infinite when it is out of range.
pub(super) fn total_plain(words: &[u64]) -> f64 {
    total(&[words[0], 0, words[1], 0])
}

/// The sum; infinite when it is out of range.
pub(super) fn total(words: &[u64]) -> f64 {
    let small = f64::from_bits(words[0]) + f64::from_bits(words[1]);
    let big = f64::from_bits(words[2]) + f64::from_bits(words[3]);
    if big == 0.0 {
        return small;
    }
    (big + small * SCALE) / SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_powers_of_two() {
        assert_eq!(BIG, 2_f64.powi(900));
        assert_eq!(SCALE, 2_f64.powi(-200));
    }

    #[test]
    fn finite_results_survive_infinite_partial_sums() {
        let mut words: [u64; 4] = [0; 4];
        for x in [1e308, 1e308, 1e308, -1e308, -1e308] {
            add(&mut words, x);
        }
        assert!((total(&words) / 1e308 - 1.0).abs() < 1e-12);
        assert!(total(&[0, 0, (1e308 * SCALE * 2.0).to_bits(), 0]).is_infinite());
    }

    #[test]
    fn small_parts_are_not_lost() {
        let mut words: [u64; 4] = [0; 4];
        for x in [1.0, 1e100, 1.0, -1e100] {
            add(&mut words, x);
        }
        assert_eq!(total(&words), 2.0);
    }
}
