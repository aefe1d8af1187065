//! One feature: its aggregate, what goes with it, its window.

use crate::model::{Aggregate, CalendarUnit, Millis, time};

use super::definitions::{FeatureDef, WindowDef};
use super::parse::{expr_text, zone_rule};
use super::reader::{Fields, Limit, Mistakes};
use super::yaml::{Key, Kind, Node};

/// Keys for people, of every kind of feature.
pub(super) const FEATURE_KEYS_COMMON: [&str; 2] = ["description", "owner"];

const FEATURE_KEYS: [&str; 23] = [
    "aggregate",
    "of",
    "where",
    "window",
    "edge",
    "hop",
    "since",
    "zone",
    "session",
    "max",
    "default",
    "ttl",
    "k",
    "limit",
    "q",
    "bounds",
    "per",
    "half_life",
    "gap",
    "exact_limit",
    "description",
    "owner",
    "source",
];

/// Keys that belong to some aggregates only.
const OWN_KEYS: [&str; 8] = ["k", "limit", "q", "bounds", "per", "half_life", "gap", "exact_limit"];

/// The largest `k`, and the most bounds of a histogram.
const K_MAX: i64 = 1000;
const BOUNDS_MAX: usize = 100;

/// `ttl`: its group's.
pub(super) fn feature(key: &Key, node: &Node, ttl: Limit, mistakes: &mut Mistakes) -> Option<FeatureDef> {
    let what = format!("feature `{}`", key.name);
    let known = &FEATURE_KEYS[..22];
    if let Kind::Map(entries) = &node.kind
        && let Some((source, _)) = entries.iter().find(|(k, _)| k.name == "source")
    {
        let message = "a feature cannot name a source of its own; expected `source` at its group";
        mistakes.push(source.place, message);
        return None;
    }
    let fields = Fields::of(node, key.place, &what, known, mistakes)?;
    if !fields.has("aggregate") {
        mistakes.push(key.place, format!("{what} has no `aggregate`; expected one like count or sum"));
        return None;
    }
    let aggregate = fields.choice("aggregate", &Aggregate::NAMES, mistakes)?;
    for option in OWN_KEYS {
        if fields.has(option) && !aggregate.own_keys().contains(&option) {
            let message = format!("`{option}` does not go with `{}`; expected it left out", aggregate.name());
            mistakes.push(fields.place_of(option), message);
        }
    }
    if !fields.has("of") && !aggregate.may_lack_of() {
        let message = format!("{what} has no `of`; expected the field that `{}` is of", aggregate.name());
        mistakes.push(key.place, message);
    }
    let span = span(aggregate, &fields, &what, mistakes);
    let window = window(aggregate, &fields, &what, span, mistakes);
    Some(FeatureDef {
        name: key.name.clone(),
        place: key.place,
        aggregate,
        of: expr_text(&fields, "of", mistakes),
        filter: expr_text(&fields, "where", mistakes),
        limit: limit(aggregate, &fields, &what, mistakes),
        q: quantile(aggregate, &fields, &what, mistakes),
        bounds: bounds(aggregate, &fields, &what, mistakes),
        span,
        exact_limit: fields.int("exact_limit", 0..=1_000_000_000, mistakes).unwrap_or(10_000) as u64,
        default: fields.get("default").cloned(),
        ttl: fields.limit("ttl", mistakes).unwrap_or(ttl),
        description: fields.text("description", mistakes).unwrap_or_default(),
        owner: fields.text("owner", mistakes).unwrap_or_default(),
        // A mistake is noted; expressions are looked at all the same.
        window: window.unwrap_or(WindowDef::Lifetime),
    })
}

fn required(fields: &Fields<'_>, key: &str, what: &str, expected: &str, mistakes: &mut Mistakes) {
    if !fields.has(key) {
        mistakes.push(fields.place, format!("{what} has no `{key}`; expected {expected}"));
    }
}

fn limit(aggregate: Aggregate, fields: &Fields<'_>, what: &str, mistakes: &mut Mistakes) -> usize {
    match aggregate {
        Aggregate::LastK | Aggregate::TopK => {
            required(fields, "k", what, "a number from 1 to 1000", mistakes);
            fields.int("k", 1..=K_MAX, mistakes).unwrap_or(1) as usize
        }
        Aggregate::DistinctValues | Aggregate::ValueCounts => {
            fields.int("limit", 1..=1_000_000, mistakes).unwrap_or(1000) as usize
        }
        _ => 0,
    }
}

