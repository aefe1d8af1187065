//! Worker threads: each runs the tasks it owns, and commits them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::log::{Log, Transaction};
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
        log: Arc<dyn Log>,
        commit_interval: Duration,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn({
            let stop = Arc::clone(&stop);
            move || Loop { runners, log, commit_interval, stop }.run()
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
    log: Arc<dyn Log>,
    commit_interval: Duration,
    stop: Arc<AtomicBool>,
}

impl Loop {
    /// 1 apply what waits, 2 commit when it is time or memory asks for it, 3 wait for more.
    fn run(mut self) {
        let mut seen = 0;
        let mut committed_at = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            let version = self.log.wait(seen, Duration::ZERO);
            let mut records = 0;
            let mut is_pressed = false;
            for runner in &mut self.runners {
                // Units that have to be written first hold the input back.
                if !runner.is_under_pressure() {
                    records += runner.step();
                }
                is_pressed |= runner.is_under_pressure();
            }
            if is_pressed || committed_at.elapsed() >= self.commit_interval {
                self.commit(false);
                committed_at = Instant::now();
            }
            if records == 0 && !is_pressed {
                let left = self.commit_interval.saturating_sub(committed_at.elapsed());
                self.log.wait(version, left.clamp(Duration::from_millis(1), IDLE_WAIT));
            }
            seen = version;
        }
        // What is not handed over by then is redone by the next start.
        let deadline = Instant::now() + HAND_OVER_MAX;
        while self.commit(true) && Instant::now() < deadline {}
    }

    /// One transaction for all tasks (PROTOCOL 13 to 17). An error ends the tasks: whether it
    /// took effect is known only after a restart.
    /// Returns whether there was anything to commit.
    fn commit(&mut self, everything: bool) -> bool {
        let mut transaction = Transaction::default();
        let mut pending = Vec::new();
        for (index, runner) in self.runners.iter_mut().enumerate() {
            match runner.prepare_commit(&mut transaction, everything) {
                Ok(Some(commit)) => pending.push((index, commit)),
                Ok(None) => {}
                Err(error) => runner.fail(&error.to_string()),
            }
        }
        if pending.is_empty() {
            return false;
        }
        let outcome = self.log.commit(transaction);
        for (index, commit) in pending {
            let runner = &mut self.runners[index];
            let completed = match &outcome {
                Ok(()) => runner.complete_commit(commit).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = completed {
                runner.fail(&format!("commit: {why}"));
            }
        }
        true
    }
}
