#!/usr/bin/env python3
"""Compares models that `wardrobe merge` writes with what `peft` makes of the same weights and adapter.

The small random models and adapters of `transformers_parity.py` are merged into folders and GGUF files. transformers
opens both; weights and log-probabilities are compared with those of peft's `merge_and_unload`. The `gguf` package reads
every key and tensor of the files. With the GGUF file of SmolLM2-135M-Instruct, that is merged and compared too.

    python3 -m venv venv && venv/bin/pip install torch transformers peft tokenizers gguf
    cargo build --release
    venv/bin/python tests/merge_parity.py target/release/wardrobe [model.gguf adapters/last-words]

Exit status: 0 if all agree, else 1.
"""

import copy
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

# Before the libraries that draw bars and warn of what is meant here.
os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")

import gguf
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import transformers_parity as parity

# Of weights: a few roundings to f32. Of log-probabilities, of models whose sums are made in another order.
WEIGHT_TOLERANCE = 1e-5
TOLERANCE = 1e-3
# GGUF's llama architecture has a window of attention in our reader only.
NOT_IN_GGUF = {"mistral_window"}
# transformers reads neither scaling, nor biases, nor a width of heads from a GGUF file of the llama architecture.
NOT_READ_FROM_GGUF = {"linear", "llama3", "yarn", "yarn_options", "attention_bias", "mlp_bias", "head_dim"}
TEXT = "Größere Städte 12345 haben , <|im_start|>user\n x\t don't 東京<|im_end|>"


def merge(wardrobe, base, adapter, output, *options):
    command = [wardrobe, "merge", str(base), "--adapter", str(adapter), "--output", str(output), *options]
    subprocess.run(command, check=True, capture_output=True, text=True)


def worst_weight(model, reference):
    ours, theirs = model.state_dict(), reference.state_dict()
    # A head that only the reference ties is there under both names too.
    assert set(theirs) == set(ours), set(theirs) ^ set(ours)
    return max((ours[name].float() - theirs[name].float()).abs().max().item() for name in ours)


def worst_log_prob(model, reference, prompts):
    rows = zip(parity.log_probs(model, prompts), parity.log_probs(reference, prompts))
    return max(abs(a - b) for ours, theirs in rows for a, b in zip(ours, theirs))


def read_with_gguf(path, base_model):
    """Every key and tensor; and the shapes that the model must have."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["general.architecture"] == "llama" and keys["llama.block_count"] == base_model.config.num_hidden_layers
    assert len(keys["tokenizer.ggml.tokens"]) == base_model.config.vocab_size
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    assert all(torch.isfinite(torch.tensor(values)).all() for values in tensors.values())
    return keys, tensors


def interleaved(weight, heads):
    """Rows of a q or k weight as llama.cpp's files have them."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def worst_gguf_weight(tensors, reference):
    config = reference.config
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    worst = 0.0
    for layer in range(config.num_hidden_layers):
        for module, part in names.items():
            for parameter in ["weight", "bias"]:
                wanted = reference.state_dict().get(f"model.layers.{layer}.{module}.{parameter}")
                if wanted is None:
                    continue
                wanted = interleaved(wanted, heads[part]) if part in heads else wanted
                found = torch.tensor(tensors[f"blk.{layer}.{part}.{parameter}"])
                worst = max(worst, (found - wanted).abs().max().item())
    head = torch.tensor(tensors.get("output.weight", tensors["token_embd.weight"]))
    return max(worst, (head - reference.lm_head.weight).abs().max().item())


def untied_merge(adapted):
    """merge_and_unload, without which peft would also change an embedding that is tied to an adapted head."""
    model = adapted.base_model.model
    if "lm_head" in adapted.peft_config["default"].target_modules and model.config.tie_word_embeddings:
        embedding = model.model.embed_tokens
        embedding.weight = torch.nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return adapted.merge_and_unload().eval()


