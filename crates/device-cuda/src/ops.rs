//! The ops of a context: one stream, on which everything is queued in order.

use std::fmt;
use std::sync::Arc;

use wardrobe_device::{
    Columns, Combine, DType, DeviceError, ExpertTarget, Gelu, GradOps, GraphKey, LayerNorm, LinearTarget,
    LogprobRow, LoraBatch, Ops, PagedAttention, Result, RmsNorm, RopeTables, Routing, SampleRow, Sampled,
    StepMode, Tensor, TokenLogprobs, Weight,
};

use crate::adapters::SlotTables;
use crate::attention::{PendingRope, RopePointers};
use crate::device::Cuda;
use crate::driver::{DevicePtr, Driver, Stream};
use crate::kernels::Kernels;
use crate::memory::Workspace;
use crate::steps::{self, Steps};

/// Rooms that ops use while they run, one for each purpose that may go on beside another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Parts of attention's results.
    Attention,
    /// Inputs of a product in 16 bits.
    Input,
    /// Weights of a product, dequantised.
    Weights,
    /// What the library of products asks for.
    Blas,
    /// Products with A.
    Lora,
    /// What sampling is asked, and its values.
    Sample,
    /// Parts of gradients.
    Gradients,
    /// Adapters of pairs of rows and experts.
    Experts,
}

const NUM_ROOMS: usize = 8;

/// Ops on one stream.
pub(crate) struct CudaOps {
    cuda: Arc<Cuda>,
    stream: Stream,
    steps: Steps,
    rooms: [Workspace; NUM_ROOMS],
    pub(crate) slots: SlotTables,
    pub(crate) rope: RopePointers,
    pub(crate) pending: Option<PendingRope>,
    /// Element type of keys and values in the attention op whose result was kept last, for its gradient.
    pub(crate) recorded_cache: DType,
}

impl fmt::Debug for CudaOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaOps({:?})", self.cuda.driver)
    }
}

impl Drop for CudaOps {
    fn drop(&mut self) {
        self.steps.forget();
        self.cuda.driver.destroy_stream(self.stream);
    }
}

/// Where a tensor is, after the liveness check.
pub(crate) fn addr(op: &'static str, operand: &'static str, tensor: &Tensor) -> Result<DevicePtr> {
    Ok(DevicePtr(tensor.addr(op, operand)? as u64))
}

/// The same for an operand that need not be there.
pub(crate) fn addr_or_null(
    op: &'static str,
    operand: &'static str,
    tensor: Option<&Tensor>,
) -> Result<DevicePtr> {
    tensor.map_or(Ok(DevicePtr::NULL), |tensor| addr(op, operand, tensor))
}

/// An extent as kernels take it. What is larger fits no memory.
pub(crate) fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl CudaOps {
    pub(crate) fn new(cuda: Arc<Cuda>) -> Result<Self> {
        let stream = cuda.driver.create_stream()?;
        let steps = Steps::new(cuda.driver.clone(), stream);
        Ok(CudaOps {
            cuda,
            stream,
            steps,
            rooms: Default::default(),
            slots: SlotTables::default(),
            rope: RopePointers::default(),
            pending: None,
            recorded_cache: DType::F32,
        })
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.cuda.driver
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.cuda.kernels
    }

    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    pub(crate) fn is_deterministic(&self) -> bool {
        self.cuda.deterministic
    }

    /// Room for so many bytes. It stays where it is as long as recorded steps are kept.
    pub(crate) fn room(&mut self, room: Room, bytes: usize) -> Result<DevicePtr> {
        let Some(workspace) = self.rooms.get_mut(room as usize) else { return Ok(DevicePtr::NULL) };
        if !workspace.has(bytes) {
            if self.steps.is_recording() {
                let reason = format!("{bytes} bytes for {room:?} while a step is recorded");
                return Err(DeviceError::Invalid { op: "room", reason });
            }
            self.steps.drop_graphs();
        }
        workspace.get(&self.cuda.driver, bytes)
    }

    pub(crate) fn is_recording(&self) -> bool {
        self.steps.is_recording()
    }

    /// Whether the step that runs is of a shape that is recorded when it comes again.
    pub(crate) fn may_be_recorded(&self) -> bool {
        self.steps.may_be_recorded()
    }

    /// Forgets recorded steps.
    pub(crate) fn forget(&mut self) {
        self.steps.forget();
    }

    /// What the host would have to wait for, or what a recorded step would not do again.
    pub(crate) fn refuse_while_recording(&self, op: &'static str) -> Result<()> {
        if self.steps.is_recording() {
            let reason = "not while a step is recorded".to_owned();
            return Err(DeviceError::Invalid { op, reason });
        }
        Ok(())
    }
}

// SAFETY (of all below): operands are as `Ops` promises; kernels get what their comments ask for.
impl Ops for CudaOps {
    fn grad(&mut self) -> Option<&mut dyn GradOps> {
        Some(self)
    }

    fn padded(&self, key: &GraphKey) -> GraphKey {
        steps::padded(key)
    }

