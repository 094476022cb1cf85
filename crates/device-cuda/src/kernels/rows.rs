//! `rms_norm.cu`, `silu_mul.cu` and `gather.cu`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `RmsNormArgs`.
    struct RmsNormArgs {
        x: DevicePtr,
        weight: DevicePtr,
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

    /// `GatherArgs`.
    struct GatherArgs {
        x: DevicePtr,
        rows: DevicePtr,
        out: DevicePtr,
        row_bytes: u64,
    }
}
