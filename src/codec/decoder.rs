//! A record's payload to a typed event, or the reason why it is none (SEMANTICS §2, checks 1 to 7).

use std::sync::Arc;

use twox_hash::XxHash3_128;

use super::convert::{Want, convert, timestamp};
use super::json::{Paths, Raw, unescape};
use crate::expr::Val;
use crate::model::key::{KEY_BYTES_MAX, KeyPart, record_key};
use crate::model::{Millis, ScalarType, decimal, time};
use crate::topology::{Origin, Source, TimeText};

/// Why a record is a dead letter, or late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Payload over the limit.
    TooLarge,
    /// Not one JSON object.
    Malformed,
    /// Something required is missing or null.
    MissingField,
    /// Something has another type or does not fit.
    WrongType,
    /// Too far in the future.
    Ahead,
    /// A `validate` rule is false.
    Rule,
    /// Older than stream time − grace.
    Late,
}

impl Reason {
    /// All of them, in the order of the checks, with their label values.
    pub const NAMES: [(Self, &'static str); 7] = [
        (Self::TooLarge, "too_large"),
        (Self::Malformed, "malformed"),
        (Self::MissingField, "missing_field"),
        (Self::WrongType, "wrong_type"),
        (Self::Ahead, "ahead"),
        (Self::Rule, "rule"),
        (Self::Late, "late"),
    ];

    /// The label value.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

/// A typed event.
#[derive(Debug, Default)]
pub struct Decoded<'a> {
    /// Values of the source's variables: event time first.
    pub variables: Vec<Val<'a>>,
    /// Event time.
    pub time: Millis,
    /// Hash of the event id (its type and bytes) and the event time, when there is an id.
    pub id: Option<u128>,
}

/// A reason with a sentence about it.
pub type Refusal = (Reason, String);

/// Reads payloads of one format. The verdicts on typed values are the same for all formats.
pub trait Projector: Send + Sync {
    /// Checks the whole payload and fills one raw value per declared path.
    ///
    /// # Errors
    /// What makes the payload unreadable.
    fn project<'a>(&self, payload: &'a [u8], out: &mut Vec<Raw<'a>>) -> Result<(), &'static str>;
}

impl Projector for Paths {
    fn project<'a>(&self, payload: &'a [u8], out: &mut Vec<Raw<'a>>) -> Result<(), &'static str> {
        self.scan(payload, out)
    }
}

/// Decodes the records of one source.
pub struct SourceDecoder {
    source: Arc<Source>,
    projector: Box<dyn Projector>,
    /// Slot of each field with a path, by field.
    slots: Vec<Option<usize>>,
    time_slot: Option<usize>,
    id_slot: Option<usize>,
}

impl SourceDecoder {
    /// A decoder of `source`.
    pub fn new(source: &Arc<Source>) -> Self {
        let mut paths = Paths::new();
        let slots = source
            .fields
            .iter()
            .map(|field| match &field.origin {
                Origin::Path { path, .. } => Some(paths.add(path)),
                Origin::Expr(_) => None,
            })
            .collect();
        let time_slot = source.event_time.as_ref().map(|(path, _)| paths.add(path));
        let id_slot = source.event_id.as_ref().map(|path| paths.add(path));
        Self { source: Arc::clone(source), projector: Box::new(paths), slots, time_slot, id_slot }
    }

