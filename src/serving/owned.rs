//! The tasks of this node at a moment. They change as a whole, while readers go on with what they
//! have seen.

use std::sync::Arc;

use crate::task::{Status, Task};
use crate::topology::Topology;

/// By group and partition: the index of the task that has its units, if it is here.
type Routes = Vec<Vec<Option<usize>>>;

/// The tasks of this node.
#[derive(Default)]
pub struct Owned {
    /// All of them, standbys included.
    pub tasks: Vec<Arc<Task>>,
    routes: Routes,
    standby_routes: Routes,
    is_whole: bool,
}

impl Owned {
    /// `tasks`, where group `g` has `partitions[g]` partitions.
    pub fn new(topology: &Topology, partitions: &[u32], tasks: Vec<Arc<Task>>) -> Self {
        let routes = |is_standby: bool| -> Routes {
            let groups = topology.groups.iter().zip(partitions);
            groups
                .map(|(group, count)| {
                    let mut routes = vec![None; *count as usize];
                    let chosen = tasks.iter().enumerate().filter(|(_, t)| t.is_standby() == is_standby);
                    for (i, task) in chosen {
                        let has_units = task.group_slot(group.index).is_some_and(|s| task.groups[s].is_local);
                        if has_units && let Some(route) = routes.get_mut(task.partition as usize) {
                            *route = Some(i);
                        }
                    }
                    routes
                })
                .collect()
        };
        let (routes, standby_routes) = (routes(false), routes(true));
        let is_whole = routes.iter().flatten().all(Option::is_some);
        Self { tasks, routes, standby_routes, is_whole }
    }

    /// The task that owns a partition of a group.
    pub fn route(&self, group: usize, partition: u32) -> Option<usize> {
        self.routes[group][partition as usize]
    }

    /// The task that follows the owner of a partition of a group.
    pub fn standby_route(&self, group: usize, partition: u32) -> Option<usize> {
        self.standby_routes[group][partition as usize]
    }

    /// Tasks that own partitions of a group.
    pub fn owners(&self, group: usize) -> impl Iterator<Item = &Arc<Task>> {
        self.routes[group].iter().flatten().map(|i| &self.tasks[*i])
    }

    /// Whether every partition of every group is owned here, and can be asked.
    pub fn is_whole(&self) -> bool {
        self.is_whole && self.tasks.iter().all(|t| t.status() != Status::Restoring)
    }

    /// Tasks that this node owns.
    pub fn own(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|t| !t.is_standby())
    }
}
