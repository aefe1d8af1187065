//! Worker threads: each runs the tasks it owns, and commits them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::error::Result;
use crate::log::{Membership, Outcome, Ownership, Session, TaskCommit};
use crate::task::{Lease, PendingCommit, Runner, Task};
use crate::telemetry::Metrics;

/// Longest wait for new records, so that commits and stops are not missed.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// Longest time that a stop spends on handing units over.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// Wait for an outcome that has to be known before anything else.
const SETTLE_WAIT: Duration = Duration::from_secs(1);

/// Pause before a commit that was aborted is made again, and before a group that does not answer is asked
/// again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Who opens and closes tasks, beside the worker: taking over may take minutes.
pub trait Host: Send {
    /// Begins to take over the tasks on `inputs`; each arrives through `done`.
    fn take_over(&self, inputs: &[(String, u32)], done: &Sender<Runner>);

    /// The worker has let go of tasks, and gives takeovers up: all but those on `inputs`.
    fn keep_only(&self, inputs: &[(String, u32)]);

    /// The group has said what is the worker's, all of which is being taken over: nothing perhaps.
    fn assigned(&self) {}

    /// Whether other nodes are there to take over from the worker.
    fn has_others(&self) -> bool {
        false
    }

    /// Whether the takeover of this name has not been given up.
    fn is_wanted(&self, incarnation: u64) -> bool;
}

/// What a worker starts with.
pub struct WorkerOptions {
    /// Its number on this node.
    pub index: usize,
    /// Tasks that it owns from the start.
    pub runners: Vec<Runner>,
    /// Its side of the log.
    pub session: Box<dyn Session>,
    /// Who opens tasks that it is given later.
    pub host: Box<dyn Host>,
    /// How long it may answer without hearing from its group.
    pub lease: Option<Arc<Lease>>,
    /// Distance of commits.
    pub commit_interval: Duration,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Renewed at every turn: who stands still is not alive.
    pub pulse: Arc<Lease>,
    /// Asks it to finish.
    pub stop: Arc<AtomicBool>,
}

/// A running worker.
pub struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(options: WorkerOptions) -> Result<Self> {
        let stop = Arc::clone(&options.stop);
        let thread = std::thread::Builder::new().name(format!("worker-{}", options.index));
        let thread = thread.spawn(move || Loop::new(options).run())?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Asks the worker to finish: everything applied is committed and handed over.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits until it has finished.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker has panicked");
        }
    }
}

struct Loop {
    runners: Vec<Runner>,
    session: Box<dyn Session>,
    host: Box<dyn Host>,
    lease: Option<Arc<Lease>>,
    commit_interval: Duration,
    metrics: Arc<Metrics>,
    pulse: Arc<Lease>,
    stop: Arc<AtomicBool>,
    /// Inputs that are the worker's, on a log that gives and takes them.
    owned: Vec<(String, u32)>,
    /// Whether it has let everything go and was given nothing since.
    is_released: bool,
    taken_over: (Sender<Runner>, Receiver<Runner>),
    /// A commit that is under way.
    flight: Option<Flight>,
    /// A commit that was aborted and is to be made again.
    aborted: Option<Vec<(TaskCommit, PendingCommit)>>,
}

/// A commit whose outcome is not known yet.
struct Flight {
    tasks: Vec<String>,
    pending: Vec<PendingCommit>,
    begun: Instant,
}

impl Loop {
    fn new(options: WorkerOptions) -> Self {
        let WorkerOptions {
            mut runners, session, host, lease, commit_interval, metrics, pulse, stop, ..
        } = options;
        let owned = runners.iter().map(|r| input_of(r.task())).collect();
        let (taken_over, flight, aborted) = (unbounded(), None, None);
        runners.iter_mut().for_each(Runner::hold);
        Self {
            runners,
            session,
            host,
            lease,
            commit_interval,
            metrics,
            pulse,
            stop,
            owned,
            is_released: false,
            taken_over,
            flight,
            aborted,
        }
    }

