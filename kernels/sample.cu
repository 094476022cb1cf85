// Draws a token from each row of logits: the contract is at the head of crates/device/src/cpu/sample.rs, the order and
// the cuts are in lib/logits.cuh.
//
// A block of 1024 threads a row. Passes over the row, which come from the L2 cache after the first one and are bound by
// what one multiprocessor reads:
//   With edits, an edited copy is made first.
//   The best token. Greedy rows end here.
//   Top-k: the tokens as good as the k-th best of the threads' best ones. They are hardly more than k, and are cut in
//     shared memory.
//   Top-p without top-k: the mass of all; then the tokens within 4 temperatures of the best, or 8, 16, ..., until they
//     have the mass. They are cut in shared memory.
//   The draw: the masses of 32 stretches of the row, of which the chosen one is cut into 32 again, and so on.
// Where more than 4096 tokens pass the first bound of a cut (a flat distribution), the cut takes five passes more.
//
// Sums of masses are whole numbers, and cuts and draws compare these: a row's token is a function of its logits and
// parameters alone. The random number is Philox4x32-10's (Salmon et al., SC 2011) as in crates/device/src/cpu/philox.rs.
//
// Entry point: sample. Launch: grid rows, block 1024, no dynamic shared memory. vocab at most 262144.
#include "lib/logits.cuh"

// Changes to the logit of one token, in this order: it is l + bias; then l / repetition if l > 0, else l * repetition;
// then l - subtract; then minus infinity if it is banned.
struct TokenEdit {
    u32 token;  // below vocab
    float bias;
    float repetition;
    float subtract;
    u32 is_banned;
};

#define NO_MASK 0xffffffffu

struct SampleParams {
    u64 seed;
    u64 position;
    float temperature;  // not above 0: the best token
    float top_p;
    float min_p;
    u32 top_k;  // 0: all
    u32 choice;
    u32 edits_start;  // of `edits`
    u32 edits_len;    // no token twice
    u32 mask_start;   // word of `masks`, where a row of ceil(vocab / 32) begins; or NO_MASK
};

struct SampleResult {
    u32 token;
    u32 has_candidate;  // 0: no logit is above minus infinity; `token` is the lowest allowed and not banned one, or 0
};

struct SampleArgs {
    const float* logits;         // [rows, vocab]; any address, fastest if rows are 16-byte aligned
    const SampleParams* params;  // [rows]
    const TokenEdit* edits;
    const u32* masks;
    float* edited;          // [rows, edited_stride], 16-byte aligned; workspace of rows that have edits
    SampleResult* results;  // [rows]
    int vocab;
    int edited_stride;  // at least vocab, a multiple of 4
};

// --- Edits.

// Minus infinity stays what it is.
DEVICE float apply_edit(const TokenEdit& edit, float logit) {
    if (logit == -INFINITY_F32 || edit.is_banned) return -INFINITY_F32;
    logit = sane_logit(logit + edit.bias);
    if (logit == -INFINITY_F32) return logit;
    logit = sane_logit(logit > 0.0f ? logit / edit.repetition : logit * edit.repetition);
    return sane_logit(logit - edit.subtract);
}

// An edited copy of the row, confined to its mask.
DEVICE LogitRow edit_row(const LogitRow& row, const TokenEdit* edits, int count, float* copy) {
    for_all_groups(row, [&](int first, const Packed<float>& v) { store16(copy + first, v); });
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += LOGIT_THREADS) {
        float& logit = copy[edits[i].token];
        logit = apply_edit(edits[i], logit);
    }
    __syncthreads();
    return LogitRow{copy, nullptr, row.vocab, true};
}

DEVICE u32 lowest_allowed(const LogitRow& row, const TokenEdit* edits, int count, SelectRoom& room) {
    for (int first = 0; first < row.vocab; first += LOGIT_THREADS) {
        int token = first + int(threadIdx.x);
        bool stands_in = token < row.vocab && (!row.allowed || row.allowed[token / 32] >> token % 32 & 1);
        for (int i = 0; i < count && stands_in; i++) stands_in = !edits[i].is_banned || edits[i].token != u32(token);
        u64 found = block_max_u64(stands_in ? u32(row.vocab - token) : 0, room);
        if (found) return u32(row.vocab) - u32(found);
    }
    return 0;
}

