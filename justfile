# The habits of the project; `just` lists them. Everything builds with --release, so that RocksDB is compiled once.

set shell := ["bash", "-euo", "pipefail", "-c"]

_list:
    @just --list

# Formatting, lints and licences; reads only.
check:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings
    if command -v cargo-deny >/dev/null; then cargo deny check; fi

# Formats and applies what clippy can mend by itself.
fix:
    cargo fmt --all
    cargo clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged

# All that must pass before a change goes in.
test:
    scripts/test

# The local cluster: `just cluster up`, `just cluster kill 2`, ...
cluster *arguments:
    scripts/cluster {{ arguments }}
