//! The configuration file, the environment over it, and where every value came from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse::is_topic;
use super::reader::{Fields, Mistakes};
use super::show_mistake;
use super::yaml::{self, Key, Kind, Node, Place};
use crate::fault::CRASH_AT;
use crate::model::Millis;

/// When appended bytes are forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before an append is acknowledged.
    Commit,
    /// At least this often.
    Interval(Duration),
    /// When the operating system sees fit.
    Never,
}

/// How Kafka is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSettings {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// Partitions of topics that are created; none: the broker's default.
    pub partitions: Option<u32>,
    /// Properties of librdkafka.
    pub properties: Vec<(String, String)>,
}

impl std::fmt::Debug for KafkaSettings {
    /// Properties may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSettings").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

/// What is asked of a running engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Prefix of internal topics.
    pub app: String,
    /// Definition files.
    pub definitions: Vec<PathBuf>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Kafka, if it is the log; else the log is embedded.
    pub kafka: Option<KafkaSettings>,
    /// Partitions of topics of the embedded log.
    pub partitions: u32,
    /// See [`Fsync`].
    pub fsync: Fsync,
    /// Longest age of records of sources; none: for ever.
    pub retention_time: Option<Millis>,
    /// Most bytes of a source partition; none: any.
    pub retention_bytes: Option<u64>,
    /// Address of the REST listener.
    pub listen_rest: String,
    /// Address of the gRPC listener.
    pub listen_grpc: String,
    /// Address of the operate listener.
    pub listen_operate: String,
    /// Host under which other nodes reach this one; none: the one it listens on.
    pub advertise: Option<String>,
    /// Nodes that follow the owner of each partition.
    pub standby_replicas: usize,
    /// Memory limit in bytes.
    pub memory: u64,
    /// Longest time from a change to its row in the store.
    pub checkpoint_interval: Duration,
    /// Distance of commits.
    pub commit_interval: Duration,
    /// Worker threads; 0: one per core.
    pub workers: usize,
    /// Largest body of an append.
    pub append_body: usize,
    /// Most entities of a request.
    pub request_entities: usize,
    /// Most features of a request.
    pub request_features: usize,
    /// Most requests at once.
    pub in_flight: usize,
    /// Every key with its value as text, and where it came from.
    pub origins: Vec<(String, String, String)>,
    /// Variables of the environment that look like keys and are none.
    pub ignored: Vec<String>,
}

/// The key of librdkafka's properties, and what the key of one begins with.
const PROPERTIES: &str = "log.kafka.properties";
const PROPERTY: &str = "log.kafka.properties.";

/// Keys of the outermost level.
const TOP_KEYS: [&str; 11] = [
    "app",
    "definitions",
    "data_dir",
    "log",
    "listen",
    "standby_replicas",
    "memory",
    "checkpoint_interval",
    "commit_interval",
    "workers",
    "limits",
];

/// Every key with its default; no default: required.
const KEYS: [(&str, Option<&str>); 23] = [
    ("app", Some("thalweg")),
    ("definitions", None),
    ("data_dir", Some("data")),
    ("log.embedded.partitions", Some("4")),
    ("log.embedded.fsync", Some("commit")),
    ("log.embedded.retention.time", Some("none")),
    ("log.embedded.retention.bytes", Some("none")),
    ("log.kafka.brokers", Some("none")),
    ("log.kafka.partitions", Some("none")),
    (PROPERTIES, Some("none")),
    ("listen.rest", Some("127.0.0.1:8080")),
    ("listen.grpc", Some("127.0.0.1:50051")),
    ("listen.operate", Some("127.0.0.1:8081")),
    ("listen.advertise", Some("none")),
    ("standby_replicas", Some("0")),
    ("memory", Some("2GiB")),
    ("checkpoint_interval", Some("10s")),
    ("commit_interval", Some("100ms")),
    ("workers", Some("0")),
    ("limits.append_body", Some("16MiB")),
    ("limits.request_entities", Some("10000")),
    ("limits.request_features", Some("1000")),
    ("limits.in_flight", Some("1024")),
];

/// Least memory that the engine runs with.
const MEMORY_MIN: u64 = 64 << 20;

