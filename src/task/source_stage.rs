//! The source stage: judges records in the order of their partition (SEMANTICS §2, PROTOCOL 40).
//! Its verdicts depend on the record and the stream time before it, on nothing else.

use std::sync::Arc;

use super::{Coverage, SourceProgress, TaskGroup};
use crate::codec::decoder::key_part;
use crate::codec::json::Raw;
use crate::codec::{Decoded, Reason, SourceDecoder};
use crate::expr::Val;
use crate::log::RecordView;
use crate::model::key::{KeyPart, record_key};
use crate::model::{Millis, Offset};
use crate::operator::{EventBuf, Order};
use crate::state::put_unit_prefix;
use crate::topology::{Group, Source};

/// What became of a record.
pub(super) enum Verdict<'a> {
    /// A tombstone that the source ignores.
    Ignored,
    /// Unusable, or late; the sentence says why.
    Refused(Reason, String),
    /// An event, its advance, and the stream time before it.
    Accepted { event: Decoded<'a>, advance: Millis, stream_time: Millis },
}

/// Judges the records of one source on one partition.
pub(super) struct SourceStage {
    pub source: Arc<Source>,
    decoder: SourceDecoder,
    /// Allocations of the last event, for the next.
    raws: Vec<Raw<'static>>,
    variables: Vec<Val<'static>>,
}

/// The allocation of `used` for values that live elsewhere: collecting in place keeps it.
fn emptied<From, To: Default>(mut used: Vec<From>) -> Vec<To> {
    used.clear();
    used.into_iter().map(|_| To::default()).collect()
}

/// What a group makes of an accepted event.
pub(super) enum Projection {
    NoEntity,
    Filtered,
    Projected,
}

impl SourceStage {
    pub fn new(source: &Arc<Source>) -> Self {
        let decoder = SourceDecoder::new(source);
        Self { source: Arc::clone(source), decoder, raws: Vec::new(), variables: Vec::new() }
    }

    /// Judges `record` after everything that made `progress`, and moves its stream time.
    pub fn judge<'a>(&mut self, record: RecordView<'a>, progress: &mut SourceProgress) -> Verdict<'a> {
        if record.value.is_none() && self.source.ignores_tombstones {
            return Verdict::Ignored;
        }
        let mut raws = emptied(std::mem::take(&mut self.raws));
        let variables = emptied(std::mem::take(&mut self.variables));
        let decoded = self.decoder.decode(record.value, record.time, &mut raws, variables);
        self.raws = emptied(raws);
        let event = match decoded {
            Ok(event) => event,
            Err((reason, detail)) => return Verdict::Refused(reason, detail),
        };
        if let Some(stream_time) = progress.stream_time
            && event.time < stream_time.saturating_sub(self.source.grace)
        {
            let behind = (stream_time - event.time) / 1000;
            return Verdict::Refused(Reason::Late, format!("{behind} s behind stream time"));
        }
        let advance = event.time.min(record.time);
        let stream_time = progress.stream_time.unwrap_or(Millis::MIN);
        progress.stream_time = Some(stream_time.max(advance));
        if progress.coverage == Coverage::Nothing {
            progress.coverage = Coverage::From(event.time);
        }
        Verdict::Accepted { event, advance, stream_time }
    }

    /// Takes back what an event was allocated in.
    pub fn recycle(&mut self, event: Decoded<'_>) {
        self.variables = emptied(event.variables);
    }
}

/// Key and event of a group, reused from record to record.
#[derive(Debug, Default)]
pub(super) struct Projector {
    /// Prefix of the unit's rows.
    pub prefix: Vec<u8>,
    /// The event.
    pub event: EventBuf,
}

fn key_parts<'a>(group: &Group, event: &'a Decoded<'_>) -> Option<Vec<KeyPart<'a>>> {
    group.key.iter().map(|v| key_part(&event.variables[*v])).collect()
}

/// Bytes that choose the partition of the entity of `event`.
pub(super) fn routing_key(group: &Group, event: &Decoded<'_>) -> Vec<u8> {
    let mut key = Vec::new();
    if let Some(parts) = key_parts(group, event) {
        record_key(&parts, &mut key);
    }
    key
}

impl Projector {
    /// Projects an accepted event of `partition` and `offset` for a group.
    pub fn project(
        &mut self,
        to: &TaskGroup,
        event: &Decoded<'_>,
        partition: u32,
        offset: Offset,
    ) -> Projection {
        let group = &*to.group;
        self.prefix.clear();
        put_unit_prefix(to.id, &[], &mut self.prefix);
        for variable in &group.key {
            match key_part(&event.variables[*variable]) {
                Some(part) => part.encode(&mut self.prefix),
                None => return Projection::NoEntity,
            }
        }
        if group.filter.as_ref().is_some_and(|f| !f.eval(&event.variables).is_true()) {
            return Projection::Filtered;
        }
        let order = Order::new(event.time, partition, offset);
        let columns = group.columns.iter().map(|c| c.eval(&event.variables));
        let flags = group.flags.iter().map(|f| f.eval(&event.variables).is_true());
        self.event.set_single(&group.layout, order, flags, columns);
        Projection::Projected
    }
}
