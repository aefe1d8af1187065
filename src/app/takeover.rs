//! One takeover of a task, on its own thread, for as long as it is wanted.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::Place;
use crate::error::{ErrorKind, Result};
use crate::serving::View;
use crate::task::{Runner, Task};

/// Pause before a takeover that failed for a passing reason is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Tasks of a worker, once it knows of any. A takeover goes on as long as its task is among them.
#[derive(Clone, Default)]
pub(super) struct Mine(Arc<Mutex<Option<Vec<Place>>>>);

impl Mine {
    /// The worker is to have `place`.
    pub fn add(&self, place: Place) {
        self.0.lock().get_or_insert_default().push(place);
    }

    /// Nothing to own is also something to know.
    pub fn settle(&self) {
        self.0.lock().get_or_insert_default();
    }

    /// Whether the group has said anything.
    pub fn is_known(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Whether it is known what is the worker's, and `is_so` of all of it.
    pub fn all(&self, is_so: impl Fn(&Place) -> bool) -> bool {
        self.0.lock().as_ref().is_some_and(|mine| mine.iter().all(is_so))
    }

    /// Whether the takeover of this name has not been given up.
    pub fn has(&self, incarnation: u64) -> bool {
        self.0.lock().iter().flatten().any(|w| w.incarnation == incarnation)
    }

    /// Gives up all but those on `inputs`. Returns what is given up; nothing if nothing was known.
    pub fn keep_only(&self, inputs: &[(String, u32)]) -> Vec<Place> {
        let is_kept = |w: &Place| inputs.iter().any(|(t, p)| *t == w.topic && *p == w.partition);
        let mut mine = self.0.lock();
        let Some(all) = mine.take() else { return Vec::new() };
        let (kept, gone) = all.into_iter().partition(is_kept);
        *mine = Some(kept);
        gone
    }

    /// Shows the task to readers, in place of another for the same input. Returns whether it is wanted
    /// at all: one that was given up in the meantime would be shown for ever, and hold its store.
    pub fn show(&self, view: &View, task: &Arc<Task>) -> bool {
        // Who gives it up first forgets it here, and then hides it.
        let mine = self.0.lock();
        let is_wanted = mine.iter().flatten().any(|p| p.incarnation == task.incarnation);
        if is_wanted {
            view.change_tasks(|tasks| {
                tasks.retain(|t| t.name != task.name);
                tasks.push(Arc::clone(task));
            });
        }
        is_wanted
    }
}

/// Begins a takeover of `place` on a thread of its own.
pub(super) fn begin(place: &Place, work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(format!("takeover-{}", place.partition));
    if let Err(error) = thread.spawn(work) {
        tracing::error!("{}/{}: no thread to take over: {error}", place.topic, place.partition);
    }
}

/// Tries until the task is taken over, cannot be, or is no longer wanted.
pub(super) fn take_over(
    task: &Arc<Task>,
    is_wanted: &dyn Fn() -> bool,
    done: &Sender<Runner>,
    try_once: impl Fn(&Arc<Task>) -> Result<Runner>,
) {
    while is_wanted() {
        match try_once(task) {
            Ok(runner) => {
                // The worker may have ended; then nobody misses the task.
                let _ = done.send(runner);
                return;
            }
            Err(error) if error.kind == ErrorKind::Unavailable => {
                tracing::warn!(task = %task.name, "takeover: {error}; trying again");
                std::thread::sleep(RETRY_PAUSE);
            }
            Err(error) => {
                task.fail(&error.to_string());
                return;
            }
        }
    }
}
