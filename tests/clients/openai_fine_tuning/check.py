"""The openai package for Python drives fine-tuning: upload, create, poll, events, checkpoints, use, cancel, delete."""

import json
import os
import pathlib
import sys
import tempfile
import time

import openai
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
TRAINING_FILE = os.environ.get("TRAINING_FILE", "")
# A job long enough to be cancelled in the middle.
LONG_EPOCHS = int(os.environ.get("LONG_EPOCHS", "100"))
PATIENCE_S = float(os.environ.get("PATIENCE_S", "600"))

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", max_retries=0, timeout=120)


def strict(kind, value):
    """The client builds its types without looking; this looks."""
    kind.model_validate(value.model_dump(), strict=True)
    return value


def records(number):
    line = {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]}
    return "".join(json.dumps(line) + "\n" for _ in range(number)).encode()


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def upload(name="train.jsonl", content=None):
    if content is None and TRAINING_FILE:
        return client.files.create(file=pathlib.Path(TRAINING_FILE), purpose="fine-tune")
    return client.files.create(file=(name, content or records(8)), purpose="fine-tune")


def wait(job):
    end = time.monotonic() + PATIENCE_S
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < end, job
        time.sleep(0.1)
        job = strict(FineTuningJob, client.fine_tuning.jobs.retrieve(job.id))
    return job


def check_files():
    content = records(3)
    file = client.files.create(file=("colours.jsonl", content), purpose="fine-tune")
    assert (file.object, file.status, file.bytes, file.filename) == ("file", "processed", len(content), "colours.jsonl")
    strict(type(file), file)
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    others = [client.files.create(file=("more.jsonl", records(1)), purpose="fine-tune").id for _ in range(3)]
    listed = [one.id for one in client.files.list(purpose="fine-tune", limit=2)]
    assert listed[:4] == [*reversed(others), file.id], listed
    oldest_first = [one.id for one in client.files.list(order="asc", limit=1)]
    assert oldest_first == listed[::-1] or set(listed) <= set(oldest_first)
    for one in [file.id, *others]:
        assert client.files.delete(one).deleted
    refused(openai.NotFoundError, lambda: client.files.retrieve(file.id))
    # By a path, in pieces, and larger than what a JSON body may have.
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "large.jsonl")
        path.write_bytes(records(120_000))
        assert path.stat().st_size > 8 << 20
        large = client.files.create(file=path, purpose="fine-tune")
        assert large.bytes == path.stat().st_size
        assert client.files.content(large.id).read() == path.read_bytes()
    assert client.files.delete(large.id).deleted


