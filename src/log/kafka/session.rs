//! A worker's side of Kafka: a member of the group, a consumer that fetches, a producer.
//!
//! Rebalances are only noted when librdkafka calls: the worker commits first, then says
//! [`Session::release`]. The member fetches nothing. A partition is fetched, in batches, once its task
//! says from where, by a consumer that the group does not know: batches cannot be taken from one that
//! is asked for rebalances.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::assignment::{Assignment, Place};
use super::client::KafkaOptions;
use super::committer::{Committer, Done, Job};
use super::fetcher::{Arrived, Fetcher};
use super::native::is_member;
use super::offsets::{committed, offsets_of};
use super::producer::{RENEW_PAUSE, Transactions};
use super::{TIMEOUT, failed};
use crate::error::{Error, Result};
use crate::log::{Input as LogInput, LogBatch, Membership, Outcome, Ownership, Session, Start, TaskCommit};
use crate::model::Offset;

/// Bytes that one wait takes from the client, about.
const TAKE_BYTES: usize = 1 << 20;
/// Distance of changes of what is fetched, when not all tasks are ready at once.
const FETCH_EVERY: Duration = Duration::from_secs(1);
/// Distance of joining anew for want of an answer.
const REJOIN_EVERY: Duration = Duration::from_secs(10);
/// How long a member that leaves may take, beside others that have to hear of a rebalance under way first,
/// and the distance of its looks at whether it has.
const LEAVE_MAX: Duration = Duration::from_secs(3);
const LEAVE_PAUSE: Duration = Duration::from_millis(5);
/// Bytes that wait for the worker, and batches of one partition, above which nothing more is taken.
/// Each batch may keep all that was fetched with it in memory.
const BUFFERED_MAX: usize = 16 << 20;
const BATCHES_MAX: usize = 128;

/// What librdkafka has said and the worker has not heard yet.
enum Event {
    Assigned(Vec<Place>),
    Revoked { places: Vec<Place>, is_lost: bool },
}

#[derive(Default)]
struct Context {
    events: Mutex<VecDeque<Event>>,
    /// The consumer is being closed: nobody listens to events any more.
    is_closing: AtomicBool,
    /// An answer of a group of the consumer protocol may have been lost.
    is_unanswered: AtomicBool,
}

impl ClientContext for Context {
    /// librdkafka 2.12 asks again in the same words when its heartbeat was not answered in time; the
    /// group, which has answered, does not repeat what it gives or takes: partitions would stay where they
    /// are until the group gives the member up, or would be nobody's. No other sign of it reaches us.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, text: &str) {
        if facility == "REQTMOUT" && text.contains("ConsumerGroupHeartbeat") {
            self.is_unanswered.store(true, Ordering::Release);
        }
        // What of the rest matters is told as an error too.
        tracing::debug!("Kafka: {facility}: {text}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!("Kafka: {error}: {reason}");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.is_closing.load(Ordering::Acquire) {
            // librdkafka waits for an answer to what it asks: who is given something has to take it, or part
            // of it, before a subscription that was given up meanwhile is.
            let answered = match (err, consumer.rebalance_protocol()) {
                (RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS, RebalanceProtocol::Eager) => {
                    consumer.assign(&TopicPartitionList::new())
                }
                _ => consumer.unassign(),
            };
            if let Err(error) = answered {
                tracing::warn!("Kafka: unassign: {error}");
            }
            return;
        }
        let places = list.elements().iter().map(|e| (e.topic().to_owned(), e.partition() as u32)).collect();
        let event = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assigned(places),
            _ => Event::Revoked { places, is_lost: consumer.assignment_lost() },
        };
        self.events.lock().push_back(event);
    }
}

/// What waits for the worker of one partition.
struct Input {
    /// Where fetching would go on.
    next: Offset,
    batches: VecDeque<Arc<LogBatch>>,
    /// The first offset that is left, if what comes next was removed before it was read.
    cut_at: Option<Offset>,
}

