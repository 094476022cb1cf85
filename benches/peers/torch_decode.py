"""Decoding and prefill with PyTorch eager and transformers: the peer of `wardrobe gpu-check`.

    python3 torch_decode.py CONFIG.json [--context 2047] [--batch 1,16]

Weights are random, in bf16, on the first GPU. Prints the median time of a decoding step, as gpu-check does: from the call to the
token on the host.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def timed(step, count, settling=5):
    times = []
    for turn in range(settling + count):
        started = time.perf_counter()
        step()
        if turn >= settling:
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--context", type=int, default=2047)
    parser.add_argument("--batch", default="1,16")
    args = parser.parse_args()
    with open(args.config) as file:
        config = LlamaConfig(**json.load(file))
    torch.manual_seed(1)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    with torch.inference_mode():
        for batch in map(int, args.batch.split(",")):
            prompt = torch.randint(0, config.vocab_size, (batch, args.context), device="cuda")
            past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
            token = prompt[:, -1:]

            def step():
                # The cache grows by a token a step, which is what decoding is.
                logits = model(token, past_key_values=past, use_cache=True).logits
                return logits[:, -1].argmax(-1).tolist()

            ms = timed(step, 30)
            print(f"decode, {batch} at {args.context} tokens: {ms:.3f} ms, {batch * 1e3 / ms:.0f} tok/s", flush=True)
            del past
        prompt = torch.randint(0, config.vocab_size, (1, 2048), device="cuda")

        def prefill():
            return model(prompt, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()

        ms = timed(prefill, 10)
        print(f"prefill, 2048: {ms:.3f} ms, {2048e3 / ms:.0f} tok/s")


if __name__ == "__main__":
    main()
