// LoRA for many rows, on tensor cores, see lib/lora.cuh: prompts and training. A tile of 64 rows is worked off run by
// run (rows of one slot, side by side), so that factors are read once for a run; runs shorter than `long_run` are left
// to lora.cu.
//
// Accuracy: products are of bf16 pairs. A value that is not bf16 itself counts as the sum of two, hi + lo, of 17 bits
// together, and hi * hi + lo * hi + hi * lo are added up in f32. So factors of every type, any x and the low-rank
// products keep an error of 2^-16 relative to the sum of magnitudes, in the whole range of f32 (of f16 neither range nor
// bits would do), and training and serving agree. Operands that are bf16 have no lo. The time goes into reading x and
// into reading and writing `out`, not into products.
//
// lora_shrink_mma: a block takes a tile, one split of the inputs, and 4 slabs of 16 ranks: those of all targets side by
// side, so that x is read once for q, k and v. 4 warps have 16 rows each. Operands pass through registers, which hold
// the next 32 inputs while the last ones are multiplied, into one of two buffers.
// lora_expand_mma: a block takes a tile and 256 outputs of one target. 8 warps have 16 rows by 128 outputs each, and
// begin with loading these. Low-rank products are added up over the splits and staged 32 ranks at a time, with B's.
//
// Entry points: lora_shrink_mma, lora_expand_mma.
// Launch, no dynamic shared memory; tiles = ceil(rows / 64), slabs = num_targets * ceil(max_rank / 16):
//   lora_shrink_mma grid (tiles, splits, ceil(slabs / 4)), block 128. All targets have the x, x_stride and x_type of the
//     first one (if not: a launch a target, with a `low` of its own). Rows of x and of A are read by 16 bytes if size
//     and address allow; x_stride * element size should be a multiple of 16.
//   lora_expand_mma grid (tiles, ceil(largest features / 256), num_targets), block 256.
// Splits cost time in expand, which adds them up: take just enough for about two shrink blocks a multiprocessor. `low`
// may be the one of lora.cu's launches over the same step, whose splits may differ: no row is in both.
#include "lib/lora.cuh"
#include "lib/mma.cuh"

#define SLAB 16

// v = hi + lo, but for a rest of 2^-17 v.
DEVICE u32 high_pair(float first, float second) { return pack2<bf16>(first, second); }
DEVICE u32 low_pair(float first, float second, u32 high) {
    return pack2<bf16>(first - word_to_f32(&high, 0, bf16{}), second - word_to_f32(&high, 1, bf16{}));
}

struct alignas(8) TwoWords {
    u32 at[2];
};
DEVICE void store_split4(bf16* hi, bf16* lo, const float (&v)[4]) {
    TwoWords high{{high_pair(v[0], v[1]), high_pair(v[2], v[3])}};
    *reinterpret_cast<TwoWords*>(hi) = high;
    *reinterpret_cast<TwoWords*>(lo) = TwoWords{{low_pair(v[0], v[1], high.at[0]), low_pair(v[2], v[3], high.at[1])}};
}

// --- Elements of a type known at run time, 16 bytes at a time.

// Of a packet's number of elements: divisions by shifts.
DEVICE int packet_log2(int type) { return type == F32 ? 2 : 3; }
DEVICE Packed<u32> load_packet_of(int type, const void* base, u64 element, bool all, int valid) {
    if (type == F32) return load_packet(in_global(static_cast<const float*>(base)) + element, all, valid);
    return load_packet(in_global(static_cast<const bf16*>(base)) + element, all, valid);
}
// Stores a packet as hi and lo; bf16 has no lo, which stays as it was.
DEVICE void store_split(bf16* hi, bf16* lo, const Packed<u32>& packet, int type) {
    if (type == F32) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = word_to_f32(packet.at, i, 0.0f);
        store_split4(hi, lo, v);
        return;
    }
    u32* high_words = reinterpret_cast<u32*>(hi);
    if (type == BF16) {
        store16(high_words, packet);
        return;
    }
    Packed<u32> high, low;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float first = word_to_f32(packet.at, 2 * i, f16{}), second = word_to_f32(packet.at, 2 * i + 1, f16{});
        high.at[i] = high_pair(first, second);
        low.at[i] = low_pair(first, second, high.at[i]);
    }
    store16(high_words, high);
    store16(reinterpret_cast<u32*>(lo), low);
}

