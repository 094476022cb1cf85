//! `rope_kv.cu`, `attention_decode.cu`, `attention_prefill.cu` and `attention_any.cu`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `RopeArgs`.
    struct RopeArgs {
        x0: DevicePtr,
        x1: DevicePtr,
        out0: DevicePtr,
        out1: DevicePtr,
        tables: DevicePtr,
        positions: DevicePtr,
        rope_idx: DevicePtr,
        heads0: i32,
        heads1: i32,
        head_dim: i32,
        half: i32,
        direction: f32,
        padding: u32,
    }

    /// `KvWriteArgs`.
    struct KvWriteArgs {
        k: DevicePtr,
        v: DevicePtr,
        k_cache: DevicePtr,
        v_cache: DevicePtr,
        positions: DevicePtr,
        seq_starts: DevicePtr,
        block_tables: DevicePtr,
        num_seqs: i32,
        max_blocks: i32,
        kv_heads: i32,
        head_dim: i32,
    }

    /// `RopeKvArgs`.
    struct RopeKvArgs {
        q: DevicePtr,
        k: DevicePtr,
        v: DevicePtr,
        q_out: DevicePtr,
        k_out: DevicePtr,
        k_cache: DevicePtr,
        v_cache: DevicePtr,
        tables: DevicePtr,
        positions: DevicePtr,
        rope_idx: DevicePtr,
        seq_starts: DevicePtr,
        block_tables: DevicePtr,
        num_seqs: i32,
        max_blocks: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        half: i32,
        direction: f32,
        padding: u32,
    }

    /// `AttentionArgs`.
    struct AttentionArgs {
        q: DevicePtr,
        k_cache: DevicePtr,
        v_cache: DevicePtr,
        out: DevicePtr,
        lse: DevicePtr,
        positions: DevicePtr,
        seq_starts: DevicePtr,
        block_tables: DevicePtr,
        num_seqs: i32,
        max_blocks: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        window: i32,
        min_rows: i32,
        out_type: u32,
        scale: f32,
        softcap: f32,
    }

    /// `DecodeArgs`.
    struct DecodeArgs {
        attention: AttentionArgs,
        partial_out: DevicePtr,
        partial_softmax: DevicePtr,
        num_splits: i32,
        split_tokens: i32,
    }
}
