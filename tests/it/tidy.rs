//! The rules of the house, read off the source: who may use whom, headers, sizes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::harness::root;

/// Modules, bottom to top, with those of the crate that each may use.
const LAW: [(&str, &[&str]); 17] = [
    ("model", &[]),
    ("clock", &["model"]),
    ("error", &[]),
    ("fault", &[]),
    ("config", &["error", "fault", "model"]),
    ("expr", &["model"]),
    ("operator", &["error", "expr", "model"]),
    ("topology", &["config", "expr", "model", "operator"]),
    ("codec", &["expr", "model", "operator", "topology"]),
    ("log", &["clock", "codec", "error", "fault", "model"]),
    ("state", &["codec", "error", "model", "operator"]),
    (
        "task",
        &[
            "clock",
            "codec",
            "error",
            "expr",
            "fault",
            "log",
            "model",
            "operator",
            "state",
            "telemetry",
            "topology",
        ],
    ),
    ("worker", &["error", "fault", "log", "task", "telemetry"]),
    ("oracle", &["config", "model"]),
    (
        "serving",
        &[
            "clock",
            "codec",
            "config",
            "error",
            "expr",
            "log",
            "model",
            "operator",
            "oracle",
            "state",
            "task",
            "telemetry",
            "topology",
        ],
    ),
    ("telemetry", &[]),
    (
        "app",
        &[
            "clock",
            "config",
            "error",
            "fault",
            "log",
            "model",
            "serving",
            "state",
            "task",
            "telemetry",
            "topology",
            "worker",
        ],
    ),
];

/// Crates that only some files may name.
const OWNED: [(&str, &[&str]); 9] = [
    ("datasketches::", &["src/operator/sketch.rs"]),
    ("allow(unsafe_code)", &["src/log/kafka/native.rs"]),
    ("rdkafka::", &["src/log/kafka/"]),
    ("rocksdb::", &["src/error.rs", "src/state/rocks.rs", "src/log/embedded/"]),
    ("saphyr_parser::", &["src/config/yaml.rs"]),
    (
        "axum::",
        &["src/serving/rest.rs", "src/serving/body.rs", "src/serving/listen.rs", "src/serving/grpc.rs"],
    ),
    ("tonic::", &["src/serving/grpc.rs", "src/serving/peers.rs", "src/cli/run.rs", "src/serving/generated/"]),
    ("SystemTime::now", &["src/clock.rs"]),
    ("parquet::", &["src/cli/convert.rs"]),
];

/// Lines of a file, at most.
const LINES_MAX: usize = 600;
/// Characters of a line, at most.
const WIDTH_MAX: usize = 200;

