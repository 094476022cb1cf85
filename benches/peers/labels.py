"""Labels a second over HTTP: held to a schema beside the same question free, alone and at once, one schema and many.

    python3 benches/peers/labels.py URL MODEL [ADAPTER]

asks for records of datasets/biographies, greedily. Every measurement has prompts that no cache has; `warm` asks for the same
prompts once more. Say MODEL's adapter as ADAPTER where one is to answer. Standard library only.
"""

import concurrent.futures
import json
import pathlib
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2] / "datasets" / "biographies"
ITEMS = [json.loads(line) for line in (ROOT / "test.jsonl").read_text().splitlines()]
SCHEMA = json.loads((ROOT / "schema.json").read_text())
# As long as the record itself, so that an answer which is free ends where the held one does.
MAX_TOKENS = 80


def ask(url, model, item, salt, schema):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": item["prompt"]}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "cache_salt": salt,
    }
    if schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "record", "strict": True, "schema": schema}}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    answer = json.load(urllib.request.urlopen(request))
    return answer["choices"][0]["message"]["content"], answer["usage"]


def run(url, model, items, salt, schema_of, concurrency):
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        jobs = [pool.submit(ask, url, model, item, salt, schema_of(idx)) for idx, item in enumerate(items)]
        answers = [job.result() for job in jobs]
    return len(items) / (time.monotonic() - started), answers


def schema_number(idx):
    """The schema with a bound that no answer meets: another one to the compiler, the same text from the model."""
    schema = json.loads(json.dumps(SCHEMA))
    schema["properties"]["nationality"]["maxLength"] += 1 + idx
    return schema


def fields_right(items, answers):
    right = total = 0
    for item, (text, _) in zip(items, answers):
        gold = json.loads(item["completion"])
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        found = found if isinstance(found, dict) else {}
        right += sum(found.get(key) == value for key, value in gold.items())
        total += len(gold)
    return right / total


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    url, model = sys.argv[1].rstrip("/"), sys.argv[-1]
    free, held = (lambda _: None), (lambda _: SCHEMA)
    # What is made at the first request is not measured.
    run(url, model, ITEMS[:2], "first", held, 1)
    run(url, model, ITEMS[:2], "first", free, 1)
    for concurrency, num in ((1, 24), (32, 128)):
        items = ITEMS[:num]
        for round_ in range(2):
            salt = f"{concurrency}-{round_}-{time.time()}"
            rates = {}
            for name, schema_of in (("free", free), ("held", held)):
                rates[name], answers = run(url, model, items, f"{salt}-{name}", schema_of, concurrency)
                rates[f"{name} warm"], again = run(url, model, items, f"{salt}-{name}", schema_of, concurrency)
                assert [text for text, _ in answers] == [text for text, _ in again], "the cache changes answers"
                tokens = sum(usage["completion_tokens"] for _, usage in answers) / num
                print(f"{concurrency:3} at once, {name}: {rates[name]:6.2f}/s, warm {rates[f'{name} warm']:6.2f}/s, "
                      f"{tokens:.1f} tokens, fields right {fields_right(items, answers):.3f}")
                if name == "free":
                    before = answers
            same = sum(a == b for (a, _), (b, _) in zip(before, answers))
            print(f"    held / free: {rates['held'] / rates['free']:.2f} x, warm {rates['held warm'] / rates['free warm']:.2f} x;"
                  f" the same text in {same} of {num}")
    items = ITEMS[:64]
    for round_ in range(2):
        one, first = run(url, model, items, f"one-{round_}-{time.time()}", held, 32)
        number = lambda idx: schema_number(idx + 64 * round_)
        many, second = run(url, model, items, f"many-{round_}-{time.time()}", number, 32)
        known, _ = run(url, model, items, f"known-{round_}-{time.time()}", number, 32)
        same = sum(a == b for (a, _), (b, _) in zip(first, second))
        print(f"64 schemas at once: {many:.2f}/s new, {known:.2f}/s known, one schema {one:.2f}/s: "
              f"{many / one:.2f} x, {known / one:.2f} x; the same text in {same} of 64")


main()
