//! On-demand features: what they use, in an order in which each comes after its inputs.

use super::check_group::default_value;
use super::check_source::compile_as;
use super::{Input, OnDemand, Topology};
use crate::config::definitions::{GroupDef, OnDemandDef};
use crate::config::reader::Mistakes;
use crate::expr::Scope;
use crate::model::Type;

struct Pending<'a> {
    group: usize,
    def: &'a OnDemandDef,
}

/// Every on-demand feature of `groups`, which are those of `topology` in the same order.
pub(super) fn all(groups: &[&GroupDef], topology: &Topology, mistakes: &mut Mistakes) -> Vec<OnDemand> {
    let pending: Vec<Pending<'_>> = groups
        .iter()
        .enumerate()
        .flat_map(|(group, def)| def.on_demand.iter().map(move |def| Pending { group, def }))
        .collect();
    let compiled: Vec<Option<OnDemand>> =
        pending.iter().map(|p| compile_one(p, &pending, topology, mistakes)).collect();
    order(&pending, compiled, mistakes)
}

/// Names that a feature of `group` may use. Later entries never hide earlier ones.
fn scope_of(group: usize, pending: &[Pending<'_>], topology: &Topology) -> (Vec<(String, Type)>, Vec<Input>) {
    let mut names = Vec::new();
    let mut inputs = Vec::new();
    let mut add = |name: String, value_type: Type, input: Input| {
        names.push((name, value_type));
        inputs.push(input);
    };
    for (f, feature) in topology.groups[group].features.iter().enumerate() {
        add(feature.name.clone(), feature.value_type, Input::Feature(group, f));
    }
    for (i, other) in pending.iter().enumerate().filter(|(_, p)| p.group == group) {
        add(other.def.name.clone(), Type::Scalar(other.def.scalar.value), Input::OnDemand(i));
    }
    for (i, (name, scalar)) in topology.request.iter().enumerate() {
        add(format!("request.{name}"), Type::Scalar(*scalar), Input::Request(i));
    }
    for (g, other) in topology.groups.iter().enumerate() {
        for (f, feature) in other.features.iter().enumerate() {
            let name = format!("{}.{}", other.name, feature.name);
            add(name, feature.value_type, Input::Feature(g, f));
        }
    }
    for (i, other) in pending.iter().enumerate() {
        let name = format!("{}.{}", topology.groups[other.group].name, other.def.name);
        add(name, Type::Scalar(other.def.scalar.value), Input::OnDemand(i));
    }
    (names, inputs)
}

fn compile_one(
    one: &Pending<'_>,
    pending: &[Pending<'_>],
    topology: &Topology,
    mistakes: &mut Mistakes,
) -> Option<OnDemand> {
    let (names, inputs) = scope_of(one.group, pending, topology);
    let def = one.def;
    let scalar = def.scalar.value;
    let default = default_value(&def.default, Type::Scalar(scalar), mistakes);
    let mut expr = compile_as(&def.expr, scalar, &Scope::of_features(&names), mistakes)?;
    let used: Vec<Input> = expr.variables.iter().map(|v| inputs[*v]).collect();
    expr.renumber();
    Some(OnDemand { group: one.group, name: def.name.clone(), expr, scalar, default, inputs: used })
}

/// Sorts so that inputs come first, and renumbers them; circles are mistakes.
fn order(pending: &[Pending<'_>], compiled: Vec<Option<OnDemand>>, mistakes: &mut Mistakes) -> Vec<OnDemand> {
    let mut place: Vec<Option<usize>> = vec![None; compiled.len()];
    let mut sorted: Vec<OnDemand> = Vec::new();
    loop {
        let ready = compiled.iter().enumerate().position(|(i, c)| {
            place[i].is_none()
                && c.as_ref().is_some_and(|c| {
                    c.inputs.iter().all(|input| match input {
                        Input::OnDemand(other) => place[*other].is_some(),
                        _ => true,
                    })
                })
        });
        let Some(i) = ready else { break };
        let mut feature = compiled[i].clone().expect("found above");
        for input in &mut feature.inputs {
            if let Input::OnDemand(other) = input {
                *other = place[*other].expect("all are placed");
            }
        }
        place[i] = Some(sorted.len());
        sorted.push(feature);
    }
    let excused = excused(&compiled);
    for i in 0..compiled.len() {
        if place[i].is_none() && !excused[i] {
            let def = pending[i].def;
            let message = format!(
                "on-demand feature `{}` uses itself, directly or through others; expected no circle",
                def.name
            );
            mistakes.push(def.place, message);
        }
    }
    sorted
}

/// Those that are broken, or use something that is: why they cannot be placed is told already.
fn excused(compiled: &[Option<OnDemand>]) -> Vec<bool> {
    let mut excused: Vec<bool> = compiled.iter().map(Option::is_none).collect();
    loop {
        let uses_one = |c: &OnDemand| {
            c.inputs.iter().any(|input| matches!(input, Input::OnDemand(other) if excused[*other]))
        };
        let next =
            compiled.iter().enumerate().position(|(i, c)| !excused[i] && c.as_ref().is_some_and(uses_one));
        match next {
            Some(i) => excused[i] = true,
            None => return excused,
        }
    }
}