    /// 1 wait for records and changes of ownership, 2 apply records, 3 commit when it is time or
    /// memory asks for it.
    fn run(mut self) {
        let mut committed_at = Instant::now();
        let mut patience = Duration::ZERO;
        while !self.stop.load(Ordering::Acquire) {
            self.pulse.renew();
            if !self.renew_lease() {
                continue;
            }
            if let Some(change) = self.session.wait(patience) {
                self.change(change);
            }
            // Others may own, and have removed, what would be read next.
            if self.must_prove_itself() {
                continue;
            }
            self.welcome();
            let mut records = 0;
            let mut is_pressed = false;
            for runner in &mut self.runners {
                // Units that have to be written first hold the input back.
                if !runner.is_under_pressure() {
                    records += runner.step(&mut *self.session);
                }
                is_pressed |= runner.is_under_pressure();
            }
            // Events are applied while a commit is under way; who waits for memory waits for it.
            let was_under_way = self.flight.is_some();
            let is_settled = self.settle(if is_pressed { IDLE_WAIT } else { Duration::ZERO });
            if is_settled {
                self.end_interrupted();
            }
            // What the group said meanwhile is heard first: commits that take long would follow each other
            // without a gap.
            let may_begin = is_settled && !was_under_way;
            if may_begin && (is_pressed || committed_at.elapsed() >= self.commit_interval) {
                self.silence_failed();
                self.begin_commit(false);
                committed_at = Instant::now();
            }
            let left = self.commit_interval.saturating_sub(committed_at.elapsed());
            let is_idle = !is_pressed && (records == 0 || !self.session.has_more());
            patience = if is_idle { left.clamp(Duration::from_millis(1), IDLE_WAIT) } else { Duration::ZERO };
        }
        self.end_all();
    }

    /// What is not handed over by the end of its time is redone by the next start.
    fn end_all(&mut self) {
        // Asked first: nothing more is heard of others while the engine stops.
        let has_others = self.host.has_others();
        self.hand_over(true);
        if !has_others {
            // It finds its partitions where it left them when it comes back.
            self.host.keep_only(&self.inputs());
            return self.session.release();
        }
        // Who is still being answered must not hear what others make old. Stores are closed later: others need
        // not wait for it.
        self.host.keep_only(&[]);
        self.session.release();
        self.session.leave();
    }

    /// Names of the tasks that it runs.
    fn names(&self) -> Vec<String> {
        self.runners.iter().map(|r| r.task().name.clone()).collect()
    }

    /// Their inputs.
    fn inputs(&self) -> Vec<(String, u32)> {
        self.runners.iter().map(|r| input_of(r.task())).collect()
    }

    /// Whether it stood still for so long that its tasks may be others' by now.
    fn must_prove_itself(&self) -> bool {
        // One that has released everything runs nothing.
        !self.is_released && self.lease.as_ref().is_some_and(|lease| lease.needs_proof())
    }

    /// Renews the lease, after proof of membership if the worker stood still for long: it may have
    /// been frozen while others took over. Returns whether it may go on.
    fn renew_lease(&mut self) -> bool {
        let Some(lease) = &self.lease else { return true };
        if self.is_released {
            // Others may have got what it still shows. Until it hears what is its own the lease runs out.
            return true;
        }
        // What is known now is renewed from now, however long the process stands still before it says so.
        let known_at = Instant::now();
        if lease.needs_proof() {
            tracing::warn!(
                "nothing was done for {:?}: asking the group whether others own the tasks",
                lease.age()
            );
            self.settle_wholly();
            match self.session.confirm() {
                // What takeovers know may be as old as the standstill, and a member that has started
                // nothing has nothing to prove itself with.
                Membership::Valid => self.take_over_rest(),
                Membership::Unproven => {
                    self.let_go(&self.names());
                    self.take_over_rest();
                }
                Membership::Lost => self.change(Ownership::Lost),
                Membership::Unknown => {
                    // Its own session timeout ends the assignment if this goes on.
                    if let Some(change) = self.session.wait(RETRY_PAUSE) {
                        self.change(change);
                    }
                    return false;
                }
            }
        }
        if let Some(lease) = &self.lease {
            lease.renew_from(known_at);
        }
        true
    }

    /// Begins takeovers of all that is the worker's and that no runner is there for; what is under way
    /// of them begins anew.
    fn take_over_rest(&self) {
        let kept = self.inputs();
        let rest: Vec<(String, u32)> = self.owned.iter().filter(|i| !kept.contains(i)).cloned().collect();
        self.host.keep_only(&kept);
        self.host.take_over(&rest, &self.taken_over.0);
    }

