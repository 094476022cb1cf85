//! A device that records and replays steps on top of one that runs plainly: what a GPU's graphs demand of models,
//! to be had without a GPU.
//!
//! A step under a key that has not been seen is recorded: its ops are kept with their operands' addresses and do not
//! run before the step ends, so nothing that the model does meanwhile can see their results. A step under a known key
//! runs the recorded ops again on what the fixed buffers then hold; the model is not called. Reading from or writing
//! to the device in a recorded step, or sampling in it, is an error.
//!
//! A model that depends on anything but the key and the device's memory gives other results here than on the plain
//! device. Recorded operands are kept without their liveness, as a graph's are; the arena's layout makes them right.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::experts::{ExpertTarget, Experts, Routing};
use crate::kv::KvLayer;
use crate::lora::LoraBatch;
use crate::ops::{Combine, Device, LinearTarget, Ops, PagedAttention, RopeTables, StepMode};
use crate::row_ops::{Columns, Gelu, LayerNorm, RmsNorm};
use crate::sample::{LogprobRow, SampleRow, Sampled, TokenLogprobs};
use crate::step::{GraphKey, Step};
use crate::tensor::{Life, Memory, Tensor};
use crate::weight::{HostTensor, Weight, WeightData};

/// Wraps a device; see the module's head.
#[derive(Debug, Clone)]
pub struct FakeAsyncDevice {
    inner: Arc<dyn Device>,
}

impl FakeAsyncDevice {
    /// On top of a device that runs its ops as they are called.
    pub fn new(inner: Arc<dyn Device>) -> Self {
        FakeAsyncDevice { inner }
    }
}

impl Device for FakeAsyncDevice {
    fn name(&self) -> String {
        format!("recording {}", self.inner.name())
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<Arc<dyn Memory>> {
        self.inner.alloc(what, bytes)
    }

    fn load_weight(&self, host: &HostTensor<'_>) -> Result<Weight> {
        self.inner.load_weight(host)
    }

    fn dequantise_rows(&self, weight: &Weight, first_row: usize, out: &mut [f32]) -> Result<()> {
        self.inner.dequantise_rows(weight, first_row, out)
    }

    fn expert_table(&self, weights: &[Weight]) -> Result<Option<Arc<dyn WeightData>>> {
        self.inner.expert_table(weights)
    }

    fn linear_input(&self) -> crate::DType {
        self.inner.linear_input()
    }

    fn pads_steps(&self) -> bool {
        true
    }

    fn open(&self) -> Result<Box<dyn Ops>> {
        Ok(Box::new(FakeAsyncOps { inner: self.inner.open()?, graphs: HashMap::new(), recording: None }))
    }
}

/// An op with its operands.
type Recorded = Box<dyn FnMut(&mut dyn Ops) -> Result<()> + Send>;

struct FakeAsyncOps {
    inner: Box<dyn Ops>,
    graphs: HashMap<GraphKey, Vec<Recorded>>,
    recording: Option<Vec<Recorded>>,
}

impl fmt::Debug for FakeAsyncOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeAsyncOps({} graphs)", self.graphs.len())
    }
}

/// The operand's place, for as long as the graph lives.
fn pin(t: &Tensor) -> Tensor {
    Tensor { life: Life::Persistent, ..t.clone() }
}

/// The same of a routing.
fn pin_routing(routing: &Routing) -> Routing {
    let Routing { num_experts, weights, experts, places, rows, starts } = routing;
    let [weights, experts, places, rows, starts] = [weights, experts, places, rows, starts].map(pin);
    Routing { num_experts: *num_experts, weights, experts, places, rows, starts }
}

struct OwnedTarget {
    weight: Weight,
    bias: Option<Tensor>,
    module: Option<crate::ModuleIdx>,
    residual: Option<Tensor>,
    lora_x: Option<Tensor>,
    out: Tensor,
}

impl FakeAsyncOps {
    /// Records the op, or runs it if no step is being recorded.
    fn submit(&mut self, mut op: impl FnMut(&mut dyn Ops) -> Result<()> + Send + 'static) -> Result<()> {
        match &mut self.recording {
            Some(ops) => {
                ops.push(Box::new(op));
                Ok(())
            }
            None => op(self.inner.as_mut()),
        }
    }

    /// Refuses what the host would have to wait for.
    fn outside_of_recording(&self, op: &'static str) -> Result<()> {
        match self.recording {
            Some(_) => invalid(op, "a recorded step cannot exchange data with the host"),
            None => Ok(()),
        }
    }
}

impl Ops for FakeAsyncOps {
    fn padded(&self, key: &GraphKey) -> GraphKey {
        if !key.is_one_row_a_sequence() {
            return *key;
        }
        let rows = key.num_rows.next_multiple_of(4);
        GraphKey {
            num_rows: rows,
            num_seqs: rows,
            num_logit_rows: rows,
            max_blocks: key.max_blocks + 3,
            ..*key
        }
    }