impl Settings {
    /// Reads `path`, then `environment` (`THALWEG_<KEY>`), then `arguments` (key and value).
    ///
    /// # Errors
    /// Every mistake, as lines to print.
    pub fn load(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
        arguments: &[(&str, String)],
    ) -> Result<Self, Vec<String>> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| vec![format!("{}:1:1: error: cannot read the file: {e}", path.display())])?;
        // What was not written in the file has the place of its own "file": the environment, an argument.
        let mut paths = vec![path.to_owned()];
        let shown = |mistakes: Vec<yaml::Mistake>, paths: &[PathBuf]| -> Vec<String> {
            mistakes.iter().map(|m| show_mistake(m, paths)).collect()
        };
        let (mut root, twice) = yaml::parse(&text, 0).map_err(|mistake| shown(vec![mistake], &paths))?;
        let known = known_keys();
        let mut origins: Vec<(String, String)> = Vec::new();
        let mut overlay = |root: &mut Node, key: &str, value: &str, origin: String| {
            set(root, key, value, paths.len());
            paths.push(PathBuf::from(&origin));
            origins.push((key.to_owned(), origin));
        };
        let mut ignored = Vec::new();
        let mut environment: Vec<(String, String)> = environment.collect();
        environment.sort();
        // What is empty is not set, as files for containers pass it on.
        environment.retain(|(_, value)| !value.is_empty());
        let is_embedded = find(&root, "log.embedded").is_some()
            || environment.iter().any(|(name, _)| name.starts_with("THALWEG_LOG__EMBEDDED"));
        if let Some((name, value)) = environment.iter().find(|(n, _)| n == "KAFKA_BOOTSTRAP_SERVERS")
            && !is_embedded
        {
            overlay(&mut root, "log.kafka.brokers", value, format!("environment {name}"));
        }
        for (name, value) in
            environment.into_iter().filter(|(n, _)| n.starts_with("THALWEG_") && n != CRASH_AT)
        {
            let key = name["THALWEG_".len()..].to_lowercase().replace("__", ".");
            if known.contains(&key.as_str()) || key.starts_with(PROPERTY) {
                overlay(&mut root, &key, &value, format!("environment {name}"));
            } else {
                // Not an error: a cluster sets variables like THALWEG_PORT for a service's name.
                ignored.push(name);
            }
        }
        for (key, value) in arguments {
            overlay(&mut root, key, value, "command line".to_owned());
        }
        let mut mistakes = Mistakes::default();
        mistakes.extend(twice);
        let settings = Self::read(&root, path, &mut mistakes, &origins);
        let errors = shown(mistakes.sorted(), &paths);
        match settings {
            Some(settings) if errors.is_empty() => Ok(Self { ignored, ..settings }),
            _ => Err(errors),
        }
    }

    fn read(root: &Node, path: &Path, mistakes: &mut Mistakes, origins: &[(String, String)]) -> Option<Self> {
        let place = Place { file: 0, line: 1, column: 1 };
        let (empty, nothing) = (Node::new(place, Kind::Null), Node::new(place, Kind::Null));
        let top = Fields::of(root, place, "the configuration", &TOP_KEYS, mistakes)?;
        let section = |key: &str, within: &Fields<'_>| within.get(key).cloned().unwrap_or(empty.clone());
        let (log, listen, limits) = (section("log", &top), section("listen", &top), section("limits", &top));
        // What is no map is a mistake, and not the only one perhaps.
        let none = Fields::of(&nothing, place, "", &[], mistakes)?;
        let log = Fields::of(&log, top.place_of("log"), "`log`", &["embedded", "kafka"], mistakes);
        let log = log.unwrap_or(none.clone());
        let kafka =
            if log.has("kafka") { kafka_settings(&section("kafka", &log), &log, mistakes) } else { None };
        let embedded = section("embedded", &log);
        let known = ["partitions", "fsync", "retention"];
        let embedded = Fields::of(&embedded, top.place_of("log"), "`log.embedded`", &known, mistakes);
        let embedded = embedded.unwrap_or(none.clone());
        let retention = section("retention", &embedded);
        let retention = Fields::of(&retention, place, "`retention`", &["time", "bytes"], mistakes);
        let retention = retention.unwrap_or(none.clone());
        let listen = Fields::of(
            &listen,
            top.place_of("listen"),
            "`listen`",
            &["rest", "grpc", "operate", "advertise"],
            mistakes,
        )
        .unwrap_or(none.clone());
        let known = ["append_body", "request_entities", "request_features", "in_flight"];
        let limits = Fields::of(&limits, top.place_of("limits"), "`limits`", &known, mistakes);
        let limits = limits.unwrap_or(none);
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        let app = top.text("app", mistakes).unwrap_or_else(|| "thalweg".to_owned());
        if !is_topic(&app) || app.len() > 64 {
            mistakes.push(top.place_of("app"), format!("`app: {app}` cannot begin a topic name; expected letters, digits, `.`, `_` and `-`, at most 64"));
        }
        if !top.has("definitions") {
            mistakes.push(place, "the configuration has no `definitions`; expected a list of files");
        }
        let definitions = top.names("definitions", mistakes).unwrap_or_default();
        let memory = top.bytes("memory", mistakes).unwrap_or(2 << 30);
        if memory < MEMORY_MIN {
            mistakes.push(top.place_of("memory"), "`memory` is too small; expected at least 64MiB");
        }
        let millis =
            |d: Option<Millis>, default: u64| Duration::from_millis(d.map_or(default, |d| d.unsigned_abs()));
        let count = |key: &str, default: usize, mistakes: &mut Mistakes| {
            limits.int(key, 1..=i64::MAX, mistakes).map_or(default, |n| n as usize)
        };
        let mut settings = Self {
            app,
            definitions: definitions.into_iter().map(|(file, _)| folder.join(file)).collect(),
            data_dir: folder.join(top.text("data_dir", mistakes).unwrap_or_else(|| "data".to_owned())),
            kafka,
            partitions: embedded.int("partitions", 1..=1024, mistakes).unwrap_or(4) as u32,
            fsync: fsync(&embedded, mistakes),
            retention_time: unless_none(&retention, "time", mistakes, |f, m| f.positive_duration("time", m)),
            retention_bytes: unless_none(&retention, "bytes", mistakes, |f, m| f.bytes("bytes", m)),
            listen_rest: address(&listen, "rest", "127.0.0.1:8080", mistakes),
            listen_grpc: address(&listen, "grpc", "127.0.0.1:50051", mistakes),
            listen_operate: address(&listen, "operate", "127.0.0.1:8081", mistakes),
            advertise: listen.text("advertise", mistakes).filter(|host| host != "none"),
            standby_replicas: top.int("standby_replicas", 0..=16, mistakes).unwrap_or(0) as usize,
            memory,
            checkpoint_interval: millis(top.positive_duration("checkpoint_interval", mistakes), 10_000),
            commit_interval: millis(top.positive_duration("commit_interval", mistakes), 100),
            workers: top.int("workers", 0..=1024, mistakes).unwrap_or(0) as usize,
            append_body: limits.bytes("append_body", mistakes).unwrap_or(16 << 20) as usize,
            request_entities: count("request_entities", 10_000, mistakes),
            request_features: count("request_features", 1000, mistakes),
            in_flight: count("in_flight", 1024, mistakes),
            origins: Vec::new(),
            ignored: Vec::new(),
        };
        settings.origins = shown_origins(root, path, origins);
        Some(settings)
    }
}