/// A worker's side of Kafka.
pub struct KafkaSession {
    options: KafkaOptions,
    index: usize,
    topics: Vec<String>,
    /// Its membership. Fetches nothing.
    member: BaseConsumer<Context>,
    joined_at: Instant,
    fetcher: Fetcher,
    /// Since when there is something to fetch that is not, or may be soon.
    waiting_since: Option<Instant>,
    /// Whether anything is fetched of the last assignment.
    has_fetched: bool,
    /// None while a commit is under way, which has it.
    transactions: Option<Transactions>,
    committer: Committer,
    /// Next offsets and names that the commit under way would make.
    pending: Vec<(Place, (Offset, String))>,
    /// Whether the commit under way is of tasks that were lost.
    is_void: bool,
    /// Partitions whose tasks are ready.
    inputs: BTreeMap<(String, u32), Input>,
    assignment: Assignment,
    buffered: usize,
    /// Next offsets and names of the last commits, by input.
    committed: HashMap<(String, u32), (Offset, String)>,
}

impl KafkaSession {
    /// Joins the group as worker `index` of the node, for partitions of `topics`. `stop`: nothing
    /// needs to be waited for any more.
    ///
    /// # Errors
    /// A property is unknown, or the brokers refuse.
    pub fn join(
        options: &KafkaOptions,
        index: usize,
        topics: &[&str],
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let mut transactions = Transactions::new(options.clone(), index);
        // Before anything is read: what a predecessor left open is ended (PROTOCOL 20).
        transactions.renew().map_err(failed("start a producer"))?;
        Ok(Self {
            member: member(options, index, topics)?,
            joined_at: Instant::now(),
            fetcher: Fetcher::new(options.input()).map_err(failed("start a consumer"))?,
            waiting_since: None,
            has_fetched: false,
            options: options.clone(),
            index,
            topics: topics.iter().map(|t| (*t).to_owned()).collect(),
            transactions: Some(transactions),
            committer: Committer::start(index, stop)?,
            pending: Vec::new(),
            is_void: false,
            inputs: BTreeMap::new(),
            assignment: Assignment::new(options.has_consumer_protocol()),
            buffered: 0,
            committed: HashMap::new(),
        })
    }

    /// Why the group has to be joined anew, if it has to be: librdkafka has given up for good, as it does
    /// when the group knows a static member by another id, or does not know what the group has said.
    fn estrangement(&mut self) -> Option<String> {
        if let Some((code, why)) = self.member.client().fatal_error() {
            return Some(format!("{code}: {why}"));
        }
        let is_unanswered = self.member.context().is_unanswered.load(Ordering::Acquire);
        (is_unanswered && self.joined_at.elapsed() >= REJOIN_EVERY)
            .then(|| "the group has not answered in time".to_owned())
    }

    /// Joins again if it has to. Returns whether it had.
    fn rejoin_if_estranged(&mut self) -> bool {
        let Some(why) = self.estrangement() else { return false };
        tracing::error!("Kafka: {why}; joining the group anew");
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        match member(&self.options, self.index, &topics) {
            Ok(consumer) => {
                self.stop_hearing();
                let left = std::mem::replace(&mut self.member, consumer);
                self.joined_at = Instant::now();
                self.assignment.forget();
                // It waits for brokers that may be away. If no thread can be had, it is done here.
                let _ = std::thread::Builder::new().name("leave".to_owned()).spawn(move || drop(left));
            }
            // Tried again; whatever was owned is lost all the same.
            Err(error) => {
                tracing::error!("Kafka: {error}");
                std::thread::sleep(RENEW_PAUSE);
            }
        }
        true
    }

    /// Nobody hears events any more. Those that were heard of and not answered are: librdkafka does not
    /// close a member of which it waits for an answer.
    fn stop_hearing(&mut self) {
        self.member.context().is_closing.store(true, Ordering::Release);
        let events = std::mem::take(&mut *self.member.context().events.lock());
        for event in events {
            match event {
                Event::Assigned(places) => drop(self.assignment.give(&self.member, &places)),
                Event::Revoked { places, .. } => {
                    self.assignment.take_back();
                    let some = self.assignment.is_incremental().then_some(&*places);
                    self.assignment.release(&self.member, some);
                }
            }
        }
    }

    /// Waits until the group has the member, or has it no longer; what it says meanwhile is answered. Returns
    /// whether that was in time.
    fn await_membership(&self, is_wanted: bool, deadline: Instant) -> bool {
        while is_member(&self.member) != is_wanted {
            if Instant::now() >= deadline {
                return false;
            }
            self.member.poll(LEAVE_PAUSE);
        }
        true
    }

