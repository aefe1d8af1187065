//! Rows of CSV and Parquet to JSON events, typed by the declared fields (SEMANTICS §3).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::basic::{LogicalType, TimeUnit};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::value::RawValue;
use thalweg::model::{Millis, ScalarType, time};
use thalweg::topology::{Origin, Source, TimeText, Topology};

use super::ingest::Sender;
use super::{Failure, Outcome};

/// What no line of a file holds: a CSV row of it alone behind the end shows that no quote is open there.
const END: &str = "\u{1}the end of the file\u{1}";

/// Types of columns, by path.
pub struct Columns {
    types: HashMap<String, (ScalarType, TimeText)>,
    null_values: Vec<String>,
}

impl Columns {
    /// Columns of the only source of `topic`.
    pub fn of(topology: &Topology, topic: &str) -> Result<Self, String> {
        let mut sources = topology.sources.iter().filter(|s| s.topic == topic);
        match (sources.next(), sources.next()) {
            (Some(source), None) => Ok(Self::of_source(source)),
            (None, _) => Err(format!("error: no source reads topic `{topic}`")),
            (Some(_), Some(_)) => Err(format!(
                "error: several sources read topic `{topic}`, so its columns have no one type; ingest ndjson"
            )),
        }
    }

    fn of_source(source: &Source) -> Self {
        let mut types = HashMap::new();
        for field in &source.fields {
            if let Origin::Path { path, time, .. } = &field.origin {
                types.insert(path.join("."), (field.scalar, time.clone()));
            }
        }
        if let Some((path, form)) = &source.event_time {
            types.insert(path.join("."), (ScalarType::Timestamp, form.clone()));
        }
        Self { types, null_values: source.null_values.clone() }
    }

    /// A cell of CSV.
    fn cell(&self, name: &str, text: &str) -> Cell {
        if text.is_empty() || self.null_values.iter().any(|n| n == text) {
            return Cell::null();
        }
        self.typed(name, text)
    }

    /// Text as what its column holds; what does not parse stays text. Numbers stay as they are written:
    /// the engine reads them to the last digit.
    fn typed(&self, name: &str, text: &str) -> Cell {
        let is_number = || {
            text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
                && serde_json::from_str::<&RawValue>(text).is_ok_and(|raw| raw.get() == text)
        };
        let is_as_it_is = match self.types.get(name) {
            Some((ScalarType::Int64 | ScalarType::Float64, _))
            | Some((ScalarType::Timestamp, TimeText::Unix(_))) => is_number(),
            Some((ScalarType::Bool, _)) => matches!(text, "true" | "false"),
            _ => false,
        };
        if is_as_it_is { Cell::Json(text.to_owned()) } else { Cell::text(text) }
    }

    /// A point in time; `is_local`: it counts from the epoch of the field's zone.
    fn instant(&self, name: &str, millis: Millis, is_local: bool) -> Cell {
        let text = || time::format_rfc3339(millis);
        match self.types.get(name) {
            Some((_, TimeText::Unix(0))) => {
                let (sign, whole) = (if millis < 0 { "-" } else { "" }, millis.unsigned_abs());
                Cell::Json(format!("{sign}{}.{:03}", whole / 1000, whole % 1000))
            }
            Some((_, TimeText::Unix(3))) => Cell::Json(millis.to_string()),
            Some((_, TimeText::Unix(_))) => Cell::Json((i128::from(millis) * 1000).to_string()),
            Some((_, TimeText::Rfc3339(Some(_)))) if is_local => Cell::text(text().trim_end_matches('Z')),
            _ => Cell::text(&text()),
        }
    }
}

/// A part of an event.
enum Cell {
    /// As JSON.
    Json(String),
    /// An object.
    Object(Vec<(String, Cell)>),
}

impl Cell {
    fn null() -> Self {
        Self::Json("null".to_owned())
    }

    fn text(text: &str) -> Self {
        Self::Json(serde_json::Value::from(text).to_string())
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Json(text) => out.push_str(text),
            Self::Object(members) => {
                for (i, (name, cell)) in members.iter().enumerate() {
                    out.push(if i == 0 { '{' } else { ',' });
                    out.push_str(&serde_json::Value::from(name.as_str()).to_string());
                    out.push(':');
                    cell.write(out);
                }
                out.push_str(if members.is_empty() { "{}" } else { "}" });
            }
        }
    }
}

