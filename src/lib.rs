//! Thalweg.
pub mod app;
pub mod clock;
pub mod config;
pub mod error;
pub mod expr;
pub mod log;
pub mod model;
pub mod operator;
pub mod task;
pub mod telemetry;
pub mod topology;
pub mod worker;
pub mod serving;
pub mod state;
pub mod codec;
