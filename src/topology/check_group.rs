//! A group definition to a [`Group`].

use std::sync::Arc;

use super::check_source::{compile, compile_as, zone};
use super::{Group, GroupFeature, Source, Topology};
use crate::config::definitions::{
    Definitions, EmitRule, EntityDef, ExprText, FeatureDef, GroupDef, WindowDef, value_of,
};
use crate::config::reader::{Mistakes, did_you_mean};
use crate::config::yaml::Node;
use crate::expr::{Expr, Scope};
use crate::model::{Aggregate, Millis, ScalarType, Type, Value};
use crate::operator::{Calendar, Feature, Fold, Layout, Span, reach};

pub(super) fn group(
    index: usize,
    def: &GroupDef,
    topology: &Topology,
    definitions: &Definitions,
    mistakes: &mut Mistakes,
) -> Option<Group> {
    let entity = definitions.entities.iter().position(|e| e.name == def.entity.value);
    if entity.is_none() && !mistakes.is_excused(&def.entity.value) {
        let hint = did_you_mean(&def.entity.value, definitions.entities.iter().map(|e| e.name.as_str()));
        let message = format!("unknown entity `{}`; expected one of `entities`{hint}", def.entity.value);
        mistakes.push(def.entity.place, message);
    }
    let source = topology.sources.iter().find(|s| s.name == def.source.value);
    if source.is_none() && !mistakes.is_excused(&def.source.value) {
        let hint = did_you_mean(&def.source.value, topology.sources.iter().map(|s| s.name.as_str()));
        let message = format!("unknown source `{}`; expected one of `sources`{hint}", def.source.value);
        mistakes.push(def.source.place, message);
    }
    let source = Arc::clone(source?);
    let scope = Scope::of_fields(&source.variables);
    let filter = def.filter.as_ref().and_then(|f| compile_as(f, ScalarType::Bool, &scope, mistakes));
    let mut plan = Plan { source: &source, columns: Vec::new(), flags: Vec::new(), features: Vec::new() };
    for feature in &def.features {
        if plan.add(feature, mistakes).is_none() {
            mistakes.note_unreadable(&feature.name);
        }
    }
    let entity = entity?;
    let entity_def = &definitions.entities[entity];
    let key = entity_key(def, entity_def, &source, mistakes);
    let Plan { columns, flags, features, .. } = plan;
    let mut layout = Layout::new(columns.iter().map(|(_, e)| scalar_of(e)).collect(), flags.len());
    let features: Vec<GroupFeature> =
        features.into_iter().map(|planned| planned.place(&mut layout)).collect();
    let (reach, horizon, has_base) = reaches(&features, def.history);
    let is_direct = key.is_some() && source.key == key;
    // Where source partitions meet, values at the time of an event may be those of long before the row
    // clock: the partition of the event may be far behind the others.
    let is_told_late = def.emit == EmitRule::PerEvent && !is_direct;
    let fold = fold(&features, def.history, horizon).filter(|_| !is_told_late);
    Some(Group {
        index,
        name: def.name.clone(),
        version: def.version,
        entity,
        key_names: entity_def.keys.iter().map(|(n, _)| n.clone()).collect(),
        key_types: entity_def.keys.iter().map(|(_, t)| *t).collect(),
        is_direct,
        key: key?,
        filter,
        now: def.now,
        emit: def.emit,
        history: def.history,
        reach,
        horizon,
        has_base,
        fold,
        furthest: furthest(&features),
        columns: columns.into_iter().map(|(_, e)| e).collect(),
        flags: flags.into_iter().map(|(_, e)| e).collect(),
        layout,
        features,
        source,
    })
}

fn scalar_of(expr: &Expr) -> ScalarType {
    match expr.value_type {
        Type::Scalar(scalar) => scalar,
        _ => ScalarType::String,
    }
}

/// Reach, horizon of raw events, and whether older events are accumulated (SEMANTICS §4,
/// PROTOCOL 9).
fn reaches(features: &[GroupFeature], history: Millis) -> (Option<Millis>, Option<Millis>, bool) {
    let mut finite: Millis = 0;
    let (mut is_endless, mut keeps_all) = (false, false);
    for feature in features {
        match reach(&feature.plan) {
            Some(reach) => finite = finite.max(reach),
            None => {
                is_endless = true;
                // These need the values themselves, however old.
                keeps_all |= matches!(
                    feature.plan.aggregate,
                    Aggregate::LastK
                        | Aggregate::Distinct
                        | Aggregate::DistinctValues
                        | Aggregate::TopK
                        | Aggregate::ValueCounts
                        | Aggregate::Percentile
                        | Aggregate::Median
                );
            }
        }
        finite = finite.max(feature.ttl.unwrap_or(0));
    }
    // One millisecond more than reach and history: an event at exactly their distance still makes
    // its entity known to the oldest read.
    let horizon = (!keeps_all).then(|| finite.saturating_add(history).saturating_add(1));
    ((!is_endless).then_some(finite), horizon, is_endless)
}

