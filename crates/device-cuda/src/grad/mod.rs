//! The backward ops.

mod adapters;
mod layers;

use wardrobe_device::{
    AdamW, AttentionBackward, CombineBackward, DoraBackward, DropoutArgs, GeluBackward, GeluKind, GradOps,
    Result, RopeTables, Routing, Step, Tensor, TrainedModule, Weight,
};

use crate::driver::Launch;
use crate::kernels::{
    self, AdamWArgs, AddScaledArgs, CrossEntropyArgs, DoraBackwardArgs, GatherRowsBackwardArgs,
    GeluBackwardArgs, LayerNormBackwardArgs, RmsNormBackwardArgs, SiluMulBackwardArgs, SoftcapBackwardArgs,
    SumOfSquaresArgs, TransposeArgs, TransposePanelsArgs, blocks,
};
use crate::ops::{CudaOps, Room, addr, addr_or_null, int};

/// Elements that a block of an elementwise kernel takes.
const BLOCK_ELEMENTS: usize = 1024;
/// Elements that a block adds up for a sum of squares.
const SQUARES_OF_BLOCK: usize = 16_384;
/// Rows that a block adds up for DoRA's magnitudes.
const DORA_ROWS_PER_PART: usize = 64;

fn columns(rows: usize, cols: usize) -> Launch {
    Launch { grid: [rows as u32, cols.div_ceil(BLOCK_ELEMENTS) as u32, 1], block: 256, shared_bytes: 0 }
}

/// Queues a kernel.
macro_rules! launch {
    ($ops:expr, $args:ty, $file:literal, $name:literal, $launch:expr, $value:expr) => {{
        let kernel = $ops.kernels().get::<$args>(concat!("backward/", $file), $name, 0)?;
        // SAFETY: operands are as `GradOps` promises; the kernel gets what its comments ask for.
        unsafe { kernel.launch($ops.driver().as_ref(), $ops.stream(), $launch, $value) }
    }};
}

impl GradOps for CudaOps {
    unsafe fn rms_norm_backward(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        self.flush()?;
        let op = "rms_norm_backward";
        let args = RmsNormBackwardArgs {
            x: addr(op, "x", x)?,
            weight: addr(op, "weight", weight)?,
            d_out: addr(op, "d_out", d_out)?,
            d_x: addr(op, "d_x", d_x)?,
            cols: int(weight.shape().numel()),
            eps,
        };
        let launch = blocks(x.shape().numel() / weight.shape().numel().max(1), 256);
        launch!(self, RmsNormBackwardArgs, "rms_norm_backward", "rms_norm_backward", launch, &args)
    }

    unsafe fn layer_norm_backward(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        self.flush()?;
        let op = "layer_norm_backward";
        let args = LayerNormBackwardArgs {
            x: addr(op, "x", x)?,
            weight: addr(op, "weight", weight)?,
            d_out: addr(op, "d_out", d_out)?,
            d_x: addr(op, "d_x", d_x)?,
            cols: int(x.shape().row_len()),
            eps,
        };
        let launch = blocks(x.shape().rows(), 256);
        launch!(self, LayerNormBackwardArgs, "layer_norm_backward", "layer_norm_backward", launch, &args)
    }

    unsafe fn linear_backward(
        &mut self,
        layers: &[(&Weight, &Tensor)],
        d_x: &Tensor,
        accumulate: bool,
    ) -> Result<()> {
        self.flush()?;
        self.queue_linear_backward(layers, d_x, accumulate)
    }

    unsafe fn lora_backward(
        &mut self,
        module: &TrainedModule,
        x: &Tensor,
        d_out: &Tensor,
        low: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        self.flush()?;
        self.queue_lora_backward(module, x, d_out, low, d_x)
    }

