//! Answers: lookups, appends, health, statistics, over REST and gRPC. Never writes state.

mod catalog;
mod compute;
#[cfg(feature = "serving")]
mod exposition;
#[cfg(feature = "serving")]
pub mod generated;
#[cfg(feature = "serving")]
mod grpc;
#[cfg(feature = "serving")]
pub mod inspect;
mod lookup;
mod owned;
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
pub use lookup::{LookupRequest, LookupResponse};
pub use owned::Owned;
#[cfg(feature = "serving")]
pub use rest::{Access, Door, router};
pub use view::{Limits, View};
