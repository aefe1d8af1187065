//! Definition files to [`Definitions`]: entities, request values, sources, groups.

use jiff::tz::TimeZone;

use crate::model::{ScalarType, key::KEY_BYTES_MAX, time};

use super::definitions::{
    Definitions, EmitRule, EntityDef, EventTimeDef, ExprText, FieldDef, FieldOrigin, GroupDef, Named,
    NowRule, OnDemandDef, RequestDef, SourceDef, TimeFormat,
};
use super::parse_feature::{FEATURE_KEYS_COMMON, feature};
use super::reader::{Fields, Mistakes, entries};
use super::yaml::{Key, Kind, Node, Place};

/// Longest name.
const NAME_MAX: usize = 128;

/// Adds what the document `root` defines to `definitions`.
pub fn definitions(root: &Node, definitions: &mut Definitions, mistakes: &mut Mistakes) {
    let known = ["entities", "request", "sources", "feature_groups"];
    let Some(top) = Fields::of(root, root.place, "a definition file", &known, mistakes) else {
        return;
    };
    let says_nothing = match &root.kind {
        Kind::Map(entries) => entries.iter().all(|(_, node)| matches!(node.kind, Kind::Null)),
        _ => true,
    };
    if says_nothing {
        mistakes.push(root.place, format!("the file defines nothing; expected {}", known.join(", ")));
    }
    each(&top, "entities", mistakes, |key, node, m| {
        if unique(&definitions.entities, key, |e| (&e.name, e.place), "entity", m) {
            match entity(key, node, m) {
                Some(def) => definitions.entities.push(def),
                None => m.note_unreadable(&key.name),
            }
        }
    });
    each(&top, "request", mistakes, |key, node, m| {
        if unique(&definitions.request, key, |r| (&r.name, r.place), "request value", m) {
            match request(key, node, m) {
                Some(def) => definitions.request.push(def),
                None => m.note_unreadable(&key.name),
            }
        }
    });
    each(&top, "sources", mistakes, |key, node, m| {
        if unique(&definitions.sources, key, |s| (&s.name, s.place), "source", m) {
            match source(key, node, m) {
                Some(def) => definitions.sources.push(def),
                None => m.note_unreadable(&key.name),
            }
        }
    });
    each(&top, "feature_groups", mistakes, |key, node, m| {
        if unique(&definitions.groups, key, |g| (&g.name, g.place), "feature group", m) {
            match group(key, node, m) {
                Some(def) => definitions.groups.push(def),
                None => m.note_unreadable(&key.name),
            }
        }
    });
}

fn each(
    top: &Fields<'_>,
    section: &str,
    mistakes: &mut Mistakes,
    mut read: impl FnMut(&Key, &Node, &mut Mistakes),
) {
    let Some(node) = top.get(section) else {
        return;
    };
    for (key, node) in entries(node, &format!("`{section}`"), mistakes).unwrap_or_default() {
        name_rule(key, mistakes);
        read(key, node, mistakes);
    }
}

fn unique<T>(
    known: &[T],
    key: &Key,
    name_and_place: impl Fn(&T) -> (&String, Place),
    what: &str,
    mistakes: &mut Mistakes,
) -> bool {
    let first = known.iter().map(name_and_place).find(|(name, _)| **name == key.name);
    if let Some((_, place)) = first {
        let message =
            format!("{what} `{}` is defined twice; expected once (first on line {})", key.name, place.line);
        mistakes.push(key.place, message);
    }
    first.is_none()
}

/// Names are `[a-z][a-z0-9_]*`, at most 128 long.
pub(super) fn name_rule(key: &Key, mistakes: &mut Mistakes) {
    let name = &key.name;
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !starts || !rest || name.len() > NAME_MAX {
        let message = format!(
            "`{name}` is no name; expected a lower-case letter, then lower-case letters, digits or _, at most {NAME_MAX} in all"
        );
        mistakes.push(key.place, message);
    }
}