    unsafe fn dora_backward(&mut self, args: DoraBackward<'_>) -> Result<()> {
        self.flush()?;
        let op = "dora_backward";
        let (rows, cols) = (args.out.shape().rows(), args.out.shape().row_len());
        let parts = rows.div_ceil(DORA_ROWS_PER_PART);
        let room = self.room(Room::Gradients, 4 * parts * cols)?;
        let own = DoraBackwardArgs {
            out: addr(op, "out", args.out)?,
            bias: addr_or_null(op, "bias", args.bias)?,
            residual: addr_or_null(op, "residual", args.residual)?,
            out_scale: addr(op, "output scale", args.out_scale)?,
            magnitude: addr(op, "magnitude", args.magnitude)?,
            d_out: addr(op, "d_out", args.d_out)?,
            scaled: addr(op, "scaled", args.scaled)?,
            d_magnitude: addr(op, "d_magnitude", args.d_magnitude)?,
            parts: room,
            rows: int(rows),
            cols: int(cols),
            rows_per_part: int(DORA_ROWS_PER_PART),
            padding: 0,
        };
        let grid = [cols.div_ceil(32) as u32, parts as u32, 1];
        let launch = Launch { grid, block: 256, shared_bytes: 0 };
        launch!(self, DoraBackwardArgs, "dora_backward", "dora_backward_parts", launch, &own)?;
        let launch = blocks(cols.div_ceil(256), 256);
        launch!(self, DoraBackwardArgs, "dora_backward", "dora_backward_sum", launch, &own)
    }

    unsafe fn rope_backward(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        step: &Step,
        tables: &RopeTables,
    ) -> Result<()> {
        self.flush()?;
        self.queue_rope(pairs, step.positions(), step.rope_idx(), tables, -1.0)?;
        self.flush()
    }

    unsafe fn attention_backward(&mut self, args: AttentionBackward<'_>) -> Result<()> {
        self.flush()?;
        self.queue_attention_backward(&args)
    }

    unsafe fn silu_mul_backward(
        &mut self,
        gate: &Tensor,
        up: &Tensor,
        d_out: &Tensor,
        d_gate: &Tensor,
        d_up: &Tensor,
    ) -> Result<()> {
        self.flush()?;
        let op = "silu_mul_backward";
        let n = gate.shape().numel();
        let args = SiluMulBackwardArgs {
            gate: addr(op, "gate", gate)?,
            up: addr(op, "up", up)?,
            d_out: addr(op, "d_out", d_out)?,
            d_gate: addr(op, "d_gate", d_gate)?,
            d_up: addr(op, "d_up", d_up)?,
            n: n as u64,
        };
        let launch = blocks(n.div_ceil(BLOCK_ELEMENTS), 256);
        launch!(self, SiluMulBackwardArgs, "elements_backward", "silu_mul_backward", launch, &args)
    }

    unsafe fn gelu_backward(&mut self, args: GeluBackward<'_>) -> Result<()> {
        self.flush()?;
        let op = "gelu_backward";
        let n = args.x.shape().numel();
        let own = GeluBackwardArgs {
            x: addr(op, "x", args.x)?,
            up: addr_or_null(op, "up", args.up.map(|(up, _)| up))?,
            d_out: addr(op, "d_out", args.d_out)?,
            d_x: addr(op, "d_x", args.d_x)?,
            d_up: addr_or_null(op, "d_up", args.up.map(|(_, d_up)| d_up))?,
            n: n as u64,
            by_tanh: u32::from(args.kind == GeluKind::Tanh),
            padding: 0,
        };
        let launch = blocks(n.div_ceil(BLOCK_ELEMENTS), 256);
        launch!(self, GeluBackwardArgs, "elements_backward", "gelu_backward", launch, &own)
    }

    unsafe fn softcap_backward(&mut self, x: &Tensor, cap: f32, d_out: &Tensor, d_x: &Tensor) -> Result<()> {
        self.flush()?;
        let op = "softcap_backward";
        let n = x.shape().numel();
        let (x, d_out, d_x) = (addr(op, "x", x)?, addr(op, "d_out", d_out)?, addr(op, "d_x", d_x)?);
        let args = SoftcapBackwardArgs { x, d_out, d_x, n: n as u64, cap, padding: 0 };
        let launch = blocks(n.div_ceil(BLOCK_ELEMENTS), 256);
        launch!(self, SoftcapBackwardArgs, "elements_backward", "softcap_backward", launch, &args)
    }

