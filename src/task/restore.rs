//! Takeover (PROTOCOL 23 to 30, without a changelog): the store says from where to redo, the log
//! says up to where it was committed.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering;

use super::barrier::{Barrier, LastRecord, STORE_KEY};
use super::runner::Runner;
use super::{Coverage, SourceProgress, Task, TaskInput};
use crate::error::{Error, Result};
use crate::log::{ResumePoint, made_anew};
use crate::model::Offset;

/// A number per source and group that changes whenever stored rows would mean something else.
fn fingerprints(task: &Task, app: &str) -> BTreeMap<String, u64> {
    let hash = |text: String| {
        let mut hasher = twox_hash::XxHash64::with_seed(2);
        text.hash(&mut hasher);
        hasher.finish()
    };
    // Internal topics are named after it: under another name they would be new and empty.
    let mut all = BTreeMap::from([("`app`".to_owned(), hash(app.to_owned()))]);
    if let TaskInput::Topic { sources } = &task.input {
        for source in sources {
            all.insert(format!("source {}", source.name), hash(format!("{source:?}")));
        }
    }
    for to in &task.groups {
        let group = &to.group;
        let mut meaning = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            group.key, group.filter, group.columns, group.flags, group.layout, group.horizon, group.has_base
        );
        if let Some(fold) = group.fold {
            meaning.push_str(&format!(" {fold:?}"));
        }
        all.insert(format!("feature group {}-v{}", group.name, group.version), hash(meaning));
    }
    all
}

impl Runner {
    /// Loads where the task stands.
    pub(super) fn restore(&mut self, from: &ResumePoint) -> Result<()> {
        let task = &self.task;
        self.fingerprints = fingerprints(task, &self.options.app);
        let committed = match &from.committed {
            Some(bytes) => Barrier::decode(bytes)?,
            None => self.first_barrier(from.start),
        };
        let stored = match task.store.get(STORE_KEY)? {
            Some(bytes) => Barrier::decode(&bytes)?,
            // All that it held is to be redone.
            None => {
                let begun_at = committed.begun_at;
                let initial = Barrier::initial(self.fingerprints.clone());
                Barrier { committed: begun_at, redo_from: begun_at, ..initial }
            }
        };
        self.refuse_other_definitions(&committed)?;
        if stored.committed > committed.committed || stored.sequence > committed.sequence {
            let message = format!(
                "the state of {} is ahead of the log: offset {} against {}",
                task.name, stored.committed, committed.committed
            );
            return Err(Error::corrupted(message)
                .with_hint("the log was replaced by an older copy; restore both from one backup"));
        }
        let start = from.start;
        if stored.redo_from < start {
            let message = format!(
                "the log of {} starts at {start}, and its state needs it from {} on",
                task.name, stored.redo_from
            );
            return Err(Error::corrupted(message)
                .with_hint("state is derived from records that are gone; restore both from one backup"));
        }
        let end = from.end;
        if committed.committed > end {
            let message =
                format!("the log of {} ends at {end}, and {} were committed", task.name, committed.committed);
            return Err(Error::corrupted(message).with_hint("restore log and state from one backup"));
        }
        self.refuse_another_topic(&committed, from)?;
        self.topic_id = from.topic_id.clone().or_else(|| committed.topic_id.clone());
        self.position = stored.redo_from;
        self.last_record = committed.last;
        self.committed = committed.committed;
        self.stored = stored.committed;
        self.begun_at = committed.begun_at;
        self.sequence = committed.sequence;
        self.last_txn_id = from.committed.is_some().then(|| committed.txn_id());
        if let TaskInput::Topic { sources } = &task.input {
            for (source, progress) in sources.iter().zip(&mut self.sources) {
                *progress = committed.sources.get(&source.name).copied().unwrap_or_default();
                progress.stream_time = stored.stream_times_at_redo.get(&source.name).copied().flatten();
            }
        }
        for (to, counts) in task.groups.iter().zip(&mut self.groups) {
            *counts = committed.groups.get(&to.group.name).copied().unwrap_or_default();
        }
        self.vector = committed.vector.clone();
        task.committed.store(self.committed, Ordering::Relaxed);
        task.barrier.store(self.position, Ordering::Relaxed);
        let records = self.committed - self.position;
        tracing::info!(task = %task.name, redo_from = self.position, records, "restoring");
        if self.position >= self.committed {
            self.finish_restore()?;
        }
        Ok(())
    }

    /// Nothing was committed yet: all that is left of the log is to be read.
    fn first_barrier(&self, start: Offset) -> Barrier {
        let mut barrier = Barrier::initial(self.fingerprints.clone());
        (barrier.committed, barrier.redo_from, barrier.begun_at) = (start, start, start);
        if let TaskInput::Topic { sources } = &self.task.input
            && start > 0
        {
            let cut = SourceProgress { coverage: Coverage::Nothing, ..SourceProgress::default() };
            barrier.sources = sources.iter().map(|source| (source.name.clone(), cut)).collect();
        }
        barrier
    }

    /// Refuses an input whose records are not those that were applied: the topic was deleted and made
    /// again (PROTOCOL 27). Where the log has no ids, what is cut off already cannot be compared.
    fn refuse_another_topic(&self, committed: &Barrier, from: &ResumePoint) -> Result<()> {
        let task = &self.task;
        if let (Some(before), Some(now)) = (&committed.topic_id, &from.topic_id)
            && before != now
        {
            return Err(made_anew(&task.topic));
        }
        let Some(last) = committed.last.filter(|last| last.offset >= from.start) else { return Ok(()) };
        let batches = self.log.read(&task.topic, task.partition, last.offset, 1 << 12)?;
        let found = batches.iter().flat_map(|b| b.records()).find(|r| r.offset >= last.offset);
        match found.map(LastRecord::of) {
            Some(found) if found != last => Err(made_anew(&task.topic)),
            _ => Ok(()),
        }
    }

    fn refuse_other_definitions(&self, committed: &Barrier) -> Result<()> {
        for (name, fingerprint) in &committed.fingerprints {
            let message = match self.fingerprints.get(name) {
                Some(same) if same == fingerprint => continue,
                Some(_) => format!("{name} is not what it was when {} was written", self.task.name),
                None => format!("{name} is no longer defined, and {} holds it", self.task.name),
            };
            let hint = "start in a new data_dir, on Kafka under another `app`; or take the change back";
            return Err(Error::invalid(message).with_hint(hint));
        }
        for name in self.fingerprints.keys() {
            if !committed.fingerprints.contains_key(name) {
                let message = format!("{name} is new, and {} has already passed its events", self.task.name);
                let hint = "start in a new data_dir, on Kafka under another `app`; or take the group out";
                return Err(Error::invalid(message).with_hint(hint));
            }
        }
        Ok(())
    }

    /// Everything committed is applied: readers may come.
    pub(super) fn finish_restore(&mut self) -> Result<()> {
        let task = &self.task;
        let mut state = task.state.write();
        state.applied = self.position;
        state.sources.copy_from_slice(&self.sources);
        state.groups.copy_from_slice(&self.groups);
        state.vector.clone_from(&self.vector);
        drop(state);
        for (shared, progress) in task.stream_times.iter().zip(&self.sources) {
            shared.store(progress.stream_time.unwrap_or(i64::MIN), Ordering::Release);
        }
        if task.is_standby() {
            task.stand_by()
        } else {
            task.run()
        }
        Ok(())
    }
}