pub(super) fn expr_text(fields: &Fields<'_>, key: &str, mistakes: &mut Mistakes) -> Option<ExprText> {
    let node = fields.get(key)?;
    let text = fields.text(key, mistakes)?;
    Some(ExprText { text, node: node.clone() })
}

fn scalar_type(fields: &Fields<'_>, what: &str, mistakes: &mut Mistakes) -> Option<ScalarType> {
    if !fields.has("type") {
        let message =
            format!("{what} has no `type`; expected one of string, int64, float64, bool, timestamp");
        mistakes.push(fields.place, message);
        return None;
    }
    fields.choice("type", &ScalarType::NAMES, mistakes)
}

fn entity(key: &Key, node: &Node, mistakes: &mut Mistakes) -> Option<EntityDef> {
    let what = format!("entity `{}`", key.name);
    let fields = Fields::of(node, key.place, &what, &["key", "type", "description"], mistakes)?;
    fields.text("description", mistakes);
    if !fields.has("key") {
        mistakes.push(key.place, format!("{what} has no `key`; expected the name of its join key"));
        return None;
    }
    let names = fields.names("key", mistakes)?;
    for (name, place) in &names {
        name_rule(&Key { name: name.clone(), place: *place }, mistakes);
    }
    for (i, (name, place)) in names.iter().enumerate() {
        if names[..i].iter().any(|(other, _)| other == name) {
            mistakes.push(*place, format!("join key `{name}` stands twice; expected each once"));
        }
    }
    let types = if fields.has("type") {
        let mut types = Vec::new();
        for (text, place) in fields.names("type", mistakes)? {
            match text.as_str() {
                "string" => types.push(ScalarType::String),
                "int64" => types.push(ScalarType::Int64),
                other => {
                    let message = format!("a join key cannot be of type `{other}`; expected string or int64");
                    mistakes.push(place, message);
                    return None;
                }
            }
        }
        types
    } else {
        mistakes.push(key.place, format!("{what} has no `type`; expected string or int64"));
        return None;
    };
    if types.len() != names.len() {
        let message =
            format!("{what} has {} join keys and {} types; expected one type each", names.len(), types.len());
        mistakes.push(fields.place_of("type"), message);
        return None;
    }
    let keys = names.into_iter().map(|(name, _)| name).zip(types).collect();
    Some(EntityDef { name: key.name.clone(), place: key.place, keys })
}

fn request(key: &Key, node: &Node, mistakes: &mut Mistakes) -> Option<RequestDef> {
    let what = format!("request value `{}`", key.name);
    let fields = Fields::of(node, key.place, &what, &["type", "description"], mistakes)?;
    let scalar = scalar_type(&fields, &what, mistakes)?;
    Some(RequestDef { name: key.name.clone(), place: key.place, scalar })
}

const SOURCE_KEYS: [&str; 13] = [
    "topic",
    "format",
    "key",
    "event_time",
    "grace",
    "max_ahead",
    "max_event_bytes",
    "late",
    "tombstones",
    "event_id",
    "null_values",
    "fields",
    "validate",
];