    fn poll(&mut self, timeout: Duration) {
        while let Some(said) = self.member.poll(Duration::ZERO) {
            // What was on its way before fetching was paused is nobody's.
            if let Err(error) = said {
                tracing::warn!("Kafka: {error}");
            }
        }
        if self.buffered >= BUFFERED_MAX || self.inputs.values().any(|i| i.batches.len() >= BATCHES_MAX) {
            std::thread::sleep(timeout);
            return;
        }
        let taken = self.fetcher.take(timeout, TAKE_BYTES);
        // Asking costs more than a few records; while records come they pass what lies between them.
        if taken.arrived.is_empty() && !timeout.is_zero() {
            for (place, at) in self.fetcher.positions() {
                if let Some(input) = self.inputs.get_mut(&place) {
                    input.next = input.next.max(at);
                }
            }
        }
        for Arrived { place, batch, end } in taken.arrived {
            // What still comes of a partition that starts anew would leave a gap.
            let is_wanted = self.fetcher.has(&place);
            let Some(input) = self.inputs.get_mut(&place).filter(|_| is_wanted) else { continue };
            let next = batch.as_ref().map(LogBatch::next_offset);
            input.next = input.next.max(next.unwrap_or(0)).max(end.unwrap_or(0));
            self.buffered += batch.as_ref().map_or(0, LogBatch::size);
            input.batches.extend(batch.map(Arc::new));
        }
        for (place, code) in taken.errors {
            match place {
                Some(place) if code == RDKafkaErrorCode::AutoOffsetReset => self.find_cut(&place),
                Some((topic, partition)) => tracing::warn!("Kafka: {topic}/{partition}: {code}"),
                None => tracing::warn!("Kafka: {code}"),
            }
        }
    }

    /// Begins to fetch the inputs whose tasks are ready, each from where its buffer ends: all at once
    /// if they are ready soon, else again as more become ready, but not often: librdkafka does not
    /// survive changes that follow each other faster than its partitions start and stop.
    fn fetch(&mut self) {
        let Some(since) = self.waiting_since else { return };
        let are_all_ready = self.inputs.len() == self.assignment.len();
        let is_due = (are_all_ready && !self.has_fetched) || since.elapsed() >= FETCH_EVERY;
        if !is_due {
            return;
        }
        let new = self.inputs.iter().filter(|(place, _)| !self.fetcher.has(place));
        let new: Vec<(Place, Offset)> = new.map(|(place, input)| (place.clone(), input.next)).collect();
        self.has_fetched |= !new.is_empty();
        let added = if new.is_empty() { Ok(()) } else { self.fetcher.add(new.into_iter()) };
        if let Err(error) = &added {
            tracing::error!("Kafka: fetch: {error}");
        }
        self.waiting_since = (!are_all_ready || added.is_err()).then(Instant::now);
    }

    /// librdkafka does not find what comes next of an input, and fetches no more of it: it was cut off,
    /// or it is asked for again.
    fn find_cut(&mut self, place: &Place) {
        let Some(input) = self.inputs.get_mut(place) else { return };
        let (topic, partition) = (&place.0, place.1);
        match self.fetcher.consumer().fetch_watermarks(topic, partition as i32, TIMEOUT) {
            Ok((low, _)) if low as Offset > input.next => input.cut_at = Some(low as Offset),
            found => {
                tracing::warn!("Kafka: {topic}/{partition}: {} is not found in {found:?}", input.next);
                self.fetcher.keep_only(|kept| kept != place);
                self.waiting_since = Some(Instant::now());
            }
        }
    }

    /// Others may commit for `inputs` from here on.
    fn give_up(&mut self, inputs: &[Place]) {
        self.drop_some(inputs);
        self.committed.retain(|input, _| !inputs.contains(input));
    }

    /// Of `inputs` nothing more is fetched, and what was is forgotten.
    fn drop_some(&mut self, inputs: &[Place]) {
        self.fetcher.keep_only(|place| !inputs.contains(place));
        for input in inputs {
            let gone = self.inputs.remove(input);
            let bytes: usize = gone.iter().flat_map(|i| &i.batches).map(|b| b.size()).sum();
            self.buffered = self.buffered.saturating_sub(bytes);
        }
    }

    fn drop_inputs(&mut self) {
        self.fetcher.keep_only(|_| false);
        self.inputs.clear();
        self.buffered = 0;
    }

