#!/usr/bin/env bash
# Filter: questions from conversations, answers from a teacher, what is too long left out, a small model tuned on the rest.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

step "the human's questions"
missing questions.jsonl && wardrobe data turns "${CONVERSATIONS:-$recipe/conversations.jsonl}" --turns 1-6 --chars 10-4000 -o questions.jsonl

step "the teacher's answers, each kept as it comes"
wardrobe distill --teacher "$TEACHER" --in questions.jsonl --out answers.jsonl --max-tokens "$MAX_TOKENS" --keep-cut

step "what fits"
missing answers.filtered.jsonl && wardrobe data filter answers.jsonl --model "$MODEL" --max-context "$CONTEXT" --safety-buffer 500
wardrobe data stats answers.filtered.jsonl --model "$MODEL"
missing answers.filtered.test.jsonl && wardrobe data split answers.filtered.jsonl --test-fraction 0.2 --seed 1

step "training"
missing adapter && wardrobe train "$MODEL" answers.filtered.train.jsonl --output adapter --epochs "$EPOCHS" \
    --batch-size "$BATCH" --learning-rate "$LEARNING_RATE" --seed 1

step "base beside adapter, against the teacher's answers"
wardrobe eval "$MODEL" --adapter tuned=adapter --task rouge --data answers.filtered.test.jsonl --max-tokens "$MAX_TOKENS" \
    --report report.html --report report.json
