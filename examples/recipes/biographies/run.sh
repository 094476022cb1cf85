#!/usr/bin/env bash
# Biographies: a small model learns to find one person's facts in a long text, wherever they stand.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

step "biographies, apart by what they are for"
biographies
missing bios.test.jsonl && wardrobe data split bios.jsonl --text-column text --test-size "$TEST_PEOPLE" --seed 1

step "haystacks"
missing train.jsonl && wardrobe data haystack bios.train.jsonl --model "$MODEL" --lengths "$TRAIN_LENGTHS" \
    --per-cell "$TRAIN_PER_CELL" --unknown-share 0.1 --seed 1 -o train.jsonl
missing test.jsonl && wardrobe data haystack bios.test.jsonl --model "$MODEL" --lengths "$TEST_LENGTHS" \
    --per-cell "$TEST_PER_CELL" --unknown-share 0.1 --seed 2 -o test.jsonl

step "training"
missing adapter && wardrobe train "$MODEL" train.jsonl --output adapter --epochs "$EPOCHS" --batch-size "$BATCH" \
    --learning-rate "$LEARNING_RATE" --seed 1

step "base beside adapter, free and held to the schema, by length and depth"
wardrobe eval "$MODEL" --adapter tuned=adapter --task needle --data test.jsonl --train-data train.jsonl \
    --schema test.schema.json --max-tokens 80 --report report.html --report report.json
