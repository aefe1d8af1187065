//! `thalweg ingest`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use thalweg::app::load_definitions;

use super::convert::{Columns, csv, parquet};
use super::{Failure, Outcome, load_settings, server_url};

/// Bytes that one request carries, unless the engine takes less.
const BODY_BYTES: usize = 4 << 20;

/// How long an engine may answer that it is busy, and between two tries.
const BUSY_MAX: Duration = Duration::from_secs(60);
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// Arguments of `ingest`.
#[derive(Args)]
pub struct IngestArguments {
    /// Configuration file
    #[arg(long, default_value = "thalweg.yaml")]
    config: PathBuf,
    /// Topic to append to
    #[arg(long)]
    topic: String,
    /// Format of the file; by its name when not given
    #[arg(long)]
    format: Option<Format>,
    /// Address of the engine
    #[arg(long)]
    server: Option<String>,
    /// File, or - for standard input
    file: PathBuf,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
enum Format {
    Ndjson,
    Csv,
    Parquet,
}

/// Appends a file to a topic.
pub fn ingest(arguments: &IngestArguments) -> Outcome {
    let settings = load_settings(&arguments.config, &[])?;
    let is_stdin = arguments.file.as_os_str() == "-";
    let format =
        arguments.format.unwrap_or_else(|| match arguments.file.extension().and_then(|e| e.to_str()) {
            Some("csv") => Format::Csv,
            Some("parquet") => Format::Parquet,
            _ => Format::Ndjson,
        });
    let open = || {
        File::open(&arguments.file)
            .map_err(|e| Failure::Input(format!("error: {}: {e}", arguments.file.display())))
    };
    let total = if is_stdin { None } else { open()?.metadata().ok().map(|m| m.len()) };
    let mut sender = Sender::new(
        server_url(arguments.server.as_ref(), Some(&settings)),
        arguments.topic.clone(),
        settings.append_body,
        total,
    );
    let input: Box<dyn Read> = if is_stdin { Box::new(std::io::stdin()) } else { Box::new(open()?) };
    match format {
        Format::Ndjson => ndjson(input, &mut sender)?,
        Format::Csv | Format::Parquet => {
            let topology =
                load_definitions(&settings.definitions).map_err(|lines| Failure::Input(lines.join("\n")))?;
            let columns = Columns::of(&topology, &arguments.topic).map_err(Failure::Input)?;
            if format == Format::Csv {
                let counted = sender.progress.wrap_read(input);
                csv(counted, &columns, &mut sender)?;
            } else if is_stdin {
                return Err(Failure::Input("error: Parquet cannot be read from standard input".to_owned()));
            } else {
                parquet(open()?, &columns, &mut sender)?;
            }
        }
    }
    sender.send()?;
    sender.progress.finish_and_clear();
    eprintln!("{} events in {:.1?}", sender.appended, sender.progress.elapsed());
    println!("{}", json!({ "appended": sender.appended, "positions": sender.positions }));
    if sender.left_out > 0 {
        return Err(Failure::Input(format!("error: {} events were left out", sender.left_out)));
    }
    Ok(())
}

fn ndjson(input: Box<dyn Read>, sender: &mut Sender) -> Outcome {
    let mut reader = BufReader::with_capacity(1 << 20, input);
    let mut line = Vec::new();
    let wrong = |e: std::io::Error| Failure::Input(format!("error: cannot read on: {e}"));
    // Room for the end of the line.
    let line_max = sender.body_max as u64 + 2;
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(line_max).read_until(b'\n', &mut line).map_err(wrong)?;
        if read == 0 {
            break;
        }
        sender.progress.inc(read as u64);
        if read as u64 == line_max && !line.ends_with(b"\n") {
            let length = read as u64 + skip_line(&mut reader, &sender.progress).map_err(wrong)?;
            sender.leave_out_long(number, length);
            continue;
        }
        let event = line.trim_ascii_end();
        if !event.trim_ascii().is_empty() {
            sender.add(event, number)?;
        }
    }
    Ok(())
}

/// Passes the rest of a line. Returns its length.
fn skip_line(reader: &mut impl BufRead, progress: &ProgressBar) -> std::io::Result<u64> {
    let mut length = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|b| *b == b'\n');
        let passed = end.map_or(buffer.len(), |at| at + 1);
        reader.consume(passed);
        progress.inc(passed as u64);
        length += passed as u64;
        if end.is_some() || passed == 0 {
            return Ok(length);
        }
    }
}

