//! The log on Kafka. Nothing outside this folder knows rdkafka.

mod assignment;
mod changelog;
mod client;
mod committer;
mod fetcher;
mod native;
mod offsets;
mod polled;
mod producer;
mod session;
mod table;
mod topics;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header as KafkaHeader, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext};

use fetcher::Fetcher;
use polled::Polled;

use super::{Append, Log, LogBatch, made_anew};
use crate::error::{Error, Result};
use crate::model::Offset;

pub use changelog::{BARRIER_KEY, Following};
pub use client::KafkaOptions;
pub use session::KafkaSession;
pub use table::{PartitionReader, TableRow};
pub use topics::TopicKind;
use topics::Topics;

/// Longest wait for an answer of a broker.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for ends of partitions that are shown to somebody.
const SOON: Duration = Duration::from_secs(1);
/// Longest wait for brokers that were never reached, before that is said.
const REACH: Duration = Duration::from_secs(5);
/// Time for what a client has to say.
const HEARING: Duration = Duration::from_millis(50);
/// What helps against partitions that were added.
const WIDENED: &str = "keys go to other partitions now than those that have their state: make a topic with \
                       as many, copy the records into it, and read it under another `app`";

fn failed(what: &str) -> impl FnOnce(KafkaError) -> Error + '_ {
    move |e| refused_property(&e).unwrap_or_else(|| Error::unavailable(format!("{what}: {e}")))
}

/// A property that librdkafka does not take, without its value: it may be a secret.
fn refused_property(error: &KafkaError) -> Option<Error> {
    let KafkaError::ClientConfig(_, why, name, value) = error else { return None };
    let why = if value.is_empty() { why.clone() } else { why.replace(value.as_str(), "***") };
    let message = format!("`log.kafka.properties` sets `{name}`: {why}");
    Some(Error::invalid(message).with_hint("properties are those of librdkafka"))
}

/// What all workers and readers share of Kafka.
pub struct KafkaLog {
    options: KafkaOptions,
    topics: Topics,
    /// Reads metadata and watermarks as they are, not only what is committed.
    probe: Probe,
    /// The same, as far as no transaction is open.
    stable_probe: BaseConsumer,
    partitions: RwLock<HashMap<String, u32>>,
    /// Ends of partitions as they were known last.
    ends: Mutex<HashMap<(String, u32), Offset>>,
    /// Ids of topics as they were found first.
    topic_ids: Mutex<HashMap<String, String>>,
    /// Made anew when librdkafka has given up on it.
    appender: RwLock<Arc<Appender>>,
    appends: Arc<Pending>,
    next_append: AtomicU64,
}

type Appender = Polled<Acknowledgements>;
type Probe = BaseConsumer<Reasons>;

/// What librdkafka has said last of connections that fail: its errors only say that they do.
struct Reasons(Arc<Mutex<String>>);

impl ClientContext for Reasons {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if matches!(facility, "FAIL" | "SASL" | "SSL") {
            *self.0.lock() = format!(" ({text})");
        }
        tracing::debug!("Kafka: {level:?} {facility}: {text}");
    }
}

impl ConsumerContext for Reasons {}

/// Appends whose acknowledgement is awaited, by number.
#[derive(Default)]
struct Pending {
    waiting: Mutex<HashMap<u64, PendingAppend>>,
    changed: Condvar,
}

#[derive(Default)]
struct PendingAppend {
    records: usize,
    done: usize,
    error: Option<String>,
    positions: BTreeMap<u32, Offset>,
}

struct Acknowledgements(Arc<Pending>);

impl ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let mut waiting = self.0.waiting.lock();
        let Some(append) = waiting.get_mut(&(number as u64)) else { return };
        append.done += 1;
        match result {
            Ok(message) => {
                let next = message.offset() as Offset + 1;
                let at = append.positions.entry(message.partition() as u32).or_default();
                *at = next.max(*at);
            }
            Err((error, _)) => append.error = Some(error.to_string()),
        }
        self.0.changed.notify_all();
    }
}

impl KafkaLog {
    /// Reaches the brokers.
    ///
    /// # Errors
    /// None answers, or a property is unknown or reserved.
    pub fn connect(options: KafkaOptions) -> Result<Self> {
        options.check()?;
        let said = Arc::new(Mutex::new(String::new()));
        let unreachable = |e: KafkaError| {
            if let Some(refused) = refused_property(&e) {
                return refused;
            }
            let (brokers, said) = (options.brokers.join(","), said.lock());
            Error::unavailable(format!("Kafka at {brokers} does not answer: {e}{said}"))
                .with_hint("check log.kafka.brokers and log.kafka.properties")
        };
        let reasons = Reasons(Arc::clone(&said));
        let probe: Probe = options.probe().create_with_context(reasons).map_err(unreachable)?;
        let stable_probe: BaseConsumer = options.reader().create().map_err(unreachable)?;
        probe.fetch_metadata(Some("__none"), REACH).map_err(|error| {
            // What it has to say of that is said when it is asked.
            while probe.poll(HEARING).is_some() {}
            unreachable(error)
        })?;
        let appends = Arc::new(Pending::default());
        let context = Acknowledgements(Arc::clone(&appends));
        let appender = Polled::new(&options.appender(), context).map_err(unreachable)?;
        let topics = Topics::new(&options.probe())?;
        Ok(Self {
            options,
            topics,
            probe,
            stable_probe,
            partitions: RwLock::default(),
            ends: Mutex::default(),
            topic_ids: Mutex::default(),
            appender: RwLock::new(Arc::new(appender)),
            appends,
            next_append: AtomicU64::new(1),
        })
    }

