#!/usr/bin/env bash
# Runs real clients, unmodified, against a running server, and fails at the first that is not content.
#
#   run.sh URL MODEL [ADAPTER]      e.g. run.sh http://127.0.0.1:8000 smollm2-135m
#
# URL is without /v1. Environment:
#   WARDROBE_API_KEY       key of the server, if it asks for one
#   OVERLOAD_URL           a second server that takes one request at a time, for the clients' retries after a 429
#   WARDROBE_CLIENTS       which clients to run (default: all), e.g. "openai_python lm_eval"
#   WARDROBE_CLIENTS_CACHE where the clients are installed (default: ~/.cache/wardrobe-clients)
#   PYTHON                 the interpreter (default: python3.11, else python3)
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    sed -n '2,12p' "$0" >&2
    exit 2
fi
export BASE_URL=${1%/} MODEL=$2 ADAPTER=${3:-}
export OPENAI_API_KEY=${WARDROBE_API_KEY:-none} OVERLOAD_URL=${OVERLOAD_URL:-}
export no_proxy=127.0.0.1,localhost NO_PROXY=127.0.0.1,localhost
clients=${WARDROBE_CLIENTS:-openai_python openai_node async_openai instructor langchain_openai lm_eval}
# Against a server with a job folder: add these. TRAINING_FILE names a file to train on (default: a few made-up records),
# LONG_EPOCHS makes a job that lasts until it is cancelled, SIMULATED=1 says that the trainer computes nothing.
#   WARDROBE_CLIENTS="openai_fine_tuning together_fine_tuning together_2023 openai_batches"
here=$(cd "$(dirname "$0")" && pwd)
cache=${WARDROBE_CLIENTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wardrobe-clients}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
mkdir -p "$cache"
[ -n "$OVERLOAD_URL" ] || echo "SKIPPED: retries after a 429 (OVERLOAD_URL is not set)"

# venv NAME: installs NAME/requirements.txt, once for each content of it.
venv() {
    local folder stamp
    folder=$cache/$1
    stamp=$folder/.installed
    if ! cmp -s "$here/$1/requirements.txt" "$stamp"; then
        rm -rf "$folder"
        "$python" -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$here/$1/requirements.txt"
        cp "$here/$1/requirements.txt" "$stamp"
    fi
}

openai_python() {
    venv openai_python
    "$cache/openai_python/bin/python" "$here/openai_python/check.py"
}

openai_node() {
    local folder=$cache/openai_node
    if ! cmp -s "$here/openai_node/package.json" "$folder/package.json"; then
        rm -rf "$folder"
        mkdir -p "$folder"
        cp "$here/openai_node/package.json" "$folder/package.json"
        (cd "$folder" && npm install --silent --no-audit --no-fund)
    fi
    cp "$here/openai_node/check.mjs" "$folder/check.mjs"
    node "$folder/check.mjs"
}

async_openai() {
    CARGO_TARGET_DIR=$cache/async-openai cargo run --quiet --manifest-path "$here/async-openai/Cargo.toml"
}

openai_fine_tuning() {
    venv openai_fine_tuning
    "$cache/openai_fine_tuning/bin/python" "$here/openai_fine_tuning/check.py"
}

# With the same client.
openai_batches() {
    venv openai_fine_tuning
    "$cache/openai_fine_tuning/bin/python" "$here/openai_batches/check.py"
}

together_fine_tuning() {
    venv together_fine_tuning
    "$cache/together_fine_tuning/bin/python" "$here/together_fine_tuning/check.py"
}

together_2023() {
    venv together_2023
    "$cache/together_2023/bin/python" "$here/together_2023/check.py"
}

instructor() {
    venv instructor
    "$cache/instructor/bin/python" "$here/instructor/check.py"
}

langchain_openai() {
    venv langchain_openai
    "$cache/langchain_openai/bin/python" "$here/langchain_openai/check.py"
}

lm_eval() {
    venv lm_eval
    "$cache/lm_eval/bin/python" "$here/lm_eval/check.py"
}

for client in $clients; do
    echo "== $client"
    "$client"
done
echo "all clients are content: $clients"
