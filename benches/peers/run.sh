#!/bin/sh
# Wardrobe beside llama.cpp, on the same weights in three formats, in turns.
#
#   benches/peers/run.sh MODEL.gguf [ROUNDS]
#
# Makes a Python environment with llama-cpp-python (built natively: needs cmake and a C++ compiler, as llama.cpp does) in
# target/peers, writes the weights as Q4_0 and Q8_0, measures, and prints one table. PEERS_PYTHON takes an environment
# that is there already.
set -eu

model=$(realpath "${1:?usage: benches/peers/run.sh MODEL.gguf [ROUNDS]}")
rounds=${2:-3}
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
work=$target/peers
mkdir -p "$work"

cargo build --release --quiet --bin wardrobe --example requantize
for format in q4_0 q8_0; do
    [ -e "$work/$format.gguf" ] || "$target/release/examples/requantize" "$model" "$work/$format.gguf" "$format"
done

python=${PEERS_PYTHON:-$work/venv/bin/python}
if [ ! -x "$python" ]; then
    python3 -m venv "$work/venv"
    # Without pip's cache, which may hold a build for another machine.
    CMAKE_ARGS="-DGGML_NATIVE=ON" "$python" -m pip install --quiet --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36
fi

exec "$python" benches/peers/compare.py --wardrobe "$target/release/wardrobe" --rounds "$rounds" \
    --json "$work/results.json" "as given=$model" "q4_0=$work/q4_0.gguf" "q8_0=$work/q8_0.gguf"
