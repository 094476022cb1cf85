//! The CPU's backward ops. Each is a job of the pool or a few, one after the other; nothing is kept between them.
//!
//! Threads divide rows, features or heads, never a sum: gradients are the same bits on any number of threads.

mod adapters;
mod attention;
mod dropout;
mod elements;
mod experts;
mod layers;
mod optimizer;
mod rows;
mod rowwise;
mod unpack;

pub(super) use self::layers::update_norms;

use super::ops::CpuOps;
use super::{Cpu, SendPtr, ptr};
use crate::error::Result;
use crate::experts::Routing;
use crate::grad::{
    AdamW, AttentionBackward, CombineBackward, DoraBackward, DropoutArgs, GeluBackward, GradOps,
    TrainedModule,
};
use crate::ops::RopeTables;
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// Elements of a task of plain loops.
const CHUNK: usize = 16 * 1024;

fn f32s(t: &Tensor, op: &'static str, name: &'static str) -> Result<SendPtr<f32>> {
    ptr::<f32>(t, op, name)
}

/// A part of a tensor that only one task has.
///
/// # Safety
/// The part exists, is initialised, and nobody else refers to it.
unsafe fn part<'a>(of: SendPtr<f32>, start: usize, len: usize) -> &'a mut [f32] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts_mut(of.get().add(start), len) }
}

impl Cpu {
    fn each(&self, num_tasks: usize, task: impl Fn(usize) + Sync) {
        self.pool.run(num_tasks, &task);
    }

    /// Calls `task(first, len)` for parts of `total`.
    fn chunks(&self, total: usize, chunk: usize, task: impl Fn(usize, usize) + Sync) {
        let chunk = chunk.max(1);
        self.each(total.div_ceil(chunk), |i| task(i * chunk, chunk.min(total - i * chunk)));
    }
}

impl GradOps for CpuOps {
    unsafe fn rms_norm_backward(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::rms_norm_backward(&self.cpu, x, weight, eps, d_out, d_x) }
    }

    unsafe fn layer_norm_backward(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::layer_norm_backward(&self.cpu, x, weight, eps, d_out, d_x) }
    }

    unsafe fn linear_backward(
        &mut self,
        layers: &[(&Weight, &Tensor)],
        d_x: &Tensor,
        accumulate: bool,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { layers::linear_backward(&self.cpu, layers, d_x, accumulate) }
    }

    unsafe fn lora_backward(
        &mut self,
        module: &TrainedModule,
        x: &Tensor,
        d_out: &Tensor,
        low: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { adapters::lora_backward(&self.cpu, module, x, d_out, low, d_x) }
    }

    unsafe fn dora_backward(&mut self, args: DoraBackward<'_>) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { adapters::dora_backward(&self.cpu, args) }
    }

    unsafe fn rope_backward(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        step: &Step,
        tables: &RopeTables,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::rope_backward(&self.cpu, pairs, step, tables) }
    }

    unsafe fn attention_backward(&mut self, args: AttentionBackward<'_>) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { attention::attention_backward(&self.cpu, args) }
    }

    unsafe fn silu_mul_backward(
        &mut self,
        gate: &Tensor,
        up: &Tensor,
        d_out: &Tensor,
        d_gate: &Tensor,
        d_up: &Tensor,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::silu_mul_backward(&self.cpu, gate, up, d_out, d_gate, d_up) }
    }

    unsafe fn gelu_backward(&mut self, args: GeluBackward<'_>) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::gelu_backward(&self.cpu, args) }
    }

    unsafe fn softcap_backward(&mut self, x: &Tensor, cap: f32, d_out: &Tensor, d_x: &Tensor) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::softcap_backward(&self.cpu, x, cap, d_out, d_x) }
    }

    unsafe fn gather_rows_backward(&mut self, d_out: &Tensor, rows: &Tensor, d_x: &Tensor) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::gather_rows_backward(d_out, rows, d_x) }
    }

    unsafe fn route_backward(
        &mut self,
        routing: &Routing,
        d_weights: &Tensor,
        d_logits: &Tensor,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { experts::route_backward(&self.cpu, routing, d_weights, d_logits) }
    }

    unsafe fn combine_backward(&mut self, args: CombineBackward<'_>) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { experts::combine_backward(&self.cpu, &args) }
    }

    unsafe fn add_scaled(&mut self, from: &Tensor, factor: f32, to: &Tensor) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { elements::add_scaled(&self.cpu, from, factor, to) }
    }

    unsafe fn clear(&mut self, x: &Tensor) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { elements::clear(&self.cpu, x) }
    }

    unsafe fn cross_entropy(
        &mut self,
        logits: &Tensor,
        targets: &[u32],
        weights: &[f32],
        losses: &mut [f32],
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::cross_entropy(&self.cpu, logits, targets, weights, losses) }
    }

    unsafe fn dropout(&mut self, args: DropoutArgs<'_>) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::dropout(&self.cpu, args) }
    }

    unsafe fn adamw(
        &mut self,
        options: &AdamW,
        parameters: &Tensor,
        gradients: &Tensor,
        moments: [&Tensor; 2],
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { elements::adamw(&self.cpu, options, parameters, gradients, moments) }
    }

    unsafe fn sum_of_squares(&mut self, x: &Tensor) -> Result<f64> {
        // SAFETY: the caller's.
        unsafe { elements::sum_of_squares(&self.cpu, x) }
    }

    unsafe fn transpose(&mut self, x: &Tensor, out: &Tensor) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { adapters::transpose(&self.cpu, x, out) }
    }

    unsafe fn transpose_panels(&mut self, x: &Tensor, out: &Tensor) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { adapters::transpose_panels(&self.cpu, x, out) }
    }
}