fn source(key: &Key, node: &Node, mistakes: &mut Mistakes) -> Option<SourceDef> {
    let what = format!("source `{}`", key.name);
    let fields = Fields::of(node, key.place, &what, &SOURCE_KEYS, mistakes)?;
    let topic = fields.text("topic", mistakes).unwrap_or_else(|| key.name.clone());
    if !is_topic(&topic) {
        let message =
            format!("`{topic}` is no topic name; expected letters, digits, `.`, `_` and `-`, at most 249");
        mistakes.push(fields.place_of("topic"), message);
    }
    fields.choice("format", &[("json", ())], mistakes);
    let record_key = fields
        .names("key", mistakes)
        .map(|names| names.into_iter().map(|(value, place)| Named { value, place }).collect());
    let event_time = event_time(&fields, &what, mistakes);
    let late = fields.choice("late", &[("drop", false), ("dead_letter", true)], mistakes);
    let tombstones = fields.choice("tombstones", &[("dead_letter", false), ("ignore", true)], mistakes);
    let max_event_bytes = fields.bytes("max_event_bytes", mistakes).unwrap_or(1 << 20);
    if max_event_bytes > 1 << 30 {
        mistakes.push(fields.place_of("max_event_bytes"), "`max_event_bytes` is over 1GiB; expected less");
    }
    let event_id =
        fields.text("event_id", mistakes).and_then(|p| path(&p, fields.place_of("event_id"), mistakes));
    let null_values = match fields.get("null_values") {
        None => vec![String::new()],
        Some(node) => match &node.kind {
            Kind::List(items) => items.iter().map(|n| n.text().unwrap_or_default()).collect(),
            _ => {
                mistakes.push(node.place, "`null_values` is not a list; expected a list of texts");
                Vec::new()
            }
        },
    };
    let source_fields = source_fields(&fields, mistakes);
    let validate = validate(&fields, mistakes);
    Some(SourceDef {
        name: key.name.clone(),
        place: key.place,
        topic,
        key: record_key,
        // A mistake is noted; the rest is looked at all the same.
        event_time: event_time.unwrap_or(EventTimeDef::Record),
        grace: fields.duration("grace", mistakes).unwrap_or(600_000),
        max_ahead: fields.duration("max_ahead", mistakes).unwrap_or(time::HOUR),
        max_event_bytes,
        late_to_dead_letters: late.unwrap_or(false),
        ignores_tombstones: tombstones.unwrap_or(false),
        event_id,
        null_values,
        fields: source_fields,
        validate,
    })
}

fn validate(fields: &Fields<'_>, mistakes: &mut Mistakes) -> Vec<ExprText> {
    let Some(node) = fields.get("validate") else {
        return Vec::new();
    };
    let items: Vec<&Node> = match &node.kind {
        Kind::List(items) => items.iter().collect(),
        _ => vec![node],
    };
    let mut rules = Vec::with_capacity(items.len());
    for item in items {
        match item.text() {
            Some(text) => rules.push(ExprText { text, node: item.clone() }),
            None => mistakes.push(item.place, "a rule of `validate` is no text; expected an expression"),
        }
    }
    rules
}

/// Kafka's rule for topic names.
pub(super) fn is_topic(topic: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !topic.is_empty() && topic.len() <= 249 && topic != "." && topic != ".." && topic.bytes().all(legal)
}

fn path(text: &str, place: Place, mistakes: &mut Mistakes) -> Option<Vec<String>> {
    let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    if parts.iter().any(String::is_empty) {
        mistakes.push(place, format!("`{text}` is no path; expected names joined by dots"));
        return None;
    }
    Some(parts)
}

fn event_time(source: &Fields<'_>, what: &str, mistakes: &mut Mistakes) -> Option<EventTimeDef> {
    let Some(node) = source.get("event_time") else {
        let message = format!("{what} has no `event_time`; expected a path and a format, or `record`");
        mistakes.push(source.place, message);
        return None;
    };
    match node.text() {
        Some(text) if text == "record" => return Some(EventTimeDef::Record),
        Some(text) => {
            let message =
                format!("`event_time: {text}` is no rule; expected `record` or {{ path: …, format: … }}");
            mistakes.push(node.place, message);
            return None;
        }
        None => {}
    }
    let place = source.place_of("event_time");
    let fields = Fields::of(node, place, "`event_time`", &["path", "format", "zone"], mistakes)?;
    let format = time_format(&fields, mistakes);
    let text = fields.required_text("path", "`event_time`", mistakes)?;
    let path = path(&text, fields.place_of("path"), mistakes)?;
    Some(EventTimeDef::Path { path, format })
}