    fn change(&mut self, change: Ownership) {
        match change {
            Ownership::Assigned { inputs, retained } => {
                self.metrics.rebalance("assigned");
                self.is_released = false;
                tracing::info!(partitions = inputs.len(), retained = retained.len(), "assigned");
                let is_kept = |r: &&Runner| retained.contains(&input_of(r.task()));
                let ended = self.runners.iter().filter(|r| !is_kept(r)).map(|r| r.task().name.clone());
                self.let_go(&ended.collect::<Vec<_>>());
                self.owned = inputs;
                self.take_over_rest();
                self.host.assigned();
                for runner in &self.runners {
                    self.session.start(runner.start());
                }
            }
            Ownership::Revoked => {
                self.metrics.rebalance("revoked");
                self.hand_over(false);
                if self.aborted.is_some() {
                    self.change(Ownership::Lost);
                }
                self.owned.clear();
                // What is on its way would arrive unasked for, and be shown with nobody to work on it.
                self.host.keep_only(&self.inputs());
                self.session.release();
                self.is_released = true;
            }
            Ownership::Taken(inputs) => {
                self.metrics.rebalance("taken");
                tracing::info!(partitions = inputs.len(), "taken");
                self.hand_over(false);
                // What could not be committed is theirs to redo.
                let is_taken = |r: &&Runner| inputs.contains(&input_of(r.task()));
                let taken = self.runners.iter().filter(is_taken).map(|r| r.task().name.clone());
                self.let_go(&taken.collect::<Vec<_>>());
                self.owned.retain(|input| !inputs.contains(input));
                self.host.keep_only(&self.owned);
                self.session.release_some(&inputs);
            }
            Ownership::Lost => {
                self.metrics.rebalance("lost");
                self.aborted = None;
                if let Some(flight) = &mut self.flight {
                    // Its outcome is no longer anybody's here.
                    flight.tasks.clear();
                    flight.pending.clear();
                }
                self.runners.clear();
                self.owned.clear();
                self.host.keep_only(&[]);
                self.session.release();
            }
        }
    }

    /// Of a commit that was aborted, only some is made again.
    fn keep_aborted(&mut self, is_kept: impl Fn(&TaskCommit) -> bool) {
        let Some(mut aborted) = self.aborted.take() else { return };
        aborted.retain(|(commit, _)| is_kept(commit));
        self.aborted = Some(aborted).filter(|aborted| !aborted.is_empty());
    }

