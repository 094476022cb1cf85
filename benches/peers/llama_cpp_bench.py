"""Times llama.cpp on one GGUF file, through llama-cpp-python's low-level interface: JSON on standard output.

The same work as `wardrobe bench --parts steps`: prefill of 512 tokens with the logits of the last one; one token of 1 and
of 32 sequences that have 128 tokens each, greedily sampled. Times are of
`llama_decode` and of finding the likeliest token. Every setting that may help is tried: flash attention on and off, and
for 32 sequences one buffer of keys and values or one each.
"""

import argparse
import ctypes
import json
import statistics
import time

import llama_cpp as lc
import numpy as np

CONTEXT = 128
# Steps that do not count, as in `wardrobe bench`.
SETTLING_STEPS = 8


def make_context(model, threads, num_sequences, flash_attn, kv_unified):
    params = lc.llama_context_default_params()
    params.n_ctx = num_sequences * (CONTEXT + 128) if num_sequences > 1 else 1024
    params.n_batch = 512
    params.n_ubatch = 512
    params.n_seq_max = num_sequences
    params.n_threads = threads
    params.n_threads_batch = threads
    params.flash_attn_type = 1 if flash_attn else 0
    params.kv_unified = kv_unified
    params.no_perf = True
    ctx = lc.llama_init_from_model(model, params)
    assert ctx, "no context"
    return ctx


class Batch:
    def __init__(self, size):
        self.batch = lc.llama_batch_init(size, 0, 1)
        self.size = size

    def fill(self, rows):
        """rows: (token, position, sequence, wants logits)"""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        return batch


def token(i, sequence):
    return (i * 7919 + sequence * 31) % 997


def decode(ctx, batch):
    result = lc.llama_decode(ctx, batch)
    assert result == 0, f"llama_decode: {result}"


def greedy(ctx, rows, vocab):
    picked = []
    for i in rows:
        logits = np.ctypeslib.as_array(lc.llama_get_logits_ith(ctx, i), shape=(vocab,))
        picked.append(int(logits.argmax()))
    return picked


def prefill(ctx, batch, vocab, num_tokens, repeat):
    times = []
    for _ in range(repeat):
        lc.llama_memory_clear(lc.llama_get_memory(ctx), True)
        rows = [(token(i, 0), i, 0, i == num_tokens - 1) for i in range(num_tokens)]
        filled = batch.fill(rows)
        started = time.perf_counter()
        decode(ctx, filled)
        greedy(ctx, [num_tokens - 1], vocab)
        times.append(time.perf_counter() - started)
    return times


def decoding(ctx, batch, vocab, num_sequences, steps):
    memory = lc.llama_get_memory(ctx)
    lc.llama_memory_clear(memory, True)
    decode(ctx, batch.fill([(token(i, 0), i, 0, i == CONTEXT - 1) for i in range(CONTEXT)]))
    # The other sequences get keys and values of their own with the same content.
    size = lc.llama_state_seq_get_size(ctx, 0)
    state = (ctypes.c_uint8 * size)()
    assert lc.llama_state_seq_get_data(ctx, state, size, 0) == size
    for s in range(1, num_sequences):
        assert lc.llama_state_seq_set_data(ctx, state, size, s) > 0
    times = []
    for step in range(SETTLING_STEPS + steps):
        rows = [(token(CONTEXT, s), CONTEXT, s, True) for s in range(num_sequences)]
        filled = batch.fill(rows)
        started = time.perf_counter()
        decode(ctx, filled)
        greedy(ctx, range(num_sequences), vocab)
        times.append(time.perf_counter() - started)
        # The next step computes the same position: times stay comparable.
        for s in range(num_sequences):
            lc.llama_memory_seq_rm(memory, s, CONTEXT, -1)
    return times[SETTLING_STEPS:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefills", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()

    silent = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(args.gguf.encode(), lc.llama_model_default_params())
    assert model, f"cannot load {args.gguf}"
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    results = {}
    batch = Batch(512)

    def record(name, num_tokens, settings, times):
        results.setdefault(name, {})[settings] = num_tokens / statistics.median(times)

    for flash_attn in (False, True):
        flash = "flash_attn" if flash_attn else "no flash_attn"
        ctx = make_context(model, args.threads, 1, flash_attn, True)
        prefill(ctx, batch, vocab, 64, 1)
        record("prefill_512", 512, flash, prefill(ctx, batch, vocab, 512, args.prefills))
        record("decode_1", 1, flash, decoding(ctx, batch, vocab, 1, args.steps))
        lc.llama_free(ctx)
        for kv_unified in (False, True):
            ctx = make_context(model, args.threads, 32, flash_attn, kv_unified)
            settings = flash + (", kv_unified" if kv_unified else "")
            record("decode_32", 32, settings, decoding(ctx, batch, vocab, 32, args.steps))
            lc.llama_free(ctx)
    lc.llama_batch_free(batch.batch)
    print(json.dumps({"version": lc.__version__, "system": lc.llama_print_system_info().decode(), "results": results}))


if __name__ == "__main__":
    main()
