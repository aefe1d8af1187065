//! Names of features in requests: what they are, and what they need.

use crate::error::{Error, Result};
use crate::model::names::closest;
use crate::topology::{Input, Topology};

/// A requested feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Group and feature.
    Feature(usize, usize),
    /// On-demand feature.
    OnDemand(usize),
}

/// The feature that `name` (`group:feature`) names.
pub(super) fn resolve(topology: &Topology, name: &str) -> Result<Wanted> {
    let Some((group_name, feature_name)) = name.split_once(':') else {
        return Err(Error::invalid(format!("`{name}` is no feature; expected `group:feature`")));
    };
    let Some(group) = topology.group(group_name) else {
        let hint = closest(group_name, topology.groups.iter().map(|g| g.name.as_str()));
        let hint = hint.map_or_else(String::new, |n| format!("did you mean `{n}:{feature_name}`?"));
        return Err(Error::not_found(format!("no feature group `{group_name}`")).with_hint(hint));
    };
    if let Some(index) = group.features.iter().position(|f| f.name == feature_name) {
        return Ok(Wanted::Feature(group.index, index));
    }
    let is_it = |o: &crate::topology::OnDemand| o.group == group.index && o.name == feature_name;
    if let Some(index) = topology.on_demand.iter().position(is_it) {
        return Ok(Wanted::OnDemand(index));
    }
    let on_demand = topology.on_demand.iter().filter(|o| o.group == group.index);
    let known = group.features.iter().map(|f| f.name.as_str()).chain(on_demand.map(|o| o.name.as_str()));
    let hint = closest(feature_name, known)
        .map_or_else(String::new, |n| format!("did you mean `{group_name}:{n}`?"));
    let message = format!("no feature `{feature_name}` in group `{group_name}`");
    Err(Error::not_found(message).with_hint(hint))
}

/// Everything that has to be read or computed for some features.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Features by group: the group's index, then indices of features.
    pub groups: Vec<(usize, Vec<usize>)>,
    /// On-demand features, inputs first.
    pub on_demand: Vec<usize>,
    /// Request values.
    pub request: Vec<usize>,
}

impl Needs {
    /// What `wanted` need.
    pub fn of(topology: &Topology, wanted: &[Wanted]) -> Self {
        let mut needs = Self::default();
        for one in wanted {
            match one {
                Wanted::Feature(group, feature) => needs.add_feature(*group, *feature),
                Wanted::OnDemand(index) => needs.add_on_demand(topology, *index),
            }
        }
        // The plan lists on-demand features after their inputs.
        needs.on_demand.sort_unstable();
        needs
    }

    /// Where a needed feature stands in `groups`.
    pub fn place(&self, group: usize, feature: usize) -> (usize, usize) {
        let need = self.groups.iter().position(|(g, _)| *g == group);
        let need = need.expect("every group that is read is needed");
        let at = self.groups[need].1.iter().position(|f| *f == feature);
        (need, at.expect("every feature that is read is needed"))
    }

    fn add_feature(&mut self, group: usize, feature: usize) {
        let index = match self.groups.iter().position(|(g, _)| *g == group) {
            Some(index) => index,
            None => {
                self.groups.push((group, Vec::new()));
                self.groups.len() - 1
            }
        };
        let features = &mut self.groups[index].1;
        if !features.contains(&feature) {
            features.push(feature);
        }
    }

    fn add_on_demand(&mut self, topology: &Topology, index: usize) {
        if self.on_demand.contains(&index) {
            return;
        }
        self.on_demand.push(index);
        // Its group is read even when it uses none of its features: its keys are asked for.
        let group = topology.on_demand[index].group;
        if !self.groups.iter().any(|(g, _)| *g == group) {
            self.groups.push((group, Vec::new()));
        }
        for input in &topology.on_demand[index].inputs {
            match input {
                Input::Feature(group, feature) => self.add_feature(*group, *feature),
                Input::OnDemand(other) => self.add_on_demand(topology, *other),
                Input::Request(value) if !self.request.contains(value) => self.request.push(*value),
                Input::Request(_) => {}
            }
        }
    }
}
