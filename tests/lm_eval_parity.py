#!/usr/bin/env python3
"""`wardrobe eval --task choices` beside EleutherAI's lm-evaluation-harness, on the same questions and the same model.

    python3 tests/lm_eval_parity.py target/release/wardrobe model.gguf    # needs the package lm_eval[api]

Makes questions in ARC's shape, serves the model, and lets the harness ask it over /v1/completions (its model
`local-completions`, with the endpoint's tokenizer); then wardrobe asks its engine. Exits with 1 unless every log-probability
agrees to 2e-3 and every acc, acc_norm and acc_bytes is the same.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

import lm_eval
from lm_eval.tasks import TaskManager

TASK = """
task: wardrobe_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""
FACTS = [
    ("the capital of {}", {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Egypt": "Cairo", "Kenya": "Nairobi"}),
    ("the opposite of {}", {"hot": "cold", "early": "late", "noisy": "quiet", "to arrive": "to go away again"}),
    ("the colour of {}", {"snow": "white", "grass": "green", "a ripe lemon": "yellow", "coal": "black as can be"}),
    ("made by {}", {"bees": "honey", "bakers": "bread and pastry", "Café owners": "crème brûlée", "hens": "eggs"}),
]


def questions():
    draw = random.Random(1)
    for ask, facts in FACTS:
        others = [answer for _, all_facts in FACTS for answer in all_facts.values()]
        for what, right in facts.items():
            for num in (2, 4):
                wrong = draw.sample([answer for answer in others if answer != right], num - 1)
                texts = draw.sample([right, *wrong], num)
                labels = [chr(ord("A") + at) for at in range(num)]
                yield {
                    "id": f"{what} {num}",
                    "question": f"What is {ask.format(what)}?",
                    "choices": {"text": texts, "label": labels},
                    "answerKey": labels[texts.index(right)],
                }


def by_the_harness(folder, data, wardrobe, model):
    with open(os.path.join(folder, "task.yaml"), "w", encoding="utf-8") as file:
        file.write(TASK.format(data=data))
    server = subprocess.Popen([wardrobe, "serve", model, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        base = next(line for line in server.stdout if line.startswith("listening on ")).split()[-1]
        arguments = {"model": "default", "base_url": f"{base}/v1/completions", "num_concurrent": 4, "max_length": 2048}
        listed = subprocess.run(["curl", "-s", f"{base}/v1/models"], capture_output=True, check=True).stdout
        arguments["model"] = json.loads(listed)["data"][0]["id"]
        manager = TaskManager(include_path=folder, include_defaults=False)
        results = lm_eval.simple_evaluate(
            "local-completions", model_args=arguments, tasks=["wardrobe_choices"], task_manager=manager, log_samples=True
        )
    finally:
        server.terminate()
        server.wait()
    samples = sorted(results["samples"]["wardrobe_choices"], key=lambda sample: sample["doc_id"])
    likelihoods = [[float(response[0]) for response in sample["filtered_resps"]] for sample in samples]
    return likelihoods, [[sample[name] for name in ("acc", "acc_norm", "acc_bytes")] for sample in samples]


def by_wardrobe(folder, data, wardrobe, model):
    report = os.path.join(folder, "report.json")
    command = [wardrobe, "eval", model, "--task", "choices", "--no-bos", "--data", data, "--report", report]
    subprocess.run(command, check=True)
    with open(report, encoding="utf-8") as file:
        outcomes = json.load(file)["results"][0]["outcomes"]
    answers = [outcome["answered"] for outcome in outcomes]
    return [answer["likelihoods"] for answer in answers], [[value for _, value in answer["score"]] for answer in answers]


def main():
    wardrobe, model = (os.path.abspath(path) for path in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "questions.jsonl")
        items = list(questions())
        with open(data, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(item) + "\n" for item in items)
        theirs, their_scores = by_the_harness(folder, data, wardrobe, model)
        ours, our_scores = by_wardrobe(folder, data, wardrobe, model)
    assert len(theirs) == len(ours) == len(items), (len(theirs), len(ours), len(items))
    pairs = [(a, b) for left, right in zip(theirs, ours, strict=True) for a, b in zip(left, right, strict=True)]
    furthest = max(abs(a - b) for a, b in pairs)
    different = sum(a != b for a, b in zip(their_scores, our_scores, strict=True))
    means = [sum(column) / len(items) for column in zip(*our_scores, strict=True)]
    print(f"{len(items)} questions, {len(pairs)} choices, furthest {furthest:.2e}, {different} scored differently")
    print("acc {:.4f}, acc_norm {:.4f}, acc_bytes {:.4f}".format(*means))
    sys.exit(1 if different or furthest > 2e-3 else 0)


if __name__ == "__main__":
    main()
