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
# Without pip's cache, which may hold a build for another machine.
install() {
    CMAKE_ARGS="$1" "$python" -m pip install --quiet --no-cache-dir --force-reinstall \
        --no-binary llama-cpp-python llama-cpp-python==0.3.36
}
if [ ! -x "$python" ]; then
    python3 -m venv "$work/venv"
    install "-DGGML_NATIVE=ON"
    if ! "$python" benches/peers/llama_cpp_bench.py "$model" --prefills 1 --steps 1 >/dev/null 2>&1; then
        echo "llama.cpp's native build does not run here (version 0.3.36 dies of an illegal instruction in its AMX" >&2
        echo "kernels): building it again with everything but AMX" >&2
        without_amx="-DGGML_NATIVE=OFF"
        for feature in AVX AVX2 FMA F16C BMI2 AVX_VNNI AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16; do
            without_amx="$without_amx -DGGML_$feature=ON"
        done
        install "$without_amx"
    fi
fi

exec "$python" benches/peers/compare.py --wardrobe "$target/release/wardrobe" --rounds "$rounds" \
    --json "$work/results.json" "as given=$model" "q4_0=$work/q4_0.gguf" "q8_0=$work/q8_0.gguf"
