//! Following a changelog (PROTOCOL 23 to 25, 31, 32).

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use super::fetcher::{Arrived, Fetcher};
use super::offsets::PATIENCE;
use super::{KafkaLog, TIMEOUT, TopicKind, WIDENED, failed};
use crate::error::{Error, Result};
use crate::log::{Log as _, LogBatch, RecordView};
use crate::model::{Change, Offset};

/// Key of the barrier record in a changelog, and of its copy in the store.
pub const BARRIER_KEY: &[u8] = b"m/barrier";

/// Bytes that one call takes, about.
const TAKE_BYTES: usize = 1 << 20;
/// Longest wait for records at a time.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at whether the end is reached.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks at whether transactions have ended.
const STABLE_PAUSE: Duration = Duration::from_millis(20);
/// Longest silence of the brokers while there are records to come, or are being decided about.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The changelog of the task that reads `topic`.
pub(super) fn changelog_topic(app: &str, topic: &str) -> String {
    let own = topic.strip_prefix(app).and_then(|t| t.strip_suffix("-repartition"));
    match own {
        Some(group) => format!("{app}{group}-changelog"),
        None => format!("{app}-{topic}-changelog"),
    }
}

/// A changelog partition as it is followed into a store.
pub struct Following<'a> {
    /// Whether a transaction that stays open is ended: its producer is dead, or about to hear that the
    /// task is another's. Who only follows waits for it.
    pub ends_open: bool,
    /// Whether it has not been given up.
    pub is_wanted: &'a dyn Fn() -> bool,
    /// Bytes of records that are adopted at once.
    pub chunk_bytes: usize,
    /// Takes the last row of each key of some committed records, and the position behind them.
    pub adopt: &'a mut dyn FnMut(Vec<Change>, Offset) -> Result<()>,
    /// Hears of progress: records so far, the position and its goal.
    pub progress: &'a mut dyn FnMut(u64, Offset, Offset),
}

impl Following<'_> {
    fn check(&self) -> Result<()> {
        if (self.is_wanted)() { Ok(()) } else { Err(Error::unavailable("the restore was given up")) }
    }
}

impl KafkaLog {
    /// Follows the changelog of the task on `partition` of `topic` from `position` to its end.
    /// Returns the position reached and the number of records read.
    ///
    /// # Errors
    /// The changelog no longer holds `position`, the brokers are silent, the store refuses, or it was given
    /// up.
    pub fn follow(
        &self,
        topic: &str,
        partition: u32,
        position: Offset,
        following: &mut Following<'_>,
    ) -> Result<(Offset, u64)> {
        let changelog = changelog_topic(&self.options.app, topic);
        // The end as it is, open transactions included: what is committed below it must be waited for.
        let (start, goal) = self.watermarks(&changelog, partition)?;
        let mut next = position.max(start);
        if next >= goal {
            return Ok((next.max(position), 0));
        }
        let mut records = 0;
        let begun = Instant::now();
        loop {
            next = self.follow_to_end((&changelog, partition, next, goal), &mut records, following)?;
            // An end may be met earlier: where a transaction is open, and on a leader that does not know
            // yet how much of its log is committed.
            if next >= goal {
                break;
            }
            self.await_stable(topic, partition, goal, following)?;
            std::thread::sleep(STABLE_PAUSE);
            if begun.elapsed() > SILENCE_MAX {
                let message = format!("{changelog}/{partition} ends at {next}, and was to end at {goal}");
                return Err(Error::unavailable(message).with_hint("its leader may have lost records"));
            }
        }
        (following.adopt)(Vec::new(), next)?;
        Ok((next, records))
    }