// --- Filters.

DEVICE u64 candidate_mass(const CandidateKeys& keys, const Softmax& softmax, SelectRoom& room) {
    u64 sum = 0;
    for_keys(keys, [&](u64 key) { sum += fixed_mass(token_mass(softmax, key_logit(key))); });
    return block_sum_u64(sum, room);
}

DEVICE u64 row_mass(const LogitRow& row, const Softmax& softmax, SelectRoom& room) {
    u64 sum = 0;
    for_all_groups(row, [&](int, const Packed<float>& v) {
        float mass = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) mass += token_mass(softmax, v.at[i]);
        sum += fixed_mass(mass);
    });
    return block_sum_u64(sum, room);
}

// Candidates that have at least mass `wanted`.
DEVICE int collect_mass(const LogitRow& row, float temperature, const Softmax& softmax, u64 wanted,
                        CandidateRoom& room) {
    for (float reach = 4.0f;; reach *= 2.0f) {
        // 87 temperatures below the best there is no mass left.
        bool all = reach > 100.0f;
        int count = collect_candidates(row, all ? -INFINITY_F32 : softmax.max - reach * temperature, room);
        if (count < 0 || all) return count;
        if (candidate_mass(CandidateKeys{row, room, count, 0}, softmax, room.select) >= wanted) return count;
    }
}

DEVICE u64 mass_wanted(float top_p, u64 mass) { return max(u64(double(top_p) * double(mass)), u64(1)); }

// The key from which on top-k and top-p keep tokens; 0 if they keep all.
DEVICE u64 cut_of_filters(const LogitRow& row, const SampleParams& params, const Softmax& softmax, const Best& best,
                          CandidateRoom& room) {
    bool has_top_p = params.top_p < 1.0f;
    CandidateKeys keys{row, room, 0, 0};
    u64 wanted;
    if (params.top_k > 0 && params.top_k < u32(row.vocab)) {
        keys.count = collect_candidates(row, bound_of_count(best, params.top_k, room.select), room);
        keys.least = cut_to_count(keys, params.top_k, room.select);
        if (!has_top_p) return keys.least;
        wanted = mass_wanted(params.top_p, candidate_mass(keys, softmax, room.select));
    } else {
        if (!has_top_p) return 0;
        wanted = mass_wanted(params.top_p, row_mass(row, softmax, room.select));
        keys.count = collect_mass(row, params.temperature, softmax, wanted, room);
    }
    u64 cut = cut_to_mass(keys, wanted, softmax, room.select);
    return cut > keys.least ? cut : keys.least;
}

// --- The draw.

// Of 53 bits, in [0, 1).
DEVICE double philox_uniform(u64 seed, u32 choice, u64 position) {
    u32 counter[4] = {u32(position), u32(position >> 32), choice, 0}, key[2] = {u32(seed), u32(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        u32 left_high = __umulhi(0xd2511f53u, counter[0]), left_low = 0xd2511f53u * counter[0];
        u32 right_high = __umulhi(0xcd9e8d57u, counter[2]), right_low = 0xcd9e8d57u * counter[2];
        counter[0] = right_high ^ counter[1] ^ key[0];
        counter[1] = right_low;
        counter[2] = left_high ^ counter[3] ^ key[1];
        counter[3] = left_low;
        key[0] += 0x9e3779b9u;
        key[1] += 0xbb67ae85u;
    }
    return double((u64(counter[0]) << 32 | counter[1]) >> 11) * (1.0 / 9007199254740992.0);
}

// Which tokens may be drawn, and how probable they are.
struct Kept {
    Softmax softmax;
    float cut_logit;  // of the last one kept in the order
    int cut_token;
    float min_mass;
};
DEVICE Kept kept_from(const Softmax& softmax, u64 cut, float min_p) {
    float min_mass = min_p < 1.0f ? min_p : 1.0f;
    return cut ? Kept{softmax, key_logit(cut), key_token(cut), min_mass} : Kept{softmax, -INFINITY_F32, -1, min_mass};
}
// Masses of a group's tokens, each with those before it.
DEVICE void add_kept(float (&upto)[4], const Kept& kept, int first, const Packed<float>& v) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (v.at[i] > kept.cut_logit || (v.at[i] == kept.cut_logit && first + i <= kept.cut_token)) {
            float mass = token_mass(kept.softmax, v.at[i]);
            if (mass >= kept.min_mass) sum += mass;
        }
        upto[i] = sum;
    }
}

