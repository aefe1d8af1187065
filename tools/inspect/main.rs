//! `thalweg-inspect`: a look inside a running engine, or inside a data folder that none holds.
//! Nothing is ever written.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde_json::Value as Json;
use thalweg::app::{endpoints_file, load_definitions, open_read_only};
use thalweg::config::settings::Settings;
use thalweg::serving::{View, inspect};

/// Prints a line, for as long as somebody reads.
macro_rules! say {
    ($($text:tt)*) => { thalweg::telemetry::print_line(&format!($($text)*)) };
}

/// A look inside a running engine, or inside a data folder that none holds.
#[derive(Parser)]
#[command(name = "thalweg-inspect", version)]
struct Arguments {
    /// Operate address of a running engine
    #[arg(long, global = true)]
    server: Option<String>,
    /// Configuration of the engine whose data folder to look into
    #[arg(long, global = true, default_value = "thalweg.yaml")]
    config: PathBuf,
    /// Data folder, when it is not the configured one
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// State and offsets of every partition
    Partitions,
    /// Keys of a group
    Keys {
        /// The group
        group: String,
        /// What the first part begins with
        #[arg(long, default_value = "")]
        prefix: String,
        /// How many at most
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Rows of one entity, decoded
    Key {
        /// The group
        group: String,
        /// Parts of the entity's key, in order
        #[arg(required = true)]
        entity: Vec<String>,
    },
    /// Records of a topic
    Log {
        /// The topic
        topic: String,
        /// Its partition
        #[arg(long, default_value_t = 0)]
        partition: u32,
        /// First offset
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many
        #[arg(long, default_value_t = 10)]
        n: usize,
    },
    /// The latest records that were kept aside, with the reason
    DeadLetters {
        /// How many per partition, at most
        #[arg(long, default_value_t = 20)]
        n: usize,
    },
    /// Recomputes features from the log with a naive program and prints differences
    Verify {
        /// How many random entities
        #[arg(long, default_value_t = 1000)]
        entities: usize,
        /// Seed of all chance
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Waits until everything that was appended is applied and committed
    Wait,
}

/// Where to look.
enum Target {
    Server(String),
    Folder(Box<View>),
}

type Outcome<T> = Result<T, String>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = target(&arguments).and_then(|target| run(&target, &arguments.command));
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(3)
        }
    }
}

fn target(arguments: &Arguments) -> Outcome<Target> {
    if let Some(url) = &arguments.server {
        return Ok(Target::Server(url.trim_end_matches('/').to_owned()));
    }
    let mut settings =
        Settings::load(&arguments.config, std::env::vars(), &[]).map_err(|lines| lines.join("\n"))?;
    if let Some(data_dir) = &arguments.data_dir {
        settings.data_dir.clone_from(data_dir);
    }
    // An engine that runs says where; what one that was killed has said leads nowhere.
    let endpoints: Option<Json> = std::fs::read(endpoints_file(&settings.data_dir))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(url) = endpoints.as_ref().and_then(|e| e["operate"].as_str())
        && ask(&format!("{url}/livez"), None).is_ok()
    {
        return Ok(Target::Server(url.to_owned()));
    }
    let topology = load_definitions(&settings.definitions).map_err(|lines| lines.join("\n"))?;
    let view = open_read_only(&settings, topology).map_err(|e| e.to_string())?;
    Ok(Target::Folder(Box::new(view)))
}

/// Text of an answer.
fn ask(url: &str, body: Option<&Json>) -> Outcome<String> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(600)))
        .build()
        .new_agent();
    let sent = match body {
        Some(body) => agent.post(url).send_json(body),
        None => agent.get(url).call(),
    };
    let mut response = sent.map_err(|e| format!("{url}: {e}"))?;
    let is_fine = response.status().is_success();
    let text = response.body_mut().with_config().limit(1 << 30).read_to_string();
    let text = text.map_err(|e| format!("{url}: {e}"))?;
    if is_fine {
        return Ok(text);
    }
    let error: Json = serde_json::from_str(&text).unwrap_or_default();
    Err(error["error"]["message"].as_str().unwrap_or(&text).to_owned())
}

impl Target {
    fn json(&self, path: &str, body: Option<&Json>) -> Outcome<Json> {
        match self {
            Self::Server(url) => serde_json::from_str(&ask(&format!("{url}/v1/inspect/{path}"), body)?)
                .map_err(|e| e.to_string()),
            Self::Folder(_) => Err("only a running engine can be asked that".to_owned()),
        }
    }

    fn partitions(&self) -> Outcome<Json> {
        match self {
            Self::Server(_) => self.json("partitions", None),
            Self::Folder(view) => Ok(inspect::partitions(view)),
        }
    }

