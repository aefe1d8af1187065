//! Fetching of partitions that nobody but its user gives and takes: a consumer that is in no group.

use std::collections::BTreeMap;
use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::assignment::Place;
use super::client::KafkaOptions;
use super::native::{CALL_MAX, Message, Queue};
use crate::log::batch::{HeldRecord, HeldRecords};
use crate::log::{Header, LogBatch};
use crate::model::Offset;

/// Bytes of memory of a record beside its key and value, about.
const RECORD_BYTES: usize = 350;

/// See the module.
pub(super) struct Fetcher {
    queue: Queue,
    fetched: BTreeMap<Place, Heard>,
}

/// What has been heard of a partition since it is fetched.
#[derive(Default)]
struct Heard {
    /// Anything at all. Until then librdkafka may still know it from before.
    is_any: bool,
    /// Offset of the last that was no record.
    said_at: Option<Offset>,
}

/// What has arrived of one partition.
#[derive(Debug)]
pub(super) struct Arrived {
    /// The partition.
    pub place: Place,
    /// Records, if there are any.
    pub batch: Option<LogBatch>,
    /// Offset behind everything that was committed when the partition's end was met. It passes marks
    /// of transactions and aborted records, which never arrive.
    pub end: Option<Offset>,
}

/// What has arrived, and what librdkafka reports.
#[derive(Debug)]
pub(super) struct Taken {
    /// By partition, each once.
    pub arrived: Vec<Arrived>,
    /// Of which partition, if of one, and what. librdkafka goes on by itself, but for
    /// [`RDKafkaErrorCode::AutoOffsetReset`], after which it fetches no more of the partition.
    pub errors: Vec<(Option<Place>, RDKafkaErrorCode)>,
}

impl Taken {
    /// What has arrived of the only partition, if anything has.
    ///
    /// # Errors
    /// What librdkafka reports.
    pub fn of_one(self) -> Result<Option<Arrived>, KafkaError> {
        match self.errors.first() {
            Some((_, code)) => Err(KafkaError::MessageConsumption(*code)),
            None => Ok(self.arrived.into_iter().next()),
        }
    }
}

impl Fetcher {
    /// Fetches nothing yet.
    ///
    /// # Errors
    /// A property is unknown.
    pub fn new(mut config: ClientConfig) -> Result<Self, KafkaError> {
        // Where batches are taken, librdkafka's own lines go to standard error, past our log. Other
        // clients report the same brokers.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        Ok(Self { queue: Queue::of(config.create()?)?, fetched: BTreeMap::new() })
    }

    /// Fetches one partition.
    ///
    /// # Errors
    /// A property is unknown.
    pub fn of(options: &KafkaOptions, topic: &str, partition: u32, from: Offset) -> Result<Self, KafkaError> {
        let mut fetcher = Self::new(options.reader())?;
        fetcher.add([((topic.to_owned(), partition), from)].into_iter())?;
        Ok(fetcher)
    }

    /// The consumer, for questions.
    pub fn consumer(&self) -> &BaseConsumer {
        self.queue.consumer()
    }

    /// Whether `place` is fetched.
    pub fn has(&self, place: &Place) -> bool {
        self.fetched.contains_key(place)
    }

