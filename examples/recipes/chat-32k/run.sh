#!/usr/bin/env bash
# A longer context: positions are interpolated, and a short training makes the model at home in them.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

step "long texts"
speeches
missing documents.jsonl && wardrobe data select speeches/data --tokens "$CONTEXT-" --model "$MODEL" --distinct -o documents.jsonl
missing documents.test.jsonl && wardrobe data split documents.jsonl --text-column text --test-size "$TEST_TEXTS" --seed 1

step "training at $CONTEXT tokens"
missing adapter && wardrobe train "$MODEL" documents.train.jsonl --text-column text --loss everything \
    --max-context "$CONTEXT" --truncation right --context "$CONTEXT" --context-extension linear \
    --max-steps "$STEPS" --batch-size "$BATCH" --learning-rate "$LEARNING_RATE" --seed 1 --output adapter

step "perplexity by context length, base beside adapter"
wardrobe eval "$MODEL" --adapter long=adapter --task perplexity --contexts "$CONTEXTS" --data documents.test.jsonl \
    --max-context "$CONTEXT" --limit "$TEST_TEXTS" --report report.html --report report.json