    /// How it is reached.
    pub fn options(&self) -> &KafkaOptions {
        &self.options
    }

    /// Makes sure that `topic` exists, with `partitions` if a number is given.
    ///
    /// # Errors
    /// It cannot be made, or has another number of partitions.
    pub fn ensure_topic(&self, topic: &str, partitions: Option<u32>, kind: TopicKind) -> Result<u32> {
        if self.fetch_partitions(topic)?.is_some() {
            self.topics.check(topic, kind)?;
        } else {
            let wanted = partitions.or(self.options.partitions).map_or(-1, |n| n as i32);
            self.topics.create(topic, wanted, kind)?;
        }
        let deadline = Instant::now() + TIMEOUT;
        // The broker that answers may not have heard of a new topic yet.
        let found = loop {
            if let Some(found) = self.fetch_partitions(topic)? {
                break found;
            }
            if Instant::now() > deadline {
                return Err(Error::unavailable(format!("topic `{topic}` was created and is not there")));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        match partitions {
            Some(wanted) if wanted != found => {
                let message = format!("topic `{topic}` has {found} partitions, and {wanted} are needed");
                Err(Error::invalid(message)
                    .with_hint("delete it if nothing of it is needed, or use another `app`"))
            }
            _ => Ok(found),
        }
    }

    fn fetch_partitions(&self, topic: &str) -> Result<Option<u32>> {
        let found = self.count_partitions(topic)?;
        if let Some(count) = found {
            self.partitions.write().insert(topic.to_owned(), count);
        }
        Ok(found)
    }

    /// Number of partitions by now; `None`: no such topic.
    fn count_partitions(&self, topic: &str) -> Result<Option<u32>> {
        let metadata = self.probe.fetch_metadata(Some(topic), TIMEOUT).map_err(failed("read metadata"))?;
        let found = metadata.topics().iter().find(|t| t.name() == topic);
        let count = found.filter(|t| t.error().is_none()).map_or(0, |t| t.partitions().len() as u32);
        Ok(Some(count).filter(|count| *count > 0))
    }

    /// What tells `topic` from others of its name; none if brokers do not say.
    ///
    /// # Errors
    /// They do not answer.
    pub fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        native::topic_id(self.probe.client(), topic, TIMEOUT).map_err(failed("describe a topic"))
    }

    /// The producer of appends.
    fn appender(&self) -> Result<Arc<Appender>> {
        let appender = Arc::clone(&self.appender.read());
        let Some((code, why)) = appender.client().fatal_error() else { return Ok(appender) };
        tracing::error!("Kafka: {code}: {why}; appending goes on with a new producer");
        let context = Acknowledgements(Arc::clone(&self.appends));
        let made = Polled::new(&self.options.appender(), context).map_err(failed("make a producer"))?;
        let made = Arc::new(made);
        *self.appender.write() = Arc::clone(&made);
        Ok(made)
    }

    fn watermarks(&self, topic: &str, partition: u32) -> Result<(Offset, Offset)> {
        let marks = self.probe.fetch_watermarks(topic, partition as i32, TIMEOUT);
        let (low, high) = marks.map_err(failed("read the ends of a partition"))?;
        Ok((low.max(0) as Offset, high.max(0) as Offset))
    }
}

/// Sends `append` to its partitions; returns how many records that were.
fn send_all<C>(
    producer: &Polled<C>,
    append: &Append,
    opaque: impl Fn() -> C::DeliveryOpaque,
) -> std::result::Result<usize, KafkaError>
where
    C: ProducerContext + 'static,
{
    let mut count = 0;
    for (partition, batch) in append.batches() {
        for record in batch.records() {
            let headers = record.to_record().headers;
            let mut message = BaseRecord::with_opaque_to(&append.topic, opaque()).partition(partition as i32);
            message.key = record.key;
            message.payload = record.value;
            message.timestamp = batch.is_timed().then_some(record.time);
            if !headers.is_empty() {
                let mut owned = OwnedHeaders::new_with_capacity(headers.len());
                for (key, value) in &headers {
                    owned = owned.insert(KafkaHeader { key, value: Some(value) });
                }
                message = message.headers(owned);
            }
            send(producer, message)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Sends one record, waiting while the client's queue is full.
fn send<C>(
    producer: &Polled<C>,
    mut message: BaseRecord<'_, [u8], [u8], C::DeliveryOpaque>,
) -> std::result::Result<(), KafkaError>
where
    C: ProducerContext + 'static,
{
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match producer.send(message) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(rdkafka::error::RDKafkaErrorCode::QueueFull), back))
                if Instant::now() < deadline =>
            {
                message = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error),
        }
    }
}

