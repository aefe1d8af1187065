//! `thalweg`: the command line.

mod cli;

use std::process::ExitCode;

// Units of many sizes come and go on several threads; the C library's allocator would keep a
// third more memory than they need.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