    unsafe fn gather_rows_backward(&mut self, d_out: &Tensor, rows: &Tensor, d_x: &Tensor) -> Result<()> {
        self.flush()?;
        let op = "gather_rows_backward";
        let args = GatherRowsBackwardArgs {
            d_out: addr(op, "d_out", d_out)?,
            rows: addr(op, "rows", rows)?,
            d_x: addr(op, "d_x", d_x)?,
            cols: int(d_x.shape().row_len()),
            padding: 0,
        };
        let launch = columns(d_out.shape().rows(), d_x.shape().row_len());
        launch!(self, GatherRowsBackwardArgs, "elements_backward", "gather_rows_backward", launch, &args)
    }

    unsafe fn route_backward(
        &mut self,
        routing: &Routing,
        d_weights: &Tensor,
        d_logits: &Tensor,
    ) -> Result<()> {
        self.flush()?;
        self.queue_route_backward(routing, d_weights, d_logits)
    }

    unsafe fn combine_backward(&mut self, args: CombineBackward<'_>) -> Result<()> {
        self.flush()?;
        self.queue_combine_backward(&args)
    }

    unsafe fn add_scaled(&mut self, from: &Tensor, factor: f32, to: &Tensor) -> Result<()> {
        self.flush()?;
        let n = from.shape().numel();
        let (from, to) = (addr("add_scaled", "from", from)?, addr("add_scaled", "to", to)?);
        let args = AddScaledArgs { from, to, n: n as u64, factor, padding: 0 };
        let launch = blocks(n.div_ceil(BLOCK_ELEMENTS), 256);
        launch!(self, AddScaledArgs, "elements_backward", "add_scaled", launch, &args)
    }

    unsafe fn clear(&mut self, x: &Tensor) -> Result<()> {
        self.flush()?;
        let to = addr("clear", "x", x)?;
        // SAFETY: the caller's.
        unsafe { self.driver().clear(self.stream(), to, x.size_bytes()) }
    }

    unsafe fn cross_entropy(
        &mut self,
        logits: &Tensor,
        targets: &[u32],
        weights: &[f32],
        losses: &mut [f32],
    ) -> Result<()> {
        self.flush()?;
        let rows = targets.len();
        let room = self.room(Room::Sample, 12 * rows)?;
        let words = targets.iter().copied().chain(weights.iter().map(|w| w.to_bits()));
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let losses_at = room.offset(8 * rows);
        let args = CrossEntropyArgs {
            logits: addr("cross_entropy", "logits", logits)?,
            targets: room,
            weights: room.offset(4 * rows),
            losses: losses_at,
            vocab: int(logits.shape().row_len()),
            padding: 0,
        };
        // SAFETY: the room has twelve bytes a row.
        unsafe { self.driver().write(self.stream(), room, &bytes)? };
        launch!(self, CrossEntropyArgs, "cross_entropy", "cross_entropy", blocks(rows, 1024), &args)?;
        let mut bytes = vec![0; 4 * rows];
        // SAFETY: as above.
        unsafe { self.driver().read(self.stream(), losses_at, &mut bytes)? };
        for (loss, bytes) in losses.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *loss = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }

