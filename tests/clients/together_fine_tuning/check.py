"""The together package for Python drives fine-tuning through its own routes, in its own shapes."""

import json
import os
import pathlib
import sys
import tarfile
import tempfile
import time

import together
from together.lib import DownloadManager
from together.lib.types.fine_tuning import FinetuneResponse as CreatedJob
from together.types import FileResponse, FinetuneResponse

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
TRAINING_FILE = os.environ.get("TRAINING_FILE", "")
LONG_EPOCHS = int(os.environ.get("LONG_EPOCHS", "100"))
PATIENCE_S = float(os.environ.get("PATIENCE_S", "600"))
ENDS = ("completed", "error", "user_error", "cancelled")

client = together.Together(base_url=BASE_URL, api_key=os.environ["OPENAI_API_KEY"], max_retries=0, timeout=120)


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def write_records(folder, name="train.jsonl", number=8):
    path = pathlib.Path(folder, name)
    line = {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]}
    path.write_text("".join(json.dumps(line) + "\n" for _ in range(number)))
    return path


def upload(folder):
    path = TRAINING_FILE or write_records(folder)
    return client.files.upload(file=path, purpose="fine-tune")


def wait(id):
    end = time.monotonic() + PATIENCE_S
    while True:
        job = client.fine_tuning.retrieve(id)
        if job.status in ENDS:
            return job
        assert time.monotonic() < end, job
        time.sleep(0.1)


def check_files(folder):
    path = write_records(folder, "colours.jsonl", 5)
    seen = []
    file = client.files.upload(
        file=path, purpose="fine-tune", progress_callback=lambda event: seen.append(event.uploaded_bytes)
    )
    assert file.bytes == path.stat().st_size == seen[-1] and file.filename == "colours.jsonl", file
    assert file.file_type == "jsonl" and file.processing_status == "COMPLETED", file
    FileResponse.model_validate(client.files.retrieve(file.id).model_dump(by_alias=True))
    assert client.files.content(file.id).read() == path.read_bytes()
    assert file.id in [one.id for one in client.files.list().data]
    assert client.files.delete(file.id).deleted
    refused(together.NotFoundError, lambda: client.files.retrieve(file.id))
    bad = pathlib.Path(folder, "bad.jsonl")
    bad.write_text('{"text": "fine"}\n{"nothing": 1}\n')
    error = refused(together.APIStatusError, lambda: client.files.upload(file=bad, purpose="fine-tune", check=False))
    assert "line 2" in str(error), error


def check_job(folder):
    file, held_out = upload(folder), upload(folder)
    limits = client.fine_tuning.model_limits(model_name=MODEL)
    type(limits).model_validate(limits.model_dump(by_alias=True))
    assert limits.lora_training.default_rank <= limits.lora_training.max_rank
    refused(together.NotFoundError, lambda: client.fine_tuning.model_limits(model_name="no-such-model"))
    job = client.fine_tuning.create(
        training_file=file.id,
        validation_file=held_out.id,
        model=MODEL,
        n_epochs=2,
        n_checkpoints=2,
        n_evals=1,
        batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        min_lr_ratio=0.1,
        warmup_ratio=0.1,
        weight_decay=0.01,
        lora=True,
        lora_r=8,
        lora_alpha=16,
        suffix="colours",
        random_seed=7,
    )
    CreatedJob.model_validate(job.model_dump(by_alias=True))
    assert job.status in ("queued", "running") and job.batch_size == 4, job
    assert job.training_type.lora_r == 8 and job.training_type.lora_alpha == 16, job
    assert job.lr_scheduler.lr_scheduler_type == "linear", job
    job = wait(job.id)
    FinetuneResponse.model_validate(job.model_dump(by_alias=True))
    assert job.status == "completed" and job.epochs_completed == 2 and job.token_count > 0, job
    kinds = [event.type for event in job.events]
    assert kinds[0] == "job_pending" and kinds[-1] == "job_complete", kinds
    events = client.fine_tuning.list_events(job.id)
    type(events).model_validate(events.model_dump(by_alias=True))
    assert [event.type for event in events.data] == kinds
    checkpoints = client.fine_tuning.list_checkpoints(job.id)
    type(checkpoints).model_validate(checkpoints.model_dump())
    assert len(checkpoints.data) == 2, checkpoints
    metrics = client.fine_tuning.list_metrics(job.id).metrics
    assert len(metrics) >= 2 and all(step["train_loss"] > 0 for step in metrics), metrics
    assert len(client.fine_tuning.list_metrics(job.id, resolution=2).metrics) == 2
    assert job.id in [one.id for one in client.fine_tuning.list().data]
    check_download(folder, job, checkpoints.data[-1].step)

    # The package lists models only by project; whether this one is there shows when it is asked.
    question = [{"role": "user", "content": "Name a colour."}]
    ask = {"model": job.x_model_output_name, "messages": question, "max_tokens": 8}
    answer = client.chat.completions.create(**ask)
    assert answer.model == job.x_model_output_name and answer.choices[0].message.content, answer
    assert client.fine_tuning.delete(job.id).message
    refused(together.NotFoundError, lambda: client.fine_tuning.retrieve(job.id))
    refused(together.NotFoundError, lambda: client.chat.completions.create(**ask))