DEVICE bool rows_are_aligned(const void* base, u64 stride_bytes) {
    return (reinterpret_cast<u64>(base) | stride_bytes) % 16 == 0;
}

// Two products with 8 columns each: d[i] += a b[i]ᵀ.
DEVICE void multiply_two(float (&d)[2][4], const u32 (&a)[4], const u32 (&b)[4]) {
    const u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_m16n8k16(d[0], a, first, bf16{});
    mma_m16n8k16(d[1], a, second, bf16{});
}

// --- Shrink.

#define SHRINK_THREADS 128
#define SLABS 4
#define INPUTS 32
#define INPUTS_LOG2 5
// Rows 16 bytes longer than their elements: ldmatrix then meets each bank once.
#define X_ROW (INPUTS + 8)
#define A_ROW (SLABS * SLAB + 8)

struct ShrinkTile {
    bf16 x[2][TILE_ROWS][X_ROW];  // hi and lo
    bf16 a[2][INPUTS][A_ROW];
};
struct ShrinkRoom {
    ShrinkTile tiles[2];
};

// A slab of the ranks of one target's factor for the slot at hand.
struct Slab {
    const void* a;
    int target, first, rank, type;  // rank 0: nothing to do
    bool is_aligned;
};
DEVICE Slab slab_of(const LoraArgs& args, int index, u32 slot) {
    int slabs = ceil_div(args.max_rank, SLAB), target = index / slabs;
    if (target >= args.num_targets) return Slab{nullptr, 0, 0, 0, BF16, false};
    LoraEntry entry = lora_entry(args, args.targets[target], slot);
    int first = index % slabs * SLAB, rank = int(entry.rank), type = int(entry.type);
    bool is_aligned = rows_are_aligned(entry.a, u64(entry.rank) * (type == F32 ? 4 : 2));
    return Slab{entry.a, target, first, first < rank ? rank : 0, type, is_aligned};
}

// What a thread holds of the next inputs: of x, and of the slab that its warp stages.
struct ShrinkPackets {
    Packed<u32> x[4], a[4];
};

struct ShrinkInputs {
    const LoraArgs& args;
    int tile_row, run_start, run_end, begin, end;
    bool x_aligned;
};

DEVICE void fetch_x(ShrinkPackets& held, const ShrinkInputs& in, int k) {
    const LoraTarget& target = in.args.targets[0];
    int log2 = packet_log2(target.x_type), len = 1 << log2, packets = INPUTS >> log2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int packet = int(threadIdx.x) + i * SHRINK_THREADS, row = packet >> (INPUTS_LOG2 - log2);
        int at = k + ((packet & (packets - 1)) << log2);
        if (row >= TILE_ROWS) break;
        bool in_run = row >= in.run_start && row < in.run_end;
        int valid = in_run ? in.end - at : 0;
        u64 element = u64(u32(in.tile_row + row)) * target.x_stride + u32(at);
        held.x[i] = load_packet_of(target.x_type, target.x, element, in.x_aligned && valid >= len, valid);
    }
}
DEVICE void store_x(ShrinkTile& tile, const ShrinkPackets& held, int type) {
    int log2 = packet_log2(type), packets = INPUTS >> log2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int packet = int(threadIdx.x) + i * SHRINK_THREADS, row = packet >> (INPUTS_LOG2 - log2);
        int at = (packet & (packets - 1)) << log2;
        if (row >= TILE_ROWS) break;
        store_split(&tile.x[0][row][at], &tile.x[1][row][at], held.x[i], type);
    }
}

