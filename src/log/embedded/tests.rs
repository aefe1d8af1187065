//! The log over its files: looked into, damaged, cut.

use super::*;
use crate::clock::ManualClock;

#[test]
fn what_was_opened_and_closed_again_can_be_looked_into() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let clock = clock();
    let log =
        EmbeddedLog::open(&folder.path().join("log"), options(), Arc::clone(&clock)).expect("a new one");
    log.create_topic("t", 1).expect("a topic");
    let mut append = Append::to("t");
    append.push(0, None, Some(&[b'x'; 2000]), &[]);
    log.append(append).expect("appended");
    let commit = TaskCommit {
        task: "t/0".to_owned(),
        topic: "t".to_owned(),
        partition: 0,
        next_offset: 1,
        txn_id: String::new(),
        barrier: vec![b'y'; 900],
        rows: None,
        appends: Vec::new(),
        must_sync: true,
    };
    log.commit(vec![commit]).recv().expect("an answer").expect("committed");
    drop(log);
    for _ in 0..3 {
        let log =
            EmbeddedLog::open_read_only(&folder.path().join("log"), Arc::clone(&clock)).expect("it is there");
        let point = log.resume_point("t/0", "t", 0).expect("readable");
        assert_eq!((point.committed, point.end), (Some(vec![b'y'; 900]), 1));
        assert_eq!(log.read("t", 0, 0, 100).expect("readable").len(), 1);
        drop(log);
        drop(
            EmbeddedLog::open(&folder.path().join("log"), options(), Arc::clone(&clock)).expect("it goes on"),
        );
    }
}

fn options() -> LogOptions {
    LogOptions { fsync: FsyncPolicy::Commit, recent_bytes: 0, buffer_bytes: 8 << 20 }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(ManualClock::default())
}

fn one(value: &[u8]) -> Append {
    let mut append = Append::to("t");
    append.push(0, None, Some(value), &[]);
    append
}

/// A log with the topic `t`.
fn fresh(path: &Path) -> EmbeddedLog {
    let log = EmbeddedLog::open(path, options(), clock()).expect("a new one");
    log.create_topic("t", 1).expect("a topic");
    log
}

/// The newest file of the write-ahead log.
fn newest(log: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(log).expect("readable").map(|entry| entry.expect("readable").path());
    files.filter(|path| path.extension().is_some_and(|e| e == "log")).max().expect("there is one")
}

#[test]
fn what_was_acknowledged_is_there_or_the_log_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("data/log");
    let log = fresh(&path);
    for n in 0..200_u32 {
        log.append(one(format!("{n:0100}").as_bytes())).expect("appended");
    }
    drop(log);
    let whole = std::fs::read(newest(&path)).expect("readable");
    for at in [whole.len() / 10, whole.len() / 2, whole.len() - 20] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(newest(&path), &damaged).expect("writable");
        let refused = EmbeddedLog::open(&path, options(), clock()).err().expect("it has lost records");
        assert!(refused.message.contains("acknowledged"), "byte {at}: {}", refused.message);
        assert_eq!(std::fs::read(newest(&path)).expect("readable"), damaged, "nothing is cut off");
        std::fs::write(newest(&path), &whole).expect("writable");
    }
}

/// What was being written when power was lost was not acknowledged, whatever is left of it.
#[test]
fn a_torn_end_is_left_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("log");
    let log = fresh(&path);
    log.append(one(b"first")).expect("appended");
    drop(log);
    let mark = std::fs::read(folder.path().join("log.synced")).expect("readable");
    let log = EmbeddedLog::open(&path, options(), clock()).expect("it goes on");
    log.append(one(&[b'x'; 400])).expect("appended");
    drop(log);
    let whole = std::fs::read(newest(&path)).expect("readable");
    // As it would be, had the second never come to its end.
    for tear in [Tear::Cut, Tear::Changed, Tear::Zeros] {
        let mut torn = whole.clone();
        let at = torn.len() - 100;
        match tear {
            Tear::Cut => torn.truncate(at),
            Tear::Changed => torn[at] ^= 1,
            Tear::Zeros => torn[at..].fill(0),
        }
        let copy = tempfile::tempdir().expect("a temporary folder");
        copy_all(&path, &copy.path().join("log"));
        std::fs::write(newest(&copy.path().join("log")), &torn).expect("writable");
        std::fs::write(copy.path().join("log.synced"), &mark).expect("writable");
        let log = EmbeddedLog::open(&copy.path().join("log"), options(), clock()).expect("it goes on");
        assert_eq!(log.end_offset("t", 0), 1);
        log.append(one(b"second")).expect("appended");
    }
}

enum Tear {
    Cut,
    Changed,
    Zeros,
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

#[test]
fn what_is_cut_leaves_the_disk_and_what_stays_is_not_written_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("log");
    let log = fresh(&path);
    // Nothing that could be written shorter.
    let word = |n: u32| twox_hash::XxHash3_64::oneshot(&n.to_le_bytes()).to_le_bytes();
    let chunk: Vec<u8> = (0..1 << 17).flat_map(word).collect();
    let bytes = || -> u64 {
        let files = std::fs::read_dir(&path).expect("readable");
        files.map(|entry| entry.and_then(|e| e.metadata()).map_or(0, |m| m.len())).sum()
    };
    for _ in 0..40 {
        log.append(one(&chunk)).expect("appended");
    }
    let before = bytes();
    log.purge("t", 0, 38).expect("cut");
    assert_eq!(log.start_offset("t", 0), 38);
    // Files of 8 MB go whole; some are still in the write-ahead log.
    assert!(before > 40 << 20 && bytes() < 30 << 20, "{before} bytes, then {}", bytes());
    assert_eq!(log.read("t", 0, 38, usize::MAX).expect("readable").len(), 2);
}
