//! `lora.cu` and `lora_mma.cu`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `LoraTarget` of `lib/lora.cuh`.
    struct LoraTarget {
        x: DevicePtr,
        out: DevicePtr,
        bias: DevicePtr,
        residual: DevicePtr,
        x_stride: u64,
        module: u32,
        features: i32,
        x_type: u32,
        unused: i32,
    }

    /// `LoraArgs` of `lib/lora.cuh`.
    struct LoraArgs {
        targets: [LoraTarget; 3],
        entries: DevicePtr,
        slots: DevicePtr,
        scales: DevicePtr,
        low: DevicePtr,
        list: DevicePtr,
        num_targets: i32,
        num_modules: i32,
        rows: i32,
        cols: i32,
        splits: i32,
        split_len: i32,
        max_rank: i32,
        long_run: i32,
    }

    /// `ShortRowsArgs`.
    struct ShortRowsArgs {
        slots: DevicePtr,
        list: DevicePtr,
        rows: i32,
        long_run: i32,
    }
}
