//! `rms_norm.cu`, `layer_norm.cu`, `silu_mul.cu`, `gelu.cu`, `softcap.cu`, `columns.cu` and `gather.cu`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `RmsNormArgs`.
    struct RmsNormArgs {
        x: DevicePtr,
        weight: DevicePtr,
        residual: DevicePtr,
        out: DevicePtr,
        cols: i32,
        out_type: u32,
        eps: f32,
        padding: u32,
    }

    /// `LayerNormArgs`.
    struct LayerNormArgs {
        x: DevicePtr,
        weight: DevicePtr,
        bias: DevicePtr,
        out: DevicePtr,
        cols: i32,
        out_type: u32,
        eps: f32,
        padding: u32,
    }

    /// `SiluMulArgs`.
    struct SiluMulArgs {
        gate: DevicePtr,
        up: DevicePtr,
        out: DevicePtr,
        len: u64,
        out_type: u32,
        padding: u32,
    }

    /// `GeluArgs`.
    struct GeluArgs {
        x: DevicePtr,
        up: DevicePtr,
        out: DevicePtr,
        len: u64,
        out_type: u32,
        by_tanh: u32,
    }

    /// `SoftcapArgs`.
    struct SoftcapArgs {
        x: DevicePtr,
        out: DevicePtr,
        len: u64,
        cap: f32,
        padding: u32,
    }

    /// `ColumnsArgs`.
    struct ColumnsArgs {
        from: DevicePtr,
        to: DevicePtr,
        groups: i32,
        from_len: i32,
        to_len: i32,
        from_col: i32,
        to_col: i32,
        width: i32,
    }

    /// `GatherArgs`.
    struct GatherArgs {
        x: DevicePtr,
        rows: DevicePtr,
        out: DevicePtr,
        row_bytes: u64,
    }
}
