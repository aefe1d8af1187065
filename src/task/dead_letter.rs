//! Records that are kept aside with the reason: key, value and headers as they came, and headers
//! in Kafka Connect's names.

use crate::codec::Reason;
use crate::log::RecordView;
use crate::model::{Record, partition_of};

/// Where a record came from.
pub(super) struct Provenance<'a> {
    pub app: &'a str,
    pub topic: &'a str,
    pub partition: u32,
    pub source: &'a str,
}

/// Most headers that are kept of a record.
const HEADERS_MAX: usize = 60_000;

/// The dead letter of `record`, and its partition among `partitions`.
pub(super) fn dead_letter(
    record: RecordView<'_>,
    from: &Provenance<'_>,
    reason: Reason,
    detail: &str,
    partitions: u32,
) -> (u32, Record) {
    let mut letter = record.to_record();
    // The reason comes last, and must not be what is left out.
    letter.headers.truncate(HEADERS_MAX);
    let placed_by = letter.key.as_deref().or(letter.value.as_deref()).unwrap_or_default();
    let partition = partition_of(placed_by, partitions);
    let mut add = |name: &str, value: String| letter.headers.push((name.to_owned(), value.into_bytes()));
    add("__connect.errors.topic", from.topic.to_owned());
    add("__connect.errors.partition", from.partition.to_string());
    add("__connect.errors.offset", record.offset.to_string());
    add("__connect.errors.connector.name", from.app.to_owned());
    add("__connect.errors.task.id", from.partition.to_string());
    add("__connect.errors.stage", "SOURCE".to_owned());
    add("__connect.errors.exception.class.name", format!("thalweg.{}", reason.name()));
    add("__connect.errors.exception.message", detail.to_owned());
    add("thalweg.reason", reason.name().to_owned());
    add("thalweg.detail", detail.to_owned());
    add("thalweg.source", from.source.to_owned());
    (partition, letter)
}