/// Puts `cell` at a path whose dots nest.
fn put(event: &mut Vec<(String, Cell)>, name: &str, cell: Cell) {
    let Some((first, rest)) = name.split_once('.') else {
        event.push((name.to_owned(), cell));
        return;
    };
    let at = event.iter().position(|(known, _)| known == first).unwrap_or_else(|| {
        event.push((first.to_owned(), Cell::Object(Vec::new())));
        event.len() - 1
    });
    if let Cell::Object(inner) = &mut event[at].1 {
        put(inner, rest, cell);
    }
}

fn send(event: Vec<(String, Cell)>, line: u64, sender: &mut Sender) -> Outcome {
    let mut text = String::new();
    Cell::Object(event).write(&mut text);
    sender.add(text.as_bytes(), line)
}

/// Sends what is no event as the list of its cells: it becomes a dead letter.
fn send_list(cells: &[Cow<'_, str>], (line, noun): (u64, &str), why: &str, sender: &mut Sender) -> Outcome {
    sender.say(&format!("{noun} {line} becomes a dead letter: {why}"));
    sender.add(serde_json::json!(cells).to_string().as_bytes(), line)
}

/// Refuses columns that would overwrite each other in an event.
fn check_names(names: &[String]) -> Result<(), String> {
    for (i, name) in names.iter().enumerate() {
        for other in &names[..i] {
            if name == other {
                return Err(format!("column `{name}` stands twice; expected once"));
            }
            let is_within = |inner: &str, outer: &str| {
                inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
            };
            if is_within(name, other) || is_within(other, name) {
                return Err(format!(
                    "columns `{other}` and `{name}` are a value and a part of it; expected one of them"
                ));
            }
        }
    }
    Ok(())
}

/// Sends every row as JSON. One that has other cells than the header becomes a dead letter.
pub fn csv(input: impl Read, columns: &Columns, sender: &mut Sender) -> Outcome {
    let wrong = |e: csv::Error| Failure::Input(format!("error: not CSV: {e}"));
    let end = format!("\n{END}\n");
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input.chain(end.as_bytes()));
    let names: Vec<String> = reader.headers().map_err(wrong)?.iter().map(str::to_owned).collect();
    if names.last().is_some_and(|name| name.contains(END)) {
        let is_empty = names.len() == 1 && names[0] == END;
        let why = if is_empty { "it is empty; expected a header" } else { "a quote is never closed" };
        return Err(Failure::Input(format!("error: line 1: {why}")));
    }
    check_names(&names).map_err(|why| Failure::Input(format!("error: line 1: {why}")))?;
    let mut row = csv::ByteRecord::new();
    while reader.read_byte_record(&mut row).map_err(wrong)? {
        let line = row.position().map_or(0, csv::Position::line);
        let cells: Vec<_> = row.iter().map(String::from_utf8_lossy).collect();
        match cells.last() {
            Some(last) if cells.len() == 1 && last == END => break,
            Some(last) if last.contains(END) => {
                sender.leave_out(line, "a quote opens there and is never closed");
                break;
            }
            _ => {}
        }
        let why = match cells.len() {
            n if n != names.len() => Some(format!("{n} cells; expected {} as in line 1", names.len())),
            _ if cells.iter().any(|cell| matches!(cell, Cow::Owned(_))) => Some("not UTF-8".to_owned()),
            _ => None,
        };
        if let Some(why) = why {
            send_list(&cells, (line, "line"), &why, sender)?;
            continue;
        }
        let mut event = Vec::with_capacity(names.len());
        for (name, text) in names.iter().zip(cells) {
            put(&mut event, name, columns.cell(name, &text));
        }
        send(event, line, sender)?;
    }
    Ok(())
}

/// The same for a Parquet file.
pub fn parquet(file: File, columns: &Columns, sender: &mut Sender) -> Outcome {
    // The library panics on some damaged files.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let read = parquet_rows(file, columns, sender);
    std::panic::set_hook(hook);
    read
}

