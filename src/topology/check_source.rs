//! A source definition to a [`Source`].

use jiff::tz::TimeZone;

use super::{Field, Origin, Source, TimeText};
use crate::config::default_max_bytes;
use crate::config::definitions::{Definitions, EventTimeDef, ExprText, FieldOrigin, SourceDef, TimeFormat};
use crate::config::reader::{Mistakes, did_you_mean};
use crate::expr::{Expr, Scope};
use crate::model::{ScalarType, Type};

/// Compiles `text`, noting a mistake at its column.
pub(super) fn compile(text: &ExprText, scope: &Scope<'_>, mistakes: &mut Mistakes) -> Option<Expr> {
    match Expr::compile(&text.text, scope) {
        Ok(expr) => Some(expr),
        Err(error) => {
            // What could not be read is told where it stands.
            if !error.unknown.is_some_and(|name| mistakes.is_excused(&name)) {
                mistakes.push(text.node.place_in(error.at), error.message);
            }
            None
        }
    }
}

/// Compiles `text` and demands that it gives `wanted`.
pub(super) fn compile_as(
    text: &ExprText,
    wanted: ScalarType,
    scope: &Scope<'_>,
    mistakes: &mut Mistakes,
) -> Option<Expr> {
    let expr = compile(text, scope, mistakes)?;
    if expr.value_type == Type::Scalar(wanted) {
        return Some(expr);
    }
    if wanted == ScalarType::Float64 && expr.value_type == Type::Scalar(ScalarType::Int64) {
        return Some(expr.widened());
    }
    let found = expr.value_type.name();
    let message = format!("the expression gives {found}; expected {}", wanted.name());
    mistakes.push(text.node.place, message);
    None
}

pub(super) fn source(index: usize, def: &SourceDef, mistakes: &mut Mistakes) -> Source {
    let timestamp = Type::Scalar(ScalarType::Timestamp);
    let mut variables = vec![("event_time".to_owned(), timestamp)];
    let key_names: Vec<&str> = def.key.iter().flatten().map(|named| named.value.as_str()).collect();
    let mut fields = Vec::with_capacity(def.fields.len());
    for field in &def.fields {
        let origin = match &field.origin {
            FieldOrigin::Path { path, is_nullable, coerce, max_bytes, format } => {
                let is_key = key_names.contains(&field.name.as_str());
                let max_bytes = max_bytes.map_or(default_max_bytes(is_key), |n| n as usize);
                Some(Origin::Path {
                    path: path.clone(),
                    is_nullable: *is_nullable,
                    coerce: *coerce,
                    max_bytes,
                    time: time_text(format),
                })
            }
            FieldOrigin::Expr(text) => {
                let scope = Scope::of_fields(&variables);
                compile_as(text, field.scalar, &scope, mistakes).map(Origin::Expr)
            }
        };
        if let Some(origin) = origin {
            fields.push(Field { name: field.name.clone(), scalar: field.scalar, origin });
            variables.push((field.name.clone(), Type::Scalar(field.scalar)));
        } else {
            mistakes.note_unreadable(&field.name);
        }
    }
    let scope = Scope::of_fields(&variables);
    let rules = def
        .validate
        .iter()
        .filter_map(|text| {
            let expr = compile_as(text, ScalarType::Bool, &scope, mistakes)?;
            Some((expr, text.text.clone()))
        })
        .collect();
    let event_time = match &def.event_time {
        EventTimeDef::Record => None,
        EventTimeDef::Path { path, format } => Some((path.clone(), time_text(format))),
    };
    Source {
        index,
        name: def.name.clone(),
        topic: def.topic.clone(),
        key: record_key(def, mistakes),
        event_time,
        grace: def.grace,
        max_ahead: def.max_ahead,
        max_event_bytes: def.max_event_bytes as usize,
        late_to_dead_letters: def.late_to_dead_letters,
        ignores_tombstones: def.ignores_tombstones,
        event_id: def.event_id.clone(),
        null_values: def.null_values.clone(),
        fields,
        rules,
        variables,
    }
}

/// Variables of the record key: plain fields of type string or int64.
fn record_key(def: &SourceDef, mistakes: &mut Mistakes) -> Option<Vec<usize>> {
    let mut key = Vec::new();
    for (i, named) in def.key.as_ref()?.iter().enumerate() {
        if def.key.iter().flatten().take(i).any(|other| other.value == named.value) {
            mistakes
                .push(named.place, format!("`{}` stands twice in `key`; expected each once", named.value));
        }
        if mistakes.is_excused(&named.value) {
            continue;
        }
        let Some(position) = def.fields.iter().position(|f| f.name == named.value) else {
            let hint = did_you_mean(&named.value, def.fields.iter().map(|f| f.name.as_str()));
            let message = format!(
                "`key` names `{}`, which is no field of source `{}`; expected one of its fields{hint}",
                named.value, def.name
            );
            mistakes.push(named.place, message);
            continue;
        };
        let field = &def.fields[position];
        if !matches!(field.scalar, ScalarType::String | ScalarType::Int64) {
            let message =
                format!("the record key cannot be of type {}; expected string or int64", field.scalar.name());
            mistakes.push(named.place, message);
        }
        if matches!(field.origin, FieldOrigin::Expr(_)) {
            let message = format!(
                "the record key cannot be the computed field `{}`; expected a field with a path",
                field.name
            );
            mistakes.push(named.place, message);
        }
        key.push(position + 1);
    }
    Some(key)
}

/// Sources on one topic have the same key, or one router could not place their records.
pub(super) fn same_key_by_topic(definitions: &Definitions, mistakes: &mut Mistakes) {
    for (i, source) in definitions.sources.iter().enumerate() {
        let parts = |s: &SourceDef| -> Vec<(Option<(Vec<String>, bool, u64)>, ScalarType)> {
            s.key
                .iter()
                .flatten()
                .filter_map(|named| {
                    let field = s.fields.iter().find(|f| f.name == named.value)?;
                    let path = match &field.origin {
                        FieldOrigin::Path { path, coerce, max_bytes, .. } => {
                            let max_bytes = max_bytes.unwrap_or(default_max_bytes(true) as u64);
                            Some((path.clone(), *coerce, max_bytes))
                        }
                        FieldOrigin::Expr(_) => None,
                    };
                    Some((path, field.scalar))
                })
                .collect()
        };
        let other = definitions.sources[..i].iter().find(|s| s.topic == source.topic);
        if let Some(other) = other
            && parts(other) != parts(source)
        {
            let message = format!(
                "source `{}` reads topic `{}` with another `key` than source `{}`; expected the same",
                source.name, source.topic, other.name
            );
            mistakes.push(source.place, message);
        }
    }
}

pub(super) fn zone(name: &str) -> TimeZone {
    // The name was checked where it was read.
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}

fn time_text(format: &TimeFormat) -> TimeText {
    match format {
        TimeFormat::Rfc3339 { zone: name } => TimeText::Rfc3339(name.as_deref().map(zone)),
        TimeFormat::UnixSeconds => TimeText::Unix(0),
        TimeFormat::UnixMillis => TimeText::Unix(3),
        TimeFormat::UnixMicros => TimeText::Unix(6),
    }
}