/// Modules of the crate that `text` names.
fn used_modules(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for line in text.lines().map(str::trim_start).filter(|l| !l.starts_with("//")) {
        for at in line.match_indices("crate::").map(|(i, m)| i + m.len()) {
            let name: String =
                line[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if !name.is_empty() && !used.contains(&name) {
                used.push(name);
            }
        }
    }
    used
}

/// What is wrong with `text` as a file of `module`.
fn broken_imports(module: &str, text: &str) -> Vec<String> {
    let law: BTreeMap<&str, &[&str]> = LAW.into_iter().collect();
    let Some(allowed) = law.get(module) else {
        return vec![format!("module `{module}` has no place in the law")];
    };
    used_modules(text)
        .into_iter()
        .filter(|used| used != module && !allowed.contains(&used.as_str()))
        .map(|used| format!("`{module}` may not use `{used}`"))
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("readable").map(|e| e.expect("readable").path()) {
        if entry.is_dir() && !entry.ends_with("target") {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "tools", "benches"] {
        let folder = root().join(folder);
        if folder.is_dir() {
            sources(&folder, &mut found);
        }
    }
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("readable");
            let name = path.strip_prefix(root()).expect("below the root");
            (name.to_string_lossy().into_owned(), text)
        })
        .collect()
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut broken = Vec::new();
    for (path, text) in all_sources() {
        let Some(rest) = path.strip_prefix("src/") else { continue };
        let module = rest.split(['/', '.']).next().unwrap_or_default();
        if matches!(module, "lib" | "main" | "cli") || path.ends_with("tests.rs") {
            continue;
        }
        broken.extend(broken_imports(module, &text).into_iter().map(|m| format!("{path}: {m}")));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_import_law_sees_a_planted_violation() {
    let planted = "use crate::model::Value;\nuse crate::clock::Clock;\n";
    assert_eq!(broken_imports("operator", planted), ["`operator` may not use `clock`"]);
    assert_eq!(broken_imports("operator", "// crate::clock\n"), [""; 0]);
    assert!(!broken_imports("newcomer", "").is_empty());
}

/// Rows of the code map: the modules that each names.
fn code_map() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it is there");
    let (_, map) = text.split_once("## Code map").expect("a section");
    let rows = map.lines().filter(|line| line.starts_with("| `"));
    let names = rows.map(|row| row.split('|').nth(1).expect("a cell").split('`').skip(1).step_by(2));
    names.map(|names| names.map(str::to_owned).collect()).collect()
}

#[test]
fn modules_lie_as_the_code_map_says() {
    let rows = code_map();
    let row_of = |module: &str| rows.iter().position(|row| row.iter().any(|name| name == module));
    for (module, allowed) in LAW {
        let row = row_of(module).unwrap_or_else(|| panic!("`{module}` is not on the map"));
        for used in allowed {
            assert!(row_of(used).is_some_and(|below| below < row), "`{module}` lies above `{used}`");
        }
    }
}

#[test]
fn rules_that_are_cited_exist() {
    for (document, mark, written) in
        [("docs/SEMANTICS.md", "SEMANTICS §", "## "), ("docs/PROTOCOL.md", "PROTOCOL ", "")]
    {
        let text = std::fs::read_to_string(root().join(document)).expect("it is there");
        let mut cited = 0;
        for (path, source) in all_sources().iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
            for (at, _) in source.match_indices(mark) {
                let number: String =
                    source[at + mark.len()..].chars().take_while(char::is_ascii_digit).collect();
                let is_there = text.lines().any(|line| line.starts_with(&format!("{written}{number}.")));
                assert!(number.is_empty() || is_there, "{path} cites {mark}{number}");
                cited += u32::from(!number.is_empty());
            }
        }
        assert!(cited > 20, "{cited} citations of {document}");
    }
}

#[test]
fn crates_are_named_only_by_their_owners() {
    let mut broken = Vec::new();
    for (path, text) in all_sources().iter().filter(|(p, _)| p.starts_with("src/")) {
        for (name, owners) in OWNED {
            let names_it = text
                .lines()
                .filter(|l| !l.trim_start().starts_with("//"))
                .any(|l| l.contains(&format!(" {name}")) || l.contains(&format!("({name}")));
            if names_it && !owners.iter().any(|o| path.starts_with(o)) {
                broken.push(format!("{path} names {name}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn files_have_headers_and_bounded_sizes() {
    let mut broken = Vec::new();
    for (path, text) in all_sources().iter().filter(|(p, _)| !p.contains("generated/thalweg")) {
        if !text.starts_with("//!") {
            broken.push(format!("{path}: no `//!` header"));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            broken.push(format!("{path}: {lines} lines, over {LINES_MAX}"));
        }
        for (i, line) in text.lines().enumerate().filter(|(_, l)| l.chars().count() > WIDTH_MAX) {
            broken.push(format!("{path}:{}: {} characters", i + 1, line.chars().count()));
        }
        // Spelt in two parts, so that this file does not find itself.
        for banned in [concat!("#[ig", "nore"), concat!("todo", "!("), concat!("unimplem", "ented!(")] {
            if text.contains(banned) {
                broken.push(format!("{path}: {banned}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Lines of a function, at most.
const FUNCTION_MAX: usize = 75;

/// Functions of a file that are too long, by where their signature and their closing brace stand.
fn long_functions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let is_signature =
            ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "async fn ", "pub async fn "]
                .iter()
                .any(|start| line.trim_start().starts_with(start));
        if is_signature {
            open = Some((number, indent, line.trim().to_owned()));
        } else if let Some((start, at, name)) = &open
            && indent == *at
            && line.trim() == "}"
        {
            if number - start > FUNCTION_MAX {
                found.push(format!("{} lines: {name}", number - start));
            }
            open = None;
        }
    }
    found
}

#[test]
fn functions_fit_a_screen() {
    let mut broken = Vec::new();
    for (path, text) in
        all_sources().iter().filter(|(p, _)| p.starts_with("src/") && !p.contains("generated/"))
    {
        broken.extend(long_functions(text).into_iter().map(|f| format!("{path}: {f}")));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let planted = format!("fn long() {{\n{}}}\n", "    x();\n".repeat(FUNCTION_MAX + 1));
    assert_eq!(long_functions(&planted).len(), 1);
}
