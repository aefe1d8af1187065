//! Answers: lookups, appends, health, statistics, over REST and gRPC. Never writes state.

#[cfg(feature = "serving")]
mod body;
mod catalog;
pub mod cluster;
mod compute;
#[cfg(feature = "serving")]
mod connection;
#[cfg(feature = "serving")]
mod exposition;
mod gather;
#[cfg(feature = "serving")]
pub mod generated;
#[cfg(feature = "serving")]
mod grpc;
#[cfg(feature = "serving")]
mod grpc_messages;
#[cfg(feature = "serving")]
pub mod inspect;
#[cfg(feature = "serving")]
mod listen;
mod lookup;
mod owned;
#[cfg(feature = "serving")]
mod peers;
#[cfg(feature = "serving")]
mod rest;
#[cfg(feature = "serving")]
mod rest_lookup;
mod stats;
pub mod verify;
mod view;

pub use compute::{Cell, Status};
#[cfg(feature = "serving")]
pub use grpc::grpc_routes;
#[cfg(feature = "serving")]
pub use listen::{ConnectionLimits, Threads, serve_grpc, serve_rest};
pub use lookup::{LookupRequest, LookupResponse, PartitionAnswer};
pub use owned::Owned;
#[cfg(feature = "serving")]
pub use peers::GrpcPeers;
#[cfg(feature = "serving")]
pub use rest::{Access, Door, router};
pub use view::{Limits, View};
