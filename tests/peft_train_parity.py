#!/usr/bin/env python3
"""Compares adapters on a GGUF model, there and back, with Hugging Face's `peft`: what Wardrobe trains and what peft makes.

    tests/peft.sh MODEL.gguf [ADAPTER ...]
        installs what it takes, and does all that follows.

    venv/bin/python tests/peft_train_parity.py compare target/release/wardrobe model.gguf [ADAPTER ...]
        peft makes adapters of every kind for the model; they and the ADAPTERs, folders that Wardrobe wrote, are served
        in f32 and loaded by peft on the dequantised weights; the log-probabilities of the same tokens are compared.

For whoever compares without a server; token ids are JSON, [[id, ...], ...], or {"token_ids": ..., "labels": ...} with
-100 for tokens that are not learnt:

    ... make MODEL.gguf FOLDER                   writes peft's adapters to FOLDER/<kind>
    ... logits MODEL.gguf ADAPTER IDS OUT        writes logits `i` [tokens, vocab] and log_probs `i` [tokens - 1], safetensors
    ... gradients MODEL.gguf ADAPTER IDS OUT     writes peft's gradients of all factors under their names in PEFT's file,
        [--f64]                                  safetensors; prints the loss, its mean over all tokens that are learnt
    ... compare-gradients EXACT OTHERS           two such files: the relative differences of the tensors

Exit status: 0 if all agree, else 1.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import warnings

os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

import transformers_parity as parity

# Of log-probabilities in f32, and of gradients, by two libraries over 30 layers.
TOLERANCE = 2e-3
GRADIENT_TOLERANCE = 5e-4
PROMPT_LENGTHS = (5, 64, 200)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

KINDS = {
    "uniform": dict(r=8, lora_alpha=16, target_modules=LINEARS),
    "patterns": dict(
        r=4,
        lora_alpha=8,
        target_modules=LINEARS,
        rank_pattern={"q_proj": 16, "layers.1.mlp.up_proj": 2},
        alpha_pattern={"v_proj": 32, r"layers\.\d+\.mlp\.down_proj": 4},
    ),
    "rslora": dict(r=16, lora_alpha=16, use_rslora=True, target_modules=LINEARS),
    "dora": dict(r=8, lora_alpha=16, use_dora=True, target_modules=LINEARS),
    "attention": dict(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
}


def load(model):
    """The model with its weights dequantised to f32."""
    model = pathlib.Path(model)
    if model.is_dir():
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32).eval()


def make(model, folder):
    """Adapters whose B is random, so that each changes the answers; `model` comes back without any."""
    made = {}
    for kind, options in KINDS.items():
        torch.manual_seed(3)
        adapted = get_peft_model(model, LoraConfig(**options, task_type="CAUSAL_LM"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, 0, 0.02)
            if "magnitude" in name:
                parameter.data *= torch.empty_like(parameter).uniform_(0.9, 1.1)
        made[kind] = pathlib.Path(folder) / kind
        adapted.save_pretrained(made[kind])
        model = adapted.unload()
    return made


def read_ids(path):
    """Token ids, and labels that are the ids unless the file has others."""
    given = json.loads(pathlib.Path(path).read_text())
    ids, labels = (given, given) if isinstance(given, list) else (given["token_ids"], given.get("labels"))
    labels = labels or ids
    assert [len(i) for i in ids] == [len(l) for l in labels], "as many labels as ids"
    return ids, labels


def logits(args):
    adapted = PeftModel.from_pretrained(load(args.model), args.adapter).eval()
    tensors = {}
    for idx, ids in enumerate(read_ids(args.ids)[0]):
        with torch.no_grad():
            rows = adapted(torch.tensor([ids])).logits[0].float()
        tensors[f"logits.{idx}"] = rows.contiguous()
        picked = torch.log_softmax(rows[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])
        tensors[f"log_probs.{idx}"] = picked[:, 0].contiguous()
    save_file(tensors, args.out)


def exactly_f64(model):
    """The model in f64 throughout: what transformers computes in f32 whatever the weights are, too."""

    def rms_norm(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        assert self.rope_type == "default"
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        base = self.config.rope_parameters["rope_theta"]
        inverse = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = position_ids[..., None].double() * inverse
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    modeling_llama.LlamaRMSNorm.forward = rms_norm
    modeling_llama.LlamaRotaryEmbedding.forward = rotary
    return model.double()


def gradients(args):
    """Of the mean cross-entropy over all learnt tokens of all sequences. With DoRA, peft holds the norm for a constant."""
    adapted = PeftModel.from_pretrained(load(args.model), args.adapter, is_trainable=True).eval()
    if args.f64:
        adapted = exactly_f64(adapted)
    sequences = list(zip(*read_ids(args.ids)))
    learnt = sum(label != -100 for _, labels in sequences for label in labels[1:])
    total = 0.0
    for ids, labels in sequences:
        rows = adapted(torch.tensor([ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(rows, torch.tensor(labels[1:]), reduction="sum") / learnt
        loss.backward()
        total += loss.item()
    found = {}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            name = name.replace(".default", "")
            name = name.removesuffix(".weight") if "magnitude" in name else name
            found[name] = parameter.grad.contiguous()
    save_file(found, args.out)
    norm = sum(gradient.double().square().sum() for gradient in found.values()).sqrt().item()
    print(json.dumps({"loss": total, "learnt_tokens": learnt, "gradient_norm": norm, "tensors": len(found)}))


def compare_gradients(args):
    exact, others = load_file(args.exact), load_file(args.others)
    if set(exact) != set(others):
        raise SystemExit(f"only in one of the files: {sorted(set(exact) ^ set(others))[:5]}")
    # Relative to the tensor's own norm, but not below a part of the whole that no step would notice.
    norms = {name: t.double().norm().item() for name, t in exact.items()}
    floor = 1e-6 * max(norms.values())
    off = {n: (others[n].double() - t.double()).norm().item() / max(norms[n], floor) for n, t in exact.items()}
    worst = max(off, key=off.get)
    print(f"{len(off)} tensors, median {statistics.median(off.values()):.1e}, worst {off[worst]:.1e} in {worst}")
    sys.exit(0 if off[worst] <= GRADIENT_TOLERANCE else 1)


def compare(args):
    os.environ["WARDROBE_WEIGHTS"] = "f32"
    os.environ["WARDROBE_ADAPTER_PRECISION"] = "as-stored"
    torch.manual_seed(0)
    model = load(args.model)
    prompts = [torch.randint(0, model.config.vocab_size, (length,)).tolist() for length in PROMPT_LENGTHS]
    all_agree = True
    with tempfile.TemporaryDirectory() as root:
        adapters = {path.name: path for path in map(pathlib.Path, args.adapters)}
        adapters |= make(model, root)
        with open(pathlib.Path(root) / "log", "w") as log:
            server, url = parity.serve(args.wardrobe, args.model, adapters, log)
        try:
            of_base = parity.log_probs(model, prompts)
            for name, path in adapters.items():
                adapted = PeftModel.from_pretrained(model, path).eval()
                worst = moved = 0.0
                for prompt, reference, base in zip(prompts, parity.log_probs(adapted, prompts), of_base):
                    found = parity.served_log_probs(url, name, prompt)
                    assert len(found) == len(reference)
                    worst = max(worst, *(abs(a - b) for a, b in zip(found, reference)))
                    moved = max(moved, *(abs(a - b) for a, b in zip(base, reference)))
                model = adapted.unload()
                agrees = worst <= TOLERANCE < moved
                all_agree &= agrees
                print(f"{name:15} {worst:.1e}, of a change of {moved:.1e}{'' if agrees else '  TOO FAR'}", flush=True)
        finally:
            server.terminate()
            server.wait()
    sys.exit(0 if all_agree else 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, run, *names, more=None):
        sub = commands.add_parser(name)
        for argument in names:
            sub.add_argument(argument)
        if more:
            sub.add_argument(more, nargs="*")
        sub.set_defaults(run=run)
        return sub

    command("compare", compare, "wardrobe", "model", more="adapters")
    command("make", lambda args: make(load(args.model), args.folder), "model", "folder")
    command("logits", logits, "model", "adapter", "ids", "out")
    command("gradients", gradients, "model", "adapter", "ids", "out").add_argument("--f64", action="store_true")
    command("compare-gradients", compare_gradients, "exact", "others")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    args.run(args)


if __name__ == "__main__":
    main()
