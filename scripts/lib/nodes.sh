# shellcheck shell=bash
# One node of the local cluster: its folder, its process, its ports. Sourced by scripts/cluster.
#
# Invariant: only processes that this script started are signalled: a pid counts as node N only if its executable is
# kv-node and its command line names node N's data folder.

KV_HOME="${KV_HOME:-${XDG_STATE_HOME:-$HOME/.local/state}/kv-cluster}"
KV_BASE_PORT="${KV_BASE_PORT:-7000}"
KV_BASE_HTTP_PORT="${KV_BASE_HTTP_PORT:-7100}"

# A graceful stop hands leadership over and flushes; longer than this is a fault. Used by scripts/cluster.
# shellcheck disable=SC2034
STOP_SECONDS=60

node_dir() {
    printf '%s/node%d' "$KV_HOME" "$1"
}

grpc_address() {
    printf '127.0.0.1:%d' "$((KV_BASE_PORT + $1))"
}

http_address() {
    printf '127.0.0.1:%d' "$((KV_BASE_HTTP_PORT + $1))"
}

# Numbers of all nodes that have a folder, ascending.
all_nodes() {
    local dir
    for dir in "$KV_HOME"/node*/; do
        dir="${dir%/}"
        if [[ "${dir##*/node}" =~ ^[0-9]+$ ]]; then printf '%s\n' "${dir##*/node}"; fi
    done | sort -n
}

# Prints the pid if node N runs.
node_pid() {
    local pid exe argument dir
    dir="$(node_dir "$1")"
    [[ -r "$dir/pid" ]] || return 1
    pid="$(<"$dir/pid")"
    [[ "$pid" =~ ^[0-9]+$ ]] || return 1
    exe="$(readlink "/proc/$pid/exe" 2>/dev/null)" || return 1
    exe="${exe% (deleted)}" # built anew since it was started
    [[ "${exe##*/}" == kv-node ]] || return 1
    while IFS= read -r -d '' argument; do
        if [[ "$argument" == "$dir/data" ]]; then
            printf '%s' "$pid"
            return 0
        fi
    done 2>/dev/null <"/proc/$pid/cmdline"
    return 1
}

# running, paused or stopped.
node_state() {
    local pid state
    pid="$(node_pid "$1")" || {
        printf stopped
        return
    }
    state="$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null || true)"
    if [[ "$state" == T ]]; then printf paused; else printf running; fi
}

signal_node() {
    local pid
    pid="$(node_pid "$2")" || die "node $2 is not running"
    kill "-$1" "$pid"
}

# Whether a process that is no node any more has not quite ended: it may hold its port and its folder's lock still.
is_ending() {
    local threads=("/proc/$1/task/"*)
    [[ -e "/proc/$1/task" && ! -e "/proc/$1/exe" ]] || return 1
    ((${#threads[@]} > 1)) || ! grep -q '^State:[[:space:]]*[ZX]' "/proc/$1/status" 2>/dev/null
}

# Waits until node N's process is gone; fails after the given seconds.
await_exit() {
    local pid end=$((SECONDS + $2))
    pid="$(<"$(node_dir "$1")/pid")"
    while node_pid "$1" >/dev/null || is_ending "$pid"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

port_holder() {
    command -v ss >/dev/null || return 0
    ss -Hltnp "sport = :$1" 2>/dev/null | sed -n 's/.*users:((\(.*\)))$/ by \1/p' | head -n 1
}

require_free_ports() {
    local port
    for port in $((KV_BASE_PORT + $1)) $((KV_BASE_HTTP_PORT + $1)); do
        if port_taken "$port"; then
            die "node $1: port $port is taken$(port_holder "$port"); choose others with KV_BASE_PORT and KV_BASE_HTTP_PORT"
        fi
    done
}

# Node N with the arguments it was started with the first time; `node_arguments` writes them.
launch() {
    local dir pid arguments
    dir="$(node_dir "$1")"
    require_free_ports "$1"
    mapfile -t arguments <"$dir/arguments"
    # The lock of this script must not outlive it in the node.
    setsid "$NODE_BINARY" "${arguments[@]}" >>"$dir/log" 2>&1 </dev/null 9>&- &
    pid=$!
    disown "$pid"
    printf '%d\n' "$pid" >"$dir/pid"
    # Until the shell's copy has become the node, the process is not recognised as one.
    until node_pid "$1" >/dev/null || ! kill -0 "$pid" 2>/dev/null; do
        sleep 0.01
    done
}

# Writes what node N is started with: remaining arguments say how it finds its cluster.
prepare() {
    local number="$1" dir
    shift
    dir="$(node_dir "$number")"
    mkdir -p "$dir"
    printf '%s\n' --data-dir "$dir/data" --listen "$(grpc_address "$number")" \
        --http-listen "$(http_address "$number")" "$@" >"$dir/arguments"
}

# The status code of GET http://node-N/PATH; 000 if it does not answer.
http_status() {
    local line=
    {
        exec 3<>"/dev/tcp/127.0.0.1/$((KV_BASE_HTTP_PORT + $1))" || return 0
        printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&3
        IFS= read -r -t 3 line <&3 || true
        exec 3>&-
    } 2>/dev/null
    line="${line#* }"
    printf '%s' "${line:0:3}"
}

# Why node N is not ready, as it says itself; nothing if it is ready or says nothing.
why_not_ready() {
    {
        exec 3<>"/dev/tcp/127.0.0.1/$((KV_BASE_HTTP_PORT + $1))" || return 0
        printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
        timeout 3 sed -n 's/^\[-\] [^:]*: //p' <&3 || true
        exec 3>&-
    } 2>/dev/null
}

# Waits until node N answers PATH with 200; fails with the end of its log if it died or the seconds are over. 3: it never
# will, because it was removed from the cluster.
await_http() {
    local number="$1" path="$2" end=$((SECONDS + $3))
    until [[ "$(http_status "$number" "$path")" == 200 ]]; do
        [[ "$(why_not_ready "$number")" != *"removed from the cluster"* ]] || return 3
        node_pid "$number" >/dev/null || fail_with_log "$number" "ended instead of starting"
        ((SECONDS < end)) || fail_with_log "$number" "did not answer $path with 200 within $3 s"
        sleep 0.1
    done
}

fail_with_log() {
    note "last lines of $(node_dir "$1")/log:"
    tail -n 15 "$(node_dir "$1")/log" >&2 || true
    die "node $1 $2"
}