    /// Of `inputs`, those whose last commit is still the one that this session made or took over.
    fn retained(&self, inputs: &[(String, u32)]) -> Result<Vec<(String, u32)>> {
        // Others are not asked about: they may wait for a transaction of who had them.
        let known: Vec<_> = inputs.iter().filter_map(|input| self.committed.get_key_value(input)).collect();
        let asked: Vec<(&str, u32)> = known.iter().map(|((t, p), _)| (t.as_str(), *p)).collect();
        let found = committed(&self.member, &asked, TIMEOUT)?;
        let is_same =
            |txn: &str, found: &Option<(Offset, String)>| found.as_ref().is_some_and(|f| f.1 == txn);
        let same = known.into_iter().zip(&found).filter(|((_, (_, txn)), found)| is_same(txn, found));
        Ok(same.map(|((input, _), _)| input.clone()).collect())
    }

    /// What the worker has to hear next. While a commit is under way only that all is lost: who goes on
    /// answering then says what others have made old, for as long as the commit takes.
    fn next_event(&self) -> Option<Event> {
        let mut events = self.member.context().events.lock();
        if let Some(Event::Revoked { is_lost, .. }) = events.front_mut() {
            *is_lost |= self.member.assignment_lost();
        }
        let is_lost = matches!(events.front(), Some(Event::Revoked { is_lost: true, .. }));
        if self.transactions.is_none() && !is_lost { None } else { events.pop_front() }
    }

    /// Others may own everything already.
    fn lost(&mut self) -> Ownership {
        self.drop_inputs();
        self.committed.clear();
        self.is_void = self.transactions.is_none();
        Ownership::Lost
    }

    /// The group has given `new`, beside what it takes back before or never takes.
    fn assigned(&mut self, new: Vec<Place>) -> Ownership {
        let inputs = self.assignment.give(&self.member, &new);
        (self.waiting_since, self.has_fetched) = (Some(Instant::now()), false);
        // Whoever has the others now commits for them.
        self.committed.retain(|input, _| inputs.contains(input));
        let mut retained = self.retained(&new).unwrap_or_else(|error| {
            tracing::warn!("Kafka: {error}");
            Vec::new()
        });
        // What was never taken is as it was.
        retained.extend(inputs.iter().filter(|input| !new.contains(input)).cloned());
        Ownership::Assigned { inputs, retained }
    }
}

/// A consumer that has joined the group.
fn member(options: &KafkaOptions, index: usize, topics: &[&str]) -> Result<BaseConsumer<Context>> {
    let joined = options.member(index).create_with_context(Context::default());
    let consumer: BaseConsumer<Context> = joined.map_err(failed("join the group"))?;
    consumer.subscribe(topics).map_err(failed("join the group"))?;
    Ok(consumer)
}

/// Whether the group has let the member go.
fn is_expelled(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::FencedInstanceId
            | RDKafkaErrorCode::FencedMemberEpoch
            | RDKafkaErrorCode::AssignmentLost
    )
}

impl Drop for KafkaSession {
    fn drop(&mut self) {
        self.stop_hearing();
    }
}