// Each warp stages a slab: 2 or 4 packets for each of the 32 inputs, neighbouring lanes different inputs.
DEVICE void fetch_a(ShrinkPackets& held, const ShrinkInputs& in, const Slab& slab, int k) {
    int log2 = packet_log2(slab.type), len = 1 << log2, packets = SLAB >> log2, inputs = WARP_LANES / SLAB << log2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int input = k + (lane_idx() & (inputs - 1)) + i * inputs;
        int rank = slab.first + (lane_idx() >> (log2 + 1) << log2);
        if (i >= packets) break;
        int valid = input < in.end ? slab.rank - rank : 0;
        u64 element = u64(u32(input)) * u32(slab.rank) + u32(rank);
        held.a[i] = load_packet_of(slab.type, slab.a, element, slab.is_aligned && valid >= len, valid);
    }
}
DEVICE void store_a(ShrinkTile& tile, const ShrinkPackets& held, int type) {
    int log2 = packet_log2(type), packets = SLAB >> log2, inputs = WARP_LANES / SLAB << log2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int input = (lane_idx() & (inputs - 1)) + i * inputs;
        int at = warp_idx() * SLAB + (lane_idx() >> (log2 + 1) << log2);
        if (i >= packets) break;
        store_split(&tile.a[0][input][at], &tile.a[1][input][at], held.a[i], type);
    }
}

// sums[slab] += x aᵀ over a tile's 32 inputs, for the 16 rows of this warp.
DEVICE void multiply_tile(float (&sums)[SLABS][2][4], const ShrinkTile& tile, u32 slabs, u32 slabs_with_lo,
                          bool x_has_lo) {
    int lane = lane_idx(), row = warp_idx() * 16 + lane % 16;
#pragma unroll
    for (int k = 0; k < INPUTS; k += 16) {
        u32 x_hi[4], x_lo[4];
        ldmatrix_x4(x_hi, &tile.x[0][row][k + lane / 16 * 8]);
        if (x_has_lo) ldmatrix_x4(x_lo, &tile.x[1][row][k + lane / 16 * 8]);
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) {
            if (!(slabs >> slab & 1)) continue;
            u32 a[4];
            int at = slab * SLAB + lane / 16 * 8;
            ldmatrix_x4_transposed(a, &tile.a[0][k + lane % 16][at]);
            multiply_two(sums[slab], x_hi, a);
            if (x_has_lo) multiply_two(sums[slab], x_lo, a);
            if (!(slabs_with_lo >> slab & 1)) continue;
            ldmatrix_x4_transposed(a, &tile.a[1][k + lane % 16][at]);
            multiply_two(sums[slab], x_hi, a);
        }
    }
}

DEVICE void store_low(const ShrinkInputs& in, const Slab& slab, const float (&sums)[2][4]) {
    int lane = lane_idx();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = warp_idx() * 16 + lane / 4 + half * 8;
        if (row < in.run_start || row >= in.run_end) continue;
        float* low = in.args.low + low_start(in.args, blockIdx.y, in.tile_row + row, slab.target);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int rank = slab.first + n * 8 + lane % 4 * 2;
            // max_rank is even, and so is this rank: there is room for a second one.
            OutputPair pair{{sums[n][2 * half], sums[n][2 * half + 1]}};
            if (rank < slab.rank) *reinterpret_cast<OutputPair*>(low + rank) = pair;
        }
    }
}

