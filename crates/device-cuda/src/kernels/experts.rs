//! `experts.cu`, `gemv_experts.cu` and `backward/experts_backward.cu`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `RouteArgs`.
    struct RouteArgs {
        logits: DevicePtr,
        weights: DevicePtr,
        experts: DevicePtr,
        places: DevicePtr,
        pair_rows: DevicePtr,
        starts: DevicePtr,
        rows: i32,
        num_experts: i32,
        top_k: i32,
        unused: i32,
    }

    /// `ExpertSlotsArgs`.
    struct ExpertSlotsArgs {
        slots: DevicePtr,
        scales: DevicePtr,
        pair_rows: DevicePtr,
        starts: DevicePtr,
        pair_slots: DevicePtr,
        pair_scales: DevicePtr,
        pairs: i32,
        num_experts: i32,
        num_modules: i32,
        stride: i32,
    }

    /// `CombineArgs`.
    struct CombineArgs {
        x: DevicePtr,
        places: DevicePtr,
        weights: DevicePtr,
        residual: DevicePtr,
        out: DevicePtr,
        n: i32,
        top_k: i32,
    }

    /// `ExpertGemvArgs`.
    struct ExpertGemvArgs {
        weights: DevicePtr,
        starts: DevicePtr,
        x: DevicePtr,
        out: DevicePtr,
        x_stride: i32,
        x_type: u32,
    }

    /// `RouteBackwardArgs`.
    struct RouteBackwardArgs {
        weights: DevicePtr,
        experts: DevicePtr,
        d_weights: DevicePtr,
        d_logits: DevicePtr,
        rows: i32,
        num_experts: i32,
        top_k: i32,
        unused: i32,
    }

    /// `CombineBackwardArgs`.
    struct CombineBackwardArgs {
        x: DevicePtr,
        places: DevicePtr,
        weights: DevicePtr,
        d_out: DevicePtr,
        d_x: DevicePtr,
        d_weights: DevicePtr,
        n: i32,
        top_k: i32,
    }
}