    fn keys(&self, group: &str, prefix: &str, limit: usize) -> Outcome<Json> {
        match self {
            Self::Server(_) => {
                self.json(&format!("keys/{group}?limit={limit}&prefix={}", encoded(prefix)), None)
            }
            Self::Folder(view) => {
                let query = inspect::KeysQuery { prefix: prefix.to_owned(), limit };
                inspect::keys(view, group, &query).map_err(|e| e.to_string())
            }
        }
    }

    fn key(&self, group: &str, entity: &[String]) -> Outcome<Json> {
        match self {
            Self::Server(_) => self.json(&format!("key/{group}"), Some(&Json::from(entity.to_vec()))),
            Self::Folder(view) => inspect::key(view, group, entity).map_err(|e| e.to_string()),
        }
    }

    fn log(&self, topic: &str, partition: u32, from: u64, n: usize) -> Outcome<Json> {
        match self {
            Self::Server(_) => self.json(&format!("log/{topic}/{partition}/{from}/{n}"), None),
            Self::Folder(view) => inspect::log(view, topic, partition, from, n).map_err(|e| e.to_string()),
        }
    }

    /// Topic of dead letters, and where each of its partitions ends.
    fn dead_letters(&self) -> Outcome<(String, Vec<u64>)> {
        let found = match self {
            Self::Server(_) => self.json("dead-letters", None)?,
            Self::Folder(view) => inspect::dead_letters(view),
        };
        let topic = found["topic"].as_str().unwrap_or_default().to_owned();
        Ok((topic, found["ends"].as_array().into_iter().flatten().filter_map(Json::as_u64).collect()))
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn run(target: &Target, command: &Command) -> Outcome<ExitCode> {
    match command {
        Command::Partitions => {
            say!(
                "{:<44} {:>10} {:>12} {:>12} {:>12} {:>8}  {}",
                "task",
                "state",
                "applied",
                "committed",
                "redo from",
                "lag",
                "restored"
            );
            for p in target.partitions()?.as_array().into_iter().flatten() {
                let n = |key: &str| p[key].as_u64().unwrap_or(0);
                let text = |key: &str| p[key].as_str().unwrap_or("").to_owned();
                let changelog = |key: &str| p["changelog"][key].as_f64();
                let restored = changelog("at").zip(changelog("goal")).filter(|(_, goal)| *goal > 0.0);
                say!(
                    "{:<44} {:>10} {:>12} {:>12} {:>12} {:>8}  {}",
                    text("task"),
                    text("state"),
                    n("applied"),
                    n("committed"),
                    n("redo_from"),
                    n("lag"),
                    restored.map_or_else(String::new, |(at, goal)| format!("{:.0} %", at / goal * 100.0))
                );
            }
        }
        Command::Keys { group, prefix, limit } => {
            for key in target.keys(group, prefix, *limit)?.as_array().into_iter().flatten() {
                say!("{key}");
            }
        }
        Command::Key { group, entity } => {
            let unit = target.key(group, entity)?;
            say!("{}", serde_json::to_string_pretty(&unit).map_err(|e| e.to_string())?);
        }
        Command::Log { topic, partition, from, n } => {
            print_records(&target.log(topic, *partition, *from, *n)?);
        }
        Command::DeadLetters { n } => {
            let (topic, ends) = target.dead_letters()?;
            for (partition, end) in (0..).zip(ends) {
                // On Kafka some offsets hold the ends of transactions and no records.
                print_records(&target.log(&topic, partition, end.saturating_sub(*n as u64), *n)?);
            }
        }
        Command::Wait => wait(target)?,
        Command::Verify { entities, seed } => return verify(target, *entities, *seed),
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(target: &Target, entities: usize, seed: u64) -> Outcome<ExitCode> {
    wait(target)?;
    let report = match target {
        Target::Server(_) => target.json(&format!("verify/{entities}/{seed}"), None)?,
        Target::Folder(view) => {
            thalweg::serving::verify::verify(view, entities, seed, &|| true).map_err(|e| e.to_string())?
        }
    };
    print_records(&report["shown"]);
    say!("{} values compared, {} differences", report["values"], report["differences"]);
    Ok(if report["differences"] == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print_records(records: &Json) {
    for record in records.as_array().into_iter().flatten() {
        say!("{record}");
    }
}

fn wait(target: &Target) -> Outcome<()> {
    let Target::Server(_) = target else { return Ok(()) };
    loop {
        let partitions = target.partitions()?;
        let is_settled = |p: &Json| p["lag"] == 0 && p["applied"] == p["committed"];
        if partitions.as_array().is_some_and(|all| all.iter().all(is_settled)) {
            return Ok(());
        }
        if let Some(why) = partitions.as_array().into_iter().flatten().find_map(|p| p["failure"].as_str()) {
            return Err(why.to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