DEVICE void shrink_run(const ShrinkInputs& in, u32 slot, ShrinkRoom& room, int& buffer) {
    Slab slabs[SLABS];
    u32 to_do = 0, with_lo = 0;
#pragma unroll
    for (int i = 0; i < SLABS; i++) {
        slabs[i] = slab_of(in.args, int(blockIdx.z) * SLABS + i, slot);
        if (slabs[i].rank > 0) to_do |= 1u << i;
        if (slabs[i].type != BF16) with_lo |= 1u << i;
    }
    if (to_do == 0) return;
    Slab mine = slab_of(in.args, int(blockIdx.z) * SLABS + warp_idx(), slot);
    int x_type = in.args.targets[0].x_type, warp_row = warp_idx() * 16;
    bool warp_has_rows = warp_row < in.run_end && warp_row + 16 > in.run_start;
    ShrinkPackets held;
    float sums[SLABS][2][4] = {};
    fetch_x(held, in, in.begin);
    fetch_a(held, in, mine, in.begin);
    for (int k = in.begin; k < in.end; k += INPUTS, buffer ^= 1) {
        ShrinkTile& tile = room.tiles[buffer];
        store_x(tile, held, x_type);
        store_a(tile, held, mine.type);
        // One barrier a tile: this buffer's last readers are behind the barrier of the other one.
        __syncthreads();
        if (k + INPUTS < in.end) {
            fetch_x(held, in, k + INPUTS);
            fetch_a(held, in, mine, k + INPUTS);
        }
        if (warp_has_rows) multiply_tile(sums, tile, to_do, with_lo, x_type != BF16);
    }
#pragma unroll
    for (int i = 0; i < SLABS; i++) store_low(in, slabs[i], sums[i]);
}

KERNEL_RESIDENT(lora_shrink_mma, LoraArgs, SHRINK_THREADS, 4) {
    SHARED(ShrinkRoom, room);
    const LoraTarget& target = args.targets[0];
    int tile_row = int(blockIdx.x) * TILE_ROWS, begin = int(blockIdx.y) * args.split_len;
    int end = min(begin + args.split_len, args.cols), buffer = 0;
    bool x_aligned = rows_are_aligned(target.x, target.x_stride * (target.x_type == F32 ? 4 : 2));
    u64 starts = run_starts(args.slots, args.rows, tile_row);
    for (int start = 0; start < TILE_ROWS && tile_row + start < args.rows;) {
        int stop = run_end(starts, start);
        if (stop - start >= args.long_run) {
            ShrinkInputs in{args, tile_row, start, stop, begin, end, x_aligned};
            shrink_run(in, args.slots[tile_row + start], room, buffer);
        }
        start = stop;
    }
}

// --- Expand.

#define EXPAND_THREADS 256
#define PANEL 16
#define PANELS 16
#define WARP_PANELS (PANELS / 2)
#define RANKS 32
#define LOW_ROW (RANKS + 8)

struct ExpandRoom {
    bf16 low[2][TILE_ROWS][LOW_ROW];   // hi and lo
    bf16 b[2][PANELS][RANKS * PANEL];  // hi and lo; see place_in_panel
};

// Where 8 outputs of a rank lie in a staged panel: halves swap places every four ranks, so that ldmatrix meets each
// bank once.
DEVICE int place_in_panel(int rank, int half) { return rank * PANEL + (half ^ (rank >> 2 & 1)) * 8; }

struct ExpandInputs {
    const LoraArgs& args;
    const LoraTarget& target;
    LoraEntry entry;
    int tile_row, run_start, run_end, feature;  // feature: the block's first
};

// Low-rank products of `ranks` (16 or 32) ranks from `first` on, summed over the splits and scaled; 0 past the rank and
// the run.
DEVICE void stage_low(const ExpandInputs& in, int first, int ranks, ExpandRoom& room) {
    int quads = ranks / 4, quads_log2 = ranks == 32 ? 3 : 2;
    u64 stride = low_start(in.args, 1, 0, 0);
    for (int i = threadIdx.x; i < TILE_ROWS * quads; i += EXPAND_THREADS) {
        int row = i >> quads_log2, rank = (i & (quads - 1)) * 4;
        float sums[4] = {};
        if (row >= in.run_start && row < in.run_end && first + rank < int(in.entry.rank)) {
            const float* low = in.args.low + low_start(in.args, 0, in.tile_row + row, blockIdx.z) + u32(first + rank);
#pragma unroll 4
            for (int split = 0; split < in.args.splits; split++) {
                Packed<float> part = load16(low + split * stride);
                for (int j = 0; j < 4; j++) sums[j] += part.at[j];
            }
            float factor = in.entry.scale * in.args.scales[in.tile_row + row];
            // Past the rank `low` is anything.
            for (int j = 0; j < 4; j++) sums[j] = first + rank + j < int(in.entry.rank) ? factor * sums[j] : 0.0f;
        }
        store_split4(&room.low[0][row][rank], &room.low[1][row][rank], sums);
    }
}

