//! This file holds the rule of equality for ordinary features (SEMANTICS §5).

use crate::model::Value;

use super::values::entry;

/// Scale of a cell whose value must be identical, floats included: of `min`, `max`, `first`,
/// `last`, of lists and of defaults.
pub const IDENTICAL: f64 = -1.0;

/// Distance of two floats that are equal, relative to the larger of them and the scale.
const TOLERANCE: f64 = 1e-9;

/// Whether the value `theirs` of a feature equals `ours`, whose cell has this `scale`.
///
/// Floats may differ by rounding unless the scale is [`IDENTICAL`]; everything else, lists and
/// maps of floats included, must be identical. A float that must not leave, which is an infinity,
/// no number or −0.0, equals nothing.
pub fn is_equal(ours: &Value, theirs: &Value, scale: f64) -> bool {
    match (ours, theirs) {
        (Value::Float(left), Value::Float(right)) if scale >= 0.0 => {
            let largest = left.abs().max(right.abs()).max(scale);
            is_presentable(*right) && (left - right).abs() <= TOLERANCE * largest
        }
        _ => is_identical(ours, theirs),
    }
}

fn is_presentable(number: f64) -> bool {
    number.is_finite() && !(number == 0.0 && number.is_sign_negative())
}

fn is_identical(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Float(left), Value::Float(right)) => is_presentable(*right) && left == right,
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len()
                && left.iter().zip(right.iter()).all(|(left, right)| is_identical(left, right))
        }
        (Value::Map(left), Value::Map(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .all(|(name, left)| entry(right, name).is_some_and(|right| is_identical(left, right)))
        }
        _ => ours == theirs,
    }
}
