//! Typed reading of YAML nodes that collects every mistake instead of stopping at the first.

use std::collections::HashSet;

use crate::model::names::nearest;
use crate::model::{Millis, time};

use super::yaml::{Key, Kind, Mistake, Node, Place};

/// Collects mistakes.
#[derive(Debug, Default)]
pub struct Mistakes {
    all: Vec<Mistake>,
    /// Names of what could not be read.
    unreadable: HashSet<String>,
    /// Whether a whole file could not.
    is_partial: bool,
}

impl Mistakes {
    /// Notes a mistake at `place`.
    pub fn push(&mut self, place: Place, message: impl Into<String>) {
        self.all.push(Mistake { place, message: message.into() });
    }

    /// Notes several.
    pub fn extend(&mut self, mistakes: Vec<Mistake>) {
        self.all.extend(mistakes);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What is defined under `name` could not be read: what refers to it is no mistake of its own.
    pub fn note_unreadable(&mut self, name: &str) {
        self.unreadable.insert(name.to_owned());
    }

    /// Nobody knows what a file defines.
    pub fn note_unreadable_file(&mut self) {
        self.is_partial = true;
    }

    /// Whether `name`, or a part of it, may be that of something that could not be read.
    pub fn is_excused(&self, name: &str) -> bool {
        self.is_partial || name.split('.').any(|part| self.unreadable.contains(part))
    }

    /// All of them by place, each once.
    pub fn sorted(mut self) -> Vec<Mistake> {
        self.all.sort_by(|a, b| (a.place, &a.message).cmp(&(b.place, &b.message)));
        self.all.dedup();
        self.all
    }
}

/// `; did you mean …` when a known name is near.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |n| format!("; did you mean `{n}`"))
}

/// A duration that something is limited to, if it is.
pub type Limit = Option<Millis>;