// The same ranks of B; 0 past the rank.
DEVICE void stage_b(const ExpandInputs& in, int first, int ranks, ExpandRoom& room) {
    int type = int(in.entry.type), rank_total = int(in.entry.rank);
    int log2 = packet_log2(type), pieces = PANEL >> log2;
    bool is_aligned = is_aligned16(in.entry.b);
    int pieces_log2 = 4 - log2, ranks_log2 = ranks == 32 ? 5 : 4;
#pragma unroll 4
    for (int i = threadIdx.x; i < PANELS * ranks * pieces; i += EXPAND_THREADS) {
        int piece = i & (pieces - 1), rank = i >> pieces_log2 & (ranks - 1), panel = i >> (pieces_log2 + ranks_log2);
        int start = in.feature + panel * PANEL, outputs = min(in.target.features - start, PANEL);
        if (outputs <= 0) break;
        int valid = first + rank < rank_total ? outputs - (piece << log2) : 0;
        u64 element = u64(u32(start)) * u32(rank_total) + u32(first + rank) * u32(outputs) + u32(piece << log2);
        bool all = is_aligned && outputs == PANEL && valid > 0;
        Packed<u32> packet = load_packet_of(type, in.entry.b, element, all, valid);
        int first_output = piece << log2, at = place_in_panel(rank, first_output / 8) + first_output % 8;
        store_split(&room.b[0][panel][at], &room.b[1][panel][at], packet, type);
    }
}

// sums[panel] += low bᵀ over `ranks` ranks, for this warp's 16 rows and 8 panels.
DEVICE void multiply_ranks(float (&sums)[WARP_PANELS][2][4], const ExpandRoom& room, int ranks, bool b_has_lo) {
    int lane = lane_idx(), row = warp_idx() / 2 * 16 + lane % 16, panel = warp_idx() % 2 * WARP_PANELS;
    for (int k = 0; k < ranks; k += 16) {
        u32 low_hi[4], low_lo[4];
        ldmatrix_x4(low_hi, &room.low[0][row][k + lane / 16 * 8]);
        ldmatrix_x4(low_lo, &room.low[1][row][k + lane / 16 * 8]);
        int at = place_in_panel(k + lane % 16, lane / 16);
#pragma unroll
        for (int i = 0; i < WARP_PANELS; i++) {
            u32 b[4];
            ldmatrix_x4_transposed(b, &room.b[0][panel + i][at]);
            multiply_two(sums[i], low_hi, b);
            multiply_two(sums[i], low_lo, b);
            if (!b_has_lo) continue;
            ldmatrix_x4_transposed(b, &room.b[1][panel + i][at]);
            multiply_two(sums[i], low_hi, b);
        }
    }
}

// Calls f(row, feature, two sums) for this lane's pairs in the run.
template <class F>
DEVICE void for_outputs(const ExpandInputs& in, float (&sums)[WARP_PANELS][2][4], F f) {
    int lane = lane_idx(), first_row = warp_idx() / 2 * 16 + lane / 4;
    int first = in.feature + warp_idx() % 2 * WARP_PANELS * PANEL + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first_row + half * 8;
        if (row < in.run_start || row >= in.run_end) continue;
#pragma unroll
        for (int i = 0; i < 2 * WARP_PANELS; i++) {
            float(&of)[4] = sums[i / 2][i % 2];
            f(in.tile_row + row, first + i * 8, of[2 * half], of[2 * half + 1]);
        }
    }
}

