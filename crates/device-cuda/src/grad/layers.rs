//! Gradients of frozen linear layers and of attention.

use wardrobe_device::{AttentionBackward, DType, Result, Tensor, Weight};

use crate::driver::Launch;
use crate::kernels::{AttentionBackwardAnyArgs, AttentionBackwardArgs, blocks};
use crate::ops::{CudaOps, Room, addr, int};

impl CudaOps {
    /// See [`wardrobe_device::GradOps::linear_backward`].
    pub(super) fn queue_linear_backward(
        &mut self,
        layers: &[(&Weight, &Tensor)],
        d_x: &Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let mut adds = accumulate;
        for (weight, d_out) in layers {
            self.multiply_backward(weight, d_out, d_x, adds)?;
            adds = true;
        }
        Ok(())
    }

    /// See [`wardrobe_device::GradOps::attention_backward`]. It is as exact as the forward op was: operands are rounded for tensor
    /// cores only where keys and values were.
    pub(super) fn queue_attention_backward(&mut self, args: &AttentionBackward<'_>) -> Result<()> {
        let [rows, heads, dim] = *args.q.shape().dims() else { return Ok(()) };
        if matches!(dim, 64 | 96 | 128) && self.recorded_cache != DType::F32 {
            self.attention_backward_rounded(args, rows, heads, dim)
        } else {
            self.attention_backward_exact(args, rows, heads, dim)
        }
    }

    fn attention_backward_rounded(
        &mut self,
        args: &AttentionBackward<'_>,
        rows: usize,
        heads: usize,
        dim: usize,
    ) -> Result<()> {
        let (op, file) = ("attention_backward", "backward/attention_backward");
        let kv_heads = args.k.shape().dims().get(1).copied().unwrap_or(1);
        let (of_q, of_k) = (2 * rows * heads * dim, 2 * rows * kv_heads * dim);
        // Places in the room, each a multiple of 256 bytes from its start.
        let sizes = [of_q, of_k, of_k, of_q, 4 * rows * heads];
        let mut ends = [0; 5];
        let mut end = 0usize;
        for (at, size) in ends.iter_mut().zip(sizes) {
            *at = end;
            end = (end + size).next_multiple_of(256);
        }
        let room = self.room(Room::Gradients, end)?;
        let [q_rounded, k_rounded, v_rounded, d_out_rounded, delta] = ends.map(|at| room.offset(at));
        let own = AttentionBackwardArgs {
            q: addr(op, "q", args.q)?,
            k: addr(op, "k", args.k)?,
            v: addr(op, "v", args.v)?,
            out: addr(op, "out", args.out)?,
            d_out: addr(op, "d_out", args.d_out)?,
            lse: addr(op, "lse", args.lse)?,
            q_rounded,
            k_rounded,
            v_rounded,
            d_out_rounded,
            delta,
            d_q: addr(op, "d_q", args.d_q)?,
            d_k: addr(op, "d_k", args.d_k)?,
            d_v: addr(op, "d_v", args.d_v)?,
            seq_starts: addr(op, "sequence starts", args.step.seq_starts())?,
            num_seqs: int(args.step.key().num_seqs),
            heads: int(heads),
            kv_heads: int(kv_heads),
            dim: int(dim),
            window: window(args),
            scale: args.scale,
            softcap: args.softcap.unwrap_or(0.0),
            padding: 0,
        };
        let (keys, queries, shared) = match dim {
            64 => ("attention_backward_keys_64", "attention_backward_queries_64", 56_320),
            96 => ("attention_backward_keys_96", "attention_backward_queries_96", 53_760),
            _ => ("attention_backward_keys_128", "attention_backward_queries_128", 70_144),
        };
        let slots = rows / 64 + args.step.key().num_seqs;
        let tiles = |heads: usize| Launch {
            grid: [slots as u32, heads as u32, 1],
            block: 128,
            shared_bytes: shared as u32,
        };
        let steps = [
            ("attention_backward_prepare", blocks(rows, 256)),
            (keys, tiles(kv_heads)),
            (queries, tiles(heads)),
        ];
        for (name, launch) in steps {
            let shared = launch.shared_bytes as usize;
            let kernel = self.kernels().get::<AttentionBackwardArgs>(file, name, shared)?;
            // SAFETY: operands are as `GradOps` promises; the kernel gets what its comments ask for.
            unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &own)? };
        }
        Ok(())
    }

    fn attention_backward_exact(
        &mut self,
        args: &AttentionBackward<'_>,
        rows: usize,
        heads: usize,
        dim: usize,
    ) -> Result<()> {
        let (op, file) = ("attention_backward", "backward/attention_backward_any");
        let kv_heads = args.k.shape().dims().get(1).copied().unwrap_or(1);
        let own = AttentionBackwardAnyArgs {
            q: addr(op, "q", args.q)?,
            k: addr(op, "k", args.k)?,
            v: addr(op, "v", args.v)?,
            out: addr(op, "out", args.out)?,
            d_out: addr(op, "d_out", args.d_out)?,
            lse: addr(op, "lse", args.lse)?,
            delta: self.room(Room::Gradients, 4 * rows * heads)?,
            d_q: addr(op, "d_q", args.d_q)?,
            d_k: addr(op, "d_k", args.d_k)?,
            d_v: addr(op, "d_v", args.d_v)?,
            seq_starts: addr(op, "sequence starts", args.step.seq_starts())?,
            num_seqs: int(args.step.key().num_seqs),
            heads: int(heads),
            kv_heads: int(kv_heads),
            dim: int(dim),
            window: window(args),
            scale: args.scale,
            softcap: args.softcap.unwrap_or(0.0),
            padding: 0,
        };
        let slots = rows / 32 + args.step.key().num_seqs;
        let tiles =
            |heads: usize| Launch { grid: [slots as u32, heads as u32, 1], block: 256, shared_bytes: 0 };
        let steps = [
            ("attention_backward_any_delta", blocks(rows, 256)),
            ("attention_backward_any_keys", tiles(kv_heads)),
            ("attention_backward_any_queries", tiles(heads)),
        ];
        for (name, launch) in steps {
            let kernel = self.kernels().get::<AttentionBackwardAnyArgs>(file, name, 0)?;
            // SAFETY: as above.
            unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &own)? };
        }
        Ok(())
    }
}

/// A window beyond all positions is none.
fn window(args: &AttentionBackward<'_>) -> i32 {
    args.window.and_then(|window| i32::try_from(window).ok()).unwrap_or(0)
}
