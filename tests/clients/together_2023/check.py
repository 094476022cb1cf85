"""The together package as it was in 2023: its inference call, whole and streamed, its job routes, and what it asks around them."""

import json
import os
import pathlib
import tarfile
import tempfile
import time

import together
from together.types import TogetherResponse

BASE_URL, MODEL, ADAPTER = os.environ["BASE_URL"], os.environ["MODEL"], os.environ.get("ADAPTER", "")
PATIENCE_S = float(os.environ.get("PATIENCE_S", "600"))

# Its addresses are made of the base address when it is imported.
together.api_key = os.environ["OPENAI_API_KEY"]
together.api_base = f"{BASE_URL}/"
together.api_base_complete = f"{BASE_URL}/api/inference"
together.api_base_files = f"{BASE_URL}/v1/files/"
together.api_base_finetune = f"{BASE_URL}/v1/fine-tunes/"
together.api_base_instances = f"{BASE_URL}/instances/"


def refused(call):
    try:
        call()
    except Exception as error:
        return str(error)
    raise AssertionError("it was not refused")


def check_models():
    names = [info["name"] for info in together.Models.list()]
    assert MODEL in names and (not ADAPTER or ADAPTER in names), names
    assert together.Models.info(MODEL)["finetuning_supported"] is True
    assert together.Models.instances()[MODEL] is True
    assert together.Models.start(MODEL)["success"] is True
    assert together.Models.ready(MODEL)[0]["name"] == MODEL
    assert "404" in refused(lambda: together.Models.start("nobody"))


def check_inference(model):
    whole = together.Complete.create("abc", model=model, max_tokens=8, temperature=0)
    assert whole["status"] == "finished" and whole["model"] == model, whole
    assert whole["output"]["result_type"] == "language-model-inference", whole
    (choice,) = whole["output"]["choices"]
    typed = together.Completion.create("abc", model=model, max_tokens=8, temperature=0, logprobs=1)
    assert isinstance(typed, TogetherResponse) and typed.choices[0].text == choice["text"], typed
    assert typed.choices[0].finish_reason.value == choice["finish_reason"], typed
    assert len(typed.choices[0].logprobs) > 0 and max(typed.choices[0].logprobs) <= 0, typed
    texts = list(together.Complete.create_streaming("abc", model=model, max_tokens=8, temperature=0))
    assert "".join(texts) == choice["text"], (texts, choice)
    chunks = list(together.Completion.create("abc", model=model, max_tokens=8, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice["text"], chunks
    assert chunks[-1].generated_text == choice["text"] and chunks[-1].details.generated_tokens > 0, chunks[-1]
    raw = list(together.Complete.create_streaming("abc", model=model, max_tokens=8, temperature=0, raw=True))
    assert raw[-1] == "[DONE]" and all(json.loads(event)["choices"] for event in raw[:-1]), raw


def check_refusals():
    assert "404" in refused(lambda: together.Complete.create("a", model="nobody"))
    assert "400" in refused(lambda: together.Complete.create("a", model=MODEL, safety_model="judge"))
    key, together.api_key = together.api_key, "wrong"
    try:
        said = refused(lambda: together.Complete.create("a", model=MODEL))
        assert "authentication" in said, said
    finally:
        together.api_key = key


def check_jobs(folder):
    path = pathlib.Path(folder, "colours.jsonl")
    path.write_text("".join(json.dumps({"text": f"colour {number} is blue"}) + "\n" for number in range(100)))
    assert together.Files.check(str(path))["is_check_passed"] is True
    file = together.Files.upload(str(path))["id"]
    assert file in [known["id"] for known in together.Files.list()["data"]]
    assert together.Files.retrieve(file)["id"] == file
    content = pathlib.Path(folder, "content.jsonl")
    together.Files.retrieve_content(file, output=str(content))
    assert content.read_bytes() == path.read_bytes()

    made = together.Finetune.create(training_file=file, model=MODEL, n_epochs=2, batch_size=4, suffix="older")
    id = made["id"]
    end = time.monotonic() + PATIENCE_S
    while together.Finetune.get_job_status(id) != "completed":
        assert time.monotonic() < end, together.Finetune.retrieve(id)
        time.sleep(0.1)
    job = together.Finetune.retrieve(id)
    assert job["epochs_completed"] == 2 and job["Suffix"] == "older", job
    assert id in [known["id"] for known in together.Finetune.list()["data"]]
    assert together.Finetune.is_final_model_available(id) is True
    assert together.Finetune.get_checkpoints(id)[0]["checkpoint_path"], job
    assert together.Finetune.list_events(id)["data"] == job["events"]
    # It says that it cannot, since the job has ended.
    assert "400" in refused(lambda: together.Finetune.cancel(id))
    archive = together.Finetune.download(id, output=str(pathlib.Path(folder, "adapter.tar.gz")))
    with tarfile.open(archive) as tar:
        assert tar.getnames(), archive
    check_inference(job["model_output_name"])
    assert "404" in refused(lambda: together.Finetune.retrieve("ft-none"))


check_models()
check_inference(MODEL)
if ADAPTER:
    check_inference(ADAPTER)
check_refusals()
with tempfile.TemporaryDirectory() as folder:
    check_jobs(folder)
print(f"together {together.version} is content")
