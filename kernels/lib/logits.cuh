// A block's view of one row of logits: how it is read, how tokens are ordered, and where they are cut, without sorting.
//
// NaN counts as minus infinity, plus infinity as the largest finite number. Tokens are ordered by logit, largest first,
// equals by id. A token's place in this order is that of its `rank key`, a number of 50 bits: the logit's bits in an
// order-preserving form, then the id, inverted. Cuts are found by radix select over these keys, 10 bits at a time, by
// number of tokens or by their mass.
//
// Masses exp((logit - max) / temperature) are added up in fixed point, which makes sums independent of the order: a
// row's result does not depend on which thread saw which token, nor on the order of atomic additions.
//
// All of it is for blocks of 1024 threads, and for all threads of one at the same time.
#pragma once
#include "kernel.cuh"

#define LOGIT_THREADS 1024
#define ID_BITS 18
#define MAX_VOCAB (1 << ID_BITS)
#define DIGIT_BITS 10
#define DIGITS (1 << DIGIT_BITS)
#define F32_MAX bits_to_f32(0x7f7fffffu)

// --- Reading.

struct LogitRow {
    const float* logits;  // [vocab]
    const u32* allowed;   // bit t % 32 of word t / 32: whether token t takes part; null: all do
    int vocab;            // at most MAX_VOCAB
    bool is_aligned;      // rows are whole multiples of 16 bytes
};

// A maximum of NaN and a number is the number.
DEVICE float sane_logit(float v) { return fminf(fmaxf(v, -INFINITY_F32), F32_MAX); }

DEVICE int num_groups(const LogitRow& row) { return ceil_div(row.vocab, 4); }

// Logits of N groups, every `step`-th from `first` on. Group g is of tokens 4 g .. 4 g + 3; those past the end have
// minus infinity. Past the last group that one is given again. All loads come before the first use, so that they are
// under way together.
template <int N>
DEVICE void load_groups(Packed<float> (&v)[N], const LogitRow& row, int first, int step) {
    int last = num_groups(row) - 1;
    if (row.is_aligned) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = load16(row.logits + 4 * min(first + i * step, last));
    } else {
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            int token = 4 * min(first + i / 4 * step, last) + i % 4;
            v[i / 4].at[i % 4] = token < row.vocab ? row.logits[token] : -INFINITY_F32;
        }
    }
    if (row.allowed) {
        u32 words[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            int group = min(first + i * step, last);
            words[i] = row.allowed[group / 8] >> group % 8 * 4;
        }
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            if (!(words[i / 4] >> i % 4 & 1)) v[i / 4].at[i % 4] = -INFINITY_F32;
        }
    }
#pragma unroll
    for (int i = 0; i < 4 * N; i++) v[i / 4].at[i % 4] = sane_logit(v[i / 4].at[i % 4]);
}
DEVICE float logit_of(const LogitRow& row, u32 token) {
    bool takes_part = !row.allowed || row.allowed[token / 32] >> token % 32 & 1;
    return takes_part ? sane_logit(row.logits[token]) : -INFINITY_F32;
}

// Calls f(first token, logits of four) for groups from `first` on, every `step`-th, in this order.
template <class F>
DEVICE void for_groups(const LogitRow& row, int first, int end, int step, F f) {
    constexpr int AHEAD = 4;
#pragma unroll 1
    for (int group = first; group < end; group += AHEAD * step) {
        Packed<float> held[AHEAD];
        load_groups(held, row, group, step);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (group + i * step < end) f(4 * (group + i * step), held[i]);
        }
    }
}
// All groups, neighbours in neighbouring threads.
template <class F>
DEVICE void for_all_groups(const LogitRow& row, F f) {
    for_groups(row, int(threadIdx.x), num_groups(row), LOGIT_THREADS, f);
}

// --- Order.

