//! This file finds the events that a feature's window holds (SEMANTICS §4).

use crate::config::definitions::WindowDef;
use crate::model::{Aggregate, CalendarUnit, Value};

use super::feature::Feature;
use super::source::Event;
use super::time::{DAY, HOUR, unit_start};

/// The events of a feature in its window, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Windowed {
    /// Their event times.
    pub(super) times: Vec<i64>,
    /// Their values; null where the feature is of nothing.
    pub(super) values: Vec<Value>,
    /// Event time of the feature's last event before the first of these, for `session_count`.
    pub(super) previous: Option<i64>,
}

/// The events, of an entity's sorted ones, that the feature covers at `now`.
pub(super) fn collect(feature: &Feature, events: &[Event], now: i64) -> Windowed {
    if let WindowDef::Session { gap, max } = &feature.definition.window {
        return session(feature, events, *gap, *max, now);
    }
    let (first, last) = span(feature, now);
    let from = events.partition_point(|event| event.time < first);
    let to = events.partition_point(|event| event.time <= last).max(from);
    let mut windowed = Windowed::default();
    for event in &events[from..to] {
        if let Some(value) = feature.value_of(event) {
            windowed.times.push(event.time);
            windowed.values.push(value);
        }
    }
    if feature.definition.aggregate == Aggregate::SessionCount {
        let before = events[..from].iter().rev().find(|event| feature.value_of(event).is_some());
        windowed.previous = before.map(|event| event.time);
    }
    windowed
}

/// Whether an event that nobody has seen, at `unseen` or before, could have a say in the value.
pub(super) fn could_have_missed(feature: &Feature, events: &[Event], now: i64, unseen: i64) -> bool {
    let WindowDef::Session { gap, max } = &feature.definition.window else {
        let is_count = feature.definition.aggregate == Aggregate::SessionCount;
        let before = if is_count { feature.definition.span } else { 0 };
        return span(feature, now).0.saturating_sub(before) <= unseen;
    };
    let unseen = unseen.min(now);
    let known = session(feature, events, *gap, *max, now).times;
    match (known.first(), known.last()) {
        (Some(first), Some(last)) => first - unseen <= *gap && unseen > last - max,
        _ => now - unseen <= *gap,
    }
}

/// The first and the last millisecond of a window that does not depend on the events.
fn span(feature: &Feature, now: i64) -> (i64, i64) {
    match &feature.definition.window {
        WindowDef::Sliding { length, tile: None } => (now.saturating_sub(*length) + 1, now),
        WindowDef::Sliding { length, tile: Some(_) } => {
            let tile = tile_width(*length);
            (now.saturating_sub(*length).div_euclid(tile) * tile, now)
        }
        WindowDef::Hopping { length, hop } => {
            let end = now.div_euclid(*hop) * hop;
            (end.saturating_sub(*length), end - 1)
        }
        WindowDef::Since { unit, .. } => match &feature.zone {
            Some(zone) => (unit_start(*unit, now, zone), now),
            None => (now, now),
        },
        WindowDef::Session { .. } | WindowDef::Lifetime => (i64::MIN, now),
    }
}

/// The run of events that ends at the newest one.
fn session(feature: &Feature, events: &[Event], gap: i64, max: i64, now: i64) -> Windowed {
    let end = events.partition_point(|event| event.time <= now);
    let mut windowed = Windowed::default();
    for event in events[..end].iter().rev() {
        let Some(value) = feature.value_of(event) else {
            continue;
        };
        let belongs = match (windowed.times.first(), windowed.times.last()) {
            (Some(newest), Some(oldest)) => {
                oldest - event.time <= gap && event.time > newest.saturating_sub(max)
            }
            _ => now - event.time <= gap,
        };
        if !belongs {
            windowed.previous = Some(event.time);
            break;
        }
        windowed.times.push(event.time);
        windowed.values.push(value);
    }
    windowed.times.reverse();
    windowed.values.reverse();
    windowed
}

/// The width of the tiles of a window: the largest that is at most a thousandth of its length.
fn tile_width(length: i64) -> i64 {
    let seconds = [1, 2, 10, 30, 60, 120, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400];
    let widths = seconds.map(|second: i64| second * 1000);
    let fitting = widths.into_iter().filter(|width| width * 1000 <= length);
    // Tiles on shorter windows are an error of the definitions.
    fitting.max().unwrap_or(1)
}

/// How far back the feature's window reaches; none when it has no end.
pub(super) fn reach(feature: &Feature) -> Option<i64> {
    let definition = &feature.definition;
    let window = match &definition.window {
        WindowDef::Sliding { length, tile: None } => *length,
        WindowDef::Sliding { length, tile: Some(_) } => length + tile_width(*length),
        WindowDef::Hopping { length, hop } => length + hop,
        WindowDef::Since { unit: CalendarUnit::Hour, .. } => HOUR,
        WindowDef::Since { unit: CalendarUnit::Day, .. } => DAY + HOUR,
        WindowDef::Since { unit: CalendarUnit::Week, .. } => 7 * DAY + HOUR,
        WindowDef::Since { unit: CalendarUnit::Month, .. } => 31 * DAY + HOUR,
        WindowDef::Session { gap, max } => max + gap,
        WindowDef::Lifetime => return None,
    };
    let gap = if definition.aggregate == Aggregate::SessionCount { definition.span } else { 0 };
    Some((window + gap).max(definition.ttl.unwrap_or(0)))
}