fn kafka_settings(node: &Node, log: &Fields<'_>, mistakes: &mut Mistakes) -> Option<KafkaSettings> {
    let place = log.place_of("kafka");
    if log.has("embedded") {
        mistakes.push(place, "`log` names `embedded` and `kafka`; expected one of them");
    }
    let known = ["brokers", "partitions", "properties"];
    let kafka = Fields::of(node, place, "`log.kafka`", &known, mistakes)?;
    let brokers = kafka.names("brokers", mistakes).unwrap_or_default();
    // One text may list several: that is how the environment gives them.
    let brokers: Vec<String> = brokers
        .iter()
        .flat_map(|(text, _)| text.split(','))
        .map(|b| b.trim().to_owned())
        .filter(|b| !b.is_empty())
        .collect();
    if brokers.is_empty() {
        mistakes.push(place, "`log.kafka` has no `brokers`; expected a list of host:port");
    }
    let mut properties = Vec::new();
    match kafka.get("properties").map(|n| (&n.kind, n.place)) {
        None | Some((Kind::Null, _)) => {}
        Some((Kind::Map(entries), _)) => {
            for (key, value) in entries {
                match value.text() {
                    Some(text) => properties.push((key.name.clone(), text)),
                    None => mistakes
                        .push(key.place, format!("property `{}` is no text; expected one value", key.name)),
                }
            }
        }
        Some((_, place)) => mistakes.push(place, "`properties` is no map; expected `name: value`"),
    }
    let partitions = kafka.int("partitions", 1..=10_000, mistakes).map(|n| n as u32);
    Some(KafkaSettings { brokers, partitions, properties })
}

/// Every key with its value as text and its origin.
fn shown_origins(root: &Node, path: &Path, origins: &[(String, String)]) -> Vec<(String, String, String)> {
    KEYS.iter()
        .map(|(key, default)| {
            let is_of = |k: &str| k == *key || (*key == PROPERTIES && k.starts_with(PROPERTY));
            let overlay = origins.iter().rev().find(|(k, _)| is_of(k));
            let (shown, origin) = match find(root, key) {
                Some(node) => {
                    let place = format!("{}:{}", path.display(), node.place.line);
                    (show_redacted(key, node), overlay.map_or(place, |(_, origin)| origin.clone()))
                }
                None => (default.unwrap_or("").to_owned(), "default".to_owned()),
            };
            ((*key).to_owned(), shown, origin)
        })
        .collect()
}

fn known_keys() -> Vec<&'static str> {
    KEYS.iter().map(|(key, _)| *key).collect()
}