// Without DoRA and with all outputs of the block there: nothing but loads, and nothing but stores.
DEVICE bool is_plain(const ExpandInputs& in) {
    return !in.entry.out_scale && in.target.features % 2 == 0 && in.feature + PANELS * PANEL <= in.target.features;
}
DEVICE OutputPair* plain_outputs(const ExpandInputs& in, int row, int feature) {
    return reinterpret_cast<OutputPair*>(in.target.out + u64(u32(row)) * u32(in.target.features) + u32(feature));
}

DEVICE void begin_outputs(const ExpandInputs& in, float (&sums)[WARP_PANELS][2][4]) {
    if (is_plain(in)) {
        for_outputs(in, sums, [&](int row, int feature, float& first, float& second) {
            OutputPair pair = *plain_outputs(in, row, feature);
            first = pair.at[0];
            second = pair.at[1];
        });
        return;
    }
    const LoraTarget& target = in.target;
    for_outputs(in, sums, [&](int row, int feature, float& first, float& second) {
        OutputPair pair = load_outputs(target, row, feature);
        bool scaled = in.entry.out_scale;
        first = pair.at[0] - (scaled && feature < target.features ? unscaled_part(target, row, feature) : 0.0f);
        second = pair.at[1] - (scaled && feature + 1 < target.features ? unscaled_part(target, row, feature + 1) : 0.0f);
    });
}

DEVICE float finished(const ExpandInputs& in, int row, int feature, float sum) {
    if (!in.entry.out_scale || feature >= in.target.features) return sum;
    return in_global(in.entry.out_scale)[feature] * sum + unscaled_part(in.target, row, feature);
}

DEVICE void store_outputs(const ExpandInputs& in, float (&sums)[WARP_PANELS][2][4]) {
    if (is_plain(in)) {
        for_outputs(in, sums, [&](int row, int feature, float first, float second) {
            *plain_outputs(in, row, feature) = OutputPair{{first, second}};
        });
        return;
    }
    for_outputs(in, sums, [&](int row, int feature, float first, float second) {
        OutputPair pair{{finished(in, row, feature, first), finished(in, row, feature + 1, second)}};
        store_outputs(in.target, row, feature, pair);
    });
}

DEVICE void expand_run(const ExpandInputs& in, ExpandRoom& room) {
    float sums[WARP_PANELS][2][4] = {};
    begin_outputs(in, sums);
    int warp_row = warp_idx() / 2 * 16, rank = int(in.entry.rank);
    bool warp_has_rows = warp_row < in.run_end && warp_row + 16 > in.run_start;
    for (int first = 0; first < rank; first += RANKS) {
        int ranks = rank - first > 16 ? 32 : 16;
        __syncthreads();
        stage_low(in, first, ranks, room);
        stage_b(in, first, ranks, room);
        __syncthreads();
        if (warp_has_rows) multiply_ranks(sums, room, ranks, in.entry.type != BF16);
    }
    store_outputs(in, sums);
}

KERNEL_RESIDENT(lora_expand_mma, LoraArgs, EXPAND_THREADS, 2) {
    SHARED(ExpandRoom, room);
    const LoraTarget& target = args.targets[blockIdx.z];
    int tile_row = int(blockIdx.x) * TILE_ROWS, feature = int(blockIdx.y) * PANELS * PANEL;
    if (feature >= target.features) return;
    u64 starts = run_starts(args.slots, args.rows, tile_row);
    for (int start = 0; start < TILE_ROWS && tile_row + start < args.rows;) {
        int stop = run_end(starts, start);
        if (stop - start >= args.long_run) {
            LoraEntry entry = lora_entry(args, target, args.slots[tile_row + start]);
            ExpandInputs in{args, target, entry, tile_row, start, stop, feature};
            if (entry.rank > 0) expand_run(in, room);
        }
        start = stop;
    }
}