/// When events are folded into tiles, if that is worth it: where the events are asked for one by one
/// over at most half of the time that they would be kept.
fn fold(features: &[GroupFeature], history: Millis, horizon: Option<Millis>) -> Option<Fold> {
    let after = match furthest(features) {
        Some(index) => reach(&features[index].plan)?,
        None => 0,
    };
    let tiles = features.iter().filter(|f| !asks_for_events(f)).filter_map(|f| match f.plan.span {
        Span::Sliding { tile, .. } => tile,
        _ => None,
    });
    // One millisecond more, as in the horizon.
    let after = after.saturating_add(history).saturating_add(1);
    (after <= horizon? / 2).then_some(Fold { after, width: tiles.min()? })
}

/// Whether tiles cannot answer for single events. A tile that leaves the horizon enters lifetime
/// accumulators.
fn asks_for_events(feature: &GroupFeature) -> bool {
    let plan = &feature.plan;
    let is_tiled = matches!(plan.span, Span::Sliding { tile: Some(_), .. });
    !(plan.is_in_partials() && (is_tiled || reach(plan).is_none()))
}

/// Of the features that ask for single events, the one that looks back furthest.
fn furthest(features: &[GroupFeature]) -> Option<usize> {
    let asking = (0..features.len()).filter(|index| asks_for_events(&features[*index]));
    asking.max_by_key(|index| reach(&features[*index].plan).unwrap_or(Millis::MAX))
}

/// Variables of the entity's key, when all of them exist with the right types.
fn entity_key(
    def: &GroupDef,
    entity: &EntityDef,
    source: &Source,
    mistakes: &mut Mistakes,
) -> Option<Vec<usize>> {
    for (join_key, _) in &def.keys {
        if !entity.keys.iter().any(|(name, _)| *name == join_key.value) {
            let hint = did_you_mean(&join_key.value, entity.keys.iter().map(|(n, _)| n.as_str()));
            let message = format!(
                "`{}` is no join key of entity `{}`; expected one of its keys{hint}",
                join_key.value, entity.name
            );
            mistakes.push(join_key.place, message);
        }
    }
    let mut key = Vec::new();
    for (name, scalar) in &entity.keys {
        let mapped = def.keys.iter().find(|(join_key, _)| join_key.value == *name);
        let (field, place) = mapped.map_or((name, def.place), |(_, f)| (&f.value, f.place));
        let Some(variable) = source.variables.iter().position(|(n, _)| n == field) else {
            let hint = did_you_mean(field, source.variables.iter().map(|(n, _)| n.as_str()));
            let message = format!(
                "source `{}` has no field `{field}` for join key `{name}`; expected one, or `keys: {{ {name}: <field> }}`{hint}",
                source.name
            );
            mistakes.push(place, message);
            continue;
        };
        let found = source.variables[variable].1;
        if found != Type::Scalar(*scalar) {
            let message = format!(
                "field `{field}` is {}, and join key `{name}` of entity `{}` is {}; expected the same type",
                found.name(),
                entity.name,
                scalar.name()
            );
            mistakes.push(place, message);
            continue;
        }
        key.push(variable);
    }
    (key.len() == entity.keys.len()).then_some(key)
}

/// Columns, flags and features as they are collected.
struct Plan<'a> {
    source: &'a Source,
    columns: Vec<(String, Expr)>,
    flags: Vec<(String, Expr)>,
    features: Vec<Planned>,
}

struct Planned {
    column: Option<usize>,
    flag: Option<usize>,
    column_type: Option<ScalarType>,
    feature: GroupFeature,
}

impl Planned {
    fn place(mut self, layout: &mut Layout) -> GroupFeature {
        let parts = self.feature.plan.parts(self.column_type);
        self.feature.plan.series = layout.add_series(self.column, self.flag, parts);
        layout.add_sketch(self.feature.plan.series, self.feature.plan.aggregate);
        self.feature
    }
}

fn shared(
    list: &mut Vec<(String, Expr)>,
    text: &ExprText,
    expr: impl FnOnce() -> Option<Expr>,
) -> Option<usize> {
    if let Some(index) = list.iter().position(|(known, _)| *known == text.text) {
        return Some(index);
    }
    list.push((text.text.clone(), expr()?));
    Some(list.len() - 1)
}

impl Plan<'_> {
    fn add(&mut self, def: &FeatureDef, mistakes: &mut Mistakes) -> Option<()> {
        let scope = Scope::of_fields(&self.source.variables);
        let column = match &def.of {
            None => None,
            Some(text) => Some(shared(&mut self.columns, text, || scalar_expr(text, &scope, mistakes))),
        };
        let flag = match &def.filter {
            None => None,
            Some(text) => {
                Some(shared(&mut self.flags, text, || compile_as(text, ScalarType::Bool, &scope, mistakes)))
            }
        };
        // Both are looked at, whatever is wrong with one.
        let column = column.map_or(Some(None), |found| found.map(Some))?;
        let flag = flag.map_or(Some(None), |found| found.map(Some))?;
        let column_type = column.map(|c| scalar_of(&self.columns[c].1));
        type_rule(def, column_type, mistakes)?;
        let value_type = value_type(def, column_type);
        let default = default_value(&def.default, value_type, mistakes);
        let plan = Feature {
            aggregate: def.aggregate,
            series: 0,
            span: span(&def.window),
            limit: def.limit,
            q: def.q,
            bounds: def.bounds.clone(),
            millis: def.span,
            exact_limit: def.exact_limit,
        };
        let name = def.name.clone();
        let feature = GroupFeature { name, plan, value_type, default, ttl: def.ttl };
        self.features.push(Planned { column, flag, column_type, feature });
        Some(())
    }
}