    unsafe fn begin_step(&mut self, key: &GraphKey) -> Result<StepMode> {
        if self.graphs.contains_key(key) {
            return Ok(StepMode::Replay);
        }
        self.recording = Some(Vec::new());
        Ok(StepMode::Capture)
    }

    unsafe fn end_step(&mut self, key: &GraphKey, ok: bool) -> Result<()> {
        let Some(mut ops) = self.recording.take() else {
            return invalid("end_step", "no step is being recorded");
        };
        if ok {
            ops.iter_mut().try_for_each(|op| op(self.inner.as_mut()))?;
            self.graphs.insert(*key, ops);
        }
        Ok(())
    }

    fn forget_steps(&mut self) {
        self.recording = None;
        self.graphs.clear();
    }

    unsafe fn replay(&mut self, key: &GraphKey) -> Result<()> {
        match self.graphs.get_mut(key) {
            Some(ops) => ops.iter_mut().try_for_each(|op| op(self.inner.as_mut())),
            None => invalid("replay", format!("nothing is recorded under {key:?}")),
        }
    }

    unsafe fn embed(&mut self, ids: &Tensor, table: &Weight, scale: f32, out: &Tensor) -> Result<()> {
        let (ids, table, out) = (pin(ids), table.clone(), pin(out));
        // SAFETY: checked when recorded; the ids in the fixed buffer are checked at each step.
        self.submit(move |ops| unsafe { ops.embed(&ids, &table, scale, &out) })
    }

    unsafe fn rms_norm(&mut self, args: RmsNorm<'_>) -> Result<()> {
        let (x, weight, out) = (pin(args.x), pin(args.weight), pin(args.out));
        let (eps, residual) = (args.eps, args.residual.map(pin));
        self.submit(move |ops| {
            let args = RmsNorm { x: &x, weight: &weight, eps, residual: residual.as_ref(), out: &out };
            // SAFETY: checked when recorded.
            unsafe { ops.rms_norm(args) }
        })
    }

    unsafe fn layer_norm(&mut self, args: LayerNorm<'_>) -> Result<()> {
        let (x, weight, bias, out) = (pin(args.x), pin(args.weight), pin(args.bias), pin(args.out));
        let eps = args.eps;
        self.submit(move |ops| {
            let args = LayerNorm { x: &x, weight: &weight, bias: &bias, eps, out: &out };
            // SAFETY: checked when recorded.
            unsafe { ops.layer_norm(args) }
        })
    }

