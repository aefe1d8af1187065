//! Rows of CSV and Parquet to JSON events, typed by the declared fields (SEMANTICS §3).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value as Json, json};
use thalweg::model::{ScalarType, time};
use thalweg::topology::{Origin, Source, TimeText, Topology};

use super::ingest::Sender;
use super::{Failure, Outcome};

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

    /// A cell as JSON; what does not parse stays text.
    fn cell(&self, name: &str, text: &str) -> Json {
        if text.is_empty() || self.null_values.iter().any(|n| n == text) {
            return Json::Null;
        }
        let as_number = || {
            serde_json::from_str::<&serde_json::value::RawValue>(text)
                .ok()
                .filter(|_| text.starts_with(|c: char| c == '-' || c.is_ascii_digit()))
                .and_then(|raw| serde_json::from_str(raw.get()).ok())
        };
        let typed = match self.types.get(name) {
            Some((ScalarType::Int64 | ScalarType::Float64, _))
            | Some((ScalarType::Timestamp, TimeText::Unix(_))) => as_number(),
            Some((ScalarType::Bool, _)) => match text {
                "true" => Some(Json::Bool(true)),
                "false" => Some(Json::Bool(false)),
                _ => None,
            },
            _ => None,
        };
        typed.unwrap_or_else(|| Json::from(text))
    }
}

/// Puts `value` at a path whose dots nest.
fn put(event: &mut Map<String, Json>, name: &str, value: Json) {
    match name.split_once('.') {
        None => {
            event.insert(name.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = event.entry(first).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Sends every row as JSON. One that has other cells than the header goes as the list of its cells, and so
/// becomes a dead letter.
pub fn csv(input: impl Read, columns: &Columns, sender: &mut Sender) -> Outcome {
    let wrong = |e: csv::Error| Failure::Input(format!("error: not CSV: {e}"));
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let names: Vec<String> = reader.headers().map_err(wrong)?.iter().map(str::to_owned).collect();
    if let Some((_, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(Failure::Input(format!("error: line 1: column `{name}` stands twice; expected once")));
    }
    let mut row = csv::ByteRecord::new();
    while reader.read_byte_record(&mut row).map_err(wrong)? {
        let line = row.position().map_or(0, csv::Position::line);
        let cells: Vec<_> = row.iter().map(String::from_utf8_lossy).collect();
        let why = match cells.len() {
            n if n != names.len() => Some(format!("{n} cells; expected {} as in line 1", names.len())),
            _ if cells.iter().any(|cell| matches!(cell, Cow::Owned(_))) => Some("not UTF-8".to_owned()),
            _ => None,
        };
        if let Some(why) = why {
            sender.say(&format!("line {line} becomes a dead letter: {why}"));
            sender.add(json!(cells).to_string().as_bytes(), line)?;
            continue;
        }
        let mut event = Map::new();
        for (name, text) in names.iter().zip(cells) {
            put(&mut event, name, columns.cell(name, &text));
        }
        sender.add(Json::Object(event).to_string().as_bytes(), line)?;
    }
    Ok(())
}

/// The same for a Parquet file.
pub fn parquet(file: File, columns: &Columns, sender: &mut Sender) -> Outcome {
    let wrong = |e: parquet::errors::ParquetError| Failure::Input(format!("error: not Parquet: {e}"));
    let reader = SerializedFileReader::new(file).map_err(wrong)?;
    for (number, row) in (1..).zip(reader.get_row_iter(None).map_err(wrong)?) {
        let row = row.map_err(wrong)?;
        let mut event = Map::new();
        for (name, field) in row.get_column_iter() {
            put(&mut event, name, parquet_cell(columns, name, field));
        }
        sender.add(Json::Object(event).to_string().as_bytes(), number)?;
    }
    Ok(())
}

fn parquet_cell(columns: &Columns, name: &str, field: &Field) -> Json {
    let instant = |millis: i64| match columns.types.get(name) {
        Some((_, TimeText::Unix(digits))) => match digits {
            0 => Json::from(millis as f64 / 1000.0),
            3 => Json::from(millis),
            _ => Json::from(millis.saturating_mul(1000)),
        },
        _ => Json::from(time::format_rfc3339(millis)),
    };
    match field {
        Field::Null => Json::Null,
        Field::TimestampMillis(t) => instant(*t),
        Field::TimestampMicros(t) => instant(t.div_euclid(1000)),
        Field::Date(days) => instant(i64::from(*days) * time::DAY),
        Field::Str(text) => columns.cell(name, text),
        Field::Bytes(bytes) => columns.cell(name, &String::from_utf8_lossy(bytes.data())),
        Field::Group(row) => {
            let mut inner = Map::new();
            for (child, field) in row.get_column_iter() {
                let path = format!("{name}.{child}");
                inner.insert(child.clone(), parquet_cell(columns, &path, field));
            }
            Json::Object(inner)
        }
        other => columns.cell(name, &other.to_string()),
    }
}
