//! Values and statuses of on-demand features (SEMANTICS §5, below the table at its end).

use crate::expr::Val;
use crate::model::Value;
use crate::topology::OnDemand;

pub use crate::task::{Cell, CellStatus as Status};

/// The cell of an on-demand feature from its input cells (features only) and all input values.
pub(super) fn on_demand(feature: &OnDemand, inputs: &[&Cell], values: &[Val<'_>]) -> Cell {
    let timestamp = inputs.iter().map(|c| c.timestamp).max().unwrap_or(0);
    let or_default = || feature.default.clone();
    let has = |status: Status| inputs.iter().any(|c| c.status == status);
    if has(Status::Degraded) {
        let value = or_default().unwrap_or_default();
        return Cell { value, status: Status::Degraded, timestamp };
    }
    if has(Status::OutOfRange) {
        return Cell { value: Value::Null, status: Status::OutOfRange, timestamp };
    }
    let value = feature.expr.eval(values).to_value();
    let (value, status) = match (value, or_default()) {
        (Value::Null, Some(default)) => (default, Status::Defaulted),
        (Value::Null, None) => (Value::Null, Status::NullValue),
        (value, _) if has(Status::Warming) => (value, Status::Warming),
        (value, _) if has(Status::Approximate) => (value, Status::Approximate),
        (value, _) => (value, Status::Present),
    };
    Cell { value, status, timestamp }
}
