//! Metrics as OpenMetrics text: those of the process, then those that are read from tasks and log.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use super::view::View;
use crate::codec::Reason;
use crate::expr::stats as expr_stats;
use crate::operator::values;
use crate::task::Task;

/// Rows of one family: labels and a value.
type Samples = Vec<(String, f64)>;

struct Exposition {
    out: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: Samples) {
        let suffix = if kind == "counter" { "_total" } else { "" };
        let p = "feature_pipeline";
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "# HELP {p}_{name} {help}.\n# TYPE {p}_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.out, "{p}_{name}{suffix}{{{labels}}} {value}");
        }
    }

    fn sources(&mut self, view: &View) {
        let (mut processed, mut refused, mut late) = (Vec::new(), Vec::new(), Vec::new());
        for source in &view.topology.sources {
            let counts = view.source_counts(source.index);
            let name = &source.name;
            for (status, n) in [
                ("accepted", counts.accepted),
                ("late", counts.late),
                ("ignored", counts.ignored),
                ("dead_lettered", counts.dead_lettered.iter().sum()),
            ] {
                processed.push((format!("source=\"{name}\",status=\"{status}\""), n as f64));
            }
            for (reason, label) in Reason::NAMES.iter().filter(|(r, _)| *r != Reason::Late) {
                let n = counts.dead_lettered[*reason as usize];
                refused.push((format!("source=\"{name}\",reason=\"{label}\""), n as f64));
            }
            late.push((format!("source=\"{name}\""), counts.late as f64));
        }
        self.family("events_processed", "counter", "Records by outcome", processed);
        self.family("feature_validation_errors", "counter", "Dead letters by reason", refused.clone());
        self.family("dead_letters", "counter", "Dead letters by reason", refused);
        self.family("late_events", "counter", "Events behind grace", late);
    }

    fn groups(&mut self, view: &View) {
        let (mut events, mut rows, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for group in &view.topology.groups {
            let (counts, n, size) = view.group_counts(group.index);
            let name = &group.name;
            for (outcome, n) in [
                ("applied", counts.applied),
                ("duplicate", counts.duplicate),
                ("filtered", counts.filtered),
                ("no_entity", counts.no_entity),
            ] {
                events.push((format!("group=\"{name}\",outcome=\"{outcome}\""), n as f64));
            }
            rows.push((format!("group=\"{name}\""), n as f64));
            bytes.push((format!("group=\"{name}\""), size as f64));
        }
        self.family("group_events", "counter", "Accepted events by what the group made of them", events);
        self.family("state_rows", "gauge", "Units in the state", rows);
        self.family("state_bytes", "gauge", "Bytes of the stores that hold the group", bytes);
    }

    fn tasks(&mut self, view: &View) {
        let owned = view.owned();
        let by_task = |of: &dyn Fn(&Task) -> f64| -> Samples {
            let label = |t: &Task| format!("topic=\"{}\",partition=\"{}\"", t.topic, t.partition);
            owned.tasks.iter().map(|t| (label(t), of(t))).collect()
        };
        let ends = view.input_ends(&owned);
        let behind = |from: &dyn Fn(&Task) -> u64| -> Samples {
            let labelled = by_task(&|t| from(t) as f64).into_iter().zip(&ends);
            labelled.map(|((label, at), end)| (label, (*end as f64 - at).max(0.0))).collect()
        };
        let applied = behind(&|t| t.state.read().applied);
        let committed = behind(&|t| t.committed.load(Ordering::Relaxed));
        self.family("lag_records", "gauge", "Records that wait to be applied", applied);
        self.family("committed_lag_records", "gauge", "Records behind the committed offset", committed);
        let states: Samples = owned
            .tasks
            .iter()
            .map(|t| {
                let state = format!("{:?}", t.status()).to_lowercase();
                (format!("topic=\"{}\",partition=\"{}\",state=\"{state}\"", t.topic, t.partition), 1.0)
            })
            .collect();
        self.family("task_state", "gauge", "Where tasks are in their life", states);
        let age = by_task(&|t| t.checkpoint_age().as_secs_f64());
        self.family("checkpoint_age_seconds", "gauge", "Time since the last commit", age);
        let redo = by_task(&|t| {
            t.committed.load(Ordering::Relaxed).saturating_sub(t.barrier.load(Ordering::Relaxed)) as f64
        });
        self.family("barrier_distance_records", "gauge", "Records that a restart would redo", redo);
        let cached = by_task(&|t| t.state.read().cache.bytes() as f64);
        self.family("cached_units_bytes", "gauge", "Memory of cached units", cached);
    }
}

/// `GET /v1/metrics`.
pub(super) fn metrics(view: &View) -> String {
    let mut exposition = Exposition { out: view.metrics.encode() };
    exposition.sources(view);
    exposition.groups(view);
    exposition.tasks(view);
    let causes = expr_stats::CAUSES.iter();
    let nulls = causes.map(|(c, n)| (format!("cause=\"{n}\""), expr_stats::count(*c) as f64)).collect();
    exposition.family("expression_null", "counter", "Expression results that became null", nulls);
    let overflows = vec![(String::new(), values::overflows() as f64)];
    exposition.family("overflow", "counter", "Integer sums outside int64", overflows);
    exposition.out.push_str("# EOF\n");
    exposition.out
}
