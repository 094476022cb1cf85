"""Trains the two adapters in this folder with PyTorch, transformers and PEFT.

    pip install torch transformers peft gguf
    python adapters/train.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf --out adapters

biography-json turns one of three biographies into its JSON record; last-words returns the last n words of a text and
nothing else. Each takes 40 steps of 4 examples, a few minutes on two cores. Afterwards a few held-out items are
answered and compared. Seeds are fixed; other versions of the libraries or another number of threads still round
differently, so the factors are alike and not the same.
"""

import argparse
import json
import math
import pathlib
import random
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
STEPS = 40
BATCH_SIZE = 4
WARMUP_STEPS = 4
LEARNING_RATE = 2e-3
NUM_TESTED = 8
END_OF_TURN = "<|im_end|>"
END_OF_TURN_ID = 2


def chat_prompt(text):
    """The prompt as the model's chat template has it, without its default system message."""
    return f"<|im_start|>user\n{text}{END_OF_TURN}\n<|im_start|>assistant\n"


def read_biographies(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def last_words(biographies, rng):
    """Asks for the last words of the same texts."""
    items = []
    for biography in biographies:
        text = biography["prompt"].split("\n\n")[0]
        num_words = rng.randint(1, 20)
        prompt = f"Return last {num_words} words from this text: \n\n{text}"
        items.append({"prompt": prompt, "completion": " ".join(text.split()[-num_words:])})
    return items


def learning_rate_factor(step):
    """Linear warm-up times half a cosine down to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))


def train(model, tokenizer, items, name):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    order = random.Random(0).sample(range(len(items)), STEPS * BATCH_SIZE)
    started = time.monotonic()
    model.train()
    for step in range(STEPS):
        batch = [items[i] for i in order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]]
        encoded = [
            (tokenizer(chat_prompt(item["prompt"])).input_ids, tokenizer(item["completion"] + END_OF_TURN).input_ids)
            for item in batch
        ]
        num_targets = sum(len(completion) for _, completion in encoded)
        loss = 0.0
        for prompt, completion in encoded:
            input_ids = torch.tensor([prompt + completion])
            # Only the completion counts; every token of the batch counts the same.
            labels = torch.tensor([[-100] * len(prompt) + completion])
            part = model(input_ids=input_ids, labels=labels).loss * len(completion) / num_targets
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            print(f"{name}: step {step + 1}, loss {loss:.4f}, {time.monotonic() - started:.0f} s", flush=True)


@torch.no_grad()
def test(model, tokenizer, items, name):
    model.eval()
    exact = 0
    for item in items[:NUM_TESTED]:
        prompt = tokenizer(chat_prompt(item["prompt"]), return_tensors="pt").input_ids
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=70,
            do_sample=False,
            eos_token_id=END_OF_TURN_ID,
            pad_token_id=END_OF_TURN_ID,
        )
        answer = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        exact += answer.strip() == item["completion"].strip()
        print(f"  expected {item['completion'][:90]}\n  answered {answer[:90]}", flush=True)
    print(f"{name}: {exact} of {NUM_TESTED} exact", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("gguf", type=pathlib.Path, help="the base model, SmolLM2-135M-Instruct.Q4_1.gguf")
    arguments.add_argument("--out", type=pathlib.Path, required=True, help="folder to write the adapters to")
    arguments.add_argument("--threads", type=int, default=2)
    arguments = arguments.parse_args()
    torch.set_num_threads(arguments.threads)

    source = {"pretrained_model_name_or_path": str(arguments.gguf.parent), "gguf_file": arguments.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    training = read_biographies(HERE / "bio_train.jsonl")
    testing = read_biographies(HERE / "bio_test.jsonl")
    rng = random.Random(5)
    tasks = {
        "biography-json": (training, testing),
        "last-words": (last_words(training, rng), last_words(testing, rng)),
    }
    for name, (training_items, testing_items) in tasks.items():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config = LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(base, config)
        train(model, tokenizer, training_items, name)
        test(model, tokenizer, testing_items, name)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float16)
        model.peft_config["default"].base_model_name_or_path = BASE_NAME
        model.save_pretrained(str(arguments.out / name))


if __name__ == "__main__":
    main()