fn scalar_expr(text: &ExprText, scope: &Scope<'_>, mistakes: &mut Mistakes) -> Option<Expr> {
    let expr = compile(text, scope, mistakes)?;
    if matches!(expr.value_type, Type::Scalar(_)) {
        return Some(expr);
    }
    let message = format!("`of` gives {}; expected one value", expr.value_type.name());
    mistakes.push(text.node.place, message);
    None
}

/// Which types an aggregate takes.
fn type_rule(def: &FeatureDef, column: Option<ScalarType>, mistakes: &mut Mistakes) -> Option<()> {
    let Some(scalar) = column else {
        return Some(());
    };
    let (is_fine, expected) = match def.aggregate {
        Aggregate::Sum
        | Aggregate::Mean
        | Aggregate::Variance
        | Aggregate::Stddev
        | Aggregate::VariancePop
        | Aggregate::StddevPop
        | Aggregate::Histogram
        | Aggregate::Percentile
        | Aggregate::Median
        | Aggregate::DecayedSum => (scalar.is_number(), "int64 or float64"),
        Aggregate::Min | Aggregate::Max => {
            (scalar.is_number() || scalar == ScalarType::Timestamp, "int64, float64 or timestamp")
        }
        Aggregate::ValueCounts => (
            matches!(scalar, ScalarType::String | ScalarType::Int64 | ScalarType::Bool),
            "string, int64 or bool",
        ),
        _ => (true, ""),
    };
    if is_fine {
        return Some(());
    }
    let place = def.of.as_ref().map_or(def.place, |of| of.node.place);
    let message = format!("`{}` of a {}; expected {expected}", def.aggregate.name(), scalar.name());
    mistakes.push(place, message);
    None
}

fn value_type(def: &FeatureDef, column: Option<ScalarType>) -> Type {
    let column = column.unwrap_or(ScalarType::Int64);
    match def.aggregate {
        Aggregate::Count | Aggregate::Distinct | Aggregate::SessionCount => Type::Scalar(ScalarType::Int64),
        Aggregate::Sum | Aggregate::Min | Aggregate::Max | Aggregate::First | Aggregate::Last => {
            Type::Scalar(column)
        }
        Aggregate::LastK | Aggregate::DistinctValues => Type::List(column),
        Aggregate::TopK => Type::Ranking(column),
        Aggregate::ValueCounts => Type::Counts(column),
        Aggregate::Histogram => Type::List(ScalarType::Int64),
        _ => Type::Scalar(ScalarType::Float64),
    }
}

/// A default of the type of the value that it stands for.
pub(super) fn default_value(node: &Option<Node>, value_type: Type, mistakes: &mut Mistakes) -> Option<Value> {
    use crate::config::yaml::Kind;
    let node = node.as_ref()?;
    let value = match (value_type, &node.kind) {
        (Type::Scalar(scalar), _) => value_of(node, scalar),
        (Type::List(scalar), Kind::List(items)) => items
            .iter()
            .map(|item| value_of(item, scalar))
            .collect::<Option<Vec<Value>>>()
            .map(|items| Value::List(items.into())),
        (Type::Ranking(_), Kind::List(items)) if items.is_empty() => Some(Value::List([].into())),
        (Type::Counts(key), Kind::Map(entries)) => entries
            .iter()
            .map(|(entry, node)| {
                let is_key = key != ScalarType::Int64 || entry.name.parse::<i64>().is_ok();
                let count =
                    value_of(node, ScalarType::Int64).filter(|n| matches!(n, Value::Int(0..)) && is_key)?;
                Some((entry.name.as_str().into(), count))
            })
            .collect::<Option<Vec<_>>>()
            .map(|entries| Value::Map(entries.into())),
        _ => None,
    };
    if value.is_none() {
        let shown = node.text().unwrap_or_else(|| node.kind_name().to_owned());
        let message = format!("`default` is {shown}; expected {}, the feature's type", value_type.name());
        mistakes.push(node.place, message);
    }
    value
}

fn span(window: &WindowDef) -> Span {
    match window {
        WindowDef::Sliding { length, tile } => Span::Sliding { length: *length, tile: *tile },
        WindowDef::Hopping { length, hop } => Span::Hopping { length: *length, hop: *hop },
        WindowDef::Since { unit, zone: name } => Span::Since(Calendar { unit: *unit, zone: zone(name) }),
        WindowDef::Session { gap, max } => Span::Session { gap: *gap, max: *max },
        WindowDef::Lifetime => Span::Lifetime,
    }
}
