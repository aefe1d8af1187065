//! Files: NDJSON, CSV and Parquet, also hostile ones.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;

use parquet::data_type::{
    ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, Int64Type,
};
use parquet::file::writer::SerializedFileWriter;
use serde_json::{Value, json};

use crate::api::{DEFINITIONS, NOON_MS, event};
use crate::harness::{Engine, Place, run};

#[test]
fn what_cannot_be_ingested_keeps_nothing_else_back() {
    let place = Place::new(DEFINITIONS, "limits: { append_body: 64KiB }");
    let config = place.config();
    let config = config.to_str().expect("UTF-8");
    let engine = place.start();
    let huge = format!("{{\"note\":\"{}\"}}", "x".repeat(64 << 10));
    let lines = [event(1, "ann", 7, 1, 2.5), huge, event(2, "ann", 7, 1, 2.5)].join("\n");
    let (code, out, said) = run(&["ingest", "--config", config, "--topic", "payments", "-"], Some(&lines));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("line 2 is left out") && out.contains("\"appended\":2"), "{said} {out}");
    let csv = place.folder.path().join("ragged.csv");
    let at = NOON_MS - 30_000;
    let rows = format!("at,user_id,amount,city\n{at},ann,1.5\n{at},ann,1.5,\n{at},bob,1.5,X,Y\n");
    std::fs::write(&csv, rows).expect("writable");
    let (code, _, said) =
        run(&["ingest", "--config", config, "--topic", "payments", csv.to_str().expect("UTF-8")], None);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("line 2 becomes a dead letter") && said.contains("line 4"), "{said}");
    let stats = engine.settled_stats();
    assert_eq!(stats["sources"]["payments"]["accepted"], 3, "{stats}");
    assert_eq!(stats["sources"]["payments"]["dead_lettered"]["malformed"], 2);
    engine.stop();
}

/// Writes a file of two rows.
fn write_parquet(path: &Path, user: [u8; 16], note: &[u8]) {
    let schema = "message m {
        required int64 at (TIMESTAMP(NANOS,false));
        required fixed_len_byte_array(16) user_id (UUID);
        required int64 n (DECIMAL(18,0));
        required double x;
        optional binary note (STRING);
        required binary raw;
    }";
    let schema = parquet::schema::parser::parse_message_type(schema).expect("a schema");
    let file = std::fs::File::create(path).expect("writable");
    let mut writer =
        SerializedFileWriter::new(file, schema.into(), std::sync::Arc::default()).expect("a writer");
    let mut rows = writer.next_row_group().expect("a row group");
    let mut index = 0;
    while let Some(mut column) = rows.next_column().expect("writable") {
        let written = match index {
            // 2024-01-15T12:00:00.000000999, wherever that is.
            0 => column.typed::<Int64Type>().write_batch(&[1_705_320_000_000_000_999; 2], None, None),
            1 => {
                let users = [FixedLenByteArray::from(user.to_vec()), FixedLenByteArray::from(vec![0xff; 16])];
                column.typed::<FixedLenByteArrayType>().write_batch(&users, None, None)
            }
            2 => column.typed::<Int64Type>().write_batch(&[42, 43], None, None),
            3 => column.typed::<DoubleType>().write_batch(&[0.1 + 0.2, 1e300], None, None),
            4 => column.typed::<ByteArrayType>().write_batch(&[ByteArray::from("NA")], Some(&[1, 0]), None),
            _ => column.typed::<ByteArrayType>().write_batch(
                &[ByteArray::from("text"), ByteArray::from(note.to_vec())],
                None,
                None,
            ),
        };
        written.expect("written");
        column.close().expect("written");
        index += 1;
    }
    rows.close().expect("written");
    writer.close().expect("written");
}

