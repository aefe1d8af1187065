//! `thalweg check`: every mistake of all files in one run, at its line.

use crate::harness::{Place, run, run_with};

const HEAD: &str = "\
entities:
  user: { key: user_id, type: string }
  pair: { key: [user_id, n], type: [string, int64] }
request:
  amount: { type: float64 }
sources:
  payments:
    key: user_id
    event_time: { path: at, format: rfc3339 }
    fields:
      user_id: { type: string }
      amount: { type: float64 }
      n: { type: int64 }
      ok: { type: bool }
feature_groups:
  g:
    entity: user
    source: payments
";

/// Mistakes of a file: line and text.
fn mistakes(text: &str) -> Vec<(usize, String)> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("features.yaml");
    std::fs::write(&path, text).expect("writable");
    let (code, out, _) = run(&["check", path.to_str().expect("UTF-8")], None);
    assert_eq!(code, i32::from(!out.is_empty()), "{out}");
    out.lines()
        .map(|line| {
            let rest = line.strip_prefix(path.to_str().expect("UTF-8")).expect("the file comes first");
            let mut parts = rest[1..].splitn(3, ':');
            let line = parts.next().and_then(|n| n.parse().ok()).expect("a line");
            parts.next().and_then(|n| n.parse::<usize>().ok()).expect("a column");
            (line, parts.next().expect("a message").to_owned())
        })
        .collect()
}

#[test]
fn sources_on_one_topic_take_the_same_keys() {
    let other = "\
sources:
  payments: { topic: t, key: u, event_time: record, fields: { u: { type: string } } }
  refunds: { topic: t, key: u, event_time: record, fields: { u: { type: string, coerce: true } } }
";
    let found = mistakes(other);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 == 3 && found[0].1.contains("another `key`"), "{found:?}");
}

#[test]
fn a_good_file_has_no_mistakes() {
    let text = format!("{HEAD}    features:\n      c: {{ aggregate: count, window: 1h }}\n");
    assert_eq!(mistakes(&text), []);
}

#[test]
fn mistakes_of_features_stand_at_their_line() {
    // Each feature stands on line 19 of its file.
    for (feature, word) in [
        ("aggregate: cuont, window: 1h", "count"),
        ("window: 1h", "aggregate"),
        ("aggregate: count", "window"),
        ("aggregate: sum, window: 1h", "of"),
        ("aggregate: sum, of: amout, window: 1h", "amount"),
        ("aggregate: sum, of: user_id, window: 1h", "int64 or float64"),
        ("aggregate: count, window: 1x", "duration"),
        ("aggregate: count, window: 1h, since: day", "more than one"),
        ("aggregate: count, window: 10m, edge: tile", "1000s"),
        ("aggregate: count, since: day, edge: exact", "edge"),
        ("aggregate: count, window: 1h, hop: 2h", "hop"),
        ("aggregate: count, window: 1h, hop: 5m, edge: tile", "hop"),
        ("aggregate: time_since_last, window: 1h, hop: 5m", "hop"),
        ("aggregate: percentile, of: amount, window: 1h", "q"),
        ("aggregate: percentile, of: amount, q: 1.5, window: 1h", "0 to 1"),
        ("aggregate: top_k, of: amount, k: 1001, window: 1h", "1 to 1000"),
        ("aggregate: histogram, of: amount, bounds: [2, 1], window: 1h", "ascending"),
        ("aggregate: count, k: 3, window: 1h", "k"),
        ("aggregate: session_count, gap: 5m, window: lifetime", "lifetime"),
        ("aggregate: session_count, gap: 1m, window: 30d", "tiles"),
        ("aggregate: count, session: 2h, max: 1h", "max"),
        ("aggregate: decayed_sum, of: amount, half_life: 1h, window: 1h", "window"),
        ("aggregate: count, window: 1h, where: 'amount >'", "value"),
        ("aggregate: count, window: 1h, where: amount", "bool"),
        ("aggregate: count, window: 1h, default: none", "int64"),
        ("aggregate: count, window: 1h, ttl: 0s", "zero"),
        ("aggregate: value_counts, of: amount, window: 1h", "string, int64 or bool"),
        ("aggregate: count, since: day, zone: Mars/Phobos", "zone"),
        ("aggregate: count, window: 1h, source: payments", "source"),
        ("aggregate: rate, per: 1m, since: day", "fixed"),
    ] {
        let text = format!("{HEAD}    features:\n      f: {{ {feature} }}\n");
        let found = mistakes(&text);
        assert_eq!(found.len(), 1, "{feature}: {found:?}");
        assert!(found[0].0.abs_diff(20) <= 1, "{feature}: {found:?}");
        assert!(found[0].1.contains(word), "{feature}: {found:?}");
    }
}

