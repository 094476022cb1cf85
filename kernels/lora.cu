// LoRA for rows of any slots in any order, see lib/lora.cuh. Made for decoding, where each row brings its own factors
// and the time is that of reading them: 16-byte loads where the rank allows, several a thread under way, and more of
// them begun before the ones that they wait for arrive. Rows of one slot should be neighbours: their blocks run side by
// side, and the L2 cache serves all but the first. Any rank, cols, features and element types; a rank of 8 costs half of
// 16. A row's bits depend on the row, its factors and split_len alone.
//
// lora_shrink: a block takes one split of the inputs of one row and target. A is [inputs, rank], so a split of it is
// one contiguous range: threads take V ranks of one input, a neighbour the next. All threads' sums of a rank are added
// up in shared memory.
// lora_expand: a block takes 256 outputs of one row and target. Eight lanes share a panel of 16 outputs and read 128
// bytes of it at once, different ranks of it in different lanes, and add up by shuffles.
//
// Entry points: lora_shrink, lora_expand, lora_short_rows.
// Launch, no dynamic shared memory:
//   lora_shrink grid (n, splits, num_targets), block 128
//   lora_expand grid (n, ceil(largest features / 256), num_targets), block 128
//   lora_short_rows grid 1, block 1024: makes the list of rows that lora_mma.cu leaves; once for each table of slots
//   n = rows; or with `list` any number, best about as many as the list will have, since blocks go through it in turn.
// split_len 512 gives 8 blocks a row and target of 4096 inputs, which fills an H100 from few rows on.
#include "lib/lora.cuh"

#define THREADS 128
#define MAX_SPLIT 512
#define INPUTS_PER_THREAD (MAX_SPLIT / THREADS)
#define MAX_VECTOR 8
// Loads under way in a thread.
#define SHRINK_AHEAD 8
#define EXPAND_AHEAD 4
#define SPLITS_AHEAD 8
// Outputs of a block, and ranks whose low-rank products it holds at once.
#define OUTPUTS (2 * THREADS)
#define LOW_RANKS 256
#define PANEL 16

DEVICE int listed_rows(const LoraArgs& args) { return args.list ? int(args.list[0]) : args.rows; }
DEVICE int listed_row(const LoraArgs& args, int i) { return args.list ? int(args.list[1 + i]) : i; }

// --- Shrink.

struct ShrinkRoom {
    float x[MAX_SPLIT];
    float sums[MAX_VECTOR][THREADS + 4];  // by thread; rows of four banks' distance
    float parts[MAX_VECTOR * THREADS];
};

// V adjacent ranks of an input, as they lie in memory.
template <class T, int V>
struct alignas(V * sizeof(T) < 4 ? 4 : V * sizeof(T)) Ranks {
    u32 words[V * sizeof(T) < 4 ? 1 : V * sizeof(T) / 4];
};
template <class T, int V>
DEVICE Ranks<T, V> load_ranks(const T* from) {
    if constexpr (V == 1) return {{element_bits(*from)}};
    else return *reinterpret_cast<const Ranks<T, V>*>(from);
}

// A thread's way through a split of A: from some input on every `step`-th of `len`.
template <class T, int V>
struct Walk {
    const T* a;  // its ranks of input 0
    int rank, step, len;
};
// Past the end the last input is read again, and counts as 0: without conditions the loads go out one after the other.
template <class T, int V>
DEVICE void fetch_inputs(Ranks<T, V> (&held)[SHRINK_AHEAD], const Walk<T, V>& walk, int first) {
#pragma unroll
    for (int i = 0; i < SHRINK_AHEAD; i++) {
        int k = min(first + i * walk.step, walk.len - 1);
        held[i] = load_ranks<T, V>(walk.a + k * walk.rank);
    }
}
template <class T, int V>
DEVICE void add_inputs(float (&sums)[V], const Ranks<T, V> (&held)[SHRINK_AHEAD], const Walk<T, V>& walk,
                       const float* x, int first) {
#pragma unroll
    for (int i = 0; i < SHRINK_AHEAD; i++) {
        int k = first + i * walk.step;
        float xk = k < walk.len ? x[k] : 0.0f;
#pragma unroll
        for (int v = 0; v < V; v++) sums[v] += xk * word_to_f32(held[i].words, v, T{});
    }
}

// Adds up the sums of `lanes` times `width` threads, V ranks each, in two steps so that most threads have a part in it.
template <int V>
DEVICE void add_up(const float (&sums)[V], int width, int lanes, float* low, ShrinkRoom& room) {
    int thread = threadIdx.x, ranks = width * V, parts = max(THREADS / ranks, 1);
#pragma unroll
    for (int v = 0; v < V; v++) room.sums[v][thread] = sums[v];
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < ranks * parts; i += THREADS) {
        int rank = i % ranks;
        float sum = 0.0f;
        for (int lane = i / ranks; lane < lanes; lane += parts) sum += room.sums[rank % V][lane * width + rank / V];
        room.parts[i] = sum;
    }
    __syncthreads();
