// Mixtures of experts (Shazeer et al., arXiv 1701.06538; Jiang et al., arXiv 2401.04088): which experts a row goes to, where its
// pairs with them stand, and the sum of what they gave. A row and one of its experts are a pair; pairs stand expert by expert,
// rows ascending.
//
// Entry points, all without dynamic shared memory:
//   route          the top_k largest logits of each row, of equal ones the first, and their softmax. NaN counts as the smallest:
//                  whatever the logits are, a row's experts are different ones that exist. Grid ceil(rows / 8), block 256.
//   place_pairs    sorts the pairs. Grid 1, block 1024.
//   expert_slots   what lora.cu and lora_mma.cu take for pairs: an expert's modules are reached from its slot as if each were an
//                  adapter of its own. Grid ceil(pairs / 256), block 256.
//   combine        out = residual + sum over a row's experts, the first first. Grid (rows, ceil(n / 1024)), block 256.
#include "lib/kernel.cuh"

#define MAX_EXPERTS 1024
#define NO_SLOT 0xffffffffu

struct RouteArgs {
    const float* logits;  // [rows, num_experts]
    float* weights;       // [rows, top_k]
    u32* experts;         // [rows, top_k]
    u32* places;          // [rows, top_k]
    u32* pair_rows;       // [rows * top_k]
    u32* starts;          // [num_experts + 1]
    int rows;
    int num_experts;  // at most 1024
    int top_k;        // at most num_experts
    int unused;
};

struct ExpertSlotsArgs {
    const u32* slots;      // [rows]
    const float* scales;   // [rows]
    const u32* pair_rows;  // [pairs]
    const u32* starts;     // [num_experts + 1]
    u32* pair_slots;       // [pairs]: the row's slot times num_modules, and the expert times stride
    float* pair_scales;    // [pairs]
    int pairs;
    int num_experts;
    int num_modules;
    int stride;
};

struct CombineArgs {
    const float* x;         // [pairs, n]
    const u32* places;      // [rows, top_k]
    const float* weights;   // [rows, top_k], or null: each counts once
    const float* residual;  // [rows, n], or null; may be out
    float* out;             // [rows, n]
    int n;
    int top_k;
};

// The largest of a warp's candidates, of equal ones the first expert; -1 is none.
struct Candidate {
    float logit;
    int expert;
};
DEVICE bool comes_first(const Candidate& a, const Candidate& b) {
    if (a.expert < 0 || b.expert < 0) return b.expert < 0;
    return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}
DEVICE Candidate warp_first(Candidate own) {
    for (int offset = WARP_LANES / 2; offset > 0; offset /= 2) {
        Candidate other = {__shfl_xor_sync(FULL_WARP, own.logit, offset), __shfl_xor_sync(FULL_WARP, own.expert, offset)};
        if (comes_first(other, own)) own = other;
    }
    return own;
}

KERNEL(route, RouteArgs, 256) {
    const int row = int(blockIdx.x) * 8 + warp_idx(), lane = lane_idx();
    if (row >= args.rows) return;
    const float* logits = args.logits + u64(u32(row)) * u32(args.num_experts);
    const u64 at = u64(u32(row)) * u32(args.top_k);
    // Which of this lane's experts are taken, every 32nd.
    u32 taken = 0;
    float most = 0.0f, sum = 0.0f;
    for (int j = 0; j < args.top_k; j++) {
        Candidate own = {0.0f, -1};
        for (int i = 0; i * WARP_LANES + lane < args.num_experts; i++) {
            const float logit = logits[i * WARP_LANES + lane];
            const Candidate next = {logit == logit ? logit : -INFINITY_F32, i * WARP_LANES + lane};
            if (!(taken >> i & 1) && comes_first(next, own)) own = next;
        }
        own = warp_first(own);
        if (own.expert % WARP_LANES == lane) taken |= 1u << own.expert / WARP_LANES;
        if (j == 0) most = own.logit;
        const float e = expf(own.logit - most);
        sum += e;
        if (lane == 0) {
            args.experts[at + j] = u32(own.expert);
            args.weights[at + j] = e;
        }
    }
    __syncwarp();
    for (int j = lane; j < args.top_k; j += WARP_LANES) args.weights[at + j] /= sum;
}