/// Collects events into requests, in order.
pub struct Sender {
    agent: ureq::Agent,
    server: String,
    url: String,
    body: Vec<u8>,
    /// Bytes from which on a request is sent.
    body_full: usize,
    /// Most that the engine takes.
    body_max: usize,
    appended: u64,
    left_out: u64,
    positions: BTreeMap<String, BTreeMap<String, u64>>,
    progress: ProgressBar,
}

impl Sender {
    fn new(server: String, topic: String, body_max: usize, total: Option<u64>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .build();
        let progress = match total {
            Some(bytes) => ProgressBar::new(bytes).with_style(
                ProgressStyle::with_template(
                    "{bar:32} {percent:>3}%  {binary_bytes_per_sec}  {msg}  eta {eta}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
            ),
            None => ProgressBar::new_spinner(),
        };
        Self {
            agent: config.new_agent(),
            url: format!("{server}/v1/events/{topic}"),
            server,
            body: Vec::new(),
            body_full: BODY_BYTES.min(body_max),
            body_max,
            appended: 0,
            left_out: 0,
            positions: BTreeMap::new(),
            progress,
        }
    }

    /// Appends the event on `line` of the file (of Parquet: row), some time.
    pub fn add(&mut self, event: &[u8], line: u64) -> Outcome {
        if event.len() + 1 > self.body_max {
            self.leave_out_long(line, event.len() as u64);
            return Ok(());
        }
        if !self.body.is_empty() && self.body.len() + event.len() + 1 > self.body_full {
            self.send()?;
        }
        self.body.extend_from_slice(event);
        self.body.push(b'\n');
        Ok(())
    }

    fn leave_out_long(&mut self, line: u64, length: u64) {
        let most = self.body_max;
        self.leave_out(line, &format!("{length} bytes; expected less than {most} (`limits.append_body`)"));
    }

    /// Leaves out what stands on `line`, which the command ends with saying.
    pub fn leave_out(&mut self, line: u64, why: &str) {
        self.left_out += 1;
        self.say(&format!("line {line} is left out: {why}"));
    }

    /// Says something beside the progress bar.
    pub fn say(&self, text: &str) {
        self.progress.suspend(|| eprintln!("{text}"));
    }

    fn post(&self) -> Result<(u16, Json), Failure> {
        let mut response = self
            .agent
            .post(&self.url)
            .header("content-type", "application/x-ndjson")
            .send(&self.body[..])
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let answer = response.body_mut().read_json();
        Ok((status, answer.map_err(|e| Failure::Engine(format!("error: {}: {e}", self.url)))?))
    }

    fn broken_off(&self, why: &str) -> String {
        format!("error: after {} events: {why}", self.appended)
    }

    /// Why nothing can be sent. An engine that is starting breaks bodies off before it says so.
    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let asked = self.agent.get(format!("{}/startupz", self.server)).call().ok();
        let refusal: Option<Json> = asked
            .filter(|answer| answer.status() != 200)
            .and_then(|mut answer| answer.body_mut().read_json().ok());
        match refusal.as_ref().and_then(|answer| answer["error"]["message"].as_str()) {
            Some(message) => Failure::Engine(self.broken_off(message)),
            None => Failure::Engine(format!("error: {}: {error} (is `thalweg run` up?)", self.url)),
        }
    }

    fn send(&mut self) -> Outcome {
        if self.body.is_empty() {
            return Ok(());
        }
        let asked = Instant::now();
        let mut answered = self.post()?;
        // It has more to do than it takes at once.
        while answered.0 == 429 && asked.elapsed() < BUSY_MAX {
            std::thread::sleep(BUSY_PAUSE);
            answered = self.post()?;
        }
        let (status, answer) = answered;
        if status != 200 {
            let text = self.broken_off(answer["error"]["message"].as_str().unwrap_or("no reason given"));
            return Err(if status < 500 && status != 429 {
                Failure::Input(text)
            } else {
                Failure::Engine(text)
            });
        }
        self.appended += answer["appended"].as_u64().unwrap_or(0);
        for (topic, by) in answer["positions"].as_object().into_iter().flatten() {
            for (partition, next) in by.as_object().into_iter().flatten() {
                let next = next.as_u64().unwrap_or(0);
                self.positions.entry(topic.clone()).or_default().insert(partition.clone(), next);
            }
        }
        self.body.clear();
        let seconds = self.progress.elapsed().as_secs_f64().max(1e-3);
        let rate = self.appended as f64 / seconds;
        self.progress.set_message(format!("{} events, {rate:.0}/s", self.appended));
        self.progress.tick();
        Ok(())
    }
}