    unsafe fn dropout(&mut self, args: DropoutArgs<'_>) -> Result<()> {
        self.flush()?;
        let op = "dropout";
        let (rows, cols) = (args.x.shape().rows(), args.x.shape().row_len());
        let wardrobe_device::Dropout { probability, seed, step } = args.dropout;
        let own = kernels::DropoutArgs {
            x: addr(op, "x", args.x)?,
            out: addr(op, "out", args.out)?,
            example_idx: addr(op, "examples", args.example_idx)?,
            positions: addr(op, "positions", args.positions)?,
            threshold: (f64::from(probability) * 2f64.powi(32)) as u64,
            key: [seed as u32 ^ step.wrapping_mul(0x9E37_79B9), (seed >> 32) as u32],
            module: args.module,
            keep: if probability < 1.0 { 1.0 / (1.0 - probability) } else { 0.0 },
            cols: int(cols),
            accumulate: i32::from(args.accumulate),
        };
        launch!(self, kernels::DropoutArgs, "dropout", "dropout", columns(rows, cols), &own)
    }

    unsafe fn adamw(
        &mut self,
        options: &AdamW,
        parameters: &Tensor,
        gradients: &Tensor,
        moments: [&Tensor; 2],
    ) -> Result<()> {
        self.flush()?;
        let op = "adamw";
        let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale } = *options;
        let step = f64::from(step);
        // The corrections of the moments' start at zero.
        let first_correction = (1.0 - f64::from(beta1).powf(step)) as f32;
        let n = parameters.shape().numel();
        let args = AdamWArgs {
            parameters: addr(op, "parameters", parameters)?,
            gradients: addr(op, "gradients", gradients)?,
            first: addr(op, "moments", moments[0])?,
            second: addr(op, "moments", moments[1])?,
            n: n as u64,
            beta1,
            beta2,
            epsilon,
            gradient_scale,
            keep: 1.0 - learning_rate * weight_decay,
            rate: learning_rate / first_correction,
            second_correction: (1.0 - f64::from(beta2).powf(step)).sqrt() as f32,
            padding: 0,
        };
        launch!(self, AdamWArgs, "adamw", "adamw", blocks(n.div_ceil(BLOCK_ELEMENTS), 256), &args)
    }

    unsafe fn sum_of_squares(&mut self, x: &Tensor) -> Result<f64> {
        self.flush()?;
        let n = x.shape().numel();
        let parts = n.div_ceil(SQUARES_OF_BLOCK).max(1);
        let room = self.room(Room::Gradients, 8 * (parts + 1))?;
        let total = room.offset(8 * parts);
        let x = addr("sum_of_squares", "x", x)?;
        let args = SumOfSquaresArgs { x, parts: room, total, n: n as u64, num_parts: int(parts), padding: 0 };
        launch!(self, SumOfSquaresArgs, "sum_of_squares", "sum_of_squares_parts", blocks(parts, 256), &args)?;
        launch!(self, SumOfSquaresArgs, "sum_of_squares", "sum_of_squares_total", blocks(1, 256), &args)?;
        let mut bytes = [0; 8];
        // SAFETY: the room has a total behind the parts.
        unsafe { self.driver().read(self.stream(), total, &mut bytes)? };
        Ok(f64::from_le_bytes(bytes))
    }

    unsafe fn transpose(&mut self, x: &Tensor, out: &Tensor) -> Result<()> {
        self.flush()?;
        let (rows, cols) = (x.shape().rows(), x.shape().row_len());
        let (x, out) = (addr("transpose", "x", x)?, addr("transpose", "out", out)?);
        let args = TransposeArgs { x, out, rows: int(rows), cols: int(cols) };
        let grid = [cols.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1];
        launch!(
            self,
            TransposeArgs,
            "transpose",
            "transpose",
            Launch { grid, block: 256, shared_bytes: 0 },
            &args
        )
    }

    unsafe fn transpose_panels(&mut self, x: &Tensor, out: &Tensor) -> Result<()> {
        self.flush()?;
        let (rank, n) = (x.shape().rows(), x.shape().row_len());
        let (x, out) = (addr("transpose", "x", x)?, addr("transpose", "out", out)?);
        let args = TransposePanelsArgs { x, out, rank: int(rank), n: int(n) };
        launch!(
            self,
            TransposePanelsArgs,
            "transpose",
            "transpose_panels",
            blocks(n.div_ceil(16), 256),
            &args
        )
    }
}