    /// Reads from `next` to an end of the partition. Returns the position.
    fn follow_to_end(
        &self,
        (changelog, partition, mut next, goal): (&str, u32, Offset, Offset),
        records: &mut u64,
        following: &mut Following<'_>,
    ) -> Result<Offset> {
        let mut fetcher =
            Fetcher::of(&self.options, changelog, partition, next).map_err(failed("follow a changelog"))?;
        let (mut staged, mut bytes) = (Vec::new(), 0);
        let (mut heard_at, mut asked_at) = (Instant::now(), Instant::now());
        loop {
            following.check()?;
            let arrived = fetcher.take(PAUSE, TAKE_BYTES).of_one().map_err(failed("follow a changelog"))?;
            let mut is_end = false;
            if let Some(Arrived { batch, end, .. }) = arrived {
                heard_at = Instant::now();
                if let Some(batch) = batch {
                    next = batch.next_offset();
                    *records += u64::from(batch.count);
                    bytes += batch.size();
                    staged.push(batch);
                }
                next = next.max(end.unwrap_or(0));
                is_end = end.is_some();
            } else if heard_at.elapsed() > SILENCE_MAX {
                let message =
                    format!("{changelog}/{partition} has stood at {next} of {goal} for {SILENCE_MAX:?}");
                return Err(Error::unavailable(message).with_hint("its leader does not answer"));
            }
            if !is_end && asked_at.elapsed() > ASK_EVERY {
                // Beside an owner that commits often no end is met by itself.
                asked_at = Instant::now();
                let end = self.stable_end(changelog, partition)?;
                next = next.max(fetcher.positions().first().map_or(0, |(_, at)| *at));
                is_end = next >= end;
            }
            if bytes >= following.chunk_bytes || is_end {
                (following.adopt)(last_of_each(&staged), next)?;
                (following.progress)(*records, next, goal);
                (staged, bytes) = (Vec::new(), 0);
            }
            if is_end {
                return Ok(next);
            }
        }
    }

    /// Waits until no transaction is open below `goal` of the changelog of the task on `partition` of
    /// `topic`.
    fn await_stable(
        &self,
        topic: &str,
        partition: u32,
        goal: Offset,
        following: &Following<'_>,
    ) -> Result<()> {
        let changelog = &changelog_topic(&self.options.app, topic);
        let begun = Instant::now();
        let mut is_fenced = false;
        while self.stable_end(changelog, partition)? < goal {
            following.check()?;
            if following.ends_open && begun.elapsed() > PATIENCE && !is_fenced {
                self.fence_last(topic, partition)?;
                is_fenced = true;
            }
            if begun.elapsed() > SILENCE_MAX {
                let message = format!(
                    "a transaction has been open on {changelog}/{partition} for {SILENCE_MAX:?}, below {goal}"
                );
                return Err(Error::unavailable(message)
                    .with_hint("if it stays, kafka-transactions (find-hanging, abort) ends it"));
            }
            std::thread::sleep(STABLE_PAUSE);
        }
        Ok(())
    }

    /// Offset below which no transaction is open.
    fn stable_end(&self, topic: &str, partition: u32) -> Result<Offset> {
        let marks = self.stable_probe.fetch_watermarks(topic, partition as i32, TIMEOUT);
        Ok(marks.map_err(failed("read the end of a changelog"))?.1.max(0) as Offset)
    }

    /// First and next offset of the changelog of the task on `partition` of `topic`.
    ///
    /// # Errors
    /// The brokers do not answer.
    pub fn changelog_ends(&self, topic: &str, partition: u32) -> Result<(Offset, Offset)> {
        self.watermarks(&changelog_topic(&self.options.app, topic), partition)
    }

    /// Makes sure that the tasks on `topic` have their changelog.
    ///
    /// # Errors
    /// It cannot be made, or has another number of partitions.
    pub fn ensure_changelog(&self, topic: &str, partitions: u32) -> Result<()> {
        let changelog = changelog_topic(&self.options.app, topic);
        match self.partitions(&changelog) {
            Some(before) if before < partitions => {
                let message = format!("topic `{topic}` had {before} partitions and has {partitions}");
                Err(Error::invalid(message).with_hint(WIDENED))
            }
            _ => self.ensure_topic(&changelog, Some(partitions), TopicKind::Changelog).map(drop),
        }
    }
}

/// Of several rows of one key, the last.
fn last_of_each(batches: &[LogBatch]) -> Vec<Change> {
    let rows: Vec<RecordView<'_>> = batches.iter().flat_map(LogBatch::records).collect();
    let mut seen = hashbrown::HashSet::with_capacity(rows.len());
    let last = rows.into_iter().rev().filter(|row| seen.insert(row.key.unwrap_or_default()));
    let change = |row: RecordView<'_>| (row.key.unwrap_or_default().to_vec(), row.value.map(<[u8]>::to_vec));
    last.map(change).collect()
}
