#!/usr/bin/env bash
# Runs all clients against the example server of crates/server, whose model computes nothing: `run_fake.sh [PORT]`.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
port=${1:-8123}
work=$(mktemp -d)
servers=()
cleanup() {
    for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
mkdir -p "$work/adapters/letters"
echo m > "$work/adapters/letters/letter"
# With the features that the whole workspace asks for, as the tests have built it.
cargo build --quiet --manifest-path "$here/../../Cargo.toml" --workspace --example fake
target=${CARGO_TARGET_DIR:-$here/../../target}

# serve PORT MAX_CONCURRENT
serve() {
    "$target/debug/examples/fake" "127.0.0.1:$1" "$work/adapters" "$2" "$work/jobs-$1" > "$work/log-$1" 2>&1 &
    servers+=($!)
    for _ in $(seq 100); do
        (exec 3<> "/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        sleep 0.1
    done
    cat "$work/log-$1" >&2
    return 1
}

export WARDROBE_API_KEY=key-of-run-fake SIMULATED=1
all="openai_python openai_node async_openai instructor langchain_openai lm_eval openai_fine_tuning together_fine_tuning together_2023 openai_batches"
export WARDROBE_CLIENTS=${WARDROBE_CLIENTS:-$all}
serve "$port" 1024
serve $((port + 1)) 1
OVERLOAD_URL=http://127.0.0.1:$((port + 1)) "$here/run.sh" "http://127.0.0.1:$port" fake letters
