//! Gradients of what mixtures of experts have besides their layers: routing and the weighted sum.

use super::{CHUNK, f32s};
use crate::cpu::Cpu;
use crate::cpu::isa::Kernel;
use crate::cpu::routing::RoutingPlaces;
use crate::cpu::simd::{LANES, Simd, load, store};
use crate::error::Result;
use crate::experts::Routing;
use crate::grad::CombineBackward;
use crate::tensor::Tensor;

/// See [`crate::grad::GradOps::route_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn route_backward(
    cpu: &Cpu,
    routing: &Routing,
    d_weights: &Tensor,
    d_logits: &Tensor,
) -> Result<()> {
    let op = "route_backward";
    let places = RoutingPlaces::of(routing)?;
    let (d_weights, d_logits) = (f32s(d_weights, op, "d_weights")?, f32s(d_logits, op, "d_logits")?);
    cpu.chunks(places.num_rows, CHUNK / places.num_experts.max(1), |first, rows| {
        for row in first..first + rows {
            // SAFETY: the trait's contract; tasks have rows of their own.
            unsafe { places.route_row_backward(d_weights.get(), d_logits.get(), row) };
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::combine_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn combine_backward(cpu: &Cpu, args: &CombineBackward<'_>) -> Result<()> {
    let op = "combine_backward";
    let routing = RoutingPlaces::of(args.routing)?;
    let (rows, len, top_k) = (args.d_out.shape().rows(), args.d_out.shape().row_len(), routing.top_k);
    let (x, d_out) = (f32s(args.x, op, "x")?, f32s(args.d_out, op, "d_out")?);
    let (d_x, d_weights) = (f32s(args.d_x, op, "d_x")?, f32s(args.d_weights, op, "d_weights")?);
    cpu.chunks(rows, CHUNK / (len * top_k).max(1), |first, rows| {
        for row in first..first + rows {
            // SAFETY: the trait's contract; each row has places of its own.
            unsafe {
                let (places, weights) = routing.of_row(row);
                for (j, (&place, &weight)) in places.iter().zip(weights).enumerate() {
                    let at = place as usize * len;
                    cpu.isa.run(CombineBackwardRow {
                        x: x.get().add(at),
                        d_out: d_out.get().add(row * len),
                        weight,
                        d_x: d_x.get().add(at),
                        d_weight: d_weights.get().add(row * top_k + j),
                        len,
                    });
                }
            }
        }
    });
    Ok(())
}

/// Gradients of one of a row's experts.
struct CombineBackwardRow {
    x: *const f32,
    d_out: *const f32,
    weight: f32,
    d_x: *mut f32,
    d_weight: *mut f32,
    len: usize,
}

impl Kernel for CombineBackwardRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let CombineBackwardRow { x, d_out, weight, d_x, d_weight, len } = self;
        // SAFETY: `len` elements each, by the caller.
        unsafe {
            let mut dot = S::splat(0.0);
            for i in (0..len).step_by(LANES) {
                let n = LANES.min(len - i);
                let d = load::<S>(d_out.add(i), n);
                dot = S::fma(load::<S>(x.add(i), n), d, dot);
                store::<S>(d_x.add(i), S::mul(S::splat(weight), d), n);
            }
            *d_weight = S::reduce_add(dot);
        }
    }
}
