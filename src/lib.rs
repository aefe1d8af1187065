//! Thalweg computes exact sliding-window features from an event log, keeps them in embedded
//! state, and answers point lookups from it.
//!
//! Definitions become a plan, and the plan says what a feature is:
//!
//! ```
//! use thalweg::config::DefinitionFiles;
//! use thalweg::topology::Topology;
//!
//! let text = "
//! entities: { user: { key: user_id, type: string } }
//! sources:
//!   clicks:
//!     key: user_id
//!     event_time: { path: at, format: rfc3339 }
//!     fields: { user_id: { type: string } }
//! feature_groups:
//!   activity:
//!     entity: user
//!     source: clicks
//!     features: { clicks_1h: { aggregate: count, window: 1h } }
//! ";
//! let topology = Topology::of_files(DefinitionFiles::of_text(text)).expect("no mistakes");
//! let group = topology.group("activity").expect("it is defined");
//! assert!(group.is_direct);
//! assert_eq!(group.reach, Some(3_600_000));
//! ```
//!
//! Modules stand in reading order, from nouns to the composition root. Which may use which is
//! the law of `tests/it/tidy.rs`.

pub mod model;

pub mod clock;
pub mod error;
pub mod fault;

pub mod config;
pub mod expr;

pub mod operator;
pub mod topology;

pub mod codec;
pub mod log;
pub mod state;

pub mod task;
pub mod worker;

pub mod oracle;

pub mod serving;
pub mod telemetry;

#[cfg(feature = "rocksdb")]
pub mod app;
