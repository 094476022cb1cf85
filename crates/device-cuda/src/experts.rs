//! Mixtures of experts.
//!
//! In a step that may be recorded nothing is read back: `gemv_experts` finds on the card which rows an expert has, in blocks for all
//! experts, of which those without rows end at once. A prompt waits for the numbers of rows instead, and multiplies each expert's
//! rows as any layer's.

use std::any::Any;
use std::sync::Arc;

use wardrobe_device::{
    Combine, CombineBackward, DType, DeviceError, ExpertTarget, Experts, LinearTarget, LoraBatch, Memory,
    Result, Routing, Tensor, Weight, WeightData,
};

use crate::device::Cuda;
use crate::driver::{DevicePtr, Launch};
use crate::kernels::{
    CombineArgs, CombineBackwardArgs, ExpertGemvArgs, ExpertSlotsArgs, LoraArgs, LoraTarget, RouteArgs,
    RouteBackwardArgs, WeightArg, blocks, element_type,
};
use crate::lora::{Shrunk, TARGETS};
use crate::memory::DeviceMemory;
use crate::ops::{CudaOps, Room, addr, addr_or_null, int};
use crate::planes::PlaneFormat;
use crate::weight::CudaWeight;

/// Experts that `experts.cu` takes.
const MAX_EXPERTS: usize = 1024;
/// Rows of a step up to which an expert's rows are few, so that nobody has to know how many they are.
const FEW_ROWS: usize = 32;
/// Pairs of an expert, on average, up to which the narrow variant of `gemv_experts` reads its weights once.
const NARROW_PAIRS: usize = 4;

/// Experts' weights on the card, as `gemv_experts.cu` takes them.
#[derive(Debug)]
pub(crate) struct ExpertTable {
    format: PlaneFormat,
    memory: Arc<DeviceMemory>,
}