DEVICE u64 rank_key(float logit, int token) {
    // Adding 0 makes one of the two zeros.
    u32 bits = f32_to_bits(logit + 0.0f);
    u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return u64(ordered) << ID_BITS | u32(MAX_VOCAB - 1 - token);
}
DEVICE float key_logit(u64 key) {
    u32 ordered = u32(key >> ID_BITS);
    return bits_to_f32(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
DEVICE int key_token(u64 key) { return MAX_VOCAB - 1 - int(key & (MAX_VOCAB - 1)); }

// --- Mass.

struct Softmax {
    float max;     // the largest logit, finite
    float factor;  // log2(e) / temperature; finite, at least 0
};
DEVICE Softmax softmax_of(float max, float temperature) {
    float factor = LOG2_E / temperature;
    return Softmax{max, factor > F32_MAX ? F32_MAX : factor};
}
// 1 for the best, 0 for minus infinity.
DEVICE float token_mass(const Softmax& softmax, float logit) {
    float exponent = (logit - softmax.max) * softmax.factor;
    return exponent > -125.0f ? exp2_fast(exponent) : 0.0f;
}

// Masses in units of 2^-44, rounded down: all of a row are below 2^63. For sums of up to four.
#define MASS_BITS 44
DEVICE u64 fixed_mass(float mass) {
    u32 bits = f32_to_bits(mass), exponent = bits >> 23;
    u64 mantissa = (bits & 0x7fffffu) | 0x800000u;
    // mass = mantissa * 2^(exponent - 150), and exponent <= 129.
    u32 shift = 129 - exponent;
    return shift < 64 ? (mantissa << (MASS_BITS - 21)) >> shift : 0;
}

// --- The block together.

struct SelectRoom {
    u64 of_warp[WARP_LANES];
    u32 low[DIGITS], high[DIGITS];  // halves of the digits' weights
    u64 rest;
    int digit;
};

// Each warp's value to all: lane i gets warp i's.
DEVICE u64 gather_warps(u64 v, SelectRoom& room) {
    __syncthreads();
    if (lane_idx() == 0) room.of_warp[warp_idx()] = v;
    __syncthreads();
    return room.of_warp[lane_idx()];
}
DEVICE u64 warp_sum_u64(u64 v) {
    for (int offset = WARP_LANES / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}
DEVICE u64 warp_max_u64(u64 v) {
    for (int offset = WARP_LANES / 2; offset > 0; offset /= 2) {
        u64 other = __shfl_xor_sync(FULL_WARP, v, offset);
        v = other > v ? other : v;
    }
    return v;
}
// The sum over lanes up to this one.
DEVICE u64 warp_scan(u64 v) {
    for (int offset = 1; offset < WARP_LANES; offset *= 2) {
        u64 other = __shfl_up_sync(FULL_WARP, v, offset);
        if (lane_idx() >= offset) v += other;
    }
    return v;
}
DEVICE u64 block_sum_u64(u64 v, SelectRoom& room) { return warp_sum_u64(gather_warps(warp_sum_u64(v), room)); }
DEVICE u64 block_max_u64(u64 v, SelectRoom& room) { return warp_max_u64(gather_warps(warp_max_u64(v), room)); }

// The row's best token, and this thread's.
struct Best {
    u64 key;  // 0 if all are minus infinity
    u64 own;
};
DEVICE Best best_of_row(const LogitRow& row, SelectRoom& room) {
    float logit = -INFINITY_F32;
    int token = 0;
    for_all_groups(row, [&](int first, const Packed<float>& v) {
        float largest = fmaxf(fmaxf(v.at[0], v.at[1]), fmaxf(v.at[2], v.at[3]));
        if (!(largest > logit)) return;
        logit = largest;
        token = first + (v.at[0] == largest ? 0 : v.at[1] == largest ? 1 : v.at[2] == largest ? 2 : 3);
    });
    u64 own = logit > -INFINITY_F32 ? rank_key(logit, token) : 0;
    return Best{block_max_u64(own, room), own};
}

// --- The few tokens that may pass a cut.

#define MAX_CANDIDATES 4096

struct CandidateRoom {
    SelectRoom select;
    u64 keys[MAX_CANDIDATES];  // in any order
    int count;
};

// Puts the keys of all tokens into `room` whose logits reach `bound` and are above minus infinity; their number, or -1
// if there is not room for all. Whoever has read the last ones is behind a barrier.
DEVICE int collect_candidates(const LogitRow& row, float bound, CandidateRoom& room) {
    if (threadIdx.x == 0) room.count = 0;
    __syncthreads();
    for_all_groups(row, [&](int first, const Packed<float>& v) {
        u32 hits = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) hits |= u32(v.at[i] >= bound && v.at[i] > -INFINITY_F32) << i;
        if (hits == 0) return;
        int at = atomicAdd(&room.count, __popc(hits));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (!(hits >> i & 1)) continue;
            if (at < MAX_CANDIDATES) room.keys[at] = rank_key(v.at[i], first + i);
            at++;
        }
    });
    __syncthreads();
    return room.count <= MAX_CANDIDATES ? room.count : -1;
}

// What a cut is looked for in: a thread's best token; or the candidates, or the row if they were too many, from the key
// `least` on.
struct OwnKeys {
    u64 key;
};
struct CandidateKeys {
    const LogitRow& row;
    const CandidateRoom& room;
    int count;  // -1: the row
    u64 least;
};
// Calls f(key) for this thread's share.
template <class F>
DEVICE void for_keys(const OwnKeys& keys, F f) {
    if (keys.key) f(keys.key);
}
template <class F>
DEVICE void for_keys(const CandidateKeys& keys, F f) {
    if (keys.count >= 0) {
        for (int i = threadIdx.x; i < keys.count; i += LOGIT_THREADS) {
            if (keys.room.keys[i] >= keys.least) f(keys.room.keys[i]);
        }
        return;
    }
    for_all_groups(keys.row, [&](int first, const Packed<float>& v) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u64 key = rank_key(v.at[i], first + i);
            if (v.at[i] > -INFINITY_F32 && key >= keys.least) f(key);
        }
    });
}

