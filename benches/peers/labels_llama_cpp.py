"""Labels a second of llama.cpp, held to the same JSON schema, one at a time: beside labels.py's first lines.

    python benches/peers/labels_llama_cpp.py MODEL.gguf [NUM]

with llama-cpp-python (run.sh builds it). Prompts are those of labels.py, and no cache has them.
"""

import json
import pathlib
import sys
import time

from llama_cpp import Llama

ROOT = pathlib.Path(__file__).resolve().parents[2] / "datasets" / "biographies"
ITEMS = [json.loads(line) for line in (ROOT / "test.jsonl").read_text().splitlines()]
SCHEMA = json.loads((ROOT / "schema.json").read_text())


def main():
    model, num = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 24
    llama = Llama(model, n_ctx=2048, n_threads=2, n_threads_batch=2, verbose=False)
    for name, options in (
        ("free", {}),
        ("held", {"response_format": {"type": "json_object", "schema": SCHEMA}}),
    ):
        tokens, valid, started = 0, 0, time.monotonic()
        for item in ITEMS[:num]:
            llama.reset()
            messages = [{"role": "user", "content": item["prompt"]}]
            answer = llama.create_chat_completion(messages, temperature=0, max_tokens=80, **options)
            tokens += answer["usage"]["completion_tokens"]
            try:
                valid += list(json.loads(answer["choices"][0]["message"]["content"])) == list(SCHEMA["properties"])
            except (ValueError, TypeError):
                pass
        took = time.monotonic() - started
        print(f"llama.cpp, {name}: {num / took:.2f}/s, {tokens / num:.1f} tokens, {valid} of {num} records")


main()
