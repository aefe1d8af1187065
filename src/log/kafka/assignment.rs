//! What the group has given a worker, and what of it is fetched.
//!
//! The classic protocol takes everything back before it gives anew; the consumer protocol (KIP-848)
//! gives and takes single partitions, and is answered about those alone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use crate::model::Offset;

/// Distance of assignments, when not all tasks are ready at once.
const ASSIGN_EVERY: Duration = Duration::from_secs(1);

/// A partition of an input.
pub(super) type Place = (String, u32);

/// See the module.
#[derive(Default)]
pub(super) struct Assignment {
    is_incremental: bool,
    given: BTreeSet<Place>,
    fetched: BTreeSet<Place>,
    /// Since when there is something to tell librdkafka, or may be soon.
    pending_since: Option<Instant>,
    /// Whether librdkafka was told anything since then: until it is, the group waits.
    is_answered: bool,
    /// Whether librdkafka waits to hear that all is let go. A worker may let go before, when it has
    /// found out first; to say so then would answer what librdkafka asks next.
    is_taken_back: bool,
}

impl Assignment {
    /// Of a worker that was given nothing yet.
    pub fn new(is_incremental: bool) -> Self {
        Self { is_incremental, ..Self::default() }
    }

    /// Whether the group gives and takes single partitions.
    pub fn is_incremental(&self) -> bool {
        self.is_incremental
    }

    /// The group has given `places`. Returns all that the worker has now.
    pub fn give(&mut self, places: &[Place]) -> Vec<Place> {
        if !self.is_incremental {
            self.given.clear();
            self.fetched.clear();
        }
        self.given.extend(places.iter().cloned());
        self.pending_since = Some(Instant::now());
        self.is_answered = false;
        self.given.iter().cloned().collect()
    }

    /// The group has taken everything back.
    pub fn take_back(&mut self) {
        self.is_taken_back = true;
    }

    /// Tells librdkafka what to fetch: the inputs whose tasks are ready, each from where its buffer
    /// ends. Once for all of them if they are ready soon, else again as more become ready, but not
    /// often: librdkafka does not survive assignments that follow each other faster than its
    /// partitions start and stop.
    pub fn fetch<'a, C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        ready: impl ExactSizeIterator<Item = (&'a Place, Offset)>,
    ) {
        let Some(since) = self.pending_since else { return };
        let are_all_ready = ready.len() == self.given.len();
        let is_due = if since.elapsed() < ASSIGN_EVERY {
            are_all_ready && !self.is_answered
        } else {
            // A group that is not answered waits, and librdkafka says nothing more: not even that all is
            // lost, as a worker may have found out for itself, so that nothing will ever be ready.
            ready.len() > self.fetched.len() || !self.is_answered
        };
        if !is_due {
            return;
        }
        let mut list = TopicPartitionList::new();
        for ((topic, partition), next) in ready {
            let is_new = self.fetched.insert((topic.clone(), *partition));
            if (is_new || !self.is_incremental)
                && let Err(error) =
                    list.add_partition_offset(topic, *partition as i32, KafkaOffset::Offset(next as i64))
            {
                tracing::error!("Kafka: {topic}/{partition}: {error}");
            }
        }
        let told =
            if self.is_incremental { consumer.incremental_assign(&list) } else { consumer.assign(&list) };
        if let Err(error) = told {
            tracing::error!("Kafka: assign: {error}");
        }
        self.is_answered = true;
        self.pending_since = (!are_all_ready).then(Instant::now);
    }

    /// Whether librdkafka fetches `place` from where its task wants it.
    pub fn is_fetched(&self, place: &Place) -> bool {
        self.fetched.contains(place)
    }

    /// Removes what was fetched of some, as librdkafka is to be told.
    fn take_fetched(&mut self, is_taken: impl Fn(&Place) -> bool) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        self.fetched.retain(|place| {
            let is_gone = is_taken(place);
            if is_gone {
                list.add_partition(&place.0, place.1 as i32);
            }
            !is_gone
        });
        list
    }

    /// What was fetched of `places` is of no use: they start anew from elsewhere.
    pub fn stop<C: ConsumerContext>(&mut self, consumer: &BaseConsumer<C>, places: &[Place]) {
        let list = self.take_fetched(|place| places.contains(place));
        // Otherwise the next assignment says from where.
        if self.is_incremental
            && let Err(error) = consumer.incremental_unassign(&list)
        {
            tracing::error!("Kafka: unassign: {error}");
        }
        self.pending_since = Some(Instant::now());
    }

    /// The worker has let go of `places`: all, or some on a group that takes single ones.
    pub fn release<C: ConsumerContext>(&mut self, consumer: &BaseConsumer<C>, places: Option<&[Place]>) {
        let is_taken = |place: &Place| places.is_none_or(|places| places.contains(place));
        let is_asked = places.is_some() || std::mem::take(&mut self.is_taken_back);
        if !is_asked {
            return;
        }
        let list = self.take_fetched(is_taken);
        let told =
            if self.is_incremental { consumer.incremental_unassign(&list) } else { consumer.unassign() };
        if let Err(error) = told {
            tracing::error!("Kafka: unassign: {error}");
        }
        self.given.retain(|place| !is_taken(place));
        if places.is_none() {
            self.pending_since = None;
        }
    }

    /// The consumer that was given all this is gone.
    pub fn forget(&mut self) {
        *self = Self::new(self.is_incremental);
    }
}