def tell(name, adapter, results):
    """One line; whether everything is within its bound."""
    agrees = all(value <= bound for value, bound in results.values())
    values = "  ".join(f"{what} {value:.1e}" for what, (value, _) in results.items())
    print(f"{name:15} {adapter:12} {values}{'' if agrees else '  TOO FAR'}", flush=True)
    return agrees


def random_models(wardrobe, prompts, root):
    agree = True
    for name, (kind, config) in parity.MODELS.items():
        model = parity.make_model(kind, config)
        base = root / name
        model.save_pretrained(base)
        parity.tokenizer().save_pretrained(base)
        for adapter, options in parity.ADAPTERS.items():
            adapted = parity.make_adapter(model, options)
            folder = root / f"{name}-adapter"
            adapted.save_pretrained(folder)
            reference = untied_merge(copy.deepcopy(adapted))
            merge(wardrobe, base, folder, root / "merged", "--force")
            merged = AutoModelForCausalLM.from_pretrained(root / "merged", dtype=torch.float32).eval()
            results = {
                "weights": (worst_weight(merged, reference), WEIGHT_TOLERANCE),
                "folder": (worst_log_prob(merged, adapted, prompts), TOLERANCE),
            }
            if name not in NOT_IN_GGUF:
                merge(wardrobe, base, folder, root / "merged.gguf", "--force")
                _, tensors = read_with_gguf(root / "merged.gguf", model)
                results["gguf weights"] = (worst_gguf_weight(tensors, reference), WEIGHT_TOLERANCE)
                if name not in NOT_READ_FROM_GGUF:
                    merged = AutoModelForCausalLM.from_pretrained(root, gguf_file="merged.gguf", dtype=torch.float32)
                    results["gguf"] = (worst_log_prob(merged.eval(), adapted, prompts), TOLERANCE)
            agree &= tell(name, adapter, results)
    return agree


def real_model(wardrobe, file, adapter, root):
    file = pathlib.Path(file)
    base = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    reference = PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()
    merge(wardrobe, file, adapter, root / "real", "--dtype", "f32")
    merge(wardrobe, file, adapter, root / "real.gguf", "--dtype", "f32")
    ours = AutoTokenizer.from_pretrained(root / "real")
    prompts = [ours(TEXT * repeat).input_ids for repeat in (1, 4)]
    assert prompts[1] == tokens(TEXT * 4).input_ids, "tokenizers differ"
    turns = [{"role": "user", "content": TEXT}]
    assert ours.apply_chat_template(turns, tokenize=False) == tokens.apply_chat_template(turns, tokenize=False)
    assert (ours.bos_token, ours.eos_token) == (tokens.bos_token, tokens.eos_token)
    folder = AutoModelForCausalLM.from_pretrained(root / "real", dtype=torch.float32).eval()
    as_gguf = AutoModelForCausalLM.from_pretrained(root, gguf_file="real.gguf", dtype=torch.float32).eval()
    _, tensors = read_with_gguf(root / "real.gguf", base)
    return tell(file.stem[:15], pathlib.Path(adapter).name, {
        "weights": (worst_weight(folder, reference), WEIGHT_TOLERANCE),
        "folder": (worst_log_prob(folder, reference, prompts), TOLERANCE),
        "gguf weights": (worst_gguf_weight(tensors, reference), WEIGHT_TOLERANCE),
        "gguf": (worst_log_prob(as_gguf, reference, prompts), TOLERANCE),
    })


def main():
    if len(sys.argv) not in (2, 4):
        sys.exit(__doc__)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    prompts = [torch.randint(0, 256, (length,)).tolist() for length in parity.PROMPT_LENGTHS]
    with tempfile.TemporaryDirectory() as root:
        agree = random_models(sys.argv[1], prompts, pathlib.Path(root))
        if len(sys.argv) == 4:
            agree &= real_model(*sys.argv[1:], pathlib.Path(root))
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
