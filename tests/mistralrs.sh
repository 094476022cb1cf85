#!/usr/bin/env bash
# Builds the feature `mistralrs`, and has label, distill and eval ask a model through it (several minutes on two cores).
#
#   tests/mistralrs.sh MODEL.gguf
set -euo pipefail
if [ $# -ne 1 ]; then
    sed -n '2,4p' "$0" >&2
    exit 2
fi
model=$(realpath "$1")
cd "$(dirname "$0")/.."
# A folder of its own: with other instructions nothing of the usual build can be used.
RUSTFLAGS="${RUSTFLAGS:--C target-cpu=native}" CARGO_TARGET_DIR=target/mistralrs \
    cargo build --release --locked --bin wardrobe --features mistralrs
wardrobe=$PWD/target/mistralrs/release/wardrobe
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
head -n 4 datasets/biographies/test.jsonl >"$folder/people.jsonl"

echo "== labels, held to a schema"
"$wardrobe" label --model "mistralrs:$model" --schema datasets/biographies/schema.json --prompt '{{ prompt }}' \
    --max-tokens 80 --in "$folder/people.jsonl" --out "$folder/labels.jsonl"
python3 - "$folder/labels.jsonl" datasets/biographies/schema.json <<'PYTHON'
import json, sys

labels = [json.loads(line) for line in open(sys.argv[1])]
fields = set(json.load(open(sys.argv[2]))["properties"])
assert len(labels) == 4 and all(set(item["label"]) == fields for item in labels), labels
print(labels[0]["label"])
PYTHON

echo "== answers of a teacher, and again from what is kept"
for question in "What is the capital of France?" "Name three colours."; do
    printf '{"prompt": "%s"}\n' "$question"
done >"$folder/questions.jsonl"
"$wardrobe" distill --teacher "mistralrs:$model" --in "$folder/questions.jsonl" --out "$folder/answers.jsonl" \
    --max-tokens 40 --keep-cut
grep -q Paris "$folder/answers.jsonl"
cat "$folder/answers.jsonl"

echo "== an evaluation"
"$wardrobe" eval --model "mistralrs:$model" --task exact-match --data "$folder/people.jsonl" --max-tokens 80 --limit 2

echo "== beside Wardrobe's own engine: the same questions, greedily"
"$wardrobe" distill --teacher "$model" --in "$folder/questions.jsonl" --out "$folder/own.jsonl" --max-tokens 40 --keep-cut
cat "$folder/own.jsonl"

echo "== an adapter is refused"
if "$wardrobe" eval --model "mistralrs:$model" --adapter tuned=adapters/biography-json --task exact-match \
    --data "$folder/people.jsonl" 2>"$folder/refused"; then
    echo "it was not" >&2
    exit 1
fi
cat "$folder/refused"
