//! `gemm.cu`, `gemm_f32.cu`, `gemv.cu`, `dequantise.cu`, `embed.cu` and `convert.cu`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `Weight` of `lib/weight.cuh`.
    struct WeightArg {
        elements: DevicePtr,
        scales: DevicePtr,
        high: DevicePtr,
        supers: DevicePtr,
        rows: i32,
        cols: i32,
        format: i32,
        unused: i32,
    }

    /// `GemvTarget`.
    struct GemvTarget {
        weight: WeightArg,
        bias: DevicePtr,
        residual: DevicePtr,
        out: DevicePtr,
    }

    /// `GemvArgs`.
    struct GemvArgs {
        targets: [GemvTarget; 3],
        x: DevicePtr,
        num_targets: i32,
        rows: i32,
        x_stride: i32,
        x_type: u32,
    }

    /// `GemmArgs`.
    struct GemmArgs {
        x: DevicePtr,
        w: DevicePtr,
        bias: DevicePtr,
        residual: DevicePtr,
        out: DevicePtr,
        rows: i32,
        n: i32,
        k: i32,
        x_stride: i32,
        w_stride: i32,
        out_stride: i32,
        out_type: u32,
        unused: i32,
    }

    /// `GemmF32Args`.
    struct GemmF32Args {
        x: DevicePtr,
        w: DevicePtr,
        bias: DevicePtr,
        residual: DevicePtr,
        out: DevicePtr,
        rows: i32,
        n: i32,
        k: i32,
        x_stride: i32,
        w_stride: i32,
        out_stride: i32,
    }

    /// `ConvertArgs`.
    struct ConvertArgs {
        x: DevicePtr,
        out: DevicePtr,
        rows: i32,
        cols: i32,
        x_stride: i32,
        out_stride: i32,
        out_type: u32,
        x_type: u32,
    }

    /// `DequantiseArgs`.
    struct DequantiseArgs {
        weight: WeightArg,
        out: DevicePtr,
        first: i32,
        count: i32,
        out_stride: i32,
        out_type: u32,
    }

    /// `EmbedArgs`.
    struct EmbedArgs {
        table: WeightArg,
        ids: DevicePtr,
        out: DevicePtr,
        rows: i32,
        scale: f32,
    }
}

impl WeightArg {
    /// No weight.
    pub(crate) const NONE: WeightArg = WeightArg {
        elements: DevicePtr::NULL,
        scales: DevicePtr::NULL,
        high: DevicePtr::NULL,
        supers: DevicePtr::NULL,
        rows: 0,
        cols: 0,
        format: 0,
        unused: 0,
    };
}