fn time_format(fields: &Fields<'_>, mistakes: &mut Mistakes) -> TimeFormat {
    let zone = fields.text("zone", mistakes);
    if let Some(zone) = &zone {
        zone_rule(zone, fields.place_of("zone"), mistakes);
    }
    let formats = [("rfc3339", 0), ("unix_s", 1), ("unix_ms", 2), ("unix_us", 3)];
    let format = match fields.choice("format", &formats, mistakes).unwrap_or(0) {
        1 => TimeFormat::UnixSeconds,
        2 => TimeFormat::UnixMillis,
        3 => TimeFormat::UnixMicros,
        _ => return TimeFormat::Rfc3339 { zone },
    };
    if zone.is_some() {
        mistakes.push(fields.place_of("zone"), "`zone` goes with `format: rfc3339` only; expected no zone");
    }
    format
}

pub(super) fn zone_rule(zone: &str, place: Place, mistakes: &mut Mistakes) {
    if TimeZone::get(zone).is_err() {
        mistakes.push(place, format!("unknown time zone `{zone}`; expected a name like Europe/Paris"));
    }
}

const FIELD_KEYS: [&str; 8] = ["path", "type", "nullable", "coerce", "max_bytes", "format", "zone", "expr"];

fn source_fields(source: &Fields<'_>, mistakes: &mut Mistakes) -> Vec<FieldDef> {
    let Some(node) = source.get("fields") else {
        return Vec::new();
    };
    let mut defs = Vec::new();
    for (key, node) in entries(node, "`fields`", mistakes).unwrap_or_default() {
        name_rule(key, mistakes);
        if key.name == "event_time" {
            mistakes
                .push(key.place, "`event_time` is a field of every source already; expected another name");
            continue;
        }
        match source_field(key, node, mistakes) {
            Some(def) => defs.push(def),
            None => mistakes.note_unreadable(&key.name),
        }
    }
    defs
}

fn source_field(key: &Key, node: &Node, mistakes: &mut Mistakes) -> Option<FieldDef> {
    let what = format!("field `{}`", key.name);
    let fields = Fields::of(node, key.place, &what, &FIELD_KEYS, mistakes)?;
    let scalar = scalar_type(&fields, &what, mistakes);
    let origin = if fields.has("expr") {
        for other in ["path", "nullable", "coerce", "max_bytes", "format", "zone"] {
            if fields.has(other) {
                let message = format!("`{other}` does not go with `expr`; expected only `expr` and `type`");
                mistakes.push(fields.place_of(other), message);
            }
        }
        FieldOrigin::Expr(expr_text(&fields, "expr", mistakes)?)
    } else {
        let text = fields.text("path", mistakes).unwrap_or_else(|| key.name.clone());
        for (option, wanted) in [
            ("max_bytes", ScalarType::String),
            ("format", ScalarType::Timestamp),
            ("zone", ScalarType::Timestamp),
        ] {
            if fields.has(option) && scalar.is_some_and(|s| s != wanted) {
                let message = format!(
                    "`{option}` goes with `type: {}` only; expected another type or no `{option}`",
                    wanted.name()
                );
                mistakes.push(fields.place_of(option), message);
            }
        }
        FieldOrigin::Path {
            path: path(&text, fields.place_of("path"), mistakes)?,
            is_nullable: fields.bool("nullable", mistakes).unwrap_or(false),
            coerce: fields.bool("coerce", mistakes).unwrap_or(false),
            max_bytes: fields.bytes("max_bytes", mistakes),
            format: time_format(&fields, mistakes),
        }
    };
    Some(FieldDef { name: key.name.clone(), place: key.place, scalar: scalar?, origin })
}

const GROUP_KEYS: [&str; 13] = [
    "version",
    "entity",
    "source",
    "keys",
    "where",
    "now",
    "emit",
    "history",
    "ttl",
    "features",
    "on_demand",
    "description",
    "owner",
];

fn emit(fields: &Fields<'_>, mistakes: &mut Mistakes) -> EmitRule {
    let rules = [("none", EmitRule::Never), ("latest", EmitRule::Latest), ("per_event", EmitRule::PerEvent)];
    fields.choice("emit", &rules, mistakes).unwrap_or(EmitRule::Never)
}