/// What `read` gives, where the library may panic.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, Failure> {
    let wrong = |why: &str| Failure::Input(format!("error: not Parquet: {why}"));
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|e| wrong(&e.to_string())),
        Err(_) => Err(wrong("the file is damaged")),
    }
}

fn parquet_rows(file: File, columns: &Columns, sender: &mut Sender) -> Outcome {
    let reader = guarded(|| SerializedFileReader::new(file))?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let logical = schema.columns().iter().filter_map(|column| {
        let logical = column.self_type().get_basic_info().logical_type_ref()?;
        Some((column.path().parts().join("."), logical.clone()))
    });
    let names: Vec<String> = schema.root_schema().get_fields().iter().map(|f| f.name().to_owned()).collect();
    check_names(&names).map_err(|why| Failure::Input(format!("error: {why}")))?;
    let parquet = Parquet { columns, logical: logical.collect() };
    let mut rows = guarded(|| reader.get_row_iter(None))?;
    for number in 1.. {
        let Some(row) = guarded(|| rows.next().transpose())? else { break };
        match parquet.event(&row) {
            Ok(event) => send(event, number, sender)?,
            Err(why) => {
                let cells: Vec<_> =
                    row.get_column_iter().map(|(_, field)| Cow::Owned(field.to_string())).collect();
                send_list(&cells, (number, "row"), &why, sender)?;
            }
        }
    }
    Ok(())
}

/// A Parquet file's columns.
struct Parquet<'a> {
    columns: &'a Columns,
    /// What columns stand for beyond their stored type, by path.
    logical: HashMap<String, LogicalType>,
}

impl Parquet<'_> {
    /// The row as an event, or why it is none.
    fn event(&self, row: &Row) -> Result<Vec<(String, Cell)>, String> {
        let mut event = Vec::new();
        for (name, field) in row.get_column_iter() {
            put(&mut event, name, self.cell(name, field)?);
        }
        Ok(event)
    }

    fn cell(&self, name: &str, field: &Field) -> Result<Cell, String> {
        let logical = self.logical.get(name);
        let is_local = match logical {
            Some(LogicalType::Timestamp(t)) => !t.is_adjusted_to_u_t_c,
            other => matches!(other, Some(LogicalType::Date)),
        };
        let is_nanos = matches!(logical, Some(LogicalType::Timestamp(t)) if t.unit == TimeUnit::NANOS);
        let instant = |millis: i64| self.columns.instant(name, millis, is_local);
        Ok(match field {
            Field::Null => Cell::null(),
            Field::TimestampMillis(t) => instant(*t),
            Field::TimestampMicros(t) => instant(t.div_euclid(1000)),
            Field::Long(t) if is_nanos => instant(t.div_euclid(1_000_000)),
            Field::Date(days) => instant(i64::from(*days) * time::DAY),
            Field::Str(text) => self.columns.typed(name, text),
            Field::Bytes(bytes) => match (logical, std::str::from_utf8(bytes.data())) {
                (Some(LogicalType::Uuid), _) if bytes.len() == 16 => Cell::text(&uuid(bytes.data())),
                (_, Ok(text)) => self.columns.typed(name, text),
                (_, Err(_)) => return Err(format!("`{name}` holds bytes that are not UTF-8")),
            },
            Field::Float(x) => self.columns.typed(name, &number(f64::from(*x))),
            Field::Float16(x) => self.columns.typed(name, &number(f64::from(*x))),
            Field::Double(x) => self.columns.typed(name, &number(*x)),
            // The library writes the point also where nothing follows it.
            Field::Decimal(_) => self.columns.typed(name, field.to_string().trim_end_matches('.')),
            Field::Group(row) => {
                let cell = |(child, field): (&String, &Field)| {
                    Ok((child.clone(), self.cell(&format!("{name}.{child}"), field)?))
                };
                Cell::Object(row.get_column_iter().map(cell).collect::<Result<_, String>>()?)
            }
            other => self.columns.typed(name, &other.to_string()),
        })
    }
}

/// The shortest text that reads back as `x`.
fn number(x: f64) -> String {
    format!("{x:?}")
}

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