struct PlaceRoom {
    u32 starts[MAX_EXPERTS + 1];
};

// Bits of a warp's 32 pairs from `first` on: which go to `expert`.
DEVICE u32 pairs_of(const RouteArgs& args, int pairs, int first, int expert) {
    const int pair = first + lane_idx();
    return __ballot_sync(FULL_WARP, pair < pairs && args.experts[min(pair, pairs - 1)] == u32(expert));
}

KERNEL(place_pairs, RouteArgs, 1024) {
    SHARED(PlaceRoom, room);
    const int pairs = args.rows * args.top_k, warps = int(blockDim.x) / WARP_LANES;
    for (int expert = warp_idx(); expert < args.num_experts; expert += warps) {
        u32 count = 0;
        for (int first = 0; first < pairs; first += WARP_LANES) count += u32(__popc(pairs_of(args, pairs, first, expert)));
        if (lane_idx() == 0) room.starts[expert + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 sum = 0;
        for (int expert = 0; expert <= args.num_experts; expert++) {
            if (expert > 0) sum += room.starts[expert];
            room.starts[expert] = sum;
            args.starts[expert] = sum;
        }
    }
    __syncthreads();
    for (int expert = warp_idx(); expert < args.num_experts; expert += warps) {
        u32 place = room.starts[expert];
        for (int first = 0; first < pairs; first += WARP_LANES) {
            const u32 own = pairs_of(args, pairs, first, expert);
            const int pair = first + lane_idx();
            if (own >> lane_idx() & 1) {
                const u32 to = place + u32(__popc(own & ((1u << lane_idx()) - 1)));
                args.places[pair] = to;
                args.pair_rows[to] = u32(pair / args.top_k);
            }
            place += u32(__popc(own));
        }
    }
}

KERNEL(expert_slots, ExpertSlotsArgs, 256) {
    const int pair = int(blockIdx.x) * 256 + int(threadIdx.x);
    if (pair >= args.pairs) return;
    // The last expert that begins at or before the pair, and has some.
    int expert = 0;
    for (int left = args.num_experts; left > 1;) {
        const int half = left / 2;
        if (args.starts[expert + half] <= u32(pair)) {
            expert += half;
            left -= half;
        } else {
            left = half;
        }
    }
    const u32 row = args.pair_rows[pair], slot = args.slots[row];
    args.pair_slots[pair] = slot == NO_SLOT ? NO_SLOT : slot * u32(args.num_modules) + u32(expert * args.stride);
    args.pair_scales[pair] = args.scales[row];
}

KERNEL(combine, CombineArgs, 256) {
    const int row = int(blockIdx.x), col = (int(blockIdx.y) * 256 + int(threadIdx.x)) * 4, left = args.n - col;
    if (left <= 0) return;
    const u64 pairs = u64(u32(row)) * u32(args.top_k);
    float sum[4] = {};
    for (int j = 0; j < args.top_k; j++) {
        float x[4];
        load_up_to4(x, args.x + u64(args.places[pairs + j]) * u32(args.n) + u32(col), left);
        const float weight = args.weights ? args.weights[pairs + j] : 1.0f;
        for (int i = 0; i < 4; i++) sum[i] += weight * x[i];
    }
    const u64 at = u64(u32(row)) * u32(args.n) + u32(col);
    if (args.residual) {
        float residual[4];
        load_up_to4(residual, args.residual + at, left);
        for (int i = 0; i < 4; i++) sum[i] = residual[i] + sum[i];
    }
    store_up_to4(args.out + at, sum, left);
}