impl Log for KafkaLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        self.ensure_topic(topic, Some(partitions), TopicKind::Events).map(drop)
    }

    fn partitions(&self, topic: &str) -> Option<u32> {
        if let Some(known) = self.partitions.read().get(topic) {
            return Some(*known);
        }
        self.fetch_partitions(topic).ok().flatten()
    }

    fn check_topic(&self, topic: &str) -> Result<()> {
        let known = self.partitions(topic);
        let found = self.count_partitions(topic)?;
        // Brokers that have heard of fewer do not know better yet.
        if let (Some(known), Some(found)) = (known, found)
            && found > known
        {
            let message = format!("topic `{topic}` had {known} partitions and has {found}");
            return Err(Error::invalid(message).with_hint(WIDENED));
        }
        let Some(found) = self.topic_id(topic)? else { return Ok(()) };
        let known = self.topic_ids.lock().entry(topic.to_owned()).or_insert_with(|| found.clone()).clone();
        if known == found { Ok(()) } else { Err(made_anew(topic)) }
    }

    fn append(&self, append: Append) -> Result<BTreeMap<u32, Offset>> {
        let appender = self.appender()?;
        let number = self.next_append.fetch_add(1, Ordering::Relaxed);
        self.appends.waiting.lock().insert(number, PendingAppend::default());
        let sent = send_all(&*appender, &append, || number as usize);
        let mut waiting = self.appends.waiting.lock();
        let deadline = Instant::now() + TIMEOUT;
        if let (Ok(count), Some(entry)) = (&sent, waiting.get_mut(&number)) {
            entry.records = *count;
            while waiting.get(&number).is_some_and(|e| e.done < e.records) {
                if self.appends.changed.wait_until(&mut waiting, deadline).timed_out() {
                    break;
                }
            }
        }
        let entry = waiting.remove(&number).unwrap_or_default();
        drop(waiting);
        sent.map_err(failed("append"))?;
        match entry.error {
            Some(error) => Err(Error::unavailable(format!("append: {error}"))
                .with_hint("some of the records may have been appended")),
            None if entry.done < entry.records => {
                Err(Error::unavailable("Kafka has not acknowledged the append in time")
                    .with_hint("it may have been appended all the same"))
            }
            None => Ok(entry.positions),
        }
    }

    fn read(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>> {
        let (_, end) = self.watermarks(topic, partition)?;
        if from >= end {
            return Ok(Vec::new());
        }
        let mut fetcher =
            Fetcher::of(&self.options, topic, partition, from).map_err(failed("read a topic"))?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        let deadline = Instant::now() + TIMEOUT;
        while bytes < bytes_max && Instant::now() < deadline {
            let taken = fetcher.take(Duration::from_millis(100), bytes_max - bytes);
            let Some(arrived) = taken.of_one().map_err(failed("read a topic"))? else { continue };
            let next = arrived.batch.as_ref().map(LogBatch::next_offset);
            bytes += arrived.batch.as_ref().map_or(0, LogBatch::size);
            batches.extend(arrived.batch.map(Arc::new));
            // What an open transaction holds back may take for ever.
            if arrived.end.is_some() || next >= Some(end) {
                break;
            }
        }
        Ok(batches)
    }

    fn start_offset(&self, topic: &str, partition: u32) -> Offset {
        self.watermarks(topic, partition).map_or(0, |marks| marks.0)
    }

    fn end_offset(&self, topic: &str, partition: u32) -> Offset {
        self.watermarks(topic, partition).map_or(0, |marks| marks.1)
    }

    fn ends(&self, places: &[(&str, u32)]) -> Vec<Offset> {
        let deadline = Instant::now() + SOON;
        let mut known = self.ends.lock();
        let end = |(topic, partition): &(&str, u32)| {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked =
                (!left.is_zero()).then(|| self.probe.fetch_watermarks(topic, *partition as i32, left).ok());
            let end = known.entry(((*topic).to_owned(), *partition)).or_default();
            if let Some((_, found)) = asked.flatten() {
                *end = found.max(0) as Offset;
            }
            *end
        };
        places.iter().map(end).collect()
    }

    fn purge(&self, topic: &str, partition: u32, offset: Offset) -> Result<()> {
        if offset <= self.start_offset(topic, partition) {
            return Ok(());
        }
        self.topics.purge(topic, partition, offset)
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        // What is still under way has nobody left to wait for it.
        let _ = self.appender.read().flush(Duration::from_secs(1));
    }
}
