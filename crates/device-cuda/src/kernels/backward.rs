//! The files of `kernels/backward`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `AdamWArgs`.
    struct AdamWArgs {
        parameters: DevicePtr,
        gradients: DevicePtr,
        first: DevicePtr,
        second: DevicePtr,
        n: u64,
        beta1: f32,
        beta2: f32,
        epsilon: f32,
        gradient_scale: f32,
        keep: f32,
        rate: f32,
        second_correction: f32,
        padding: u32,
    }

    /// `CrossEntropyArgs`.
    struct CrossEntropyArgs {
        logits: DevicePtr,
        targets: DevicePtr,
        weights: DevicePtr,
        losses: DevicePtr,
        vocab: i32,
        padding: u32,
    }

    /// `DoraBackwardArgs`.
    struct DoraBackwardArgs {
        out: DevicePtr,
        bias: DevicePtr,
        residual: DevicePtr,
        out_scale: DevicePtr,
        magnitude: DevicePtr,
        d_out: DevicePtr,
        scaled: DevicePtr,
        d_magnitude: DevicePtr,
        parts: DevicePtr,
        rows: i32,
        cols: i32,
        rows_per_part: i32,
        padding: u32,
    }

    /// `DropoutArgs`.
    struct DropoutArgs {
        x: DevicePtr,
        out: DevicePtr,
        example_idx: DevicePtr,
        positions: DevicePtr,
        threshold: u64,
        key: [u32; 2],
        module: u32,
        keep: f32,
        cols: i32,
        accumulate: i32,
    }

    /// `SiluMulBackwardArgs`.
    struct SiluMulBackwardArgs {
        gate: DevicePtr,
        up: DevicePtr,
        d_out: DevicePtr,
        d_gate: DevicePtr,
        d_up: DevicePtr,
        n: u64,
    }

    /// `GeluBackwardArgs`.
    struct GeluBackwardArgs {
        x: DevicePtr,
        up: DevicePtr,
        d_out: DevicePtr,
        d_x: DevicePtr,
        d_up: DevicePtr,
        n: u64,
        by_tanh: u32,
        padding: u32,
    }

    /// `SoftcapBackwardArgs`.
    struct SoftcapBackwardArgs {
        x: DevicePtr,
        d_out: DevicePtr,
        d_x: DevicePtr,
        n: u64,
        cap: f32,
        padding: u32,
    }

    /// `AddScaledArgs`.
    struct AddScaledArgs {
        from: DevicePtr,
        to: DevicePtr,
        n: u64,
        factor: f32,
        padding: u32,
    }

    /// `GatherRowsBackwardArgs`.
    struct GatherRowsBackwardArgs {
        d_out: DevicePtr,
        rows: DevicePtr,
        d_x: DevicePtr,
        cols: i32,
        padding: u32,
    }

    /// `RmsNormBackwardArgs`.
    struct RmsNormBackwardArgs {
        x: DevicePtr,
        weight: DevicePtr,
        d_out: DevicePtr,
        d_x: DevicePtr,
        cols: i32,
        eps: f32,
    }

    /// `LayerNormBackwardArgs`.
    struct LayerNormBackwardArgs {
        x: DevicePtr,
        weight: DevicePtr,
        d_out: DevicePtr,
        d_x: DevicePtr,
        cols: i32,
        eps: f32,
    }

    /// `SumOfSquaresArgs`.
    struct SumOfSquaresArgs {
        x: DevicePtr,
        parts: DevicePtr,
        total: DevicePtr,
        n: u64,
        num_parts: i32,
        padding: u32,
    }

    /// `TransposeArgs`.
    struct TransposeArgs {
        x: DevicePtr,
        out: DevicePtr,
        rows: i32,
        cols: i32,
    }

    /// `TransposePanelsArgs`.
    struct TransposePanelsArgs {
        x: DevicePtr,
        out: DevicePtr,
        rank: i32,
        n: i32,
    }
}

kernel_args! {
    /// `LoraShrinkArgs`.
    struct LoraShrinkArgs {
        x: DevicePtr,
        factor: DevicePtr,
        low: DevicePtr,
        x_type: u32,
        rows: i32,
        cols: i32,
        rank: i32,
        cols_per_part: i32,
        scale: f32,
    }

    /// `LoraOuterArgs`.
    struct LoraOuterArgs {
        low: DevicePtr,
        x: DevicePtr,
        sum: DevicePtr,
        x_type: u32,
        rows: i32,
        cols: i32,
        rank: i32,
        rows_per_part: i32,
        accumulate: i32,
    }

    /// `LoraExpandArgs`.
    struct LoraExpandArgs {
        low: DevicePtr,
        panels: DevicePtr,
        d_x: DevicePtr,
        rows: i32,
        cols: i32,
        rank: i32,
        padding: u32,
    }

    /// `LoraSumArgs`.
    struct LoraSumArgs {
        parts: DevicePtr,
        out: DevicePtr,
        len: u64,
        num_parts: i32,
        accumulate: i32,
    }

    /// `AttentionBackwardArgs`.
    struct AttentionBackwardArgs {
        q: DevicePtr,
        k: DevicePtr,
        v: DevicePtr,
        out: DevicePtr,
        d_out: DevicePtr,
        lse: DevicePtr,
        q_rounded: DevicePtr,
        k_rounded: DevicePtr,
        v_rounded: DevicePtr,
        d_out_rounded: DevicePtr,
        delta: DevicePtr,
        d_q: DevicePtr,
        d_k: DevicePtr,
        d_v: DevicePtr,
        seq_starts: DevicePtr,
        num_seqs: i32,
        heads: i32,
        kv_heads: i32,
        dim: i32,
        window: i32,
        scale: f32,
        softcap: f32,
        padding: u32,
    }

    /// `AttentionBackwardAnyArgs`.
    struct AttentionBackwardAnyArgs {
        q: DevicePtr,
        k: DevicePtr,
        v: DevicePtr,
        out: DevicePtr,
        d_out: DevicePtr,
        lse: DevicePtr,
        delta: DevicePtr,
        d_q: DevicePtr,
        d_k: DevicePtr,
        d_v: DevicePtr,
        seq_starts: DevicePtr,
        num_seqs: i32,
        heads: i32,
        kv_heads: i32,
        dim: i32,
        window: i32,
        scale: f32,
        softcap: f32,
        padding: u32,
    }
}
