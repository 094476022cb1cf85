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

echo "== answers of a teacher"
for question in "What is the capital of France?" "Name three colours."; do
    printf '{"prompt": "%s"}\n' "$question"
done >"$folder/questions.jsonl"
"$wardrobe" distill --teacher "mistralrs:$model" --in "$folder/questions.jsonl" --out "$folder/answers.jsonl" \
    --max-tokens 40 --keep-cut
cat "$folder/answers.jsonl"
python3 - "$folder/answers.jsonl" <<'PYTHON'
import json, sys

chats = [json.loads(line)["messages"] for line in open(sys.argv[1])]
assert len(chats) == 2 and all(chat[-1]["role"] == "assistant" and chat[-1]["content"] for chat in chats)
PYTHON

echo "== an evaluation"
echo '{"prompt": "The capital of France is", "completion": "Paris."}' >"$folder/capital.jsonl"
"$wardrobe" eval --model "mistralrs:$model" --task exact-match --data "$folder/capital.jsonl" --raw --max-tokens 2 \
    --report "$folder/report.json"
python3 -c 'import json, sys; assert json.load(open(sys.argv[1]))["results"][0]["metrics"][0]["value"] == 1' "$folder/report.json"

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
