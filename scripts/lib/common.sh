# shellcheck shell=bash
# What all scripts share: where things are, how they speak. Sourced, never run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

# A toolchain that rustup installed without a new login is not in PATH yet.
if ! command -v cargo >/dev/null && [[ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi

# Outside of the clone in continuous integration, where every run has a clone of its own.
if [[ -z "${CARGO_TARGET_DIR:-}" ]]; then
    if [[ "${CI:-}" == true ]]; then
        CARGO_TARGET_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/kv/target"
    else
        CARGO_TARGET_DIR="$ROOT/target"
    fi
fi
# Cargo takes a relative one from the folder it is called in.
[[ "$CARGO_TARGET_DIR" == /* ]] || CARGO_TARGET_DIR="$PWD/$CARGO_TARGET_DIR"
export CARGO_TARGET_DIR

say() {
    printf '%s\n' "$*"
}

# To stderr, so that output stays what a program can read.
note() {
    printf '%s\n' "$*" >&2
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# The comment at the head of the script.
usage() {
    sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p}' "$0"
}

# Whether somebody serves it on loopback.
port_taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# The folder of the newest RocksDB of the normal build, of the locked version, for builds with other flags; nothing if there
# is none. Which version a folder is of stands in what cargo notes of the crate that was compiled from it. Its name tells when
# it was compiled: a build that has taken over a library looks at it again only under another name.
built_rocksdb() {
    local version note folder named newest=
    version="$(sed -n '/^name = "librocksdb-sys"$/{n;s/^version = "\(.*\)"$/\1/p}' "$ROOT/Cargo.lock")"
    for note in "$CARGO_TARGET_DIR"/release/deps/librocksdb_sys-*.d; do
        grep -qsF "/librocksdb-sys-$version/" "$note" || continue
        folder="$(sed -n 's|.* \(.*/out\)/bindings\.rs$|\1|p' "$note" | head -n 1)"
        [[ -f "$folder/librocksdb.a" ]] || continue
        [[ -z "$newest" || "$folder/librocksdb.a" -nt "$newest/librocksdb.a" ]] && newest="$folder"
    done
    [[ -n "$newest" ]] || return 0
    named="$CARGO_TARGET_DIR/rocksdb-$(stat -c %Y "$newest/librocksdb.a")"
    ln -sfn "$newest" "$named"
    printf '%s' "$named"
}

# Has builds from here on link that RocksDB, or the one the caller names, instead of compiling it once more.
link_built_rocksdb() {
    local rocksdb
    rocksdb="${ROCKSDB_LIB_DIR:-$(built_rocksdb)}"
    if [[ -n "$rocksdb" ]]; then
        export ROCKSDB_LIB_DIR="$rocksdb" ROCKSDB_STATIC=1
    else
        note "no RocksDB of the locked version in $CARGO_TARGET_DIR yet: it is compiled, which takes minutes"
    fi
}

# The node with named places to crash at, beside the product: kv-raft and kv-node once more, not optimised, which takes
# half a minute in the place of three. All else is that of the normal build.
build_failpoints() {
    local crate settings=()
    for crate in kv-raft kv-node; do
        settings+=(--config "profile.release.package.$crate.opt-level=0" --config "profile.release.package.$crate.debug=false")
    done
    cargo build --release --locked --workspace --bin kv-node-failpoints --features kv-node/failpoints "${settings[@]}"
}
