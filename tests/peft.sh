#!/usr/bin/env bash
# Holds adapters and gradients against Hugging Face's peft, which it installs (PyTorch with it: some 6 GB).
#
#   tests/peft.sh MODEL.gguf [ADAPTER ...]
#
# ADAPTERs are folders that Wardrobe wrote. What is compared: peft_train_parity.py. WARDROBE_PEFT_CACHE says where peft is
# installed (default: ~/.cache/wardrobe-peft).
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,7p' "$0" >&2
    exit 2
fi
model=$(realpath "$1")
shift
adapters=()
for adapter in "$@"; do adapters+=("$(realpath "$adapter")"); done
cd "$(dirname "$0")/.."
venv=${WARDROBE_PEFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wardrobe-peft}
if ! [ -e "$venv/.installed" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check torch transformers peft tokenizers gguf safetensors
    touch "$venv/.installed"
fi
cargo build --release --locked --bin wardrobe --example train_gradients
parity="$venv/bin/python tests/peft_train_parity.py"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

echo "log-probabilities of adapters, worst difference:"
$parity compare target/release/wardrobe "$model" ${adapters[@]+"${adapters[@]}"}

$parity make "$model" "$folder"
python3 -c 'import json, random; random.seed(1); print(json.dumps([[random.randrange(32000) for _ in range(n)] for n in (7, 90, 33)]))' \
    >"$folder/ids.json"
failed=0
for kind in uniform rslora attention dora; do
    echo "gradients of $kind, relative to peft's in f64:"
    $parity gradients --f64 "$model" "$folder/$kind" "$folder/ids.json" "$folder/exact"
    $parity gradients "$model" "$folder/$kind" "$folder/ids.json" "$folder/theirs"
    target/release/examples/train_gradients "$model" "$folder/$kind" "$folder/ids.json" "$folder/ours"
    echo "peft in f32:"
    $parity compare-gradients "$folder/exact" "$folder/theirs" || true
    echo "Wardrobe:"
    $parity compare-gradients "$folder/exact" "$folder/ours" || failed=1
done
exit $failed