#[test]
fn mistakes_of_the_rest_stand_at_their_line() {
    let good = format!("{HEAD}    features:\n      c: {{ aggregate: count, window: 1h }}\n");
    for (from, to, line, word) in [
        ("  user: { key: user_id, type: string }", "  user: { type: string }", 2, "key"),
        (
            "  user: { key: user_id, type: string }",
            "  user: { key: user_id, type: float64 }",
            2,
            "string or int64",
        ),
        ("  user: {", "  User: {", 2, "name"),
        ("type: [string, int64]", "type: [string]", 3, "types"),
        ("    key: user_id\n", "    key: user\n", 8, "user_id"),
        ("    key: user_id\n", "    key: amount\n", 8, "string or int64"),
        ("    event_time: { path: at, format: rfc3339 }\n", "", 7, "event_time"),
        ("format: rfc3339", "format: iso8601", 9, "rfc3339"),
        ("user_id: { type: string }\n", "user_id: { typ: string }\n", 11, "type"),
        ("    entity: user\n", "    entity: usr\n", 17, "user"),
        ("    source: payments\n", "    source: payment\n", 18, "payments"),
        ("    source: payments\n", "", 16, "source"),
        ("    source: payments\n", "    source: payments\n    wher: ok\n", 19, "where"),
        ("    source: payments\n", "    source: payments\n    source: payments\n", 19, "twice"),
        ("    entity: user\n", "    entity: pair\n    keys: { user_id: amount }\n", 18, "string"),
        ("request:", "requests:", 4, "request"),
        ("entities:", "\tentities:", 1, "YAML"),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let found = mistakes(&text);
        let at = found.iter().find(|(l, m)| l.abs_diff(line) <= 1 && m.contains(word));
        assert!(at.is_some(), "{to:?} should be named at line {line} with {word:?}: {found:?}");
    }
}