#pragma unroll 1
    for (int rank = thread; rank < ranks; rank += THREADS) {
        float sum = 0.0f;
        for (int part = 0; part < parts; part++) sum += room.parts[part * ranks + rank];
        low[rank] = sum;
    }
}

// low[r] = Σ_k x[k] a[k, r] over a split of `len` inputs. V divides the rank.
template <class T, int V>
DEVICE void shrink(const T* a, int rank, int len, const float (&x)[INPUTS_PER_THREAD], float* low, ShrinkRoom& room) {
    int thread = threadIdx.x, columns = rank / V;
    // One turn, but for large ranks without a common divisor.
#pragma unroll 1
    for (int first = 0; first < columns; first += THREADS) {
        int width = min(columns - first, THREADS), lanes = THREADS / width;
        Walk<T, V> walk{a + (first + thread % width) * V, rank, lanes, len};
        int k = thread / width < lanes ? thread / width : len;
        Ranks<T, V> held[SHRINK_AHEAD];
        fetch_inputs(held, walk, k);
        if (first == 0) {
#pragma unroll
            for (int i = 0; i < INPUTS_PER_THREAD; i++) room.x[thread + i * THREADS] = x[i];
        }
        __syncthreads();
        float sums[V] = {};
#pragma unroll 1
        while (k < len) {
            add_inputs(sums, held, walk, room.x, k);
            k += SHRINK_AHEAD * lanes;
            if (k < len) fetch_inputs(held, walk, k);
        }
        add_up<V>(sums, width, lanes, low + first * V, room);
    }
}

// With the widest loads that the rows of A allow.
template <class T>
DEVICE void shrink_aligned(const LoraEntry& entry, int begin, int len, const float (&x)[INPUTS_PER_THREAD], float* low,
                           ShrinkRoom& room) {
    constexpr int WIDE = 16 / sizeof(T), HALF = WIDE / 2;
    int rank = int(entry.rank);
    const T* a = in_global(static_cast<const T*>(entry.a)) + u64(begin) * entry.rank;
    u64 alignment = reinterpret_cast<u64>(entry.a) | entry.rank * sizeof(T);
    if (alignment % 16 == 0) shrink<T, WIDE>(a, rank, len, x, low, room);
    else if (alignment % 8 == 0) shrink<T, HALF>(a, rank, len, x, low, room);
    else shrink<T, 1>(a, rank, len, x, low, room);
}

// Each thread's inputs of a split; those past the end are anything.
template <class X>
DEVICE void load_inputs(float (&x)[INPUTS_PER_THREAD], const X* from, int len) {
#pragma unroll
    for (int i = 0; i < INPUTS_PER_THREAD; i++) x[i] = to_f32(from[min(int(threadIdx.x) + i * THREADS, len - 1)]);
}

// Asks for the lines of a part of a factor, all threads together.
DEVICE void prefetch_part(const void* factor, u64 first_byte, u64 bytes) {
    const u8* part = in_global(static_cast<const u8*>(factor)) + first_byte;
    for (u64 at = threadIdx.x * LINE_BYTES; at < bytes; at += THREADS * LINE_BYTES) prefetch_line(part + at);
}
DEVICE u32 element_bytes(const LoraEntry& entry) { return entry.type == F32 ? 4 : 2; }

KERNEL_EARLY(lora_shrink, LoraArgs, THREADS, 1) {
    SHARED(ShrinkRoom, room);
    const LoraTarget& target = args.targets[blockIdx.z];
    int begin = int(blockIdx.y) * args.split_len, len = min(args.cols - begin, args.split_len);
    if (!args.list && blockIdx.x < u32(args.rows)) {
        LoraEntry entry = lora_entry(args, target, args.slots[blockIdx.x]);
        u64 input_bytes = u64(entry.rank) * element_bytes(entry);
        if (entry.rank != 0) prefetch_part(entry.a, u32(begin) * input_bytes, u32(len) * input_bytes);
    }
    wait_for_inputs();
    int count = listed_rows(args);
    for (int i = blockIdx.x; i < count; i += gridDim.x) {
        int row = listed_row(args, i);
        LoraEntry entry = lora_entry(args, target, args.slots[row]);
        if (entry.rank == 0) continue;
        float x[INPUTS_PER_THREAD];
        u64 start = u32(row) * target.x_stride + u32(begin);
        if (target.x_type == F32) load_inputs(x, static_cast<const float*>(target.x) + start, len);
        else if (target.x_type == BF16) load_inputs(x, static_cast<const bf16*>(target.x) + start, len);
        else load_inputs(x, static_cast<const f16*>(target.x) + start, len);
        float* low = args.low + low_start(args, blockIdx.y, row, blockIdx.z);
        if (entry.type == F32) shrink_aligned<float>(entry, begin, len, x, low, room);
        else if (entry.type == BF16) shrink_aligned<bf16>(entry, begin, len, x, low, room);
        else shrink_aligned<f16>(entry, begin, len, x, low, room);
    }
}