/// A mapping whose keys are checked against those that are known.
#[derive(Clone)]
pub struct Fields<'a> {
    /// Where what is described by the mapping stands: its name, when it has one.
    pub place: Place,
    entries: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// Reads `node` as a mapping of `known` keys. `what` names it in messages.
    pub fn of(
        node: &'a Node,
        place: Place,
        what: &str,
        known: &[&str],
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let entries = entries(node, what, mistakes)?;
        for (key, _) in entries {
            if !known.contains(&key.name.as_str()) {
                let hint = did_you_mean(&key.name, known.iter().copied());
                let message = format!(
                    "unknown key `{}` in {what}; expected one of {}{hint}",
                    key.name,
                    known.join(", ")
                );
                mistakes.push(key.place, message);
            }
        }
        Some(Self { place, entries })
    }

    /// The value of `key`; an explicit null is none.
    pub fn get(&self, key: &str) -> Option<&'a Node> {
        let (_, node) = self.entries.iter().find(|(k, _)| k.name == key)?;
        (!matches!(node.kind, Kind::Null)).then_some(node)
    }

    /// Where `key` stands.
    pub fn place_of(&self, key: &str) -> Place {
        self.entries.iter().find(|(k, _)| k.name == key).map_or(self.place, |(k, _)| k.place)
    }

    /// Whether `key` is given.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Text of a required key.
    pub fn required_text(&self, key: &str, what: &str, mistakes: &mut Mistakes) -> Option<String> {
        if !self.has(key) {
            mistakes.push(self.place, format!("{what} has no `{key}`; expected `{key}: …`"));
            return None;
        }
        self.text(key, mistakes)
    }

    /// Text of an optional key.
    pub fn text(&self, key: &str, mistakes: &mut Mistakes) -> Option<String> {
        let node = self.get(key)?;
        let text = node.text();
        if text.is_none() {
            mistakes.push(node.place, format!("`{key}` is {}; expected text", node.kind_name()));
        }
        text
    }

    /// A duration.
    pub fn duration(&self, key: &str, mistakes: &mut Mistakes) -> Option<Millis> {
        let node = self.get(key)?;
        let text = node.text().unwrap_or_default();
        let duration = time::parse_duration(&text);
        if duration.is_none() {
            let message =
                format!("`{key}: {text}` is no duration; expected one like 250ms, 10s, 5m, 24h or 7d");
            mistakes.push(node.place, message);
        }
        duration
    }

    /// A duration above zero.
    pub fn positive_duration(&self, key: &str, mistakes: &mut Mistakes) -> Option<Millis> {
        let duration = self.duration(key, mistakes)?;
        if duration == 0 {
            mistakes.push(self.place_of(key), format!("`{key}` is zero; expected a longer duration"));
            return None;
        }
        Some(duration)
    }

    /// A duration above zero, or `none`, which is no limit.
    pub fn limit(&self, key: &str, mistakes: &mut Mistakes) -> Option<Limit> {
        if self.get(key)?.text().as_deref() == Some("none") {
            return Some(None);
        }
        self.positive_duration(key, mistakes).map(Some)
    }

    /// A number of bytes.
    pub fn bytes(&self, key: &str, mistakes: &mut Mistakes) -> Option<u64> {
        let node = self.get(key)?;
        let text = node.text().unwrap_or_default();
        let bytes = parse_bytes(&text);
        if bytes.is_none() {
            let message = format!("`{key}: {text}` is no size; expected one like 512, 4KiB, 16MiB or 2GiB");
            mistakes.push(node.place, message);
        }
        bytes
    }

    /// A whole number within `range`.
    pub fn int(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        mistakes: &mut Mistakes,
    ) -> Option<i64> {
        let node = self.get(key)?;
        if let Kind::Int(n) = node.kind
            && range.contains(&n)
        {
            return Some(n);
        }
        let found = node.text().unwrap_or_else(|| node.kind_name().to_owned());
        let bounds = if *range.end() == i64::MAX {
            format!("of at least {}", range.start())
        } else {
            format!("from {} to {}", range.start(), range.end())
        };
        mistakes.push(node.place, format!("`{key}` is {found}; expected a whole number {bounds}"));
        None
    }

    /// A truth value.
    pub fn bool(&self, key: &str, mistakes: &mut Mistakes) -> Option<bool> {
        let node = self.get(key)?;
        if let Kind::Bool(b) = node.kind {
            return Some(b);
        }
        mistakes.push(node.place, format!("`{key}` is {}; expected true or false", node.kind_name()));
        None
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], mistakes: &mut Mistakes) -> Option<T> {
        let node = self.get(key)?;
        let text = node.text().unwrap_or_else(|| node.kind_name().to_owned());
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let hint = did_you_mean(&text, names.iter().copied());
        let expected = names.join(", ");
        mistakes.push(node.place, format!("unknown `{key}: {text}`; expected one of {expected}{hint}"));
        None
    }

    /// A name or a list of names.
    pub fn names(&self, key: &str, mistakes: &mut Mistakes) -> Option<Vec<(String, Place)>> {
        let node = self.get(key)?;
        let items = match &node.kind {
            Kind::List(items) => items.iter().collect(),
            _ => vec![node],
        };
        let mut names = Vec::with_capacity(items.len());
        for item in items {
            match item.text() {
                Some(text) => names.push((text, item.place)),
                None => {
                    let message = format!("`{key}` holds {}; expected names", item.kind_name());
                    mistakes.push(item.place, message);
                    return None;
                }
            }
        }
        if names.is_empty() {
            mistakes.push(node.place, format!("`{key}` is empty; expected a name or a list of names"));
            return None;
        }
        Some(names)
    }
}

/// The entries of a mapping; nothing at all is an empty one.
pub fn entries<'a>(node: &'a Node, what: &str, mistakes: &mut Mistakes) -> Option<&'a [(Key, Node)]> {
    match &node.kind {
        Kind::Map(entries) => Some(entries),
        Kind::Null => Some(&[]),
        _ => {
            mistakes.push(node.place, format!("{what} is {}; expected a map", node.kind_name()));
            None
        }
    }
}

/// Parses `512`, `4KiB`, `16MiB`, `2GiB`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text[..unit_at].parse().ok()?;
    let unit = match &text[unit_at..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    count.checked_mul(unit)
}