#[test]
fn what_follows_from_a_mistake_is_no_second_one() {
    let good = format!("{HEAD}    features:\n      c: {{ aggregate: count, window: 1h }}\n");
    for (from, to) in [
        ("  user: { key: user_id, type: string }", "  user: { key: user_id, type: float64 }"),
        ("    event_time: { path: at, format: rfc3339 }\n", ""),
    ] {
        let found = mistakes(&good.replacen(from, to, 1));
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

#[test]
fn features_of_an_unknown_entity_are_looked_at_all_the_same() {
    let good = format!("{HEAD}    features:\n      c: {{ aggregate: sum, of: amout, window: 1h }}\n");
    let found = mistakes(&good.replacen("    entity: user\n", "    entity: usr\n", 1));
    assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [17, 20], "{found:?}");
}

#[test]
fn a_file_that_defines_nothing_is_a_mistake() {
    for text in ["", "# nothing yet\n", "{}\n", "entities:\nsources:\n"] {
        let found = mistakes(text);
        assert!(found.len() == 1 && found[0].1.contains("defines nothing"), "{text:?}: {found:?}");
    }
}

#[test]
fn a_wrong_value_is_blamed_on_where_it_was_given() {
    let place = Place::new(HEAD, "checkpoint_interval: 5s");
    let path = place.config();
    let arguments = ["config", "--config", path.to_str().expect("UTF-8")];
    let (code, _, said) = run_with(&[("THALWEG_CHECKPOINT_INTERVAL", "soon")], &arguments);
    assert_eq!(code, 1);
    assert!(said.starts_with("environment THALWEG_CHECKPOINT_INTERVAL:1:1: error: "), "{said}");
}

#[test]
fn the_configuration_shows_where_values_come_from_and_no_secrets() {
    let place = Place::new(
        HEAD,
        "log: { kafka: { brokers: ['h:9092'], properties: { sasl.password: hidden, client.rack: a } } }",
    );
    let path = place.config();
    let arguments = ["config", "--config", path.to_str().expect("UTF-8")];
    let variables = [
        ("THALWEG_MEMORY", "300MiB"),
        ("THALWEG_LOG__KAFKA__PROPERTIES__SASL__USERNAME", "007"),
        ("THALWEG_LOG__KAFKA__PROPERTIES__SSL__KEY__PASSPHRASE", "hidden"),
        ("THALWEG_PORT", "1"),
    ];
    let (code, out, said) = run_with(&variables, &arguments);
    assert_eq!(code, 0, "{said}");
    let line = |key: &str| {
        let found = out.lines().find(|line| line.starts_with(&format!("{key}: ")));
        found.unwrap_or_else(|| panic!("{key} is missing in\n{out}"))
    };
    assert!(line("memory").contains("300MiB") && line("memory").ends_with("# environment THALWEG_MEMORY"));
    assert!(line("workers").ends_with("# default"));
    assert!(line("app").ends_with("thalweg.yaml:1"), "{}", line("app"));
    let properties = line("log.kafka.properties");
    assert!(
        properties.contains("client.rack: a, sasl.username: 007, ssl.key.passphrase: ***"),
        "{properties}"
    );
    assert!(!out.contains("hidden"), "{out}");
    assert!(out.contains("THALWEG_PORT is ignored"));
}

#[test]
fn a_feature_may_lift_the_limit_of_its_group() {
    let with = |ttl: &str| {
        format!("{HEAD}    ttl: 5m\n    features:\n      c: {{ aggregate: count, window: 1h, ttl: {ttl} }}\n")
    };
    assert_eq!(mistakes(&with("none")), []);
    assert_eq!(mistakes(&with("never")).len(), 1);
}

#[test]
fn on_demand_mistakes_and_circles_are_found() {
    let with = |on_demand: &str| {
        format!(
            "{HEAD}    features:\n      c: {{ aggregate: count, window: 1h }}\n    on_demand:\n{on_demand}"
        )
    };
    let found =
        mistakes(&with("      a: { expr: 'b + 1', type: int64 }\n      b: { expr: 'a + 1', type: int64 }\n"));
    assert_eq!(found.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [22, 23]);
    let found = mistakes(&with("      a: { expr: 'request.amont * 2.0', type: float64 }\n"));
    assert!(found[0].1.contains("request.amount"), "{found:?}");
    let found = mistakes(&with("      a: { expr: 'request.amount', type: string }\n"));
    assert!(found[0].1.contains("float64"), "{found:?}");
    let found = mistakes(&with("      c: { expr: 'request.amount', type: float64 }\n"));
    assert!(found[0].1.contains("twice"), "{found:?}");
}

#[test]
fn all_mistakes_of_all_files_come_in_one_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (a, b) = (folder.path().join("a.yaml"), folder.path().join("b.yaml"));
    std::fs::write(&a, format!("{HEAD}    features:\n      x: {{ aggregate: sum, window: 1h }}\n      y: {{ aggregate: count }}\n")).expect("writable");
    std::fs::write(&b, "sources:\n  payments:\n    event_time: record\nentity: {}\n").expect("writable");
    let (code, out, _) = run(&["check", a.to_str().expect("UTF-8"), b.to_str().expect("UTF-8")], None);
    assert_eq!(code, 1);
    let names: Vec<&str> = out.lines().map(|l| if l.contains("a.yaml") { "a" } else { "b" }).collect();
    assert_eq!(names, ["a", "a", "b", "b"], "{out}");
}