    fn rebind_rope(&mut self, tables: &RopeTables) -> Result<bool> {
        self.flush()?;
        self.bind_rope(tables)?;
        Ok(true)
    }

    unsafe fn begin_step(&mut self, key: &GraphKey) -> Result<StepMode> {
        self.flush()?;
        if key.with_lora && self.slots.sync(&self.cuda.driver, self.stream)? {
            self.steps.forget();
        }
        self.steps.begin(key)
    }

    unsafe fn end_step(&mut self, key: &GraphKey, ok: bool) -> Result<()> {
        let flushed = self.flush();
        self.steps.end(key, ok && flushed.is_ok())?;
        flushed
    }

    fn forget_steps(&mut self) {
        self.steps.forget();
    }

    unsafe fn replay(&mut self, key: &GraphKey) -> Result<()> {
        self.steps.replay(key)
    }

    unsafe fn embed(&mut self, ids: &Tensor, table: &Weight, scale: f32, out: &Tensor) -> Result<()> {
        self.flush()?;
        self.queue_embed(ids, table, scale, out)
    }

    unsafe fn rms_norm(&mut self, args: RmsNorm<'_>) -> Result<()> {
        self.flush()?;
        self.queue_rms_norm(&args)
    }

    unsafe fn layer_norm(&mut self, args: LayerNorm<'_>) -> Result<()> {
        self.flush()?;
        self.queue_layer_norm(&args)
    }

    unsafe fn linear(
        &mut self,
        x: &Tensor,
        targets: &[LinearTarget<'_>],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        self.flush()?;
        let shrunk = match lora {
            Some(lora) => self.queue_shrink(x, targets, lora)?,
            None => Vec::new(),
        };
        self.queue_linear(x, targets)?;
        shrunk.iter().try_for_each(|group| self.queue_expand(group))
    }

    unsafe fn rope(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        positions: &Tensor,
        rope_idx: &Tensor,
        tables: &RopeTables,
    ) -> Result<()> {
        self.flush()?;
        self.queue_rope(pairs, positions, rope_idx, tables, 1.0)
    }

    unsafe fn paged_attention(&mut self, args: PagedAttention<'_>) -> Result<()> {
        self.attend(&args)
    }

    unsafe fn silu_mul(&mut self, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
        self.flush()?;
        self.queue_silu_mul(gate, up, out)
    }

    unsafe fn gelu(&mut self, args: Gelu<'_>) -> Result<()> {
        self.flush()?;
        self.queue_gelu(&args)
    }

    unsafe fn softcap(&mut self, x: &Tensor, cap: f32, out: &Tensor) -> Result<()> {
        self.flush()?;
        self.queue_softcap(x, cap, out)
    }

    unsafe fn copy_columns(&mut self, args: Columns<'_>) -> Result<()> {
        self.flush()?;
        self.queue_columns(&args)
    }

    unsafe fn gather_rows(&mut self, x: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
        self.flush()?;
        self.queue_gather(x, rows, out)
    }

    unsafe fn route(&mut self, logits: &Tensor, routing: &Routing) -> Result<()> {
        self.flush()?;
        self.queue_route(logits, routing)
    }

    unsafe fn expert_linear(
        &mut self,
        x: &Tensor,
        targets: &[ExpertTarget<'_>],
        routing: &Routing,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        self.flush()?;
        self.queue_expert_linear(x, targets, routing, lora)
    }

    unsafe fn combine(&mut self, args: Combine<'_>) -> Result<()> {
        self.flush()?;
        self.queue_combine(&args)
    }

    unsafe fn sample(&mut self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>> {
        self.flush()?;
        self.refuse_while_recording("sample")?;
        self.draw(logits, rows)
    }

    unsafe fn logprobs(&mut self, logits: &Tensor, rows: &[LogprobRow]) -> Result<Vec<TokenLogprobs>> {
        self.flush()?;
        self.refuse_while_recording("logprobs")?;
        self.report(logits, rows)
    }

    unsafe fn copy(&mut self, src: &Tensor, dst: &Tensor) -> Result<()> {
        self.flush()?;
        let (from, to) = (addr("copy", "src", src)?, addr("copy", "dst", dst)?);
        // SAFETY: see above.
        unsafe { self.driver().copy(self.stream, from, to, src.size_bytes()) }
    }

    unsafe fn write(&mut self, dst: &Tensor, bytes: &[u8]) -> Result<()> {
        self.flush()?;
        self.refuse_while_recording("write")?;
        let to = addr("write", "dst", dst)?;
        // SAFETY: see above.
        unsafe { self.driver().write(self.stream, to, bytes) }
    }

    fn publish(&mut self) -> Result<()> {
        self.flush()?;
        self.driver().synchronize(self.stream)
    }

    unsafe fn read(&mut self, src: &Tensor, bytes: &mut [u8]) -> Result<()> {
        self.flush()?;
        self.refuse_while_recording("read")?;
        let from = addr("read", "src", src)?;
        // SAFETY: see above.
        unsafe { self.driver().read(self.stream, from, bytes) }
    }
}
