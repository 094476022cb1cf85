#!/usr/bin/env bash
# Repetition: a small model learns to give back the last n words of a long text.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

step "documents, apart by what they are for"
speeches
missing documents.jsonl && wardrobe data select speeches/data --tokens "$TOKENS-" --model "$MODEL" --distinct -o documents.jsonl
missing documents.test.jsonl && wardrobe data split documents.jsonl --test-fraction 0.2 --seed 1

step "items"
missing train.jsonl && wardrobe data repetition documents.train.jsonl --model "$MODEL" --tokens "$TRAIN_TOKENS" \
    --n "$N" --per-document 100 --take "$TRAIN_ITEMS" --draw --seed 1 -o train.jsonl
missing test.jsonl && wardrobe data repetition documents.test.jsonl --model "$MODEL" --tokens "$TOKENS" \
    --n "$N" --per-document 20 --take "$TEST_ITEMS" --draw --seed 2 -o test.jsonl

step "training"
missing adapter && wardrobe train "$MODEL" train.jsonl --output adapter --epochs "$EPOCHS" --batch-size "$BATCH" \
    --learning-rate "$LEARNING_RATE" --seed 1

step "base beside adapter"
wardrobe eval "$MODEL" --adapter tuned=adapter --task repetition --data test.jsonl --max-tokens 200 \
    --report report.html --report report.json