def check_refusals():
    bad = refused(openai.BadRequestError, lambda: upload("bad.jsonl", records(2) + b'{"messages": 7}\nnot json\n'))
    assert bad.code == "invalid_training_file" and "line 3" in bad.message and "line 4" in bad.message, bad.message
    purpose = refused(openai.BadRequestError, lambda: client.files.create(file=("a", b"a"), purpose="vision"))
    assert purpose.param == "purpose", purpose.body
    file = upload()
    for options, param in [
        ({"model": "no-such-model"}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"suffix": "a/b"}, "suffix"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"epochs": 1}}, "hyperparameters.epochs"),
        ({"method": {"type": "dpo", "dpo": {}}}, "method.type"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    ]:
        options = {"model": MODEL, "training_file": file.id} | options
        error = refused(openai.BadRequestError, lambda: client.fine_tuning.jobs.create(**options))
        assert error.param == param, (options, error.body)
    refused(openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ft-none"))
    refused(openai.NotFoundError, lambda: client.fine_tuning.jobs.cancel("ft-none"))
    client.files.delete(file.id)


def check_job():
    file, held_out = upload(), upload()
    supervised = {"hyperparameters": {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 1.5}}
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        validation_file=held_out.id,
        suffix="colours",
        seed=7,
        method={"type": "supervised", "supervised": supervised},
        metadata={"for": "a test"},
    )
    strict(FineTuningJob, job)
    assert job.status in ("queued", "running") and job.fine_tuned_model is None and job.trained_tokens is None
    assert job.seed == 7 and job.hyperparameters.n_epochs == 2 and job.metadata == {"for": "a test"}
    assert job.hyperparameters.learning_rate_multiplier == 1.5 and job.hyperparameters.batch_size > 0
    refused(openai.ConflictError, lambda: client.files.delete(file.id))
    job = wait(job)
    assert job.status == "succeeded" and job.error is None, job
    assert job.finished_at >= job.created_at and job.trained_tokens > 0
    assert "colours" in job.fine_tuned_model and MODEL in job.fine_tuned_model

    events = [strict(FineTuningJobEvent, event) for event in client.fine_tuning.jobs.list_events(job.id, limit=3)]
    assert len({event.id for event in events}) == len(events) > 6
    assert [event.created_at for event in events] == sorted((event.created_at for event in events), reverse=True)
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]
    assert losses and all(loss > 0 for loss in losses), events
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert checkpoints and checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model, checkpoints
    assert all(strict(FineTuningJobCheckpoint, one).fine_tuning_job_id == job.id for one in checkpoints)
    results = client.files.content(job.result_files[0]).read().decode().splitlines()
    assert results[0].startswith("step,train_loss,") and len(results) - 1 == len(losses), results

    assert job.id in [one.id for one in client.fine_tuning.jobs.list(limit=1)]
    found = client.fine_tuning.jobs.list(extra_query={"metadata[for]": "a test"}).data
    assert job.id in [one.id for one in found]
    assert not client.fine_tuning.jobs.list(extra_query={"metadata[for]": "nothing"}).data

    card = client.models.retrieve(job.fine_tuned_model)
    assert card.id == job.fine_tuned_model and card.parent == MODEL, card
    assert job.fine_tuned_model in [one.id for one in client.models.list()]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "Name a colour."}], max_tokens=8
    )
    assert answer.model == job.fine_tuned_model and answer.choices[0].message.content
    ended = refused(openai.BadRequestError, lambda: client.fine_tuning.jobs.cancel(job.id))
    assert ended.code == "job_ended", ended.body
    pause = refused(openai.BadRequestError, lambda: client.fine_tuning.jobs.pause(job.id))
    assert pause.code == "unsupported_operation", pause.body
    for one in (file, held_out):
        assert client.files.delete(one.id).deleted


def check_cancel():
    file = upload()
    options = {"model": MODEL, "training_file": file.id, "hyperparameters": {"n_epochs": LONG_EPOCHS}}
    running, waiting = client.fine_tuning.jobs.create(**options), client.fine_tuning.jobs.create(**options)
    while client.fine_tuning.jobs.retrieve(running.id).status != "running":
        time.sleep(0.05)
    waiting = client.fine_tuning.jobs.retrieve(waiting.id)
    assert waiting.status == "queued" and waiting.model_extra["queue_position"] == 0, waiting
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    client.fine_tuning.jobs.cancel(running.id)
    ended = wait(client.fine_tuning.jobs.retrieve(running.id))
    assert ended.status == "cancelled" and ended.fine_tuned_model is None and ended.error is None, ended
    client.files.delete(file.id)


def check_failure():
    """The simulated trainer fails where its suffix says so; a real one has no such suffix."""
    if os.environ.get("SIMULATED") != "1":
        print("SKIPPED: failing jobs (the trainer is not simulated)")
        return
    file = upload()
    for suffix, code in [("user-error", "invalid_training_file"), ("panics", "internal_error")]:
        job = wait(client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, suffix=suffix))
        assert job.status == "failed" and job.error.code == code and job.error.message, job
    client.files.delete(file.id)


for check in (check_files, check_refusals, check_job, check_cancel, check_failure):
    check()
    print(f"ok {check.__name__}")
    sys.stdout.flush()
