//! Tests from outside: the binary as a process, and the rules of the house.

mod api;
mod bad_input;
mod broker;
mod cluster;
mod crash;
mod definitions;
mod emit;
mod exactness;
mod examples;
mod faults;
mod harness;
mod housekeeping;
mod ingest;
mod kafka;
mod sketches;
mod stream_time;
mod tidy;
