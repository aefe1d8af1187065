//! Payloads to typed events, record keys, and the bytes that go between tasks.

pub mod bytes;
mod convert;
pub mod decoder;
pub mod json;
pub mod repartition;

pub use decoder::{Decoded, KeyReader, Reason, SourceDecoder};