impl LogInput for KafkaSession {
    fn read(
        &mut self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>> {
        let Some(input) = self.inputs.get_mut(&(topic.to_owned(), partition)) else {
            return Ok(Vec::new());
        };
        if let Some(start) = input.cut_at.filter(|_| input.batches.is_empty()) {
            let message =
                format!("the log of {topic}/{partition} starts at {start}, and {from} is to be read next");
            return Err(Error::corrupted(message)
                .with_hint("records were removed before they were read: keep them for longer; another `app` starts with what is left"));
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max
            && let Some(batch) = input.batches.pop_front()
        {
            bytes += batch.size();
            if batch.next_offset() > from {
                taken.push(batch);
            }
        }
        self.buffered = self.buffered.saturating_sub(bytes);
        Ok(taken)
    }

    fn skip(&mut self, topic: &str, partition: u32, from: Offset) -> Offset {
        match self.inputs.get(&(topic.to_owned(), partition)) {
            Some(input) if input.batches.is_empty() => from.max(input.next),
            _ => from,
        }
    }
}

impl Session for KafkaSession {
    fn wait(&mut self, timeout: Duration) -> Option<Ownership> {
        if self.rejoin_if_estranged() {
            return Some(self.lost());
        }
        self.fetch();
        self.poll(timeout);
        let event = self.next_event()?;
        Some(match event {
            Event::Assigned(new) => self.assigned(new),
            Event::Revoked { is_lost: true, .. } => {
                self.assignment.take_back();
                self.lost()
            }
            Event::Revoked { places, .. } if self.assignment.is_incremental() => Ownership::Taken(places),
            Event::Revoked { .. } => {
                self.assignment.take_back();
                Ownership::Revoked
            }
        })
    }

    fn has_more(&self) -> bool {
        self.buffered > 0
    }

    fn begin_commit(&mut self, commits: Vec<TaskCommit>) {
        let transactions = self.transactions.take().expect("one commit at a time");
        let group = self.member.group_metadata().expect("it has a group.id");
        let input = |c: &TaskCommit| (c.topic.clone(), c.partition);
        let before =
            commits.iter().map(|c| self.committed.get(&input(c)).map(|(_, txn)| txn.clone())).collect();
        self.pending = commits.iter().map(|c| (input(c), (c.next_offset, c.txn_id.clone()))).collect();
        self.committer.begin(Job { transactions, group, commits, before });
    }

    fn outcome(&mut self, timeout: Duration) -> Option<Outcome> {
        let Done { transactions, outcome } = self.committer.wait(timeout)?;
        self.transactions = Some(transactions);
        let names = std::mem::take(&mut self.pending);
        let is_void = std::mem::take(&mut self.is_void);
        match &outcome {
            // Others may have committed since.
            Outcome::Committed(_) if is_void => {}
            Outcome::Committed(_) => self.committed.extend(names),
            Outcome::Aborted(why, _) | Outcome::Refused(why, ..) | Outcome::Fenced(why) => {
                tracing::warn!("commit: {why}")
            }
        }
        Some(outcome)
    }

    fn confirm(&mut self) -> Membership {
        // The same offset and name again: nothing changes, and only a member may do it.
        let Some(((topic, partition), (next, txn))) =
            self.committed.iter().find(|(input, _)| self.inputs.contains_key(*input))
        else {
            return if self.inputs.is_empty() { Membership::Valid } else { Membership::Unproven };
        };
        let offset = std::iter::once((topic.as_str(), *partition, *next, txn.as_str()));
        let committed = offsets_of(offset, &self.options.producer(self.index))
            .and_then(|list| self.member.commit(&list, CommitMode::Sync));
        match committed {
            Ok(()) => Membership::Valid,
            Err(KafkaError::ConsumerCommit(code)) if is_expelled(code) => {
                self.lost();
                Membership::Lost
            }
            Err(error) => {
                tracing::warn!("Kafka: membership: {error}");
                Membership::Unknown
            }
        }
    }

    fn release(&mut self) {
        self.drop_inputs();
        self.assignment.release(&self.member, None);
    }

    /// Members that have no fixed names leave when they are closed. Static ones do not (KIP-345), unless they
    /// give up their subscription before.
    fn leave(&mut self) {
        if self.options.has_consumer_protocol() {
            return;
        }
        self.stop_hearing();
        let deadline = Instant::now() + LEAVE_MAX;
        // The answer of a group that is being joined is waited for: it would have
        // a member that has left before.
        self.await_membership(true, deadline);
        self.member.unsubscribe();
        if !self.await_membership(false, deadline) {
            tracing::warn!("Kafka: the group was not left in time: it waits until the session ends");
        }
    }

    fn stop(&mut self, inputs: &[Place]) {
        if !inputs.iter().any(|input| self.inputs.contains_key(input)) {
            return;
        }
        self.give_up(inputs);
        self.waiting_since = Some(Instant::now());
    }

    fn release_some(&mut self, inputs: &[Place]) {
        self.give_up(inputs);
        self.assignment.release(&self.member, Some(inputs));
    }

    fn start(&mut self, start: Start) {
        let Start { topic, partition, from, committed } = start;
        let key = (topic, partition);
        if let Some(committed) = committed {
            self.committed.insert(key.clone(), committed);
        }
        if !self.assignment.is_incremental() {
            // Whatever was fetched before may not lead up to here.
            self.drop_some(std::slice::from_ref(&key));
        }
        // One that was never taken goes on as it is.
        let fresh = || Input { next: from, batches: VecDeque::new(), cut_at: None };
        self.inputs.entry(key).or_insert_with(fresh);
    }
}
