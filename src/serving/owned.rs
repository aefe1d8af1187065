//! The tasks that this node owns at a moment. They change as a whole, while readers go on with what
//! they have seen.

use std::sync::Arc;

use crate::task::Task;
use crate::topology::Topology;

/// The tasks of this node.
#[derive(Default)]
pub struct Owned {
    /// All of them.
    pub tasks: Vec<Arc<Task>>,
    /// By group and partition: the index of the task that has its units, if it is here.
    pub(super) routes: Vec<Vec<Option<usize>>>,
}

impl Owned {
    /// Ownership of `tasks`, where group `g` has `partitions[g]` partitions.
    pub fn new(topology: &Topology, partitions: &[u32], tasks: Vec<Arc<Task>>) -> Self {
        let routes = topology
            .groups
            .iter()
            .zip(partitions)
            .map(|(group, count)| {
                let mut routes = vec![None; *count as usize];
                for (i, task) in tasks.iter().enumerate() {
                    let has_units = task.group_slot(group.index).is_some_and(|s| task.groups[s].is_local);
                    if has_units && let Some(route) = routes.get_mut(task.partition as usize) {
                        *route = Some(i);
                    }
                }
                routes
            })
            .collect();
        Self { tasks, routes }
    }
}