impl WeightData for ExpertTable {
    fn size_bytes(&self) -> usize {
        self.memory.len_bytes()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl ExpertTable {
    /// See [`wardrobe_device::Device::expert_table`].
    pub(crate) fn new(cuda: &Cuda, weights: &[Weight]) -> Result<Self> {
        let invalid = |reason: String| DeviceError::Invalid { op: "experts", reason };
        let loaded = weights.iter().map(CudaWeight::of).collect::<Result<Vec<_>>>()?;
        let Some(format) = loaded.first().map(|w| w.format()) else {
            return Err(invalid("no experts".to_owned()));
        };
        if let Some(idx) = loaded.iter().position(|w| w.format() != format) {
            let other = loaded.get(idx).map(|w| w.format());
            return Err(invalid(format!(
                "expert 0 is {format:?}, expert {idx} {other:?}: they must be alike"
            )));
        }
        let args: Vec<WeightArg> = loaded.iter().map(|w| w.arg()).collect();
        let bytes: Vec<u8> = args.into_iter().flat_map(WeightArg::to_bytes).collect();
        Ok(ExpertTable { format, memory: cuda.upload("a table of experts", &bytes)? })
    }

    fn of(experts: &Experts) -> Result<&Self> {
        let table = experts.table().and_then(|table| table.as_any().downcast_ref());
        let reason = || "experts of another device".to_owned();
        table.ok_or_else(|| DeviceError::Invalid { op: "expert_linear", reason: reason() })
    }
}

impl WeightArg {
    /// As it lies in the card's memory.
    fn to_bytes(self) -> [u8; size_of::<WeightArg>()] {
        let mut bytes = [0; size_of::<WeightArg>()];
        let places = [self.elements, self.scales, self.high, self.supers].map(|p| p.0.to_le_bytes());
        let numbers = [self.rows, self.cols, self.format, self.unused].map(i32::to_le_bytes);
        let all = places.into_iter().flatten().chain(numbers.into_iter().flatten());
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        bytes
    }
}

/// Queues a kernel.
macro_rules! launch {
    ($ops:expr, $args:ty, $file:literal, $name:expr, $launch:expr, $value:expr) => {{
        let kernel = $ops.kernels().get::<$args>($file, $name, 0)?;
        // SAFETY: operands are as `Ops` promises; the kernel gets what its comments ask for.
        unsafe { kernel.launch($ops.driver().as_ref(), $ops.stream(), $launch, $value) }
    }};
}

impl CudaOps {
    /// See [`wardrobe_device::Ops::route`].
    pub(crate) fn queue_route(&mut self, logits: &Tensor, routing: &Routing) -> Result<()> {
        let op = "route";
        if routing.num_experts() > MAX_EXPERTS {
            let reason = format!("{} experts, over {MAX_EXPERTS}", routing.num_experts());
            return Err(DeviceError::Invalid { op, reason });
        }
        let args = RouteArgs {
            logits: addr(op, "logits", logits)?,
            weights: addr(op, "weights", routing.weights())?,
            experts: addr(op, "experts", routing.experts())?,
            places: addr(op, "places", routing.places())?,
            pair_rows: addr(op, "rows", routing.rows())?,
            starts: addr(op, "starts", routing.starts())?,
            rows: int(routing.num_rows()),
            num_experts: int(routing.num_experts()),
            top_k: int(routing.top_k()),
            unused: 0,
        };
        launch!(self, RouteArgs, "experts", "route", blocks(routing.num_rows().div_ceil(8), 256), &args)?;
        launch!(self, RouteArgs, "experts", "place_pairs", blocks(1, 1024), &args)
    }

    /// See [`wardrobe_device::Ops::combine`].
    pub(crate) fn queue_combine(&mut self, args: &Combine<'_>) -> Result<()> {
        let op = "combine";
        let n = args.out.shape().row_len();
        let own = CombineArgs {
            x: addr(op, "x", args.x)?,
            places: addr(op, "places", args.routing.places())?,
            weights: addr_or_null(op, "weights", args.weighted.then(|| args.routing.weights()))?,
            residual: addr_or_null(op, "residual", args.residual)?,
            out: addr(op, "out", args.out)?,
            n: int(n),
            top_k: int(args.routing.top_k()),
        };
        let grid = [args.routing.num_rows() as u32, n.div_ceil(1024) as u32, 1];
        launch!(self, CombineArgs, "experts", "combine", Launch { grid, block: 256, shared_bytes: 0 }, &own)
    }

    /// See [`wardrobe_device::Ops::expert_linear`].
    pub(crate) fn queue_expert_linear(
        &mut self,
        x: &Tensor,
        targets: &[ExpertTarget<'_>],
        routing: &Routing,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        let shrunk = match lora {
            Some(lora) => self.queue_expert_shrink(x, targets, routing, lora)?,
            None => Vec::new(),
        };
        let is_known_on_the_card_alone =
            self.may_be_recorded() || self.is_deterministic() || routing.num_rows() <= FEW_ROWS;
        if is_known_on_the_card_alone {
            targets.iter().try_for_each(|target| self.queue_gemv_experts(x, target, routing))?;
        } else {
            self.queue_each_expert(x, targets, routing)?;
        }
        shrunk.iter().try_for_each(|group| self.queue_expand(group))
    }

    /// A layer whose experts' rows are known on the card alone.
    fn queue_gemv_experts(&mut self, x: &Tensor, target: &ExpertTarget<'_>, routing: &Routing) -> Result<()> {
        let op = "expert_linear";
        let (pairs, cols) = (routing.num_pairs(), x.shape().row_len());
        let table = ExpertTable::of(target.experts)?;
        let is_f32 = table.format == PlaneFormat::F32;
        // In deterministic runs a row's bits may not depend on how many there are: x is rounded alike.
        let is_narrow = routing.num_rows() <= 8 || pairs <= NARROW_PAIRS * routing.num_experts();
        let is_narrow = is_narrow && !self.is_deterministic();
        let x_type = if is_f32 || is_narrow { x.dtype() } else { DType::BF16 };
        let (x, x_stride) = if is_f32 { (addr(op, "x", x)?, cols) } else { self.aligned_rows(x, x_type)? };
        let (name, of_block) = table.format.gemv_experts(is_narrow);
        let args = ExpertGemvArgs {
            weights: table.memory.ptr(),
            starts: addr(op, "starts", routing.starts())?,
            x,
            out: addr(op, "out", target.out)?,
            x_stride: int(x_stride),
            x_type: element_type(x_type),
        };
        let features = target.experts.rows().div_ceil(of_block) as u32;
        let grid = [features, routing.num_experts() as u32, 1];
        let launch = Launch { grid, block: 256, shared_bytes: 0 };
        launch!(self, ExpertGemvArgs, "gemv_experts", name, launch, &args)
    }

    /// The layers, an expert after the other, with its rows counted on the host.
    fn queue_each_expert(
        &mut self,
        x: &Tensor,
        targets: &[ExpertTarget<'_>],
        routing: &Routing,
    ) -> Result<()> {
        self.refuse_while_recording("expert_linear")?;
        let mut bytes = vec![0; routing.starts().size_bytes()];
        let starts = addr("expert_linear", "starts", routing.starts())?;
        // SAFETY: `bytes` has the tensor's length.
        unsafe { self.driver().read(self.stream(), starts, &mut bytes)? };
        let starts = || bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize);
        for (expert, (first, end)) in starts().zip(starts().skip(1)).enumerate() {
            if first >= end {
                continue;
            }
            let of_expert = x.rows(first, end - first)?;
            let outs = targets.iter().map(|t| t.out.rows(first, end - first)).collect::<Result<Vec<_>>>()?;
            let own: Vec<LinearTarget<'_>> = (targets.iter().zip(&outs))
                .filter_map(|(target, out)| {
                    let weight = target.experts.weights().get(expert)?;
                    Some(LinearTarget { weight, bias: None, module: None, residual: None, lora_x: None, out })
                })
                .collect();
            self.queue_linear(&of_expert, &own)?;
        }
        Ok(())
    }

    /// Queues the products with A of pairs' adapters.
    fn queue_expert_shrink(
        &mut self,
        x: &Tensor,
        targets: &[ExpertTarget<'_>],
        routing: &Routing,
        lora: &LoraBatch<'_>,
    ) -> Result<Vec<Shrunk>> {
        let op = "expert_linear";
        let adapted: Vec<_> = targets.iter().filter_map(|t| Some((t, t.experts.modules()?))).collect();
        let Some(&(_, modules)) = adapted.first() else { return Ok(Vec::new()) };
        if adapted.iter().any(|(_, other)| other.stride != modules.stride) {
            let reason = "layers whose experts' modules are not equally far apart".to_owned();
            return Err(DeviceError::Invalid { op, reason });
        }
        let pairs = routing.num_pairs();
        let room = self.room(Room::Experts, 8 * pairs)?;
        let (pair_slots, pair_scales) = (room, room.offset(4 * pairs));
        let args = ExpertSlotsArgs {
            slots: addr(op, "adapter slots", lora.slots)?,
            scales: addr(op, "adapter scales", lora.scales)?,
            pair_rows: addr(op, "rows", routing.rows())?,
            starts: addr(op, "starts", routing.starts())?,
            pair_slots,
            pair_scales,
            pairs: int(pairs),
            num_experts: int(routing.num_experts()),
            num_modules: int(lora.table.num_modules()),
            stride: modules.stride as i32,
        };
        launch!(self, ExpertSlotsArgs, "experts", "expert_slots", blocks(pairs.div_ceil(256), 256), &args)?;
        let entries = self.slot_entries(lora.table)?;
        let mut groups = Vec::new();
        for group in adapted.chunks(TARGETS) {
            let mut own = [LoraTarget::NONE; TARGETS];
            for (to, (target, modules)) in own.iter_mut().zip(group) {
                let read = target.lora_x.unwrap_or(x);
                *to = LoraTarget {
                    x: addr(op, "x", read)?,
                    out: addr(op, "out", target.out)?,
                    bias: DevicePtr::NULL,
                    residual: DevicePtr::NULL,
                    x_stride: read.shape().row_len() as u64,
                    module: modules.first.0,
                    features: int(target.experts.rows()),
                    x_type: element_type(read.dtype()),
                    unused: 0,
                };
            }
            groups.push(LoraArgs {
                slots: pair_slots,
                scales: pair_scales,
                num_targets: int(group.len()),
                // A pair's slot counts modules, not adapters.
                num_modules: 1,
                rows: int(pairs),
                cols: int(x.shape().row_len()),
                ..LoraArgs::of(own, &entries)
            });
        }
        self.shrink_groups(groups)
    }

    /// See [`wardrobe_device::GradOps::route_backward`].
    pub(crate) fn queue_route_backward(
        &mut self,
        routing: &Routing,
        d_weights: &Tensor,
        d_logits: &Tensor,
    ) -> Result<()> {
        let op = "route_backward";
        let args = RouteBackwardArgs {
            weights: addr(op, "weights", routing.weights())?,
            experts: addr(op, "experts", routing.experts())?,
            d_weights: addr(op, "d_weights", d_weights)?,
            d_logits: addr(op, "d_logits", d_logits)?,
            rows: int(routing.num_rows()),
            num_experts: int(routing.num_experts()),
            top_k: int(routing.top_k()),
            unused: 0,
        };
        let launch = blocks(routing.num_rows().div_ceil(8), 256);
        launch!(self, RouteBackwardArgs, "backward/experts_backward", op, launch, &args)
    }

    /// See [`wardrobe_device::GradOps::combine_backward`].
    pub(crate) fn queue_combine_backward(&mut self, args: &CombineBackward<'_>) -> Result<()> {
        let op = "combine_backward";
        let own = CombineBackwardArgs {
            x: addr(op, "x", args.x)?,
            places: addr(op, "places", args.routing.places())?,
            weights: addr(op, "weights", args.routing.weights())?,
            d_out: addr(op, "d_out", args.d_out)?,
            d_x: addr(op, "d_x", args.d_x)?,
            d_weights: addr(op, "d_weights", args.d_weights)?,
            n: int(args.d_out.shape().row_len()),
            top_k: int(args.routing.top_k()),
        };
        let launch = blocks(args.routing.num_pairs(), 256);
        launch!(self, CombineBackwardArgs, "backward/experts_backward", op, launch, &own)
    }
}

impl PlaneFormat {
    /// The entry point of `gemv_experts.cu`, and the features of a block of it.
    fn gemv_experts(self, is_narrow: bool) -> (&'static str, usize) {
        macro_rules! names {
            ($format:literal) => {
                if is_narrow {
                    (concat!("gemv_experts_", $format, "_16x8"), 16)
                } else {
                    (concat!("gemv_experts_", $format, "_64x32"), 64)
                }
            };
        }
        match self {
            PlaneFormat::F32 => ("gemv_experts_f32_4x8", 4),
            PlaneFormat::F16 => names!("f16"),
            PlaneFormat::BF16 => names!("bf16"),
            PlaneFormat::Q4_0 => names!("q4_0"),
            PlaneFormat::Q4_1 => names!("q4_1"),
            PlaneFormat::Q8_0 => names!("q8_0"),
            PlaneFormat::Q4K => names!("q4_k"),
            PlaneFormat::Q6K => names!("q6_k"),
            PlaneFormat::F8 => names!("f8"),
        }
    }
}
