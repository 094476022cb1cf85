#!/usr/bin/env python3
"""Trains a LoRA adapter with PEFT on PyTorch's CPU backend: the peer that Wardrobe's trainer is measured against.

    python3 -m venv venv && venv/bin/pip install torch transformers peft gguf
    venv/bin/python benches/peers/peft_train.py model.gguf --steps 8 --threads 2
    venv/bin/python benches/peers/peft_train.py model.gguf --steps 8 --threads 2 --checkpointing

The model is read from the GGUF file and held in f32. Each step is one batch of random token ids in f32 with AdamW, every
token a label, as the speed of a trainer does not depend on what it reads. `--dump-tokens` writes the ids, and
`--dump-adapter` the adapter before the first step, so that another trainer can run the very same steps. Prints JSON:
tokens a second (all tokens of a batch, the median over the steps after the warm-up), peak memory, and the loss of each step.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import statistics
import sys
import time
import warnings

os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")

import peft
import torch
import transformers

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="a GGUF file or a folder")
    parser.add_argument("--steps", type=int, default=8, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=2, help="steps before these")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpointing", action="store_true", help="recompute each layer in the backward pass")
    parser.add_argument("--tokens", type=pathlib.Path, help="read the ids from here instead of making them")
    parser.add_argument("--dump-tokens", type=pathlib.Path, help="write the ids here: [step][sequence][token]")
    parser.add_argument("--dump-adapter", type=pathlib.Path, help="write the adapter as it begins here")
    parser.add_argument("--save", type=pathlib.Path, help="write the trained adapter here")
    return parser.parse_args()


def load(path):
    if path.is_dir():
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def token_ids(args, vocab_size):
    if args.tokens:
        return json.loads(args.tokens.read_text())
    rng = random.Random(args.seed)
    sequence = lambda: [rng.randrange(vocab_size) for _ in range(args.length)]
    return [[sequence() for _ in range(args.batch)] for _ in range(args.warmup + args.steps)]


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_bytes():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_rss_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    transformers.utils.logging.set_verbosity_error()
    model = load(args.model)
    config = peft.LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    if args.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    if args.dump_adapter:
        model.save_pretrained(args.dump_adapter)
    steps = token_ids(args, model.config.vocab_size)
    if args.dump_tokens:
        args.dump_tokens.write_text(json.dumps(steps))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)

    # Reading a GGUF file takes more memory for a moment than training: the peak is that of the steps.
    loading = peak_rss_bytes()
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        peak_is_of_steps = True
    except OSError:
        peak_is_of_steps = False
    before = rss_bytes()
    losses, seconds, cpu = [], [], []
    for batch in steps:
        ids = torch.tensor(batch)
        started, cpu_started = time.perf_counter(), cpu_seconds()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        cpu.append(cpu_seconds() - cpu_started)
        losses.append(loss.item())
        print(f"step {len(losses)}: loss {losses[-1]:.4f}, {ids.numel() / seconds[-1]:.0f} tok/s", file=sys.stderr)
    peak = peak_rss_bytes()
    if args.save:
        model.save_pretrained(args.save)

    tokens = sum(len(sequence) for sequence in steps[0])
    measured = slice(args.warmup, None)
    rates = [tokens / s for s in seconds[measured]]
    print(json.dumps({
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "model": args.model.name,
        "checkpointing": args.checkpointing,
        "threads": args.threads,
        "batch": len(steps[0]),
        "length": len(steps[0][0]),
        "rank": args.rank,
        "trained_parameters": sum(p.numel() for p in parameters),
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_of_steps": rates,
        "cpu_seconds_per_step": statistics.median(cpu[measured]),
        "peak_rss_bytes": peak,
        "peak_rss_while_loading_bytes": loading,
        "peak_rss_is_of_steps": peak_is_of_steps,
        "rss_before_steps_bytes": before,
        "loss": losses,
    }, indent=1))


if __name__ == "__main__":
    main()
