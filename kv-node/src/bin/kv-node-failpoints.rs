//! `kv-node` with named places to crash, wait or fail at, which `FAILPOINTS` sets; for tests (docs/failpoints.md).

use std::process::ExitCode;

#[path = "../main.rs"]
mod product;

fn main() -> ExitCode {
    product::main()
}
