//! A standby beside an owner: any schedule of both gives the values that the oracle gives of what the
//! standby has applied.

use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::barrier::STORE_KEY;
use super::schedule_tests::{Act, CACHES, Click, DEFINITIONS, Run, act, check};
use super::{Adoption, Follower, Runner};
use crate::config::DefinitionFiles;
use crate::log::{Log, ResumePoint};
use crate::model::{Change, Millis};
use crate::oracle::Oracle;
use crate::state::{MemoryStore, SharedStore};

const HOUR: Millis = 3_600_000;

#[derive(Clone, Debug)]
enum Step {
    /// Something happens to the owner or its input.
    Owner(Act),
    /// The standby applies what is committed.
    Follow,
    /// It reads the changelog to its end, and adopts what it may. What was just committed may be seen
    /// by its offset before it is seen there.
    Adopt { is_late: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let adopt = any::<bool>().prop_map(|is_late| Step::Adopt { is_late });
    // Everybody else's events leave the window, and the next sweep finds them.
    let pass = (1..4_u8).prop_map(|user| Act::Append(vec![Click { user, later: HOUR, is_repeated: false }]));
    let pass = pass.prop_map(Step::Owner);
    prop_oneof![1 => pass, 20 => act().prop_map(Step::Owner), 5 => Just(Step::Follow), 5 => adopt]
}

struct Standby {
    store: SharedStore,
    runner: Runner,
    staged: Vec<Change>,
    /// Commits of which the rows were read.
    read: usize,
    oracle: Oracle,
    restarts: usize,
}

impl Standby {
    fn new(owner: &Run) -> Self {
        let store: SharedStore = Arc::new(MemoryStore::default());
        let definitions = DefinitionFiles::of_text(DEFINITIONS).definitions;
        let oracle = Oracle::new(&definitions, 1).expect("no mistakes");
        Self { runner: runner(owner, &store), store, staged: Vec::new(), read: 0, oracle, restarts: 0 }
    }

    fn follow(&mut self, owner: &Run) {
        self.runner.follow_to(owner.committed());
        owner.bench.catch_up(&mut self.runner);
        assert_eq!(self.runner.position(), owner.committed());
    }

    fn adopt(&mut self, owner: &Run, is_late: bool) {
        let end = owner.changelog.len().saturating_sub(usize::from(is_late)).max(self.read);
        self.staged.extend(owner.changelog[self.read..end].iter().flatten().cloned());
        self.read = end;
        match self.runner.adopt(&self.staged, 0).expect("readable") {
            Adoption::Done => self.staged.clear(),
            Adoption::Early => {}
            Adoption::Restart => {
                self.restarts += 1;
                // As by a new one, which begins with what the changelog leaves in the store.
                self.store.write(&std::mem::take(&mut self.staged)).expect("writable");
                self.runner = runner(owner, &self.store);
                self.follow(owner);
            }
        }
    }
}

/// A runner that follows, with an empty overlay.
fn runner(owner: &Run, store: &SharedStore) -> Runner {
    let mut task = owner.bench.task(store);
    task.follower = Some(Arc::new(Follower::default()));
    let log = &owner.bench.log;
    let from = ResumePoint {
        committed: store.get(STORE_KEY).expect("readable"),
        start: log.start_offset("clicks", 0),
        end: log.end_offset("clicks", 0),
        topic_id: None,
    };
    let mut runner = owner.bench.runner(task, &from).expect("a new one");
    runner.follow_to(runner.committed());
    runner
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_standby_gives_the_values_of_the_oracle(
        steps in vec(step(), 1..100),
        interval in prop::sample::select(vec![0, 400, 3_600_000_000]),
        cache_bytes in prop::sample::select(CACHES.to_vec()),
        has_sweeps in any::<bool>(),
    ) {
        let mut owner = Run::new(Duration::from_micros(interval), cache_bytes, false);
        owner.bench.has_changelog = true;
        owner.act(&Act::Crash { is_durable: false });
        let mut standby = Standby::new(&owner);
        for step in &steps {
            match step {
                Step::Owner(Act::MakeSweepDue) if !has_sweeps => {}
                Step::Owner(act) => owner.act(act),
                Step::Follow => standby.follow(&owner),
                Step::Adopt { is_late } => standby.adopt(&owner, *is_late),
            }
            check(&owner.bench, &standby.runner, &mut standby.oracle);
        }
        // Nothing but what a sweep removes makes an overlay useless.
        prop_assert!(has_sweeps || standby.restarts == 0);
    }
}
