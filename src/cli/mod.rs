//! Arguments to commands. Exit codes: 0 done, 1 the input is wrong, 2 usage, 3 the engine is
//! unreachable or failed.

mod convert;
mod generate;
mod get;
mod ingest;
mod run;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use thalweg::app::{endpoints_file, load_definitions};
use thalweg::config::settings::Settings;
use thalweg::model::Millis;
use thalweg::model::time::format_duration;
use thalweg::telemetry::print_line;
use thalweg::topology::Group;

/// A command's end without success.
pub enum Failure {
    /// The input is wrong: exit code 1.
    Input(String),
    /// The engine is unreachable or failed: exit code 3.
    Engine(String),
}

/// How a command ends.
pub type Outcome = Result<(), Failure>;

/// Exact sliding-window features from an event log, served from local state.
#[derive(Parser)]
#[command(name = "thalweg", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints every mistake of definition files
    Check {
        /// Definition files, checked together
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Runs the engine until it is told to stop
    Run(run::RunArguments),
    /// Appends events from a file to a topic
    Ingest(ingest::IngestArguments),
    /// Prints the whole configuration, and where each value came from
    Config {
        /// Configuration file
        #[arg(long, default_value = "thalweg.yaml")]
        config: PathBuf,
    },
    /// Looks features up
    Get(get::GetArguments),
    /// Writes made-up events to standard output
    Generate {
        #[command(subcommand)]
        what: generate::Generator,
    },
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Check { files } => check(&files),
        Command::Run(arguments) => run::run(&arguments),
        Command::Ingest(arguments) => ingest::ingest(&arguments),
        Command::Config { config } => show_config(&config),
        Command::Get(arguments) => get::get(&arguments),
        Command::Generate { what } => generate::generate(&what),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Input(message)) => {
            eprintln!("{message}");
            ExitCode::from(1)
        }
        Err(Failure::Engine(message)) => {
            eprintln!("{message}");
            ExitCode::from(3)
        }
    }
}

fn check(files: &[PathBuf]) -> Outcome {
    match load_definitions(files) {
        Ok(topology) => {
            // Stdout is for mistakes.
            topology.groups.iter().for_each(|group| eprintln!("{}", cost(group)));
            Ok(())
        }
        Err(lines) => {
            print_line(&lines.join("\n"));
            let noun = if lines.len() == 1 { "mistake" } else { "mistakes" };
            Err(Failure::Input(format!("{} {noun}", lines.len())))
        }
    }
}

/// What an entity of a group costs, and what about its definition decides that.
fn cost(group: &Group) -> String {
    let (event, partial) = (group.layout.stride() * 8, group.layout.partial_words * 8);
    // Horizons are a millisecond longer than what they are named after.
    let span = |millis: Millis| spell(millis - 1);
    let kept = match (group.horizon, group.fold) {
        (Some(horizon), Some(fold)) => format!(
            "one by one for {}, then in tiles of {} for {} where these are smaller, of {partial} bytes",
            span(fold.after),
            format_duration(fold.width),
            span(horizon)
        ),
        (Some(horizon), None) => format!("one by one for {}", span(horizon)),
        (None, _) => "one by one for ever".to_owned(),
    };
    let why = match (group.fold, group.furthest) {
        (None, Some(index)) => format!(": `{}` asks for single events", group.features[index].name),
        _ => String::new(),
    };
    format!("{}: events of {event} bytes and their strings are kept {kept}{why}", group.name)
}

/// As 14d 10m.
fn spell(duration: Millis) -> String {
    let (mut left, mut words) = (duration, Vec::new());
    for unit in [24 * 3_600_000, 3_600_000, 60_000, 1000, 1] {
        if left >= unit {
            words.push(format_duration(left / unit * unit));
            left %= unit;
        }
    }
    words.join(" ")
}

/// Settings from `path`, the environment and `arguments`.
pub fn load_settings(path: &Path, arguments: &[(&str, String)]) -> Result<Settings, Failure> {
    Settings::load(path, environment(), arguments).map_err(|lines| Failure::Input(lines.join("\n")))
}

/// Variables that are text: what others hold is not for us.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn show_config(path: &Path) -> Outcome {
    let settings = load_settings(path, &[])?;
    let width = settings.origins.iter().map(|(k, v, _)| k.len() + v.len() + 2).max().unwrap_or(0);
    for (key, value, origin) in &settings.origins {
        let pad = width - key.len() - value.len() - 2;
        print_line(&format!("{key}: {value}{}  # {origin}", " ".repeat(pad)));
    }
    for name in &settings.ignored {
        print_line(&format!("# {name} is ignored: it names no key"));
    }
    Ok(())
}

/// Address of the engine: as given, else where the engine on this data folder says it listens,
/// else as configured.
pub fn server_url(given: Option<&String>, settings: Option<&Settings>) -> String {
    if let Some(url) = given {
        return url.trim_end_matches('/').to_owned();
    }
    let Some(settings) = settings else { return "http://127.0.0.1:8080".to_owned() };
    let written = std::fs::read(endpoints_file(&settings.data_dir)).ok();
    let endpoints: Option<serde_json::Value> = written.and_then(|b| serde_json::from_slice(&b).ok());
    match endpoints.as_ref().and_then(|e| e["rest"].as_str()) {
        Some(url) => url.to_owned(),
        None => format!("http://{}", settings.listen_rest),
    }
}
