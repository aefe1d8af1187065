//! What the group has given a worker.
//!
//! The classic protocol takes everything back before it gives anew; the consumer protocol (KIP-848)
//! gives and takes single partitions, and is answered about those alone. The group is answered at
//! once; what is fetched of a partition, and from where, is its task's to say later, elsewhere.

use std::collections::BTreeSet;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

/// A partition of an input.
pub(super) type Place = (String, u32);

/// See the module.
#[derive(Default)]
pub(super) struct Assignment {
    is_incremental: bool,
    given: BTreeSet<Place>,
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

    /// How many partitions the worker has.
    pub fn len(&self) -> usize {
        self.given.len()
    }

    /// The group has given `places`, and hears that the worker has them. Returns all that it has now.
    pub fn give<C: ConsumerContext>(&mut self, member: &BaseConsumer<C>, places: &[Place]) -> Vec<Place> {
        if !self.is_incremental {
            self.given.clear();
        }
        self.given.extend(places.iter().cloned());
        if let Err(error) = self.accept(member, places) {
            tracing::error!("Kafka: assign: {error}");
        }
        self.given.iter().cloned().collect()
    }

    /// Takes what is given, without fetching it here.
    fn accept<C: ConsumerContext>(
        &self,
        member: &BaseConsumer<C>,
        places: &[Place],
    ) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in places {
            list.add_partition_offset(topic, *partition as i32, KafkaOffset::End)?;
        }
        if self.is_incremental { member.incremental_assign(&list) } else { member.assign(&list) }?;
        member.pause(&list)
    }

    /// The group has taken everything back.
    pub fn take_back(&mut self) {
        self.is_taken_back = true;
    }

    /// The worker has let go of `places`: all, or some on a group that takes single ones.
    pub fn release<C: ConsumerContext>(&mut self, member: &BaseConsumer<C>, places: Option<&[Place]>) {
        let is_asked = places.is_some() || std::mem::take(&mut self.is_taken_back);
        if !is_asked {
            return;
        }
        let mut list = TopicPartitionList::new();
        self.given.retain(|place| {
            let is_kept = places.is_some_and(|places| !places.contains(place));
            if !is_kept {
                list.add_partition(&place.0, place.1 as i32);
            }
            is_kept
        });
        let told = if self.is_incremental { member.incremental_unassign(&list) } else { member.unassign() };
        if let Err(error) = told {
            tracing::error!("Kafka: unassign: {error}");
        }
    }

    /// The member that was given all this is gone.
    pub fn forget(&mut self) {
        *self = Self::new(self.is_incremental);
    }
}
