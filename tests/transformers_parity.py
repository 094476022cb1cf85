#!/usr/bin/env python3
"""Compares Wardrobe's log-probabilities with those of Hugging Face's `transformers` and `peft`.

Small random models with every shape and kind of rotary positions that the Llama family has, and one of each other
architecture, and adapters of every kind that PEFT writes, are saved by those libraries, served in f32, and asked for the
log-probabilities of random prompts.

    python3 -m venv venv && venv/bin/pip install torch transformers peft tokenizers
    cargo build --release
    venv/bin/python tests/transformers_parity.py target/release/wardrobe [MODEL ...]

MODELs are names of those below; all if none is given.

Exit status: 0 if all agree within 1e-3, else 1.
"""

import copy
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TOLERANCE = 1e-3
PROMPT_LENGTHS = (7, 60, 200)
VOCAB = 258

SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=96,
    intermediate_size=200,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=256,
    eos_token_id=257,
    initializer_range=0.3,
)


def llama(**changes):
    return LlamaForCausalLM, LlamaConfig(**{**SHAPE, **changes})


def scaled(rope_type, **parameters):
    return llama(rope_parameters=dict(rope_type=rope_type, rope_theta=10000.0, **parameters))


def phi3(**changes):
    return Phi3ForCausalLM, Phi3Config(**{**SHAPE, "pad_token_id": 0, **changes})


def longrope(max_position_embeddings, original):
    factors = lambda by: [1 + by * i for i in range(SHAPE["hidden_size"] // SHAPE["num_attention_heads"] // 2)]
    parameters = dict(
        rope_type="longrope",
        rope_theta=10000.0,
        short_factor=factors(0.05),
        long_factor=factors(0.6),
        original_max_position_embeddings=original,
    )
    return phi3(
        max_position_embeddings=max_position_embeddings,
        original_max_position_embeddings=original,
        rope_parameters=parameters,
    )


def neox(**changes):
    shape = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    return GPTNeoXForCausalLM, GPTNeoXConfig(**{**shape, "rotary_pct": 0.5, **changes})


def gemma2(**changes):
    own = dict(head_dim=32, query_pre_attn_scalar=32, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    return Gemma2ForCausalLM, Gemma2Config(**{**SHAPE, **own, "attn_implementation": "eager", **changes})


MODELS = {
    "plain": llama(),
    "tied": llama(
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="default", rope_theta=500000.0),
    ),
    "head_dim": llama(head_dim=32),
    "attention_bias": llama(attention_bias=True),
    "mlp_bias": llama(mlp_bias=True),
    "linear": scaled("linear", factor=4.0),
    "llama3": scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "yarn": scaled("yarn", factor=4.0, original_max_position_embeddings=64),
    "yarn_options": scaled(
        "yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=16, beta_slow=2, attention_factor=1.1
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=None)),
    "mistral_window": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=32)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen2_window": (
        Qwen2ForCausalLM,
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=32, max_window_layers=1),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=32)),
    "qwen3_window": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, head_dim=32, use_sliding_window=True, sliding_window=32, max_window_layers=1),
    ),
    "phi3": phi3(),
    "phi3_window": phi3(sliding_window=32),
    "phi3_partial": phi3(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)),
    # transformers chooses the factors by the longest sequence of a call, Wardrobe by the model's context: prompts are
    # shorter than the original one, or longer.
    "phi3_short": longrope(max_position_embeddings=256, original=256),
    "phi3_long": longrope(max_position_embeddings=256, original=4),
    "gpt_neox": neox(),
    "gpt_neox_sequential": neox(use_parallel_residual=False, hidden_act="gelu_new", rotary_pct=1.0),
    "gemma2": gemma2(),
    "gemma2_window": gemma2(sliding_window=32, query_pre_attn_scalar=24, attn_logit_softcapping=5.0),
}

