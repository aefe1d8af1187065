//! Windows and aggregates, pure: events and `now` come in, values go out. Nothing here reads a
//! clock, a file or a row; rows come through [`Timeline`].

mod calendar;
mod evaluate;
pub mod events;
pub mod layout;
pub mod partial;
pub mod sketch;
mod span;
mod sum;
pub mod values;

use crate::error::Result;
use crate::model::Millis;

pub use calendar::Calendar;
pub use evaluate::{Answer, Feature, evaluate};
pub use events::{EventBuf, EventRef, Order};
pub use layout::{Layout, PartKind, Series};
pub use sketch::Sketch;
pub use span::{Fold, Span, reach};

/// A stretch of an entity's events, in order.
pub enum Piece<'a> {
    /// Partial aggregates of events that all lie in the range asked for.
    Summary(&'a [u64]),
    /// Events `from..to` of a buffer.
    Events(&'a EventBuf, usize, usize),
    /// What [`Step::Sketch`] has asked for.
    Sketch(&'a Sketch),
}

/// What a visitor wants after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next piece.
    Next,
    /// The events behind this summary.
    Descend,
    /// The sketch of this place in the layout's list, or the events where there is none.
    Sketch(usize),
    /// No more.
    Stop,
}

/// All events of one entity in one group.
pub trait Timeline {
    /// Visits what lies in `lo..=hi` in order, or in reverse order (pieces in reverse; the events
    /// of a piece are always stored ascending).
    ///
    /// # Errors
    /// A row that cannot be read.
    fn visit(
        &self,
        lo: Millis,
        hi: Millis,
        is_reverse: bool,
        visitor: &mut dyn FnMut(Piece<'_>) -> Step,
    ) -> Result<()>;

    /// Accumulators of the events that have left the timeline, and the values that first and last
    /// need of them.
    fn base(&self) -> Option<&partial::Base>;
}