// --- Cuts.

DEVICE void add_weight(SelectRoom& room, int digit, u64 weight) {
    // Shared memory has fast additions of 32 bits only: the lower half's carry goes to the upper one.
    u32 low = u32(weight), high = u32(weight >> 32);
    u32 old = atomicAdd(&room.low[digit], low);
    if (old + low < old) high++;
    if (high) atomicAdd(&room.high[digit], high);
}

// The last of as few of the best `keys` as have weights `wanted` (at least 1) together; 0 if all together have less.
template <class Keys, class Weight>
DEVICE u64 select_cut(const Keys& keys, u64 wanted, SelectRoom& room, Weight weight) {
    int thread = threadIdx.x;
    u64 prefix = 0;
    for (int shift = 4 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        room.low[thread] = room.high[thread] = 0;
        __syncthreads();
        for_keys(keys, [&](u64 key) {
            if (key >> (shift + DIGIT_BITS) == prefix) add_weight(room, int(key >> shift) & (DIGITS - 1), weight(key));
        });
        __syncthreads();
        // Best first: thread 0 has the largest digit.
        int digit = DIGITS - 1 - thread;
        u64 own = u64(room.high[digit]) << 32 | room.low[digit], in_warp = warp_scan(own);
        u64 warps = warp_scan(gather_warps(__shfl_sync(FULL_WARP, in_warp, WARP_LANES - 1), room));
        u64 before_warp = warp_idx() == 0 ? 0 : __shfl_sync(FULL_WARP, warps, warp_idx() - 1);
        u64 total = __shfl_sync(FULL_WARP, warps, WARP_LANES - 1), upto = before_warp + in_warp;
        if (total < wanted) return 0;
        if (upto >= wanted && upto - own < wanted) {
            room.digit = digit;
            room.rest = wanted - (upto - own);
        }
        __syncthreads();
        prefix = prefix << DIGIT_BITS | u32(room.digit);
        wanted = room.rest;
    }
    return prefix;
}

template <class Keys>
DEVICE u64 cut_to_count(const Keys& keys, u64 wanted, SelectRoom& room) {
    return select_cut(keys, wanted, room, [](u64) { return u64(1); });
}
template <class Keys>
DEVICE u64 cut_to_mass(const Keys& keys, u64 wanted, const Softmax& softmax, SelectRoom& room) {
    return select_cut(keys, wanted, room, [&](u64 key) { return fixed_mass(token_mass(softmax, key_logit(key))); });
}

// A logit that at least `wanted` tokens reach, and seldom many more: that many threads have a best token as good as it.
DEVICE float bound_of_count(const Best& best, u64 wanted, SelectRoom& room) {
    u64 cut = wanted <= LOGIT_THREADS ? cut_to_count(OwnKeys{best.own}, wanted, room) : 0;
    return cut ? key_logit(cut) : -INFINITY_F32;
}
