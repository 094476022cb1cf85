#!/usr/bin/env python3
"""How far llama.cpp's log-probabilities are from the f32 reference, beside ours, on the same texts and the same file.

    WARDROBE_SMOLLM2=model.gguf WARDROBE_PARITY_JSON=/tmp/parity.json \
        cargo test --test parity -- --ignored write_reference
    python3 tests/llama_cpp_parity.py /tmp/parity.json      # needs the packages llama-cpp-python and numpy

Prints one line each and exits with 1 if ours is further from the reference, in mean difference, than llama.cpp's.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama


def log_softmax(row):
    row = row.astype(np.float64)
    row -= row.max()
    return row - np.log(np.exp(row).sum())


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        reference = json.load(file)
    longest = max(len(text["token_ids"]) for text in reference["texts"])
    model = Llama(reference["model"], n_ctx=max(512, longest), n_batch=512, logits_all=True, verbose=False)
    differences, agreements = [], []
    for text in reference["texts"]:
        tokens = text["token_ids"]
        model.reset()
        model.eval(tokens)
        for position in range(len(tokens) - 1):
            row = np.array(model.scores[position])
            wanted = text["logprobs"][position]
            differences.append(abs(log_softmax(row)[tokens[position + 1]] - wanted))
            agreements.append(int(row.argmax()) == text["argmax"][position])
    theirs = {"mean": np.mean(differences), "max": np.max(differences), "top1": np.mean(agreements)}
    ours = reference["wardrobe"]
    print(f"{len(differences)} tokens")
    for name, result in [("llama.cpp", theirs), ("wardrobe", ours)]:
        print(f"{name:10} mean {result['mean']:.4f}  max {result['max']:.4f}  top-1 {100 * result['top1']:.2f} %")
    return 0 if ours["mean"] <= theirs["mean"] else 1


if __name__ == "__main__":
    sys.exit(main())
