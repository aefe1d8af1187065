//! Which event times a feature covers at `now`.

use super::calendar::Calendar;
use super::evaluate::Feature;
use super::layout::{Layout, PartKind};
use super::{Piece, Step, Timeline};
use crate::error::Result;
use crate::model::{Aggregate, Millis};

/// First and last event time.
pub(super) type Range = (Millis, Millis);

/// The span of events that a feature covers, resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Span {
    /// See `config::definitions::WindowDef`.
    Sliding {
        /// Nominal length.
        length: Millis,
        /// Tile width.
        tile: Option<Millis>,
    },
    /// The last complete hop.
    Hopping {
        /// Length.
        length: Millis,
        /// Hop.
        hop: Millis,
    },
    /// The current calendar unit.
    Since(Calendar),
    /// The current session.
    Session {
        /// Largest distance of neighbours.
        gap: Millis,
        /// Longest session.
        max: Millis,
    },
    /// All of the past.
    Lifetime,
}

/// When and how events are folded into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    /// How long events are kept one by one behind the row clock.
    pub after: Millis,
    /// Width of a tile: no tiled window begins within one.
    pub width: Millis,
}

impl Fold {
    /// Number of the tile of an event time.
    pub fn tile_of(self, time: Millis) -> i64 {
        time.div_euclid(self.width)
    }

    /// The first event time that is not to be folded while the row clock is this.
    pub fn limit(self, row_clock: Millis) -> Millis {
        self.tile_of(row_clock.saturating_sub(self.after)).saturating_mul(self.width)
    }
}

/// How far back from `now` a feature may look; `None`: without end.
pub fn reach(feature: &Feature) -> Option<Millis> {
    let span = match &feature.span {
        Span::Sliding { length, tile } => length + tile.unwrap_or(0),
        Span::Hopping { length, hop } => length + hop,
        Span::Since(calendar) => calendar.longest(),
        Span::Session { gap, max } => max + gap,
        Span::Lifetime => return None,
    };
    let gap = if feature.aggregate == Aggregate::SessionCount { feature.millis } else { 0 };
    Some(span + gap)
}

impl Feature {
    /// First and last event time covered at `now`; `None`: nothing.
    pub(super) fn range(
        &self,
        layout: &Layout,
        timeline: &dyn Timeline,
        now: Millis,
    ) -> Result<Option<Range>> {
        Ok(match &self.span {
            Span::Sliding { length, tile: None } => Some((now - length + 1, now)),
            Span::Sliding { length, tile: Some(w) } => Some(((now - length).div_euclid(*w) * w, now)),
            Span::Hopping { length, hop } => {
                let end = now.div_euclid(*hop) * hop;
                Some((end - length, end - 1))
            }
            Span::Since(calendar) => Some((calendar.start(now), now)),
            Span::Lifetime => Some((Millis::MIN, now)),
            Span::Session { gap, max } => session(layout, timeline, self.series, now, *gap, *max)?,
        })
    }

    /// The first event time at which an event could have a say in the value at `now`, which was
    /// computed over `range`.
    pub(super) fn oldest(&self, range: Option<Range>, now: Millis) -> Millis {
        match (&self.span, range) {
            (Span::Session { gap, max }, Some((start, end))) => (start - gap).max(end - max + 1),
            (Span::Session { gap, .. }, None) => now.saturating_sub(*gap),
            (_, range) => {
                let gap = if self.aggregate == Aggregate::SessionCount { self.millis } else { 0 };
                range.map_or(now, |(start, _)| start.saturating_sub(gap))
            }
        }
    }
}

/// The span of the session of series `index` that is current at `now`.
fn session(
    layout: &Layout,
    timeline: &dyn Timeline,
    index: usize,
    now: Millis,
    gap: Millis,
    max: Millis,
) -> Result<Option<Range>> {
    let series = &layout.series[index];
    let (times, breaks) = match (series.part(&PartKind::Times), series.part(&PartKind::Breaks(gap))) {
        (Some(times), Some(breaks)) => (times, breaks),
        _ => return Ok(None),
    };
    let mut newest: Option<Millis> = None;
    let mut start = now;
    let farthest = now.saturating_sub(gap).saturating_sub(max);
    timeline.visit(farthest, now, true, &mut |piece| match piece {
        Piece::Summary(words) => {
            if words[series.count_at] == 0 {
                return Step::Next;
            }
            let (first, last) = (words[times] as Millis, words[times + 1] as Millis);
            let Some(end) = newest else {
                return Step::Descend;
            };
            if start - last > gap {
                return Step::Stop;
            }
            if words[breaks] > 0 || first <= end - max {
                return Step::Descend;
            }
            start = first;
            Step::Next
        }
        Piece::Sketch(_) => Step::Next,
        Piece::Events(buf, from, to) => {
            for i in (from..to).rev() {
                let event = buf.get(layout, i);
                if !event.is_in(index) {
                    continue;
                }
                let time = event.time();
                let end = *newest.get_or_insert(time);
                if now - end > gap || (start - time > gap && end != time) || time <= end - max {
                    return Step::Stop;
                }
                start = time;
            }
            Step::Next
        }
    })?;
    Ok(newest.filter(|end| now - end <= gap).map(|end| (start, end)))
}
