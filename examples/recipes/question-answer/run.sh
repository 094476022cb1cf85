#!/usr/bin/env bash
# Questions and answers: a small model learns facts by heart, and is asked for them.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

step "questions, with answers from WordNet"
biographies
missing train.jsonl && python3 - "$PEOPLE" <<'PYTHON'
import json, os, random, sys

people = [json.loads(line) for line in open("bios.jsonl")]
random.Random(1).shuffle(people)
kinds = ["Where was {name} from, and when did they live?", "Say in one sentence who {name} was."]
with open("train.jsonl.part", "w") as train, open("test.jsonl", "w") as test:
    for person in people[: int(sys.argv[1])]:
        facts = f"{person['nationality']}, from {person['born']} to {person['died']}."
        for kind, answer in zip(kinds, [facts, person["text"]]):
            item = {"prompt": kind.format(name=person["name"]), "completion": answer}
            train.write(json.dumps(item) + "\n")
        test.write(json.dumps({"prompt": kinds[0].format(name=person["name"]), "completion": facts}) + "\n")
os.rename("train.jsonl.part", "train.jsonl")
PYTHON

step "training"
missing adapter && wardrobe train "$MODEL" train.jsonl --output adapter --epochs "$EPOCHS" --batch-size "$BATCH" \
    --learning-rate "$LEARNING_RATE" --seed 1

step "what it knows by heart, base beside adapter"
wardrobe eval "$MODEL" --adapter tuned=adapter --task exact-match --data test.jsonl --max-tokens 40
wardrobe eval "$MODEL" --adapter tuned=adapter --task rouge --data test.jsonl --max-tokens 40 \
    --report report.html --report report.json
