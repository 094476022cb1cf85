// Log-probabilities of tokens, and the most probable ones, under the softmax of a row of logits (or of those that a
// mask leaves): the contract is in crates/device/src/sample.rs (TokenLogprobs).
//
// A block of 1024 threads a row. Passes over the row: the best token; the mass of all and the number of better ones;
// and, if the most probable are wanted, one for the tokens as good as the n-th best of the threads' best ones, which
// are cut in shared memory.
//
// Entry point: token_logprobs. Launch: grid rows, block 1024, no dynamic shared memory. vocab at most 262144.
#include "lib/logits.cuh"

#define MAX_TOP 128
#define NO_MASK 0xffffffffu

struct ReportParams {
    u32 is_wanted;  // 0: nothing is written for the row
    u32 top;        // how many of the most probable; at most MAX_TOP are given
    u32 asked_start;
    u32 asked_len;
    u32 mask_start;  // word of `masks`, where a row of ceil(vocab / 32) begins; or NO_MASK
};

struct ReportResult {
    float logprob;  // of the row's token
    u32 rank;       // 1 for the best; equals by id
    u32 top_len;    // fewer than wanted if fewer have a logit above minus infinity
};

struct TopToken {
    u32 token;
    float logprob;
};

struct ReportArgs {
    const float* logits;         // [rows, vocab]; any address, fastest if rows are 16-byte aligned
    const u32* tokens;           // [rows, token_stride]: the first one is the row's token, below vocab
    const ReportParams* params;  // [rows]
    const u32* masks;
    const u32* asked;       // tokens below vocab
    ReportResult* results;  // [rows]
    TopToken* top;          // [rows, max_top]: best first, equals by id
    float* asked_logprobs;  // as `asked`
    int vocab;
    int token_stride;  // 2 for the results of `sample`
    int max_top;       // at least every `top` that is not above MAX_TOP
};

struct ReportRoom {
    CandidateRoom candidates;
    u64 top[MAX_TOP];
    int top_len;
};

// The `wanted` best tokens' keys, in any order.
DEVICE void collect_top(const LogitRow& row, const Best& best, u32 wanted, ReportRoom& room) {
    SelectRoom& select = room.candidates.select;
    if (threadIdx.x == 0) room.top_len = 0;
    CandidateKeys keys{row, room.candidates, 0, 0};
    keys.count = collect_candidates(row, bound_of_count(best, wanted, select), room.candidates);
    keys.least = cut_to_count(keys, wanted, select);
    for_keys(keys, [&](u64 key) { room.top[atomicAdd(&room.top_len, 1)] = key; });
    __syncthreads();
}

KERNEL(token_logprobs, ReportArgs, LOGIT_THREADS) {
    SHARED(ReportRoom, room);
    int row_idx = blockIdx.x, thread = threadIdx.x;
    const ReportParams params = args.params[row_idx];
    if (!params.is_wanted) return;
    const u32* allowed = params.mask_start == NO_MASK ? nullptr : args.masks + params.mask_start;
    const float* logits = args.logits + u64(row_idx) * u32(args.vocab);
    const LogitRow row{logits, allowed, args.vocab, args.vocab % 4 == 0 && is_aligned16(logits)};
    int token = int(args.tokens[u64(row_idx) * u32(args.token_stride)]);
    float own = logit_of(row, token);

    SelectRoom& select = room.candidates.select;
    Best best = best_of_row(row, select);
    Softmax softmax = softmax_of(best.key ? key_logit(best.key) : 0.0f, 1.0f);
    u64 mass = 0;
    u32 num_better = 0;
    for_all_groups(row, [&](int first, const Packed<float>& v) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += token_mass(softmax, v.at[i]);
            num_better += v.at[i] > own || (v.at[i] == own && first + i < token);
        }
        mass += fixed_mass(sum);
    });
    mass = block_sum_u64(mass, select);
    num_better = u32(block_sum_u64(num_better, select));
    float log_total = logf(float(mass) * (1.0f / float(u64(1) << MASS_BITS)));
    auto logprob = [&](float logit) { return logit > -INFINITY_F32 ? logit - softmax.max - log_total : -INFINITY_F32; };

    for (u32 i = thread; i < params.asked_len; i += LOGIT_THREADS) {
        u32 at = params.asked_start + i;
        args.asked_logprobs[at] = logprob(logit_of(row, args.asked[at]));
    }
    u32 wanted = min(params.top, u32(MAX_TOP));
    int top_len = 0;
    if (wanted > 0) {
        collect_top(row, best, wanted, room);
        top_len = room.top_len;
        if (thread < top_len) {
            u64 key = room.top[thread];
            int place = 0;
            for (int i = 0; i < top_len; i++) place += room.top[i] > key;
            TopToken* top = args.top + u64(row_idx) * u32(args.max_top);
            top[place] = TopToken{u32(key_token(key)), logprob(key_logit(key))};
        }
    }
    if (thread == 0) args.results[row_idx] = ReportResult{logprob(own), num_better + 1, u32(top_len)};
}
