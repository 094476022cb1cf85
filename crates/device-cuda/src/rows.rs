//! Ops that work row by row or element by element.

use wardrobe_device::{Columns, Gelu, GeluKind, LayerNorm, Result, RmsNorm, Tensor};

use crate::driver::Launch;
use crate::kernels::{
    Args, ColumnsArgs, GatherArgs, GeluArgs, LayerNormArgs, RmsNormArgs, SiluMulArgs, SoftcapArgs, blocks,
    element_type,
};
use crate::ops::{CudaOps, addr, addr_or_null, int};

/// Elements that a block of an elementwise kernel takes.
const BLOCK_ELEMENTS: usize = 1024;
/// Groups of columns that a block takes.
const BLOCK_GROUPS: usize = 8;

impl CudaOps {
    /// Queues one of these ops' kernels, all of which are named as their launch says.
    fn queue_rows<A: Args>(
        &mut self,
        file: &'static str,
        name: &'static str,
        launch: Launch,
        args: &A,
    ) -> Result<()> {
        let kernel = self.kernels().get::<A>(file, name, 0)?;
        // SAFETY: operands are as `Ops` promises; the kernel gets what its comments ask for.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, args) }
    }

    /// See [`wardrobe_device::Ops::rms_norm`].
    pub(crate) fn queue_rms_norm(&mut self, args: &RmsNorm<'_>) -> Result<()> {
        let op = "rms_norm";
        let cols = args.weight.shape().numel();
        let own = RmsNormArgs {
            x: addr(op, "x", args.x)?,
            weight: addr(op, "weight", args.weight)?,
            residual: addr_or_null(op, "residual", args.residual)?,
            out: addr(op, "out", args.out)?,
            cols: int(cols),
            out_type: element_type(args.out.dtype()),
            eps: args.eps,
            padding: 0,
        };
        let runs = args.x.shape().numel() / cols.max(1);
        self.queue_rows("rms_norm", "rms_norm", blocks(runs, 256), &own)
    }

    /// See [`wardrobe_device::Ops::layer_norm`].
    pub(crate) fn queue_layer_norm(&mut self, args: &LayerNorm<'_>) -> Result<()> {
        let op = "layer_norm";
        let own = LayerNormArgs {
            x: addr(op, "x", args.x)?,
            weight: addr(op, "weight", args.weight)?,
            bias: addr(op, "bias", args.bias)?,
            out: addr(op, "out", args.out)?,
            cols: int(args.x.shape().row_len()),
            out_type: element_type(args.out.dtype()),
            eps: args.eps,
            padding: 0,
        };
        self.queue_rows("layer_norm", "layer_norm", blocks(args.x.shape().rows(), 256), &own)
    }

    /// See [`wardrobe_device::Ops::silu_mul`].
    pub(crate) fn queue_silu_mul(&mut self, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
        let op = "silu_mul";
        let len = out.shape().numel();
        let args = SiluMulArgs {
            gate: addr(op, "gate", gate)?,
            up: addr(op, "up", up)?,
            out: addr(op, "out", out)?,
            len: len as u64,
            out_type: element_type(out.dtype()),
            padding: 0,
        };
        self.queue_rows("silu_mul", "silu_mul", blocks(len.div_ceil(2048), 256), &args)
    }

    /// See [`wardrobe_device::Ops::gelu`].
    pub(crate) fn queue_gelu(&mut self, args: &Gelu<'_>) -> Result<()> {
        let op = "gelu";
        let len = args.out.shape().numel();
        let own = GeluArgs {
            x: addr(op, "x", args.x)?,
            up: addr_or_null(op, "up", args.up)?,
            out: addr(op, "out", args.out)?,
            len: len as u64,
            out_type: element_type(args.out.dtype()),
            by_tanh: u32::from(args.kind == GeluKind::Tanh),
        };
        self.queue_rows("gelu", "gelu", blocks(len.div_ceil(BLOCK_ELEMENTS), 256), &own)
    }

    /// See [`wardrobe_device::Ops::softcap`].
    pub(crate) fn queue_softcap(&mut self, x: &Tensor, cap: f32, out: &Tensor) -> Result<()> {
        let len = out.shape().numel();
        let (x, out) = (addr("softcap", "x", x)?, addr("softcap", "out", out)?);
        let args = SoftcapArgs { x, out, len: len as u64, cap, padding: 0 };
        self.queue_rows("softcap", "softcap", blocks(len.div_ceil(BLOCK_ELEMENTS), 256), &args)
    }

    /// See [`wardrobe_device::Ops::copy_columns`].
    pub(crate) fn queue_columns(&mut self, args: &Columns<'_>) -> Result<()> {
        let op = "copy_columns";
        let (from_len, to_len) = args.group_lens();
        let groups = args.from.shape().rows() * args.groups;
        let own = ColumnsArgs {
            from: addr(op, "from", args.from)?,
            to: addr(op, "to", args.to)?,
            groups: int(groups),
            from_len: int(from_len),
            to_len: int(to_len),
            from_col: int(args.from_col),
            to_col: int(args.to_col),
            width: int(args.width),
        };
        self.queue_rows("columns", "copy_columns", blocks(groups.div_ceil(BLOCK_GROUPS), 256), &own)
    }

    /// See [`wardrobe_device::Ops::gather_rows`].
    pub(crate) fn queue_gather(&mut self, x: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
        let op = "gather_rows";
        let args = GatherArgs {
            x: addr(op, "x", x)?,
            rows: addr(op, "rows", rows)?,
            out: addr(op, "out", out)?,
            row_bytes: (x.shape().row_len() * x.dtype().size_bytes()) as u64,
        };
        self.queue_rows("gather", "gather_rows", blocks(out.shape().rows(), 256), &args)
    }
}