    /// Fetches `places` as well, each from its offset on. After an error nothing is fetched.
    ///
    /// # Errors
    /// librdkafka refuses them.
    pub fn add(&mut self, places: impl Iterator<Item = (Place, Offset)>) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (place, from) in places {
            list.add_partition_offset(&place.0, place.1 as i32, KafkaOffset::Offset(from as i64))?;
            self.fetched.insert(place, Heard::default());
        }
        let added = self.consumer().incremental_assign(&list);
        if added.is_err() {
            self.fetched.clear();
            if let Err(error) = self.consumer().unassign() {
                tracing::error!("Kafka: unassign: {error}");
            }
        }
        added
    }

    /// Fetches those no longer that are not to be kept. Nothing more of them arrives.
    pub fn keep_only(&mut self, is_kept: impl Fn(&Place) -> bool) {
        let mut list = TopicPartitionList::new();
        self.fetched.retain(|place, _| {
            let is_kept = is_kept(place);
            if !is_kept {
                list.add_partition(&place.0, place.1 as i32);
            }
            is_kept
        });
        if list.count() > 0
            && let Err(error) = self.consumer().incremental_unassign(&list)
        {
            tracing::error!("Kafka: unassign: {error}");
        }
    }

    /// What has arrived, about `bytes_max` at most; waits up to `timeout` for the first of it.
    pub fn take(&mut self, timeout: Duration, bytes_max: usize) -> Taken {
        let (mut arriving, mut errors, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut patience = timeout;
        while bytes < bytes_max {
            let messages = self.queue.take(patience);
            let are_all = messages.len() < CALL_MAX;
            patience = Duration::ZERO;
            for message in messages {
                match message.error() {
                    Some(code) if code != RDKafkaErrorCode::PartitionEOF => {
                        let place = message.place();
                        if let Some(heard) = place.as_ref().and_then(|p| self.fetched.get_mut(p)) {
                            *heard = Heard { is_any: true, said_at: Some(message.offset()) };
                        }
                        errors.push((place, code));
                    }
                    said => bytes += arrive(&mut arriving, message, said.is_some()),
                }
            }
            if are_all {
                break;
            }
        }
        for (_, place, _, end) in &arriving {
            if let Some(heard) = self.fetched.get_mut(place) {
                *heard = Heard { is_any: true, said_at: end.or(heard.said_at) };
            }
        }
        let arrived = arriving.into_iter().map(|(_, place, held, end)| Arrived {
            place,
            batch: LogBatch::of_held(Box::new(held)),
            end,
        });
        Taken { arrived: arrived.collect(), errors }
    }

    /// Next offsets, behind all that was taken and behind marks of transactions that follow it. Where
    /// commits follow each other closely the end of a partition is never met, and only this passes
    /// the last of them.
    pub fn positions(&self) -> Vec<(Place, Offset)> {
        let Ok(positions) = self.consumer().position() else { return Vec::new() };
        let elements = positions.elements();
        let known = elements.iter().filter_map(|element| {
            let KafkaOffset::Offset(at) = element.offset() else { return None };
            let place = (element.topic().to_owned(), element.partition() as u32);
            let heard = self.fetched.get(&place).filter(|heard| heard.is_any)?;
            let at = at as Offset;
            // Batches of librdkafka 2.12 take what is said at an offset for a record there.
            let is_said = heard.said_at.is_some_and(|said| said + 1 == at);
            Some((place, if is_said { at - 1 } else { at }))
        });
        known.collect()
    }
}

type Arriving = ((usize, i32), Place, Held, Option<Offset>);

/// Adds a record, or the end of its partition. Returns bytes of memory, about.
fn arrive(arriving: &mut Vec<Arriving>, message: Message, is_end: bool) -> usize {
    // Messages of one partition come in runs.
    let source = message.source();
    let index = match arriving.iter().rposition(|a| a.0 == source) {
        Some(index) => index,
        None => {
            let Some(place) = message.place() else { return 0 };
            arriving.push((source, place, Held::default(), None));
            arriving.len() - 1
        }
    };
    let (_, _, held, end) = &mut arriving[index];
    if is_end {
        *end = Some(message.offset());
        return 0;
    }
    let bytes =
        [message.key(), message.value()].iter().flatten().map(|b| b.len()).sum::<usize>() + RECORD_BYTES;
    held.bytes += bytes;
    held.messages.push(message);
    bytes
}

/// Records as librdkafka holds them.
#[derive(Default)]
struct Held {
    messages: Vec<Message>,
    bytes: usize,
}

impl Debug for Held {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{} messages", self.messages.len())
    }
}

impl HeldRecords for Held {
    fn len(&self) -> usize {
        self.messages.len()
    }

    fn size(&self) -> usize {
        self.bytes
    }

    fn record(&self, index: usize) -> HeldRecord<'_> {
        let message = &self.messages[index];
        (message.offset(), message.time(), message.key(), message.value())
    }

    fn headers(&self, index: usize) -> Vec<Header> {
        self.messages[index].headers()
    }
}