// --- Expand.

struct ExpandRoom {
    float low[LOW_RANKS];
};

// Adds two lanes' values: the one keeps the first half of the sums, the other, `upper`, the second.
template <int N>
DEVICE void halve(float (&to)[N], const float (&from)[2 * N], bool upper, int distance) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        float mine = upper ? from[i + N] : from[i], others = upper ? from[i] : from[i + N];
        to[i] = mine + __shfl_xor_sync(FULL_WARP, others, distance);
    }
}
// Over the lanes of a panel that share outputs: two sums are left to each.
DEVICE void add_lanes(float (&to)[2], const float (&from)[8], int lane) {
    float half[4];
    halve(half, from, lane & 4, 4);
    halve(to, half, lane & 2, 2);
}
DEVICE void add_lanes(float (&to)[2], const float (&from)[4], int lane) { halve(to, from, lane & 4, 4); }

DEVICE float updated(const LoraTarget& target, const LoraEntry& entry, int row, int feature, float out, float update) {
    if (!entry.out_scale) return out + update;
    float unscaled = unscaled_part(target, row, feature);
    return in_global(entry.out_scale)[feature] * (out - unscaled + update) + unscaled;
}

// A lane's part of a panel: LEN outputs of every SUBS-th rank.
template <class T>
struct PanelLane {
    static constexpr int LEN = Packed<T>::LEN, PARTS = PANEL / LEN, SUBS = 8 / PARTS;
    const T* panel;
    int outputs;  // of the panel; 0 past the last one
    int first;    // of this lane
    bool is_whole;
};
// Past the end the last rank is read again, as in fetch_inputs.
template <class T>
DEVICE void fetch_ranks(Packed<u32> (&held)[EXPAND_AHEAD], const PanelLane<T>& lane, int first, int end) {
    if (lane.is_whole) {
#pragma unroll
        for (int i = 0; i < EXPAND_AHEAD; i++) {
            int r = min(first + i * PanelLane<T>::SUBS, end - 1);
            held[i] = load_packet(lane.panel + r * PANEL + lane.first, true, 0);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < EXPAND_AHEAD; i++) {
        int r = min(first + i * PanelLane<T>::SUBS, end - 1);
        held[i] = load_packet(lane.panel + r * lane.outputs + lane.first, false, lane.outputs - lane.first);
    }
}

// Σ over the splits of the partial sum at `low`, in order.
DEVICE float sum_of_splits(const LoraArgs& args, const float* low) {
    u64 stride = low_start(args, 1, 0, 0);
    float sum = 0.0f;
#pragma unroll 1
    for (int first = 0; first < args.splits; first += SPLITS_AHEAD) {
        float held[SPLITS_AHEAD];
#pragma unroll
        for (int i = 0; i < SPLITS_AHEAD; i++) held[i] = low[min(first + i, args.splits - 1) * stride];
#pragma unroll
        for (int i = 0; i < SPLITS_AHEAD; i++) sum += first + i < args.splits ? held[i] : 0.0f;
    }
    return sum;
}

template <class T>
DEVICE void expand(const LoraArgs& args, const LoraTarget& target, const LoraEntry& entry, int row, ExpandRoom& room) {
    constexpr int LEN = PanelLane<T>::LEN, PARTS = PanelLane<T>::PARTS, SUBS = PanelLane<T>::SUBS;
    int lane = lane_idx(), rank = int(entry.rank);
    int panel_start = (int(blockIdx.y) * (OUTPUTS / PANEL) + int(threadIdx.x) / 8) * PANEL;
    int outputs = max(min(target.features - panel_start, PANEL), 0);
    const T* panel = in_global(static_cast<const T*>(entry.b)) + u64(panel_start) * entry.rank;
    const PanelLane<T> mine{panel, outputs, lane % PARTS * LEN, outputs == PANEL && is_aligned16(entry.b)};
    // What add_lanes leaves to this lane: lanes of 8 outputs halve theirs twice, those of 4 once.
    int feature = panel_start + mine.first + (LEN == 8 ? (lane & 4) + (lane & 2) : (lane & 4) / 2);
    OutputPair out = load_outputs(target, row, feature);

    float factor = entry.scale * args.scales[row];
    const float* low = args.low + low_start(args, 0, row, blockIdx.z);
    float sums[LEN] = {};
#pragma unroll 1
    for (int first = 0; first < rank; first += LOW_RANKS) {
        int end = min(first + LOW_RANKS, rank), r = first + lane / PARTS % SUBS;
        Packed<u32> held[EXPAND_AHEAD];
        fetch_ranks(held, mine, r, end);
#pragma unroll 1
        for (int i = first + int(threadIdx.x); i < end; i += THREADS) {
            room.low[i - first] = factor * sum_of_splits(args, low + i);
        }
        __syncthreads();
#pragma unroll 1
        while (r < end) {
#pragma unroll
            for (int i = 0; i < EXPAND_AHEAD; i++) {
                float product = r + i * SUBS < end ? room.low[r + i * SUBS - first] : 0.0f;
#pragma unroll
                for (int j = 0; j < LEN; j++) sums[j] += product * word_to_f32(held[i].at, j, T{});
            }
            r += EXPAND_AHEAD * SUBS;
            if (r < end) fetch_ranks(held, mine, r, end);
        }
        __syncthreads();
    }

    float update[2];
    add_lanes(update, sums, lane);
    for (int i = 0; i < 2; i++) {
        if (feature + i < target.features) out.at[i] = updated(target, entry, row, feature + i, out.at[i], update[i]);
    }
    store_outputs(target, row, feature, out);
}

KERNEL_EARLY(lora_expand, LoraArgs, THREADS, 1) {
    SHARED(ExpandRoom, room);
    const LoraTarget& target = args.targets[blockIdx.z];
    int first_output = int(blockIdx.y) * OUTPUTS, num_outputs = min(target.features - first_output, OUTPUTS);
    if (!args.list && blockIdx.x < u32(args.rows) && num_outputs > 0) {
        LoraEntry entry = lora_entry(args, target, args.slots[blockIdx.x]);
        u64 output_bytes = u64(entry.rank) * element_bytes(entry);
        if (entry.rank != 0) prefetch_part(entry.b, u32(first_output) * output_bytes, u32(num_outputs) * output_bytes);
    }
    wait_for_inputs();
    if (num_outputs <= 0) return;
    int count = listed_rows(args);
    for (int i = blockIdx.x; i < count; i += gridDim.x) {
        int row = listed_row(args, i);
        LoraEntry entry = lora_entry(args, target, args.slots[row]);
        if (entry.rank == 0) continue;
        if (entry.type == F32) expand<float>(args, target, entry, row, room);
        else if (entry.type == BF16) expand<bf16>(args, target, entry, row, room);
        else expand<f16>(args, target, entry, row, room);
    }
}

// --- The rows that lora_mma.cu leaves.

struct ShortRowsArgs {
    const u32* slots;  // [rows]
    u32* list;         // [1 + rows]: how many, then the rows, ascending
    int rows;
    int long_run;  // as in LoraArgs
};

struct ShortRowsRoom {
    int counts[WARP_LANES];
};

DEVICE int count_bits(u64 v) { return __popc(u32(v)) + __popc(u32(v >> 32)); }
// The lowest `count` bits, up to all 64.
DEVICE u64 low_bits(int count) { return count < 64 ? (u64(1) << count) - 1 : ~u64(0); }

// Bit i: whether row i of the tile has an adapter and is in a short run.
DEVICE u64 short_rows(const ShortRowsArgs& args, int first) {
    u64 starts = run_starts(args.slots, args.rows, first), rows = 0;
    for (int start = 0; start < TILE_ROWS && first + start < args.rows;) {
        int stop = run_end(starts, start);
        bool is_short = stop - start < args.long_run && args.slots[first + start] != NO_SLOT;
        if (is_short) rows |= low_bits(stop - start) << start;
        start = stop;
    }
    return rows;
}

// Each warp takes every 32nd tile.
KERNEL(lora_short_rows, ShortRowsArgs, 1024) {
    SHARED(ShortRowsRoom, room);
    int listed = 0, lane = lane_idx();
    for (int first = 0; first < args.rows; first += WARP_LANES * TILE_ROWS) {
        int tile = first + warp_idx() * TILE_ROWS;
        u64 rows = short_rows(args, tile);
        __syncthreads();
        if (lane == 0) room.counts[warp_idx()] = count_bits(rows);
        __syncthreads();
        int at = listed;
        for (int warp = 0; warp < WARP_LANES; warp++) {
            if (warp < warp_idx()) at += room.counts[warp];
            listed += room.counts[warp];
        }
        for (int row = lane; row < TILE_ROWS; row += WARP_LANES) {
            if (rows >> row & 1) args.list[1 + at + count_bits(rows & low_bits(row))] = u32(tile + row);
        }
    }
    if (threadIdx.x == 0) args.list[0] = u32(listed);
}
