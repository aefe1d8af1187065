//! Code written by `tools/codegen` from `proto/`. Do not edit.

#![allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]

/// Package `thalweg.v1`.
pub mod v1 {
    include!("thalweg.v1.rs");
}

/// All messages and services, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");
