//! A running `thalweg` with its own data folder, stopped by its process id.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

/// A folder with definitions and a configuration.
pub struct Place {
    pub folder: tempfile::TempDir,
    /// Of its environment.
    pub variables: Vec<(&'static str, String)>,
}

/// A running engine.
pub struct Engine {
    child: Child,
    pub rest: String,
    pub grpc: String,
    pub operate: String,
}

impl Place {
    /// `definitions` with a configuration that listens on free ports; `more` is added to it.
    pub fn new(definitions: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("features.yaml"), definitions).expect("writable");
        let config = format!(
            "app: test\ndefinitions: [features.yaml]\nlisten: {{ rest: 127.0.0.1:0, grpc: 127.0.0.1:0, operate: 127.0.0.1:0 }}\nmemory: 256MiB\n{more}\n"
        );
        std::fs::write(folder.path().join("thalweg.yaml"), config).expect("writable");
        Self { folder, variables: Vec::new() }
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("thalweg.yaml")
    }

    /// What starts the engine.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["run", "--config"])
            .arg(self.config())
            .env("LOG_LEVEL", std::env::var("THALWEG_TEST_LOG").as_deref().unwrap_or("error"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped());
        command
    }

    /// What an engine says that refuses to start.
    pub fn refusal(&self) -> String {
        let (code, _, said) = run(&["run", "--config", self.config().to_str().expect("UTF-8")], None);
        assert_eq!(code, 3, "{said}");
        said
    }

    /// Starts the engine and waits until it is ready.
    pub fn start(&self) -> Engine {
        let mut child = self.command().spawn().expect("the binary starts");
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready: Json = serde_json::from_str(&line).expect("the ready line is JSON");
        assert_eq!(ready["ready"], true);
        let text = |key: &str| ready[key].as_str().expect("an address").to_owned();
        Engine { child, rest: text("rest"), grpc: text("grpc"), operate: text("operate") }
    }
}

/// The binary under test: the one just built, or the one that `THALWEG_TEST_BINARY` names.
pub fn binary() -> PathBuf {
    std::env::var_os("THALWEG_TEST_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_thalweg").into(), PathBuf::from)
}

/// Runs the binary to its end: exit code, standard output, standard error.
pub fn run(arguments: &[&str], input: Option<&str>) -> (i32, String, String) {
    run_command(Command::new(binary()).args(arguments), input)
}

/// The same with variables in its environment.
pub fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
    run_command(Command::new(binary()).args(arguments).envs(variables.iter().copied()), None)
}

/// Runs `thalweg-inspect` to its end.
pub fn inspect(arguments: &[&str]) -> (i32, String, String) {
    run_command(Command::new(env!("CARGO_BIN_EXE_thalweg-inspect")).args(arguments), None)
}

fn run_command(command: &mut Command, input: Option<&str>) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    if let Some(input) = input {
        child.stdin.as_mut().expect("piped").write_all(input.as_bytes()).expect("it reads");
    }
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

impl Engine {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        // It may have been killed from beside already.
        let _ = self.child.kill();
        self.child.wait().expect("it is our child");
    }

    /// Asks it to end, and checks that it does so in time.
    pub fn stop(mut self) {
        signal(self.id(), "-TERM");
        let asked = Instant::now();
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "exit {status}");
        assert!(asked.elapsed() < Duration::from_secs(10), "took {:?} to stop", asked.elapsed());
    }

    /// Asks it to end until it does, and returns its exit code.
    pub fn stop_impatiently(mut self) -> Option<i32> {
        loop {
            signal(self.id(), "-TERM");
            std::thread::sleep(Duration::from_millis(50));
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code();
            }
        }
    }

    /// Status and body of a request.
    pub fn post(&self, path: &str, kind: &str, body: &[u8]) -> (u16, Json) {
        self.try_post(path, kind, body).expect("an answer")
    }

    /// The same, or nothing when the engine is gone.
    pub fn try_post(&self, path: &str, kind: &str, body: &[u8]) -> Option<(u16, Json)> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let url = format!("{}{path}", self.rest);
        let mut response = agent.post(&url).header("content-type", kind).send(body).ok()?;
        let status = response.status().as_u16();
        Some((status, response.body_mut().read_json().ok()?))
    }

    pub fn get(&self, path: &str) -> (u16, Json) {
        get(&format!("{}{path}", self.rest))
    }

    /// All metrics, as they are scraped.
    pub fn metrics(&self) -> String {
        let agent = ureq::Agent::new_with_defaults();
        let answer = agent.get(format!("{}/v1/metrics", self.rest)).call();
        answer.expect("an answer").body_mut().read_to_string().expect("text")
    }

    /// Appends events, one per line.
    pub fn append(&self, topic: &str, lines: &str) -> Json {
        let (status, body) =
            self.post(&format!("/v1/events/{topic}"), "application/x-ndjson", lines.as_bytes());
        assert_eq!(status, 200, "{body}");
        body["positions"].clone()
    }

    /// The answer to a lookup, once no partition that it needs is changing hands.
    pub fn lookup(&self, body: &Json) -> Json {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (status, answer) =
                self.post("/v1/features/online", "application/json", body.to_string().as_bytes());
            if status == 200 {
                return answer;
            }
            assert_eq!(answer["error"]["code"], "UNAVAILABLE", "{answer}");
            assert!(Instant::now() < deadline, "{answer}");
        }
    }

    /// Looks one entity up at `as_of`, after `positions`: the values by name.
    pub fn values(&self, features: &[&str], entity: Json, as_of: &str, positions: &Json) -> Json {
        let body = json!({
            "features": features,
            "entities": entity,
            "as_of": as_of,
            "min_positions": positions,
            "wait": "10s",
        });
        let answer = self.lookup(&body);
        let names = answer["metadata"]["feature_names"].as_array().expect("names").clone();
        names
            .iter()
            .zip(answer["results"].as_array().expect("results"))
            .map(|(name, column)| {
                let name = name.as_str().expect("a name").to_owned();
                (name, json!([column["values"][0], column["statuses"][0]]))
            })
            .collect::<serde_json::Map<String, Json>>()
            .into()
    }

    /// Waits until every partition has applied everything, then returns the statistics.
    pub fn settled_stats(&self) -> Json {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (_, health) = self.get("/v1/health");
            let partitions = health["partitions"].as_array().expect("partitions");
            let is_quiet = partitions.iter().all(|p| p["lag"] == 0 && p["applied"] == p["committed"]);
            if is_quiet {
                return self.get("/v1/stats").1;
            }
            assert!(Instant::now() < deadline, "not settled: {health}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Harmless when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn get(url: &str) -> (u16, Json) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut response = agent.get(url).call().expect("an answer");
    let status = response.status().as_u16();
    (status, response.body_mut().read_json().unwrap_or(Json::Null))
}

/// Waits a minute at most until `check` gives what is waited for, rather than what there is instead.
pub fn until<T>(mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match check() {
            Ok(found) => return found,
            Err(instead) => assert!(Instant::now() < deadline, "{instead}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to a process.
pub fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([name, &id.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "kill {name} {id}");
}

/// Root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
