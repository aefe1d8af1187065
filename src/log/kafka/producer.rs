//! The transactional producer of a worker (PROTOCOL 15, 16, 19, 20).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::ClientContext;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext};

use super::changelog::{BARRIER_KEY, changelog_topic};
use super::client::KafkaOptions;
use super::offsets::offsets_of;
use super::polled::Polled;
use super::{TIMEOUT, send, send_all};
use crate::fault::{crash_point, is_to_abort};
use crate::log::TaskCommit;
use crate::model::Offset;

/// Low bits of an opaque say which commit a barrier record is of; the rest which transaction.
const SLOT_BITS: u32 = 20;
/// The slot of everything that is no barrier record.
const NO_SLOT: usize = (1 << SLOT_BITS) - 1;

/// How long an abort may take. One that takes longer waits for a broker that is away; a producer made
/// anew finds its way round, and ends the transaction by that.
const ABORT_PATIENCE: Duration = Duration::from_secs(3);

/// Why a transaction did not commit.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was aborted: nothing of it happened.
    Aborted(String),
    /// It was aborted, and would be again: the brokers do not take a record of this size.
    Refused(String),
    /// Nobody knows; the producer is gone (PROTOCOL 20).
    Unknown(String),
}

/// Delivery reports of the transaction under way.
#[derive(Default)]
struct Deliveries {
    state: Mutex<DeliveryState>,
    changed: Condvar,
}

#[derive(Default)]
struct DeliveryState {
    transaction: usize,
    done: usize,
    /// How many to wait for, once it is known: nobody is woken before.
    sent: Option<usize>,
    error: Option<(RDKafkaErrorCode, String)>,
    /// Offset of the barrier record by commit.
    barriers: Vec<Option<Offset>>,
}

struct DeliveryContext(Arc<Deliveries>);

impl ClientContext for DeliveryContext {}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let mut state = self.0.state.lock();
        if opaque >> SLOT_BITS != state.transaction {
            return;
        }
        state.done += 1;
        match result {
            Ok(message) => {
                if let Some(barrier) = state.barriers.get_mut(opaque & NO_SLOT) {
                    *barrier = Some(message.offset() as Offset);
                }
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                let size = message.payload_len();
                // What follows a record that is refused fails because of it.
                let is_cause = state.error.as_ref().is_none_or(|(known, _)| !is_too_large(*known));
                if is_cause {
                    let text = format!("a record of {size} bytes for topic `{}`: {error}", message.topic());
                    state.error = Some((code, text));
                }
            }
        }
        if state.error.is_some() || state.sent.is_some_and(|sent| state.done >= sent) {
            self.0.changed.notify_all();
        }
    }
}

/// The transactional producer of a worker, made anew whenever its predecessor cannot be trusted.
pub(super) struct Transactions {
    options: KafkaOptions,
    index: usize,
    producer: Option<Polled<DeliveryContext>>,
    deliveries: Arc<Deliveries>,
    transaction: usize,
}

impl Transactions {
    pub fn new(options: KafkaOptions, index: usize) -> Self {
        Self { options, index, producer: None, deliveries: Arc::default(), transaction: 0 }
    }

    pub fn options(&self) -> &KafkaOptions {
        &self.options
    }

    /// Makes a producer whose `init_transactions` has ended whatever its predecessor left open, and
    /// fenced every straggler of it.
    ///
    /// # Errors
    /// The brokers do not answer in time.
    pub fn renew(&mut self) -> Result<(), KafkaError> {
        self.producer = None;
        let context = DeliveryContext(Arc::clone(&self.deliveries));
        let config = self.options.transactional(&self.options.producer(self.index));
        let producer = Polled::new(&config, context)?;
        producer.init_transactions(TIMEOUT)?;
        self.producer = Some(producer);
        Ok(())
    }

    /// Commits all of `commits` in one transaction; offsets of their barrier records.
    pub fn commit(
        &mut self,
        group: &ConsumerGroupMetadata,
        commits: &[TaskCommit],
    ) -> Result<Vec<Offset>, Failure> {
        if self.producer.is_none()
            && let Err(error) = self.renew()
        {
            return Err(Failure::Aborted(format!("no producer: {error}")));
        }
        self.transaction += 1;
        *self.deliveries.state.lock() = DeliveryState {
            transaction: self.transaction,
            barriers: vec![None; commits.len()],
            ..DeliveryState::default()
        };
        let Some(producer) = &self.producer else {
            return Err(Failure::Aborted("no producer".to_owned()));
        };
        match self.run(producer, group, commits) {
            Ok(()) => Ok(std::mem::take(&mut self.deliveries.state.lock().barriers)
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect()),
            Err(error) => Err(self.give_up(&error)),
        }
    }

