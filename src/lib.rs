//! Thalweg.
pub mod clock;
pub mod config;
pub mod error;
pub mod expr;
pub mod log;
pub mod model;
pub mod operator;
pub mod topology;
pub mod state;
pub mod codec;