    unsafe fn linear(
        &mut self,
        x: &Tensor,
        targets: &[LinearTarget<'_>],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        let x = pin(x);
        let targets: Vec<OwnedTarget> = targets
            .iter()
            .map(|t| OwnedTarget {
                weight: t.weight.clone(),
                bias: t.bias.map(pin),
                module: t.module,
                residual: t.residual.map(pin),
                lora_x: t.lora_x.map(pin),
                out: pin(t.out),
            })
            .collect();
        let lora = lora.map(|l| (l.table.clone(), pin(l.slots), pin(l.scales)));
        self.submit(move |ops| {
            let targets: Vec<LinearTarget<'_>> = targets
                .iter()
                .map(|t| LinearTarget {
                    weight: &t.weight,
                    bias: t.bias.as_ref(),
                    module: t.module,
                    residual: t.residual.as_ref(),
                    lora_x: t.lora_x.as_ref(),
                    out: &t.out,
                })
                .collect();
            let batch = lora.as_ref().map(|(table, slots, scales)| LoraBatch { table, slots, scales });
            // SAFETY: checked when recorded; adapters are checked when they are bound.
            unsafe { ops.linear(&x, &targets, batch.as_ref()) }
        })
    }

    unsafe fn rope(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        positions: &Tensor,
        rope_idx: &Tensor,
        tables: &RopeTables,
    ) -> Result<()> {
        let pairs: Vec<(Tensor, Tensor)> = pairs.iter().map(|(x, out)| (pin(x), pin(out))).collect();
        let (positions, rope_idx, tables) = (pin(positions), pin(rope_idx), tables.clone());
        self.submit(move |ops| {
            let pairs: Vec<(&Tensor, &Tensor)> = pairs.iter().map(|(x, out)| (x, out)).collect();
            // SAFETY: checked when recorded; positions and table indices are checked at each step.
            unsafe { ops.rope(&pairs, &positions, &rope_idx, &tables) }
        })
    }

    unsafe fn paged_attention(&mut self, args: PagedAttention<'_>) -> Result<()> {
        let PagedAttention { q, k, v, kv, step, scale, window, softcap, out, lse } = args;
        let lse = lse.map(pin);
        let (q, k, v, out) = (pin(q), pin(k), pin(v), pin(out));
        let mut kv = KvLayer { k: kv.k.clone(), v: kv.v.clone() };
        let step: Step = step.clone();
        self.submit(move |ops| {
            let args = PagedAttention {
                q: &q,
                k: &k,
                v: &v,
                kv: &mut kv,
                step: &step,
                scale,
                window,
                softcap,
                out: &out,
                lse: lse.as_ref(),
            };
            // SAFETY: checked when recorded; block tables and lengths are checked at each step.
            unsafe { ops.paged_attention(args) }
        })
    }

    unsafe fn silu_mul(&mut self, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
        let (gate, up, out) = (pin(gate), pin(up), pin(out));
        // SAFETY: checked when recorded.
        self.submit(move |ops| unsafe { ops.silu_mul(&gate, &up, &out) })
    }

    unsafe fn gelu(&mut self, args: Gelu<'_>) -> Result<()> {
        let (x, up, kind, out) = (pin(args.x), args.up.map(pin), args.kind, pin(args.out));
        // SAFETY: checked when recorded.
        self.submit(move |ops| unsafe { ops.gelu(Gelu { x: &x, up: up.as_ref(), kind, out: &out }) })
    }

    unsafe fn softcap(&mut self, x: &Tensor, cap: f32, out: &Tensor) -> Result<()> {
        let (x, out) = (pin(x), pin(out));
        // SAFETY: checked when recorded.
        self.submit(move |ops| unsafe { ops.softcap(&x, cap, &out) })
    }

    unsafe fn copy_columns(&mut self, args: Columns<'_>) -> Result<()> {
        let Columns { groups, from_col, to_col, width, .. } = args;
        let (from, to) = (pin(args.from), pin(args.to));
        self.submit(move |ops| {
            let args = Columns { from: &from, to: &to, groups, from_col, to_col, width };
            // SAFETY: checked when recorded.
            unsafe { ops.copy_columns(args) }
        })
    }

    unsafe fn gather_rows(&mut self, x: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
        let (x, rows, out) = (pin(x), pin(rows), pin(out));
        // SAFETY: checked when recorded; row numbers are checked at each step.
        self.submit(move |ops| unsafe { ops.gather_rows(&x, &rows, &out) })
    }

    unsafe fn route(&mut self, logits: &Tensor, routing: &Routing) -> Result<()> {
        let (logits, routing) = (pin(logits), pin_routing(routing));
        // SAFETY: checked when recorded.
        self.submit(move |ops| unsafe { ops.route(&logits, &routing) })
    }

    unsafe fn expert_linear(
        &mut self,
        x: &Tensor,
        targets: &[ExpertTarget<'_>],
        routing: &Routing,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        let (x, routing) = (pin(x), pin_routing(routing));
        let targets: Vec<(Experts, Option<Tensor>, Tensor)> =
            targets.iter().map(|t| (t.experts.clone(), t.lora_x.map(pin), pin(t.out))).collect();
        let lora = lora.map(|l| (l.table.clone(), pin(l.slots), pin(l.scales)));
        self.submit(move |ops| {
            let targets: Vec<ExpertTarget<'_>> = targets
                .iter()
                .map(|(experts, lora_x, out)| ExpertTarget { experts, lora_x: lora_x.as_ref(), out })
                .collect();
            let batch = lora.as_ref().map(|(table, slots, scales)| LoraBatch { table, slots, scales });
            // SAFETY: checked when recorded; the routing is the step's own, adapters are checked when they are bound.
            unsafe { ops.expert_linear(&x, &targets, &routing, batch.as_ref()) }
        })
    }

    unsafe fn combine(&mut self, args: Combine<'_>) -> Result<()> {
        let (x, routing, residual) = (pin(args.x), pin_routing(args.routing), args.residual.map(pin));
        let (out, weighted) = (pin(args.out), args.weighted);
        self.submit(move |ops| {
            let residual = residual.as_ref();
            // SAFETY: checked when recorded.
            unsafe { ops.combine(Combine { x: &x, routing: &routing, weighted, residual, out: &out }) }
        })
    }

    unsafe fn sample(&mut self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>> {
        self.outside_of_recording("sample")?;
        // SAFETY: the caller's.
        unsafe { self.inner.sample(logits, rows) }
    }

    unsafe fn logprobs(&mut self, logits: &Tensor, rows: &[LogprobRow]) -> Result<Vec<TokenLogprobs>> {
        self.outside_of_recording("logprobs")?;
        // SAFETY: the caller's.
        unsafe { self.inner.logprobs(logits, rows) }
    }

    unsafe fn copy(&mut self, src: &Tensor, dst: &Tensor) -> Result<()> {
        let (src, dst) = (pin(src), pin(dst));
        // SAFETY: checked when recorded.
        self.submit(move |ops| unsafe { ops.copy(&src, &dst) })
    }

    unsafe fn write(&mut self, dst: &Tensor, bytes: &[u8]) -> Result<()> {
        self.outside_of_recording("write")?;
        // SAFETY: the caller's.
        unsafe { self.inner.write(dst, bytes) }
    }

    unsafe fn read(&mut self, src: &Tensor, bytes: &mut [u8]) -> Result<()> {
        self.outside_of_recording("read")?;
        // SAFETY: the caller's.
        unsafe { self.inner.read(src, bytes) }
    }
}