def check_download(folder, job, step):
    whole = client.fine_tuning.content(ft_id=job.id, checkpoint="adapter").read()
    path = pathlib.Path(folder, "adapter.tar.gz")
    path.write_bytes(whole)
    with tarfile.open(path) as archive:
        names = archive.getnames()
        config = json.load(archive.extractfile("adapter_config.json"))
    assert config["peft_type"] == "LORA", (names, config)
    # As the command line of the package does it: two bytes first, for the size.
    url = f"/v1/finetune/download?ft_id={job.id}&checkpoint=adapter&checkpoint_step={step}"
    output = pathlib.Path(folder, "checkpoint.tar.gz")
    _, size = DownloadManager(client).download(url=url, output=output, remote_name="x", fetch_metadata=True)
    assert size == output.stat().st_size
    with tarfile.open(output) as archive:
        assert "adapter_config.json" in archive.getnames()
    refused(together.BadRequestError, lambda: client.fine_tuning.content(ft_id=job.id, checkpoint="merged"))
    refused(together.NotFoundError, lambda: client.fine_tuning.content(ft_id=job.id, checkpoint_step=10**6))


def check_refusals(folder):
    file = upload(folder)
    options = {"training_file": file.id, "model": MODEL}
    for more, words in [
        ({"training_method": "dpo"}, "training_method.method"),
        ({"wandb_api_key": "x"}, "wandb_key"),
        ({"from_hf_model": "org/model"}, "from_hf_model"),
        ({"suffix": "a/b"}, "suffix"),
        ({"training_file": "file-none"}, "file-none"),
        ({"lora": True, "lora_r": 10**6}, "training_type.lora_r"),
    ]:
        error = refused(together.APIStatusError, lambda: client.fine_tuning.create(**options | more))
        assert words in str(error), (more, error)
    client.files.delete(file.id)


def check_cancel(folder):
    file = upload(folder)
    job = client.fine_tuning.create(training_file=file.id, model=MODEL, n_epochs=LONG_EPOCHS, batch_size=4)
    while client.fine_tuning.retrieve(job.id).status != "running":
        time.sleep(0.05)
    assert client.fine_tuning.cancel(job.id).status in ("cancel_requested", "cancelled")
    job = wait(job.id)
    assert job.status == "cancelled" and job.events[-1].type == "job_stopped", job
    client.files.delete(file.id)


with tempfile.TemporaryDirectory() as folder:
    for check in (check_files, check_job, check_refusals, check_cancel):
        check(folder)
        print(f"ok {check.__name__}")
        sys.stdout.flush()