fn quantile(aggregate: Aggregate, fields: &Fields<'_>, what: &str, mistakes: &mut Mistakes) -> f64 {
    if aggregate != Aggregate::Percentile {
        return 0.5;
    }
    required(fields, "q", what, "a number from 0 to 1", mistakes);
    let q = match fields.get("q").map(|n| &n.kind) {
        None => return 0.5,
        Some(Kind::Int(n)) => *n as f64,
        Some(Kind::Float(x)) => *x,
        Some(_) => f64::NAN,
    };
    if !(0.0..=1.0).contains(&q) {
        let place = fields.get("q").map_or(fields.place, |n| n.place);
        mistakes.push(place, "`q` is out of range; expected a number from 0 to 1");
        return 0.5;
    }
    q
}

fn bounds(aggregate: Aggregate, fields: &Fields<'_>, what: &str, mistakes: &mut Mistakes) -> Vec<f64> {
    if aggregate != Aggregate::Histogram {
        return Vec::new();
    }
    required(fields, "bounds", what, "a list of ascending numbers", mistakes);
    let Some(node) = fields.get("bounds") else {
        return Vec::new();
    };
    let numbers: Option<Vec<f64>> = match &node.kind {
        Kind::List(items) => items
            .iter()
            .map(|n| match n.kind {
                Kind::Int(n) => Some(n as f64),
                Kind::Float(x) => Some(x),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    let bounds = numbers.unwrap_or_default();
    let is_ascending = bounds.windows(2).all(|w| w[0] < w[1]) && bounds.iter().all(|b| b.is_finite());
    if bounds.is_empty() || bounds.len() > BOUNDS_MAX || !is_ascending {
        let message = format!("`bounds` is no list of bounds; expected 1 to {BOUNDS_MAX} ascending numbers");
        mistakes.push(node.place, message);
    }
    bounds
}

fn span(aggregate: Aggregate, fields: &Fields<'_>, what: &str, mistakes: &mut Mistakes) -> Millis {
    let key = match aggregate {
        Aggregate::Rate => "per",
        Aggregate::DecayedSum | Aggregate::DecayedCount => "half_life",
        Aggregate::SessionCount | Aggregate::SessionDuration => "gap",
        _ => return 0,
    };
    required(fields, key, what, "a duration like 1h", mistakes);
    fields.positive_duration(key, mistakes).unwrap_or(1)
}

fn window(
    aggregate: Aggregate,
    fields: &Fields<'_>,
    what: &str,
    span: Millis,
    mistakes: &mut Mistakes,
) -> Option<WindowDef> {
    let named: Vec<&str> = ["window", "since", "session"].into_iter().filter(|k| fields.has(k)).collect();
    let names_none = match aggregate {
        Aggregate::DecayedSum | Aggregate::DecayedCount => Some(WindowDef::Lifetime),
        Aggregate::SessionDuration => {
            Some(WindowDef::Session { gap: span, max: session_max(fields, span, mistakes) })
        }
        _ => None,
    };
    if let Some(window) = names_none {
        for key in named.into_iter().chain(["edge", "hop", "zone"]) {
            if fields.has(key) {
                let message =
                    format!("`{key}` does not go with `{}`; expected it left out", aggregate.name());
                mistakes.push(fields.place_of(key), message);
            }
        }
        if fields.has("max") && aggregate != Aggregate::SessionDuration {
            mistakes.push(fields.place_of("max"), "`max` goes with sessions only; expected it left out");
        }
        return Some(window);
    }
    match named[..] {
        [] => {
            let message = format!("{what} has no window; expected one of window, since, session");
            mistakes.push(fields.place, message);
            return None;
        }
        [_] => {}
        [_, second, ..] => {
            let message = format!("{what} has more than one window; expected one of window, since, session");
            mistakes.push(fields.place_of(second), message);
            return None;
        }
    }
    for (key, wanted) in [("edge", "window"), ("hop", "window"), ("zone", "since"), ("max", "session")] {
        if fields.has(key) && named[0] != wanted {
            let message = format!("`{key}` goes with `{wanted}` only; expected it left out");
            mistakes.push(fields.place_of(key), message);
        }
    }
    if aggregate == Aggregate::Rate && named[0] != "window" {
        mistakes
            .push(fields.place_of(named[0]), "`rate` needs a fixed window; expected `window: <duration>`");
        return None;
    }
    match named[0] {
        "since" => since(fields, mistakes),
        "session" => {
            let gap = fields.positive_duration("session", mistakes)?;
            Some(WindowDef::Session { gap, max: session_max(fields, gap, mistakes) })
        }
        _ => fixed(aggregate, fields, span, mistakes),
    }
}

fn session_max(fields: &Fields<'_>, gap: Millis, mistakes: &mut Mistakes) -> Millis {
    let max = fields.positive_duration("max", mistakes).unwrap_or(time::DAY);
    if max < gap {
        let place = if fields.has("max") { fields.place_of("max") } else { fields.place };
        let message = format!(
            "the session's `max` ({}) is shorter than its gap; expected at least {}",
            time::format_duration(max),
            time::format_duration(gap)
        );
        mistakes.push(place, message);
    }
    max
}

fn since(fields: &Fields<'_>, mistakes: &mut Mistakes) -> Option<WindowDef> {
    let units = [
        ("hour", CalendarUnit::Hour),
        ("day", CalendarUnit::Day),
        ("week", CalendarUnit::Week),
        ("month", CalendarUnit::Month),
    ];
    let zone = fields.text("zone", mistakes).unwrap_or_else(|| "UTC".to_owned());
    zone_rule(&zone, fields.place_of("zone"), mistakes);
    Some(WindowDef::Since { unit: fields.choice("since", &units, mistakes)?, zone })
}

fn fixed(
    aggregate: Aggregate,
    fields: &Fields<'_>,
    span: Millis,
    mistakes: &mut Mistakes,
) -> Option<WindowDef> {
    let edge = fields.choice("edge", &[("exact", false), ("tile", true)], mistakes);
    if fields.text("window", mistakes)? == "lifetime" {
        for key in ["edge", "hop"] {
            if fields.has(key) {
                let message = format!("`{key}` does not go with `window: lifetime`; expected it left out");
                mistakes.push(fields.place_of(key), message);
            }
        }
        if matches!(aggregate, Aggregate::SessionCount | Aggregate::Rate) {
            let message = format!("`{}` cannot be over lifetime; expected a duration", aggregate.name());
            mistakes.push(fields.place_of("window"), message);
        }
        return Some(WindowDef::Lifetime);
    }
    let length = fields.positive_duration("window", mistakes)?;
    if fields.has("hop") {
        return hopping(aggregate, fields, length, edge, mistakes);
    }
    if !edge.unwrap_or(length > time::DAY) {
        return Some(WindowDef::Sliding { length, tile: None });
    }
    let Some(tile) = tile_width(length) else {
        mistakes
            .push(fields.place_of("edge"), "`edge: tile` on a window under 1000s; expected `edge: exact`");
        return None;
    };
    if aggregate == Aggregate::SessionCount && tile > span {
        let message = format!(
            "`session_count` in tiles of {}, wider than its gap; expected `edge: exact` or a longer gap",
            time::format_duration(tile)
        );
        mistakes.push(fields.place_of("window"), message);
    }
    Some(WindowDef::Sliding { length, tile: Some(tile) })
}

fn hopping(
    aggregate: Aggregate,
    fields: &Fields<'_>,
    length: Millis,
    edge: Option<bool>,
    mistakes: &mut Mistakes,
) -> Option<WindowDef> {
    let hop = fields.positive_duration("hop", mistakes)?;
    let place = fields.place_of("hop");
    if hop > length {
        mistakes.push(place, "`hop` is longer than the window; expected at most its length");
    }
    if edge == Some(true) {
        mistakes.push(place, "`hop` with `edge: tile`; expected one of them");
    }
    if matches!(aggregate, Aggregate::TimeSinceFirst | Aggregate::TimeSinceLast) {
        let message = format!("`hop` does not go with `{}`; expected it left out", aggregate.name());
        mistakes.push(place, message);
    }
    Some(WindowDef::Hopping { length, hop })
}

/// The largest tile width that is at most a thousandth of `length` (SEMANTICS §4).
pub fn tile_width(length: Millis) -> Option<Millis> {
    const SECOND: Millis = 1000;
    const MINUTE: Millis = 60 * SECOND;
    const WIDTHS: [Millis; 13] = [
        SECOND,
        2 * SECOND,
        10 * SECOND,
        30 * SECOND,
        MINUTE,
        2 * MINUTE,
        10 * MINUTE,
        30 * MINUTE,
        time::HOUR,
        2 * time::HOUR,
        6 * time::HOUR,
        12 * time::HOUR,
        24 * time::HOUR,
    ];
    WIDTHS.into_iter().rev().find(|w| *w <= length / 1000)
}
