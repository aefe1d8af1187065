//! Worker threads: each runs the tasks it owns, and commits them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::log::{Outcome, Session};
use crate::task::Runner;

/// Longest wait for new records, so that commits and stops are not missed.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// Longest time that a stop spends on handing units over.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// A running worker.
pub struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts worker `index` on `runners`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        index: usize,
        runners: Vec<Runner>,
        session: Box<dyn Session>,
        commit_interval: Duration,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn({
            let stop = Arc::clone(&stop);
            move || Loop { runners, session, commit_interval, stop }.run()
        })?;
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
    commit_interval: Duration,
    stop: Arc<AtomicBool>,
}

impl Loop {
    /// 1 wait for records, 2 apply them, 3 commit when it is time or memory asks for it.
    fn run(mut self) {
        let mut committed_at = Instant::now();
        let mut patience = Duration::ZERO;
        while !self.stop.load(Ordering::Acquire) {
            self.session.wait(patience);
            let mut records = 0;
            let mut is_pressed = false;
            for runner in &mut self.runners {
                // Units that have to be written first hold the input back.
                if !runner.is_under_pressure() {
                    records += runner.step(&mut *self.session);
                }
                is_pressed |= runner.is_under_pressure();
            }
            if is_pressed || committed_at.elapsed() >= self.commit_interval {
                self.commit(false);
                committed_at = Instant::now();
            }
            let left = self.commit_interval.saturating_sub(committed_at.elapsed());
            let is_idle = records == 0 && !is_pressed;
            patience = if is_idle { left.clamp(Duration::from_millis(1), IDLE_WAIT) } else { Duration::ZERO };
        }
        // What is not handed over by then is redone by the next start.
        let deadline = Instant::now() + HAND_OVER_MAX;
        while self.commit(true) && Instant::now() < deadline {}
    }

    /// One transaction for all tasks (PROTOCOL 13 to 17). Returns whether there was anything to
    /// commit.
    fn commit(&mut self, everything: bool) -> bool {
        let (mut commits, mut pending) = (Vec::new(), Vec::new());
        for (index, runner) in self.runners.iter_mut().enumerate() {
            match runner.prepare_commit(everything) {
                Ok(Some((commit, handle))) => {
                    commits.push(commit);
                    pending.push((index, handle));
                }
                Ok(None) => {}
                Err(error) => runner.fail(&error.to_string()),
            }
        }
        if pending.is_empty() {
            return false;
        }
        let outcome = self.session.commit(&mut commits);
        for (index, handle) in pending {
            let runner = &mut self.runners[index];
            let completed = match &outcome {
                Outcome::Committed => runner.complete_commit(handle).map_err(|e| e.to_string()),
                Outcome::Aborted(why) | Outcome::Fenced(why) => Err(why.clone()),
            };
            if let Err(why) = completed {
                runner.fail(&format!("commit: {why}"));
            }
        }
        true
    }
}
