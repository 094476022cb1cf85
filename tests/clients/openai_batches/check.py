"""The openai package for Python runs batches: upload, create, poll, read both files, list, cancel; refused inputs."""

import json
import os
import sys
import time

import openai
from openai.types import Batch

BASE_URL, MODEL, ADAPTER = os.environ["BASE_URL"], os.environ["MODEL"], os.environ["ADAPTER"]
# Requests of a batch long enough to be cancelled in the middle.
LONG_BATCH = int(os.environ.get("LONG_BATCH", "400"))
PATIENCE_S = float(os.environ.get("PATIENCE_S", "600"))
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", max_retries=0, timeout=120)


def strict(value):
    """The client builds its types without looking; this looks."""
    Batch.model_validate(value.model_dump(), strict=True)
    return value


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def chat(**options):
    messages = [{"role": "user", "content": "Name a colour."}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8} | options


def lines(bodies, url=CHAT):
    """The input for these bodies, by their names."""
    rows = ({"custom_id": name, "method": "POST", "url": url, "body": body} for name, body in bodies.items())
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def create(content, endpoint=CHAT, **options):
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)
    return strict(batch)


def wait(batch, *statuses):
    end = time.monotonic() + PATIENCE_S
    while batch.status not in (statuses or ("completed", "failed", "cancelled", "expired")):
        assert time.monotonic() < end, batch
        time.sleep(0.1)
        batch = strict(client.batches.retrieve(batch.id))
    return batch


def read(file_id):
    """The lines of a file, by the names of their requests."""
    if file_id is None:
        return {}
    rows = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def check_batch():
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
              "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": schema}}
    bodies = {f"plain-{idx}": chat(seed=idx) for idx in range(12)}
    bodies |= {"schema": chat(response_format=form, max_tokens=32), "hot": chat(temperature=-1)}
    if ADAPTER:
        bodies["adapter"] = chat(model=ADAPTER)
    batch = create(lines(bodies), metadata={"for": "a test"})
    assert batch.object == "batch" and batch.endpoint == CHAT and batch.completion_window == "24h"
    assert batch.id.startswith("batch_") and batch.metadata == {"for": "a test"}
    assert batch.expires_at - batch.created_at == 86400
    batch = wait(batch)
    assert batch.status == "completed" and batch.errors is None, batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (len(bodies), len(bodies) - 1, 1), batch
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    answers, errors = read(batch.output_file_id), read(batch.error_file_id)
    assert set(answers) == set(bodies) - {"hot"} and set(errors) == {"hot"}
    used = 0
    for name, row in answers.items():
        assert row["id"].startswith("batch_req_") and row["error"] is None, row
        assert row["response"]["status_code"] == 200 and row["response"]["request_id"], row
        completion = openai.types.chat.ChatCompletion.model_validate(row["response"]["body"])
        used += completion.usage.total_tokens
        assert completion.model == bodies[name]["model"]
        if name in ("plain-0", "adapter"):
            # As it is over HTTP.
            direct = client.chat.completions.create(**bodies[name])
            assert direct.choices[0].message.content == completion.choices[0].message.content
    colour = json.loads(answers["schema"]["response"]["body"]["choices"][0]["message"]["content"])
    assert colour["colour"] in ("red", "blue")
    assert batch.usage.total_tokens == used and batch.usage.output_tokens_details.reasoning_tokens == 0
    assert errors["hot"]["response"]["status_code"] == 400
    assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature", errors
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output" and output.filename == f"{batch.id}_output.jsonl", output
    ended = refused(openai.BadRequestError, lambda: client.batches.cancel(batch.id))
    assert ended.code == "job_ended", ended.body
    for file in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
        assert client.files.delete(file).deleted


def check_completions():
    bodies = {name: {"model": MODEL, "prompt": name, "max_tokens": 3} for name in "abc"}
    batch = wait(create(lines(bodies, TEXT), TEXT))
    assert batch.status == "completed" and batch.error_file_id is None and batch.model == MODEL, batch
    assert list(read(batch.output_file_id)) == list(bodies)


def check_validation():
    good = lines({"a": chat()})
    for content, code, line, param in [
        (good + b"no json\n", "invalid_json_line", 2, None),
        (good + good, "duplicate_custom_id", 2, "custom_id"),
        (good + lines({"b": chat(model="no-such-model")}), "model_not_found", 2, "body.model"),
        (good + lines({"b": chat(stream=True)}), "invalid_value", 2, "body.stream"),
        (good + lines({"b": chat()}, TEXT), "url_mismatch", 2, "url"),
        (b"\n", "empty_file", None, None),
    ]:
        batch = wait(create(content))
        assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None, batch
        assert batch.errors.object == "list" and len(batch.errors.data) == 1, batch
        error = batch.errors.data[0]
        assert (error.code, error.line, error.param) == (code, line, param), error
        assert error.message


def check_refusals():
    file = client.files.create(file=("input.jsonl", lines({"a": chat()})), purpose="batch")
    other = client.files.create(file=("input.jsonl", b"a"), purpose="user_data")
    for options, param in [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": other.id}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
    ]:
        options = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | options
        error = refused(openai.BadRequestError, lambda: client.batches.create(**options))
        assert error.param == param, (options, error.body)
    refused(openai.NotFoundError, lambda: client.batches.retrieve("batch_none"))
    refused(openai.NotFoundError, lambda: client.batches.cancel("batch_none"))


def check_list():
    made = [create(lines({"a": chat()})).id for _ in range(3)]
    listed = [strict(batch).id for batch in client.batches.list(limit=2)]
    assert listed[:3] == made[::-1] and len(set(listed)) == len(listed), listed
    for one in made:
        wait(client.batches.retrieve(one))


def check_cancel():
    batch = create(lines({f"long-{idx}": chat(max_tokens=64, ignore_eos=True) for idx in range(LONG_BATCH)}))
    behind = create(lines({"a": chat()}))
    while not batch.request_counts.completed:
        time.sleep(0.05)
        batch = strict(client.batches.retrieve(batch.id))
        assert batch.status in ("validating", "in_progress"), batch
    refused(openai.ConflictError, lambda: client.files.delete(batch.input_file_id))
    # Clients are not kept waiting.
    assert client.chat.completions.create(**chat()).choices[0].message.content
    assert client.batches.cancel(behind.id).status == "cancelled"
    assert strict(client.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
    batch = wait(batch, "cancelled")
    answers, errors = read(batch.output_file_id), read(batch.error_file_id)
    assert batch.cancelled_at >= batch.cancelling_at and batch.completed_at is None, batch
    assert len(answers) == batch.request_counts.completed > 0 and len(answers) + len(errors) == LONG_BATCH
    assert errors and all(row["response"] is None for row in errors.values())
    assert {row["error"]["code"] for row in errors.values()} == {"batch_cancelled"}


for check in (check_batch, check_completions, check_validation, check_refusals, check_list, check_cancel):
    check()
    print(f"ok {check.__name__}")
    sys.stdout.flush()