const COLUMNS: &str = "
entities: { user: { key: user_id, type: string } }
sources:
  rows:
    key: user_id
    event_time: { path: at, format: rfc3339, zone: America/New_York }
    null_values: [NA, \"-999.00\"]
    fields:
      user_id: { type: string }
      n: { type: int64, nullable: true }
      x: { type: float64, nullable: true }
      note: { type: string, nullable: true }
      raw: { type: string, nullable: true }
feature_groups:
  by_user:
    entity: user
    source: rows
    features:
      count: { aggregate: count, window: 1h }
      n: { aggregate: last, of: n, window: 1h }
      x: { aggregate: last, of: x, window: 1h }
      note: { aggregate: last, of: note, window: 1h }
";
/// The features of `user`, some hours after the events.
fn values_of(engine: &Engine, user: &str) -> Value {
    let features = ["by_user:count", "by_user:n", "by_user:x", "by_user:note"];
    engine.values(&features, json!({"user_id": [user]}), "2024-01-15T17:00:00Z", &json!({}))
}

#[test]
fn rows_of_parquet_become_events_of_their_types() {
    let place = Place::new(COLUMNS, "");
    let config = place.config();
    let engine = place.start();
    let path = place.folder.path().join("rows.parquet");
    let arguments = [
        "ingest",
        "--config",
        config.to_str().expect("UTF-8"),
        "--topic",
        "rows",
        path.to_str().expect("UTF-8"),
    ];
    write_parquet(&path, *b"0123456789abcdef", b"more");
    let (code, out, said) = run(&arguments, None);
    assert_eq!(code, 0, "{said}");
    assert!(out.contains("\"appended\":2"), "{out}");
    assert_eq!(engine.settled_stats()["sources"]["rows"]["accepted"], 2);
    // Local to the source's zone, finer than a millisecond; its own bytes; a decimal; all digits.
    let found = values_of(&engine, "30313233-3435-3637-3839-616263646566");
    assert_eq!(found["count"], json!([1, "PRESENT"]));
    assert_eq!((&found["n"][0], &found["x"][0]), (&json!(42), &json!(0.1 + 0.2)));
    assert_eq!(found["note"], json!(["NA", "PRESENT"]), "what stands for null does so in CSV alone");
    assert_eq!(values_of(&engine, "ffffffff-ffff-ffff-ffff-ffffffffffff")["x"][0], json!(1e300));
    // Bytes that are no text.
    write_parquet(&path, *b"0123456789abcdef", b"\xff\xfe");
    let (code, _, said) = run(&arguments, None);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("row 2 becomes a dead letter: `raw`"), "{said}");
    assert_eq!(engine.settled_stats()["sources"]["rows"]["dead_lettered"]["malformed"], 1);
    // Damaged in every tenth byte, one at a time: an error or events, and never a panic.
    let whole = std::fs::read(&path).expect("readable");
    for at in (0..whole.len()).step_by(10) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).expect("writable");
        let (code, _, said) = run(&arguments, None);
        assert!(code < 2 && !said.contains("panicked"), "byte {at}: {code} {said}");
    }
    engine.stop();
}

#[test]
fn cells_of_csv_keep_their_digits_and_an_open_quote_is_said() {
    let place = Place::new(COLUMNS, "");
    let config = place.config();
    let engine = place.start();
    let path = place.folder.path().join("rows.csv");
    let arguments = [
        "ingest",
        "--config",
        config.to_str().expect("UTF-8"),
        "--topic",
        "rows",
        path.to_str().expect("UTF-8"),
    ];
    let row =
        |user: &str, n: &str, x: &str, note: &str| format!("2024-01-15T12:00:00,{user},{n},{x},{note}\n");
    let text = [
        "at,user_id,n,x,note\n".to_owned(),
        row("a", "9007199254740993.0", "0.30000000000000004", "\"a, b\""),
        row("b", "9223372036854775807", "-999.00", "NA"),
        row("c", "1", "2", "\"never closed"),
        row("d", "1", "2", "inside"),
    ];
    std::fs::write(&path, text.concat()).expect("writable");
    let (code, out, said) = run(&arguments, None);
    assert_eq!(code, 1, "{said}");
    assert!(
        out.contains("\"appended\":2") && said.contains("line 4 is left out: a quote opens"),
        "{out} {said}"
    );
    engine.settled_stats();
    let found = values_of(&engine, "a");
    assert_eq!(found["n"][0], json!(9_007_199_254_740_993_i64));
    assert_eq!((&found["x"][0], &found["note"][0]), (&json!(0.1 + 0.2), &json!("a, b")));
    let found = values_of(&engine, "b");
    assert_eq!(found["n"][0], json!(i64::MAX));
    assert_eq!(found["count"][0], json!(1));
    assert_eq!((&found["x"][0], &found["note"][0]), (&json!(null), &json!(null)));
    for (text, word) in [
        ("", "empty"),
        ("at,\"user_id", "never closed"),
        ("at,n,at\n1,2,3\n", "`at` stands twice"),
        ("at,n,n.x\n1,2,3\n", "`n` and `n.x` are a value and a part of it"),
    ] {
        std::fs::write(&path, text).expect("writable");
        let (code, _, said) = run(&arguments, None);
        assert!(code == 1 && said.contains(word), "{code} {said}");
    }
    engine.stop();
}

/// An engine that is starting answers before it has read, and closes.
#[test]
fn an_engine_that_reads_no_body_is_asked_for_its_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let engine = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 4];
            stream.read_exact(&mut head).expect("a request");
            if head == *b"GET " {
                let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    reader.read_line(&mut line).expect("a header");
                }
                let body = r#"{"error":{"code":"UNAVAILABLE","message":"the engine is starting"}}"#;
                let length = body.len();
                write!(stream, "HTTP/1.1 503 x\r\ncontent-length: {length}\r\n\r\n{body}").expect("sent");
            }
        }
    });
    let place = Place::new(COLUMNS, "");
    let (config, server) = (place.config(), format!("http://{address}"));
    let path = place.folder.path().join("rows.csv");
    std::fs::write(&path, "at,user_id,n,x,note\n2024-01-15T12:00:00,a,1,2,\n").expect("writable");
    let [config, path] = [&config, &path].map(|p| p.to_str().expect("UTF-8"));
    let (code, _, said) =
        run(&["ingest", "--config", config, "--server", &server, "--topic", "rows", path], None);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("after 0 events: the engine is starting"), "{said}");
    engine.join().expect("no panic");
}