// Inverts the cumulative distribution of what is kept, in the order of ids. Every level adds up the same whole numbers,
// of groups.
DEVICE u32 draw(const LogitRow& row, const Kept& kept, double u, SelectRoom& room) {
    int first = 0, len = num_groups(row);
    u64 target = 0;
    float upto[4];
    for (bool is_whole = true; is_whole || len > 1; is_whole = false) {
        int stretch = ceil_div(len, WARP_LANES), begin = first + warp_idx() * stretch;
        u64 sum = 0;
        int end = min(begin + stretch, first + len);
        for_groups(row, begin + lane_idx(), end, WARP_LANES, [&](int token, const Packed<float>& v) {
            float masses[4];
            add_kept(masses, kept, token, v);
            sum += fixed_mass(masses[3]);
        });
        u64 own = gather_warps(warp_sum_u64(sum), room), sum_upto = warp_scan(own);
        if (is_whole) {
            u64 total = __shfl_sync(FULL_WARP, sum_upto, WARP_LANES - 1);
            target = min(u64(u * double(total)), total - 1);
        }
        int chosen = __ffs(int(__ballot_sync(FULL_WARP, sum_upto > target))) - 1;
        target -= __shfl_sync(FULL_WARP, sum_upto - own, chosen);
        first += chosen * stretch;
        len = min(stretch, len - chosen * stretch);
    }
    Packed<float> group[1];
    load_groups(group, row, first, 0);
    add_kept(upto, kept, 4 * first, group[0]);
    int i = 0;
    while (i < 3 && fixed_mass(upto[i]) <= target) i++;
    return u32(4 * first + i);
}

KERNEL(sample, SampleArgs, LOGIT_THREADS) {
    SHARED(CandidateRoom, room);
    int row_idx = blockIdx.x;
    const SampleParams& params = args.params[row_idx];
    const TokenEdit* edits = args.edits + params.edits_start;
    const u32* allowed = params.mask_start == NO_MASK ? nullptr : args.masks + params.mask_start;
    const float* logits = args.logits + u64(row_idx) * u32(args.vocab);
    const LogitRow unedited{logits, allowed, args.vocab, args.vocab % 4 == 0 && is_aligned16(logits)};
    LogitRow row = unedited;
    if (params.edits_len > 0) {
        row = edit_row(row, edits, int(params.edits_len), args.edited + u64(row_idx) * u32(args.edited_stride));
    }
    Best best = best_of_row(row, room.select);
    u32 token;
    if (!best.key) {
        token = lowest_allowed(unedited, edits, int(params.edits_len), room.select);
    } else if (!(params.temperature > 0.0f) || params.top_k == 1 || params.top_p <= 0.0f) {
        token = u32(key_token(best.key));
    } else {
        Softmax softmax = softmax_of(key_logit(best.key), params.temperature);
        u64 cut = cut_of_filters(row, params, softmax, best, room);
        double u = philox_uniform(params.seed, params.choice, params.position);
        token = draw(row, kept_from(softmax, cut, params.min_p), u, room.select);
    }
    if (threadIdx.x == 0) args.results[row_idx] = SampleResult{token, best.key != 0};
}