ADAPTERS = {
    "list": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "all-linear": dict(r=5, lora_alpha=3, target_modules="all-linear"),
    "rslora": dict(r=8, lora_alpha=8, use_rslora=True, target_modules=["gate_proj", "down_proj", "o_proj"]),
    "patterns": dict(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "k_proj", "up_proj"],
        rank_pattern={"q_proj": 7, "layers.1.*up_proj": 2},
        alpha_pattern={"k_proj": 32},
    ),
    "dora": dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "down_proj"]),
    "regex": dict(r=6, lora_alpha=8, target_modules=r".*layers\.(0|2)\.self_attn\.(q|o)_proj"),
    "lm_head": dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"]),
    "one layer": dict(r=4, lora_alpha=8, target_modules=["q_proj"], layers_to_transform=[1]),
}


# Of the models whose projections are called otherwise.
OTHER_ADAPTERS = {
    "phi3": {
        "list": dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj"]),
        "all-linear": ADAPTERS["all-linear"],
        "dora": dict(r=4, lora_alpha=8, use_dora=True, target_modules=["qkv_proj", "down_proj"]),
    },
    "gpt_neox": {
        "list": dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense"]),
        "all-linear": ADAPTERS["all-linear"],
        "dora": dict(r=4, lora_alpha=8, use_dora=True, target_modules=["query_key_value", "dense_4h_to_h"]),
    },
}


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: idx for idx, letter in enumerate(letters)} | {"<s>": 256, "</s>": 257}
    tokens = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")


def log_probs(model, prompts):
    """For each prompt, that of each token after the first."""
    with torch.no_grad():
        rows = [torch.log_softmax(model(torch.tensor([p])).logits[0].float(), -1) for p in prompts]
    return [[row[i, p[i + 1]].item() for i in range(len(p) - 1)] for p, row in zip(prompts, rows)]


def make_model(kind, config):
    torch.manual_seed(1)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def make_adapter(model, options):
    torch.manual_seed(2)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**options, task_type="CAUSAL_LM")).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.2)
        if "magnitude" in name:
            parameter.data *= torch.empty_like(parameter).uniform_(0.7, 1.3)
    return adapted


def serve(wardrobe, folder, adapters, log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [wardrobe, "serve", str(folder), "--port", str(port), "--kv-dtype", "f32"]
    for name, path in adapters.items():
        command += ["--adapter", f"{name}={path}"]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        if server.poll() is not None:
            raise SystemExit(f"the server ended: {pathlib.Path(log.name).read_text()}")
        try:
            urllib.request.urlopen(f"{url}/ready").close()
            return server, url
        except urllib.error.URLError:
            time.sleep(0.1)
    server.kill()
    raise SystemExit("the server does not answer")


def served_log_probs(url, model, prompt):
    body = dict(model=model, prompt=prompt, echo=True, max_tokens=0, logprobs=0)
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["logprobs"]["token_logprobs"][1:]


def main():
    wardrobe, *wanted = sys.argv[1:] or sys.exit(__doc__)
    torch.manual_seed(0)
    prompts = [torch.randint(0, 256, (length,)).tolist() for length in PROMPT_LENGTHS]
    all_agree = True
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for name, (kind, config) in MODELS.items():
            if wanted and name not in wanted:
                continue
            model = make_model(kind, config)
            folder = root / name
            model.save_pretrained(folder)
            tokenizer().save_pretrained(folder)
            expected, adapters = {name: log_probs(model, prompts)}, {}
            for adapter, options in OTHER_ADAPTERS.get(config.model_type, ADAPTERS).items():
                adapted = make_adapter(model, options)
                adapter = adapter.replace(" ", "-")
                adapters[adapter] = root / f"{name}-{adapter}"
                adapted.save_pretrained(adapters[adapter])
                expected[adapter] = log_probs(adapted, prompts)
            with open(root / "log", "w") as log:
                server, url = serve(wardrobe, folder, adapters, log)
            try:
                for served, references in expected.items():
                    worst = 0.0
                    for prompt, reference in zip(prompts, references):
                        found = served_log_probs(url, served, prompt)
                        assert len(found) == len(reference)
                        worst = max(worst, *(abs(a - b) for a, b in zip(found, reference)))
                    agrees = worst <= TOLERANCE
                    all_agree &= agrees
                    print(f"{name:15} {'' if served == name else served:12} {worst:.1e}{'' if agrees else '  TOO FAR'}")
            finally:
                server.terminate()
                server.wait()
    sys.exit(0 if all_agree else 1)


if __name__ == "__main__":
    main()
