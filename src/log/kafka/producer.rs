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

/// What a record is to its transaction: which one, which commit in it, and whether its barrier record.
#[derive(Clone, Copy)]
struct Mark(usize);

impl Mark {
    const SLOT_BITS: u32 = 20;
    const BARRIER: usize = 1 << Self::SLOT_BITS;

    fn new(transaction: usize, slot: usize) -> Self {
        Self(transaction << (Self::SLOT_BITS + 1) | slot)
    }

    fn of_barrier(self) -> Self {
        Self(self.0 | Self::BARRIER)
    }

    fn transaction(self) -> usize {
        self.0 >> (Self::SLOT_BITS + 1)
    }

    fn slot(self) -> usize {
        self.0 & (Self::BARRIER - 1)
    }

    fn is_barrier(self) -> bool {
        self.0 & Self::BARRIER != 0
    }
}

/// How long an abort may take. One that takes longer waits for a broker that is away; a producer made
/// anew finds its way round, and ends the transaction by that.
const ABORT_PATIENCE: Duration = Duration::from_secs(3);

/// Why a transaction did not commit.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was aborted: nothing of it happened.
    Aborted(String),
    /// It was aborted, and would be again: the brokers do not take a record of this size, which is of the
    /// commit of this index.
    Refused(String, usize),
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
    error: Option<Undelivered>,
    /// Offset of the barrier record by commit.
    barriers: Vec<Option<Offset>>,
}

/// The record because of which a transaction cannot be committed.
struct Undelivered {
    code: RDKafkaErrorCode,
    text: String,
    slot: usize,
    bytes: usize,
}

impl Undelivered {
    /// Brokers refuse whole batches for one record that is too large, and what follows fails because of it.
    fn is_because_of(&self, code: RDKafkaErrorCode, bytes: usize) -> bool {
        is_too_large(code) && (!is_too_large(self.code) || bytes > self.bytes)
    }
}

struct DeliveryContext(Arc<Deliveries>);

impl ClientContext for DeliveryContext {}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (mut state, mark) = (self.0.state.lock(), Mark(opaque));
        if mark.transaction() != state.transaction {
            return;
        }
        state.done += 1;
        match result {
            Ok(message) => {
                if let Some(barrier) = state.barriers.get_mut(mark.slot()).filter(|_| mark.is_barrier()) {
                    *barrier = Some(message.offset() as Offset);
                }
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                let bytes = message.payload_len();
                if state.error.as_ref().is_none_or(|known| known.is_because_of(code, bytes)) {
                    let text = format!("a record of {bytes} bytes for topic `{}`: {error}", message.topic());
                    state.error = Some(Undelivered { code, text, slot: mark.slot(), bytes });
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
            return match self.deliveries.state.lock().error.take() {
                Some(refused) if is_too_large(refused.code) => Failure::Refused(refused.text, refused.slot),
                Some(other) => Failure::Aborted(other.text),
                None => Failure::Aborted(error.to_string()),
            };
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
        let mark = |slot| Mark::new(self.transaction, slot);
        let mut count = 0;
        for (slot, commit) in commits.iter().enumerate() {
            for append in &commit.appends {
                let sent = send_all(producer, append, || mark(slot).0);
                count += sent.map_err(|error| self.unsent(error, slot, &append.topic))?;
            }
        }
        crash_point("outputs");
        for (slot, commit) in commits.iter().enumerate() {
            let topic = changelog_topic(&self.options.app, &commit.topic);
            let rows = commit.rows.iter().flat_map(|rows| rows.iter());
            for (key, value) in rows.filter(|(key, _)| key != BARRIER_KEY) {
                let mut record: BaseRecord<'_, [u8], [u8], usize> =
                    BaseRecord::with_opaque_to(&topic, mark(slot).0)
                        .partition(commit.partition as i32)
                        .key(key);
                record.payload = value.as_deref();
                send(producer, record).map_err(|error| self.unsent(error, slot, &topic))?;
                count += 1;
            }
            crash_point("rows");
            let record = BaseRecord::with_opaque_to(&topic, mark(slot).of_barrier().0)
                .partition(commit.partition as i32)
                .key(BARRIER_KEY)
                .payload(&commit.barrier[..]);
            send(producer, record).map_err(|error| self.unsent(error, slot, &topic))?;
            count += 1;
        }
        Ok(count)
    }

    /// Notes which commit the client does not take a record of.
    fn unsent(&self, error: KafkaError, slot: usize, topic: &str) -> KafkaError {
        if let Some(code) = error.rdkafka_error_code() {
            let text = format!("a record for topic `{topic}`: {error}");
            self.deliveries.state.lock().error = Some(Undelivered { code, text, slot, bytes: usize::MAX });
        }
        error
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
            Some(undelivered) => {
                tracing::warn!("a record of a transaction was not delivered: {}", undelivered.text);
                Err(KafkaError::MessageProduction(undelivered.code))
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