fn group(key: &Key, node: &Node, mistakes: &mut Mistakes) -> Option<GroupDef> {
    let what = format!("feature group `{}`", key.name);
    let fields = Fields::of(node, key.place, &what, &GROUP_KEYS, mistakes)?;
    let named = |key: &str, mistakes: &mut Mistakes| {
        let value = fields.required_text(key, &what, mistakes)?;
        Some(Named { value, place: fields.get(key)?.place })
    };
    let (entity, source) = (named("entity", mistakes), named("source", mistakes));
    let mut keys = Vec::new();
    if let Some(node) = fields.get("keys") {
        for (join_key, field) in entries(node, "`keys`", mistakes).unwrap_or_default() {
            let join_key = Named { value: join_key.name.clone(), place: join_key.place };
            match field.text() {
                Some(value) => keys.push((join_key, Named { value, place: field.place })),
                None => mistakes.push(field.place, "expected the name of a field"),
            }
        }
    }
    let ttl = fields.limit("ttl", mistakes).flatten();
    let mut features = Vec::new();
    if let Some(node) = fields.get("features") {
        let all = entries(node, "`features`", mistakes);
        if all.is_some_and(<[_]>::is_empty) {
            mistakes.push(node.place, format!("{what} has no `features`; expected at least one"));
        }
        for (key, node) in all.unwrap_or_default() {
            name_rule(key, mistakes);
            match feature(key, node, ttl, mistakes) {
                Some(def) => features.push(def),
                None => mistakes.note_unreadable(&key.name),
            }
        }
    } else {
        let message = format!("{what} has no `features`; expected at least one");
        mistakes.push(key.place, message);
    }
    let mut on_demand = Vec::new();
    if let Some(node) = fields.get("on_demand") {
        for (key, node) in entries(node, "`on_demand`", mistakes).unwrap_or_default() {
            name_rule(key, mistakes);
            if let Some(first) = features.iter().find(|f| f.name == key.name) {
                let message = format!(
                    "feature `{}` is defined twice; expected once (first on line {})",
                    key.name, first.place.line
                );
                mistakes.push(key.place, message);
            }
            match on_demand_feature(key, node, mistakes) {
                Some(def) => on_demand.push(def),
                None => mistakes.note_unreadable(&key.name),
            }
        }
    }
    let version = fields.int("version", 1..=1_000_000, mistakes).unwrap_or(1) as u32;
    let now = fields.choice("now", &[("wall", NowRule::Wall), ("stream", NowRule::Stream)], mistakes);
    let (filter, emit) = (expr_text(&fields, "where", mistakes), emit(&fields, mistakes));
    let history = fields.duration("history", mistakes).unwrap_or(time::HOUR);
    Some(GroupDef {
        name: key.name.clone(),
        place: key.place,
        version,
        entity: entity?,
        source: source?,
        keys,
        filter,
        now: now.unwrap_or(NowRule::Wall),
        emit,
        history,
        features,
        on_demand,
    })
}

fn on_demand_feature(key: &Key, node: &Node, mistakes: &mut Mistakes) -> Option<OnDemandDef> {
    let what = format!("on-demand feature `{}`", key.name);
    let known = ["expr", "type", "default", FEATURE_KEYS_COMMON[0], FEATURE_KEYS_COMMON[1]];
    let fields = Fields::of(node, key.place, &what, &known, mistakes)?;
    let scalar = scalar_type(&fields, &what, mistakes);
    fields.required_text("expr", &what, mistakes)?;
    fields.text("owner", mistakes);
    Some(OnDemandDef {
        name: key.name.clone(),
        place: key.place,
        expr: expr_text(&fields, "expr", mistakes)?,
        scalar: Named { value: scalar?, place: fields.place_of("type") },
        default: fields.get("default").cloned(),
        description: fields.text("description", mistakes).unwrap_or_default(),
    })
}

/// Longest string of a field that does not state one.
pub fn default_max_bytes(is_key: bool) -> usize {
    if is_key { KEY_BYTES_MAX } else { 4096 }
}
