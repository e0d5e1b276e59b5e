# The habits of the project; `just` lists them. Everything but `dist` and `bench` builds with --release, so that RocksDB is compiled once.

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

# A storm of faults on a real cluster under load; the seed draws what happens.
nemesis SEED MINUTES="1" *arguments="":
    cargo build --release --workspace --bins
    "${CARGO_TARGET_DIR:-target}/release/nemesis" storm --seed {{ SEED }} --minutes {{ MINUTES }} {{ arguments }}

# Every proof that a change has no time for, or only some parts of it; writes docs/proof.md. Its head names the parts.
proof *parts:
    scripts/proof {{ parts }}

# Feeds random bytes to a decoder: wire, log, snapshot, cursor, config or keys; or to all of them.
fuzz TARGET *bounds:
    scripts/fuzz {{ TARGET }} {{ bounds }}

# Puts known bugs into a copy of the code and watches a test notice each; `just mutants NAME` for one.
mutants *names:
    scripts/mutants {{ names }}

# One seed of the deterministic simulation, or `just sim fresh`: see docs/simulation.md.
sim *arguments:
    scripts/sim {{ arguments }}

# The local cluster: `just cluster up`, `just cluster kill 2`, ...
cluster *arguments:
    scripts/cluster {{ arguments }}

# What goes to production, with profile-guided optimisation.
dist:
    scripts/dist

# A fresh local cluster beside etcd and the limits of the machine: `just bench --quick`.
bench *arguments:
    scripts/bench {{ arguments }}