    /// Aborts if that is clean; else ends the producer.
    fn give_up(&mut self, error: &KafkaError) -> Failure {
        let is_clean = match error {
            KafkaError::Transaction(e) => e.txn_requires_abort() && !e.is_fatal(),
            KafkaError::MessageProduction(_) => true,
            _ => false,
        };
        if is_clean
            && let Some(producer) = &self.producer
            && producer.abort_transaction(ABORT_PATIENCE).is_ok()
        {
            let is_refused = error.rdkafka_error_code().is_some_and(is_too_large);
            let why =
                self.deliveries.state.lock().error.take().map_or_else(|| error.to_string(), |(_, why)| why);
            return if is_refused { Failure::Refused(why) } else { Failure::Aborted(why) };
        }
        self.producer = None;
        Failure::Unknown(error.to_string())
    }

    fn run(
        &self,
        producer: &Polled<DeliveryContext>,
        group: &ConsumerGroupMetadata,
        commits: &[TaskCommit],
    ) -> Result<(), KafkaError> {
        crash_point("boundary");
        producer.begin_transaction()?;
        let sent = self.produce(producer, commits)?;
        crash_point("produced");
        self.await_deliveries(sent)?;
        crash_point("flushed");
        if is_to_abort() {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::Fail));
        }
        let committed =
            commits.iter().map(|c| (c.topic.as_str(), c.partition, c.next_offset, c.txn_id.as_str()));
        let offsets = offsets_of(committed, &self.options.producer(self.index))?;
        producer.send_offsets_to_transaction(&offsets, group, TIMEOUT)?;
        crash_point("offsets");
        producer.commit_transaction(TIMEOUT)?;
        crash_point("committed");
        Ok(())
    }

    /// Outputs, then rows, then the barrier record, of every commit.
    fn produce(
        &self,
        producer: &Polled<DeliveryContext>,
        commits: &[TaskCommit],
    ) -> Result<usize, KafkaError> {
        let other = self.transaction << SLOT_BITS | NO_SLOT;
        let mut count = 0;
        for commit in commits {
            for append in &commit.appends {
                count += send_all(producer, append, || other)?;
            }
        }
        crash_point("outputs");
        for (slot, commit) in commits.iter().enumerate() {
            let topic = changelog_topic(&self.options.app, &commit.topic);
            let rows = commit.rows.iter().flat_map(|rows| rows.iter());
            for (key, value) in rows.filter(|(key, _)| key != BARRIER_KEY) {
                let mut record: BaseRecord<'_, [u8], [u8], usize> =
                    BaseRecord::with_opaque_to(&topic, other).partition(commit.partition as i32).key(key);
                record.payload = value.as_deref();
                send(producer, record)?;
                count += 1;
            }
            crash_point("rows");
            let record = BaseRecord::with_opaque_to(&topic, self.transaction << SLOT_BITS | slot)
                .partition(commit.partition as i32)
                .key(BARRIER_KEY)
                .payload(&commit.barrier[..]);
            send(producer, record)?;
            count += 1;
        }
        Ok(count)
    }

    /// Waits for every delivery report by itself: librdkafka's flush would sleep 100 ms at a time.
    fn await_deliveries(&self, sent: usize) -> Result<(), KafkaError> {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.deliveries.state.lock();
        state.sent = Some(sent);
        while state.done < sent && state.error.is_none() {
            if self.deliveries.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
            }
        }
        match &state.error {
            // The next transactional call says whether an abort is enough.
            Some((code, why)) => {
                tracing::warn!("a record of a transaction was not delivered: {why}");
                let code = if is_too_large(*code) { *code } else { RDKafkaErrorCode::Fail };
                Err(KafkaError::MessageProduction(code))
            }
            None => Ok(()),
        }
    }
}

/// Whether a record is refused for its size, by the client or by brokers.
fn is_too_large(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
}

/// Pause between two tries to make a producer.
pub(super) const RENEW_PAUSE: Duration = Duration::from_millis(200);