    /// Others may get partitions: what was applied is theirs to see. What cannot be committed soon is
    /// theirs to redo.
    fn hand_over(&mut self, everything: bool) {
        let deadline = Instant::now() + HAND_OVER_MAX;
        while self.commit(everything) && Instant::now() < deadline {
            if self.aborted.is_some() {
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    /// Begins with tasks that are ready.
    fn welcome(&mut self) {
        while let Ok(mut runner) = self.taken_over.1.try_recv() {
            // One that was given up may have been about to arrive.
            let is_wanted = self.host.is_wanted(runner.task().incarnation);
            if !is_wanted || !self.owned.contains(&input_of(runner.task())) {
                continue;
            }
            runner.hold();
            self.session.start(runner.start());
            self.runners.push(runner);
        }
    }

    /// What is read of a task that has failed would wait for ever, and keep the others waiting.
    fn silence_failed(&mut self) {
        let failed = self.runners.iter().filter(|r| r.task().failure().is_some());
        let failed: Vec<(String, u32)> = failed.map(|r| input_of(r.task())).collect();
        if !failed.is_empty() {
            self.session.stop(&failed);
        }
    }

    /// Begins one transaction for all tasks (PROTOCOL 13 to 16); none may be under way (12). Returns
    /// whether there was anything to commit.
    fn begin_commit(&mut self, everything: bool) -> bool {
        let prepared = match self.aborted.take() {
            // The same boundary again: nothing of it is lost by an abort (PROTOCOL 19).
            Some(prepared) => prepared,
            None => self.prepare(everything),
        };
        if prepared.is_empty() {
            return false;
        }
        let (commits, pending): (Vec<TaskCommit>, Vec<PendingCommit>) = prepared.into_iter().unzip();
        let tasks = commits.iter().map(|c| c.task.clone()).collect();
        self.flight = Some(Flight { tasks, pending, begun: Instant::now() });
        self.session.begin_commit(commits);
        true
    }

    /// Takes up the outcome of the commit under way (PROTOCOL 17 to 21), if it is known within
    /// `timeout`. Returns whether none is under way any more.
    fn settle(&mut self, timeout: Duration) -> bool {
        let Some(flight) = self.flight.take() else { return true };
        let Some(outcome) = self.session.outcome(timeout) else {
            self.flight = Some(flight);
            return false;
        };
        let Flight { tasks, pending, begun } = flight;
        self.metrics.commit(outcome.name(), begun.elapsed());
        tracing::debug!(tasks = tasks.len(), took = ?begun.elapsed(), "{}", outcome.name());
        match outcome {
            Outcome::Committed(barriers) => {
                for (i, (task, handle)) in tasks.iter().zip(pending).enumerate() {
                    if let Some(runner) = self.runners.iter_mut().find(|r| r.task().name == *task)
                        && let Err(error) = runner.complete_commit(handle, barriers.get(i).copied())
                    {
                        runner.interrupt(error);
                    }
                }
                self.end_interrupted();
            }
            Outcome::Aborted(_, commits) if !tasks.is_empty() => {
                self.aborted = Some(commits.into_iter().zip(pending).collect());
            }
            Outcome::Refused(why, of, commits) if !tasks.is_empty() => {
                let refused = &tasks[of];
                if let Some(runner) = self.runners.iter().find(|r| r.task().name == *refused) {
                    runner
                        .fail(&format!("commit: {why}; raise max.message.bytes of that topic, and restart"));
                }
                self.aborted = Some(commits.into_iter().zip(pending).collect());
                self.keep_aborted(|commit| commit.task != *refused);
            }
            Outcome::Fenced(why) if !tasks.is_empty() => {
                tracing::warn!("{}: {why}: taken over anew", tasks.join(", "));
                self.end(&tasks);
            }
            Outcome::Aborted(..) | Outcome::Refused(..) | Outcome::Fenced(_) => {}
        }
        true
    }

    /// Waits for the outcome of the commit under way.
    fn settle_wholly(&mut self) {
        while !self.settle(SETTLE_WAIT) {}
    }

    /// Commits, and waits for the outcome. Returns whether there was anything to commit.
    fn commit(&mut self, everything: bool) -> bool {
        self.settle_wholly();
        let is_begun = self.begin_commit(everything);
        self.settle_wholly();
        is_begun
    }

    fn prepare(&mut self, everything: bool) -> Vec<(TaskCommit, PendingCommit)> {
        let mut prepared = Vec::new();
        for runner in &mut self.runners {
            match runner.prepare_commit(everything) {
                Ok(Some(one)) => prepared.push(one),
                Ok(None) => {}
                Err(error) => runner.interrupt(error),
            }
        }
        prepared
    }

    /// Ends tasks that cannot go on as they are, and takes them over anew. Never while a commit is under
    /// way: who takes over must see what it made durable.
    fn end_interrupted(&mut self) {
        if self.flight.is_some() {
            return;
        }
        let ended = self.runners.iter().filter_map(|r| Some((r.task().name.clone(), r.interrupted()?)));
        let (tasks, why): (Vec<String>, Vec<String>) = ended.unzip();
        if let Some(why) = why.first() {
            tracing::error!("{}: {why}: taken over anew", tasks.join(", "));
            self.end(&tasks);
        }
    }

    /// Others may own these tasks, or their outcome is unknown: what they hold is worth nothing
    /// (PROTOCOL 21). They are taken over anew while they are the worker's.
    fn end(&mut self, tasks: &[String]) {
        let ended: Vec<(String, u32)> =
            self.let_go(tasks).into_iter().filter(|i| self.owned.contains(i)).collect();
        let others: Vec<(String, u32)> = self.owned.iter().filter(|i| !ended.contains(i)).cloned().collect();
        // Takeovers of others go on.
        self.host.keep_only(&others);
        self.host.take_over(&ended, &self.taken_over.0);
    }

    /// Lets these tasks go. Returns their inputs.
    fn let_go(&mut self, tasks: &[String]) -> Vec<(String, u32)> {
        let is_gone = |r: &Runner| tasks.contains(&r.task().name);
        let inputs: Vec<(String, u32)> =
            self.runners.iter().filter(|r| is_gone(r)).map(|r| input_of(r.task())).collect();
        self.runners.retain(|r| !is_gone(r));
        // Who takes over redoes it; made again here too it would be there twice.
        self.keep_aborted(|commit| !tasks.contains(&commit.task));
        self.session.stop(&inputs);
        inputs
    }
}

fn input_of(task: &Task) -> (String, u32) {
    (task.topic.clone(), task.partition)
}

#[cfg(test)]
mod tests;
