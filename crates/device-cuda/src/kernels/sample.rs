//! `sample.cu` and `sample_report.cu`.

use super::kernel_args;
use crate::driver::DevicePtr;

kernel_args! {
    /// `TokenEdit` of `sample.cu`.
    struct EditArg {
        token: u32,
        bias: f32,
        repetition: f32,
        subtract: f32,
        is_banned: u32,
    }

    /// `SampleParams`.
    struct SampleParams {
        seed: u64,
        position: u64,
        temperature: f32,
        top_p: f32,
        min_p: f32,
        top_k: u32,
        choice: u32,
        edits_start: u32,
        edits_len: u32,
        mask_start: u32,
    }

    /// `SampleArgs`.
    struct SampleArgs {
        logits: DevicePtr,
        params: DevicePtr,
        edits: DevicePtr,
        masks: DevicePtr,
        edited: DevicePtr,
        results: DevicePtr,
        vocab: i32,
        edited_stride: i32,
    }

    /// `ReportParams`.
    struct ReportParams {
        is_wanted: u32,
        top: u32,
        asked_start: u32,
        asked_len: u32,
        mask_start: u32,
    }

    /// `ReportArgs`.
    struct ReportArgs {
        logits: DevicePtr,
        tokens: DevicePtr,
        params: DevicePtr,
        masks: DevicePtr,
        asked: DevicePtr,
        results: DevicePtr,
        top: DevicePtr,
        asked_logprobs: DevicePtr,
        vocab: i32,
        token_stride: i32,
        max_top: i32,
        padding: u32,
    }
}
