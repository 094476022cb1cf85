"""lm-eval's local-completions, with the server's own tokenizer, on two small local tasks."""

import json
import os
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def main():
    import requests
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    key = os.environ["OPENAI_API_KEY"]
    token = f",auth_token={key}" if key != "none" else ""
    with tempfile.TemporaryDirectory() as folder:
        for path in (*HERE.glob("*.yaml"), *HERE.glob("*.jsonl")):
            shutil.copy(path, folder)
        os.environ["HF_HOME"] = folder
        os.chdir(folder)
        results = simple_evaluate(
            model="local-completions",
            model_args=f"model={MODEL},base_url={BASE_URL}/v1/completions,num_concurrent=2,max_length=512{token}",
            tasks=["alphabet_choice", "alphabet_generate"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            batch_size=4,
            bootstrap_iters=0,
            log_samples=True,
        )
    rows = (HERE / "alphabet.jsonl").read_text().splitlines()
    choice, generate = (results["samples"][name] for name in ("alphabet_choice", "alphabet_generate"))
    assert len(choice) == len(generate) == len(rows), results["results"]
    accuracy = results["results"]["alphabet_choice"]["acc,none"]
    print(f"accuracy {accuracy}, exact match {results['results']['alphabet_generate']['exact_match,none']}")
    assert accuracy >= 0.75, "continuing the alphabet is likelier than noise"
    for sample in generate:
        assert isinstance(sample["resps"][0][0], str) and "\n" not in sample["resps"][0][0], sample
    assert any(sample["resps"][0][0] for sample in generate)

    # What it computed is what the server says about the same tokens.
    headers = {"Authorization": f"Bearer {key}"}
    for row, sample in zip(map(json.loads, rows), sorted(choice, key=lambda sample: sample["doc_id"])):
        for text, response in zip(row["choices"], sample["resps"]):
            tokens = [
                requests.post(f"{BASE_URL}/tokenize", json={"prompt": p, "add_special_tokens": False}, headers=headers)
                for p in (row["start"] + text, row["start"])
            ]
            whole, context = (answer.json()["tokens"] for answer in tokens)
            # Both halves are tokenized apart from what merges across their border, as lm-eval does.
            body = {"model": MODEL, "prompt": [context + whole[len(context):]], "max_tokens": 0, "logprobs": 0, "echo": True}
            answer = requests.post(f"{BASE_URL}/v1/completions", json=body, headers=headers).json()
            expected = sum(answer["choices"][0]["logprobs"]["token_logprobs"][len(context):])
            assert abs(float(response[0][0]) - expected) < 1e-4, (response, expected)


if __name__ == "__main__":
    sys.exit(main())