    /// The typed event of `payload`, by the checks 2 to 7. A null payload is malformed here. `raws` and
    /// `variables` lend their allocations.
    ///
    /// # Errors
    /// The first check that it fails.
    pub fn decode<'a>(
        &self,
        payload: Option<&'a [u8]>,
        log_time: Millis,
        raws: &mut Vec<Raw<'a>>,
        mut variables: Vec<Val<'a>>,
    ) -> Result<Decoded<'a>, Refusal> {
        let source = &*self.source;
        let malformed = |detail: &str| (Reason::Malformed, detail.to_owned());
        let payload = payload.ok_or_else(|| malformed("a null payload"))?;
        if payload.len() > source.max_event_bytes {
            let detail = format!("{} bytes, over {}", payload.len(), source.max_event_bytes);
            return Err((Reason::TooLarge, detail));
        }
        self.projector.project(payload, raws).map_err(malformed)?;
        self.whole_strings(raws)?;
        self.nothing_missing(raws)?;
        let time = match (&source.event_time, self.time_slot) {
            (Some((path, form)), Some(slot)) => timestamp(raws[slot], form, false)
                .ok_or_else(|| wrong(&path.join("."), "a timestamp", raws[slot]))?,
            _ => log_time,
        };
        let id = match self.id_slot {
            Some(slot) => event_id(raws[slot], time)?,
            None => None,
        };
        variables.clear();
        variables.reserve_exact(source.fields.len() + 1);
        variables.push(Val::Timestamp(time));
        for (field, slot) in source.fields.iter().zip(&self.slots) {
            let (Origin::Path { coerce, max_bytes, time, .. }, Some(slot)) = (&field.origin, slot) else {
                variables.push(Val::Null);
                continue;
            };
            let want = Want { scalar: field.scalar, coerce: *coerce, max_bytes: *max_bytes, time };
            let value = convert(raws[*slot], want)
                .ok_or_else(|| wrong(&field.name, field.scalar.name(), raws[*slot]))?;
            variables.push(value);
        }
        if time > log_time.saturating_add(source.max_ahead) {
            let (event, log) = (time::format_rfc3339(time), time::format_rfc3339(log_time));
            return Err((Reason::Ahead, format!("event time {event}, record of {log}")));
        }
        self.compute(&mut variables);
        for (rule, text) in &source.rules {
            if matches!(rule.eval(&variables), Val::Bool(false)) {
                return Err((Reason::Rule, text.clone()));
            }
        }
        Ok(Decoded { variables, time, id })
    }

    fn compute(&self, variables: &mut [Val<'_>]) {
        for (index, field) in self.source.fields.iter().enumerate() {
            if let Origin::Expr(expr) = &field.origin {
                let value = expr.eval(&variables[..=index]).to_value();
                variables[index + 1] = match value {
                    crate::model::Value::String(s) => Val::Str(s.to_string().into()),
                    crate::model::Value::Bool(b) => Val::Bool(b),
                    crate::model::Value::Int(n) => Val::Int(n),
                    crate::model::Value::Float(x) => Val::Float(x),
                    crate::model::Value::Timestamp(t) => Val::Timestamp(t),
                    _ => Val::Null,
                };
            }
        }
    }

    /// A declared string with a lone surrogate makes the whole record malformed.
    fn whole_strings(&self, raws: &[Raw<'_>]) -> Result<(), Refusal> {
        let strings = self
            .source
            .fields
            .iter()
            .zip(&self.slots)
            .filter_map(|(field, slot)| (field.scalar == ScalarType::String).then_some(*slot).flatten());
        for slot in strings.chain(self.id_slot) {
            if let Raw::Text(text, true) = raws[slot]
                && unescape(text).is_none()
            {
                return Err((Reason::Malformed, "a string with a lone surrogate".to_owned()));
            }
        }
        Ok(())
    }

    fn nothing_missing(&self, raws: &[Raw<'_>]) -> Result<(), Refusal> {
        let is_missing = |slot: usize| matches!(raws[slot], Raw::Missing | Raw::Null);
        if self.time_slot.is_some_and(is_missing) {
            return Err((Reason::MissingField, "event time".to_owned()));
        }
        for (field, slot) in self.source.fields.iter().zip(&self.slots) {
            if let (Origin::Path { is_nullable: false, .. }, Some(slot)) = (&field.origin, slot)
                && is_missing(*slot)
            {
                return Err((Reason::MissingField, field.name.clone()));
            }
        }
        Ok(())
    }
}

fn wrong(name: &str, wanted: &str, found: Raw<'_>) -> Refusal {
    let found = match found {
        Raw::Missing | Raw::Null => "null".to_owned(),
        Raw::Bool(b) => b.to_string(),
        Raw::Number(text) => format!("the number {}", shortened(text)),
        Raw::Text(text, _) => format!("the text \"{}\"", shortened(text)),
        Raw::Container => "an object or array".to_owned(),
    };
    (Reason::WrongType, format!("{name}: expected {wanted}, found {found}"))
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn event_id(raw: Raw<'_>, time: Millis) -> Result<Option<u128>, Refusal> {
    let refused = || wrong("event id", "a string or an integer", raw);
    let mut bytes = time.to_le_bytes().to_vec();
    match raw {
        Raw::Missing | Raw::Null => return Ok(None),
        Raw::Number(text) => {
            bytes.push(b'i');
            bytes.extend(decimal::int64(text).ok_or_else(refused)?.to_le_bytes());
        }
        Raw::Text(text, has_escape) => {
            bytes.push(b's');
            let plain = if has_escape { unescape(text).ok_or_else(refused)? } else { text.to_owned() };
            if plain.len() > KEY_BYTES_MAX {
                return Err(refused());
            }
            bytes.extend(plain.as_bytes());
        }
        Raw::Bool(_) | Raw::Container => return Err(refused()),
    }
    Ok(Some(XxHash3_128::oneshot(&bytes)))
}

/// Finds the record key in payloads that are appended without one.
pub struct KeyReader {
    paths: Paths,
    parts: Vec<(usize, ScalarType, bool, usize)>,
}

impl KeyReader {
    /// A reader for the records of `source`; `None` when they carry no usable key.
    pub fn new(source: &Source) -> Option<Self> {
        let mut paths = Paths::new();
        let mut parts = Vec::new();
        for variable in source.key.as_ref()? {
            let field = source.fields.get(variable.checked_sub(1)?)?;
            let Origin::Path { path, coerce, max_bytes, .. } = &field.origin else {
                return None;
            };
            parts.push((paths.add(path), field.scalar, *coerce, *max_bytes));
        }
        Some(Self { paths, parts })
    }

    /// Key bytes of `payload`; `None` when it has no usable key.
    pub fn read(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let mut raws = Vec::with_capacity(self.paths.slots());
        self.paths.scan(payload, &mut raws).ok()?;
        let values: Option<Vec<Val<'_>>> = self
            .parts
            .iter()
            .map(|(slot, scalar, coerce, max_bytes)| {
                let time = &TimeText::Unix(0);
                let want = Want { scalar: *scalar, coerce: *coerce, max_bytes: *max_bytes, time };
                convert(raws[*slot], want).filter(|v| !v.is_null())
            })
            .collect();
        let values = values?;
        let mut out = Vec::new();
        let parts = values.iter().map(key_part).collect::<Option<Vec<KeyPart<'_>>>>()?;
        record_key(&parts, &mut out);
        Some(out)
    }
}

/// A value as part of a key; `None` when it cannot be one.
pub fn key_part<'a>(value: &'a Val<'_>) -> Option<KeyPart<'a>> {
    match value {
        Val::Str(s) if s.len() <= KEY_BYTES_MAX => Some(KeyPart::String(s)),
        Val::Int(n) => Some(KeyPart::Int(*n)),
        _ => None,
    }
}