#[test]
fn places_in_expressions_count_columns() {
    let text = format!(
        "{HEAD}    features:\n      f: {{ aggregate: count, window: 1h, where: 'ok && amout > 1.0' }}\n"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("features.yaml");
    std::fs::write(&path, &text).expect("writable");
    let (_, out, _) = run(&["check", path.to_str().expect("UTF-8")], None);
    let column = text.lines().nth(19).and_then(|l| l.find("amout")).expect("it is there") + 1;
    assert!(out.contains(&format!(":20:{column}: error: ")), "{out}");
}

#[test]
fn what_is_meant_as_text_is_as_it_was_written() {
    let place = Place::new(
        HEAD,
        "log: { kafka: { brokers: ['h:9092'], properties: { sasl.username: 007, client.id: 1.10, sasl.pasword: hidden, linger.ms: 5 } } }",
    );
    let path = place.config();
    let arguments = ["config", "--config", path.to_str().expect("UTF-8")];
    let variables =
        [("THALWEG_APP", "007"), ("THALWEG_DATA_DIR", "/tmp/x #1"), ("KAFKA_BOOTSTRAP_SERVERS", "")];
    let (code, out, said) = run_with(&variables, &arguments);
    assert_eq!(code, 0, "{said}");
    for text in [
        "app: 007 ",
        "data_dir: /tmp/x #1 ",
        "brokers: [h:9092]",
        "sasl.username: 007, client.id: 1.10, sasl.pasword: ***, linger.ms: 5",
    ] {
        assert!(out.contains(text), "{text} is missing in\n{out}");
    }
    // Variables of others need not be text, and an embedded log is not made one on Kafka.
    let place = Place::new(HEAD, "");
    let path = place.config();
    let mut command = std::process::Command::new(crate::harness::binary());
    command.args(["config", "--config"]).arg(&path).env("THALWEG_LOG__EMBEDDED__PARTITIONS", "8");
    command.env("KAFKA_BOOTSTRAP_SERVERS", "h:9092");
    let strange: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
    let shown = command.env("X", strange).output().expect("it ends");
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
}

#[test]
fn a_property_that_is_refused_is_named_without_its_value() {
    let features = format!("{HEAD}    features: {{ n: {{ aggregate: count, window: 1h }} }}\n");
    let place = Place::new(
        &features,
        "log: { kafka: { brokers: ['h:9092'], properties: { sasl.jaas.config: 'u hidden' } } }",
    );
    let (code, out, said) = run(&["run", "--config", place.config().to_str().expect("UTF-8")], None);
    assert_ne!(code, 0);
    assert!(
        said.contains("sasl.jaas.config") && !said.contains("hidden") && !out.contains("hidden"),
        "{said}"
    );
}

#[test]
fn a_source_cannot_read_what_the_application_writes() {
    let features = format!("{HEAD}    features: {{ n: {{ aggregate: count, window: 1h }} }}\n");
    let place = Place::new(
        &features.replace(
            "    key: user_id\n    event_time",
            "    topic: test-dead-letters\n    key: user_id\n    event_time",
        ),
        "",
    );
    let (code, _, said) = run(&["run", "--config", place.config().to_str().expect("UTF-8")], None);
    assert_ne!(code, 0);
    assert!(said.contains("`test-dead-letters`, which this application writes itself"), "{said}");
}

#[test]
fn places_in_expressions_of_many_lines_are_those_in_the_file() {
    let forms = [
        ("    where: |\n      ok\n\n      && amount > 1.0\n      && amuont > 2.0\n", 23, 10),
        ("    where: >-\n      ok\n      && amount > 1.0 &&\n        amuont > 2.0\n", 22, 9),
        ("    where: ok\n      && amount > 1.0\n      && amuont > 2.0\n", 21, 10),
        ("    where: \"ok\n      && 'a' != \\\"b\\\"\n      && amuont > 2.0\"\n", 21, 10),
        ("    where: 'ok && ''it'' != ''b''\n      && amuont > 2.0'\n", 20, 10),
        ("    where: \"ok && 'a' != 'b' && amuont > 2.0\"\n", 19, 33),
        ("    where: ok && amuont > 2.0\n", 19, 18),
    ];
    for (form, line, column) in forms {
        let text = format!("{HEAD}{form}    features: {{ n: {{ aggregate: count, window: 1h }} }}\n");
        let place = Place::new(&text, "");
        let (code, out, _) = check(&place);
        assert_eq!(code, 1, "{form}");
        assert!(out.contains(&format!(":{line}:{column}: error: unknown field `amuont`")), "{form}\n{out}");
    }
}

#[test]
fn what_would_do_nothing_or_be_of_another_type_is_refused() {
    let feature = |text: &str| format!("{HEAD}    features:\n      f: {text}\n");
    for (text, word) in [
        (feature("{ aggregate: value_counts, of: n, window: 1h, default: { abc: 1 } }"), "default"),
        (feature("{ aggregate: value_counts, of: n, window: 1h, default: { '5': -3 } }"), "default"),
        (format!("{HEAD}    features: {{}}\n"), "no `features`"),
        (
            feature("{ aggregate: count, window: 1h }")
                .replace("    key: user_id\n", "    key: [user_id, user_id]\n"),
            "stands twice in `key`",
        ),
    ] {
        let (code, out, _) = check(&Place::new(&text, ""));
        assert!(code == 1 && out.lines().count() == 1 && out.contains(word), "{text}\n{out}");
    }
    let good = feature("{ aggregate: value_counts, of: n, window: 1h, default: { '5': 3 } }");
    assert_eq!(check(&Place::new(&good, "")).0, 0);
}

#[test]
fn one_mistake_neither_hides_others_nor_makes_them() {
    let good = "    features: { n: { aggregate: count, window: 1h } }\n";
    for (text, expected) in [
        // A field that cannot be read is used by others.
        (
            HEAD.replace("amount: { type: float64 }\n      n:", "amount: { type: flot64 }\n      n:")
                + "    where: amount > 1.0\n    features: { s: { aggregate: sum, of: amount, window: 1h } }\n    on_demand: { d: { expr: s + 1.0, type: float64 } }\n",
            vec![12],
        ),
        // A key that stands twice, and something else.
        (
            format!(
                "{HEAD}    where: ok\n    where: ok\n    features: {{ n: {{ aggregate: maen, of: amount, window: 1h }} }}\n"
            ),
            vec![20, 21],
        ),
        // A source without its event time.
        (
            HEAD.replace("    event_time: { path: at, format: rfc3339 }\n", "    grace: 10\n")
                + "    where: oj\n"
                + good,
            vec![7, 9, 19],
        ),
        // A feature with three mistakes.
        (
            format!(
                "{HEAD}    features:\n      n: {{ aggregate: sum, of: amuont,\n        where: nn == 1,\n        window: 1x }}\n"
            ),
            vec![20, 21, 22],
        ),
        (
            HEAD.replace("    source: payments\n", "    now: wal\n") + "    emit: never\n" + good,
            vec![16, 18, 19],
        ),
        // A circle beside another mistake.
        (
            format!(
                "{HEAD}{good}    on_demand:\n      a: {{ expr: b + 1, type: int64 }}\n      b: {{ expr: a + 1, type: int64 }}\n      c: {{ expr: m + 1, type: int64 }}\n"
            ),
            vec![21, 22, 23],
        ),
    ] {
        let place = Place::new(&text, "");
        let (_, out, _) = check(&place);
        let found: Vec<usize> = out
            .lines()
            .map(|l| l.rsplit(".yaml:").next().and_then(|l| l.split(':').next()?.parse().ok()).unwrap_or(0))
            .collect();
        assert_eq!(found, expected, "{text}\n{out}");
    }
    let place = Place::new(HEAD, "limits: 5\nworkers: -1");
    let (code, _, said) = run(&["config", "--config", place.config().to_str().expect("UTF-8")], None);
    assert!(code == 1 && said.contains("`limits`") && said.contains("`workers`"), "{said}");
    // A file that cannot be read says nothing of what the others refer to.
    let place = Place::new(&format!("{HEAD}{good}"), "");
    let other = place.folder.path().join("other.yaml");
    std::fs::write(&other, "feature_groups:\n  h:\n    entity: nobody\n    source: nothing\n    features: { n: { aggregate: count, window: 1h } }\n").expect("writable");
    let broken = place.folder.path().join("broken.yaml");
    std::fs::write(&broken, "sources: [").expect("writable");
    let files = [&other, &broken].map(|p| p.to_str().expect("UTF-8").to_owned());
    let (_, out, _) = run(&["check", &files[0], &files[1]], None);
    assert!(out.lines().count() == 1 && out.contains("broken.yaml"), "{out}");
}

fn check(place: &Place) -> (i32, String, String) {
    run(&["check", place.folder.path().join("features.yaml").to_str().expect("UTF-8")], None)
}