fn unless_none<T>(
    fields: &Fields<'_>,
    key: &str,
    mistakes: &mut Mistakes,
    read: impl FnOnce(&Fields<'_>, &mut Mistakes) -> Option<T>,
) -> Option<T> {
    if fields.get(key).and_then(Node::text).as_deref() == Some("none") {
        return None;
    }
    read(fields, mistakes)
}

fn fsync(fields: &Fields<'_>, mistakes: &mut Mistakes) -> Fsync {
    let Some(node) = fields.get("fsync") else { return Fsync::Commit };
    let text = node.text().unwrap_or_default();
    match text.as_str() {
        "commit" => return Fsync::Commit,
        "never" => return Fsync::Never,
        _ => {}
    }
    let interval = text.strip_prefix("interval:").and_then(crate::model::time::parse_duration);
    match interval {
        Some(interval) if interval > 0 => Fsync::Interval(Duration::from_millis(interval as u64)),
        _ => {
            let message = format!("unknown `fsync: {text}`; expected commit, interval:1s or never");
            mistakes.push(node.place, message);
            Fsync::Commit
        }
    }
}

fn address(fields: &Fields<'_>, key: &str, default: &str, mistakes: &mut Mistakes) -> String {
    let Some(text) = fields.text(key, mistakes) else { return default.to_owned() };
    if text.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        let message = format!("`{key}: {text}` is no address; expected one like {default}");
        mistakes.push(fields.place_of(key), message);
    }
    text
}

fn find<'a>(root: &'a Node, key: &str) -> Option<&'a Node> {
    let mut node = root;
    for part in key.split('.') {
        let Kind::Map(entries) = &node.kind else { return None };
        node = entries.iter().find(|(k, _)| k.name == part).map(|(_, n)| n)?;
    }
    Some(node)
}

/// Properties whose values may be shown. Those of others may be secrets, by whatever name.
const SHOWN: [&str; 14] = [
    "client.id",
    "client.rack",
    "compression.type",
    "debug",
    "group.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "security.protocol",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "broker.address.family",
];
/// Where a number may be one as well.
const SECRET: [&str; 6] = ["pas", "secret", "token", "jaas", "key", "cred"];

/// Properties with their secrets left out; other keys as they are.
fn show_redacted(key: &str, node: &Node) -> String {
    let (true, Kind::Map(entries)) = (key == PROPERTIES, &node.kind) else { return show(node) };
    let shown = entries.iter().map(|(name, value)| {
        let is_number =
            value.text().is_some_and(|text| text.parse::<f64>().is_ok() || text.parse::<bool>().is_ok());
        let is_secret = !is_number || SECRET.iter().any(|s| name.name.contains(s));
        let is_shown = SHOWN.contains(&name.name.as_str()) || !is_secret;
        format!("{}: {}", name.name, if is_shown { show(value) } else { "***".to_owned() })
    });
    format!("{{ {} }}", shown.collect::<Vec<_>>().join(", "))
}

fn show(node: &Node) -> String {
    match &node.kind {
        Kind::List(items) => {
            format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", "))
        }
        _ => node.text().unwrap_or_default(),
    }
}

/// Puts `value`, read as YAML, at `key`, as if it stood in `file`.
fn set(root: &mut Node, key: &str, value: &str, file: usize) {
    let place = Place { file, line: 1, column: 1 };
    // Names of properties have dots of their own, and their values are text as it stands.
    let property = key.strip_prefix(PROPERTY);
    let is_wanted = |n: &Node| match n.kind {
        Kind::Null => false,
        Kind::Map(_) => key == PROPERTIES,
        Kind::List(_) => property.is_none(),
        // A text is what it is, unless it is quoted; a `#` in it is no comment.
        Kind::Text(_) => property.is_none() && value.starts_with(['"', '\'']),
        _ => property.is_none() && n.text().as_deref() == Some(value),
    };
    let read = yaml::parse(value, 0).ok().map(|(node, _)| node).filter(is_wanted);
    let text = Kind::Text(value.to_owned());
    let mut new = read.unwrap_or(Node::new(place, text));
    new.place = place;
    let mut node = root;
    let mut parts = property.map_or(key, |_| PROPERTIES).split('.').chain(property).peekable();
    while let Some(part) = parts.next() {
        if !matches!(node.kind, Kind::Map(_)) {
            node.kind = Kind::Map(Vec::new());
        }
        let Kind::Map(entries) = &mut node.kind else { return };
        let index = match entries.iter().position(|(k, _)| k.name == part) {
            Some(index) => index,
            None => {
                let child = Node::new(place, Kind::Null);
                entries.push((Key { name: part.to_owned(), place }, child));
                entries.len() - 1
            }
        };
        let (key, value) = &mut entries[index];
        if parts.peek().is_none() {
            key.place = place;
        }
        node = value;
    }
    *node = new;
}
