//! Recording a forward pass, and going back through it.
//!
//! The ops of a context are written down while it records ([`Ctx::record`]); [`Ctx::backward`] walks them in reverse. So
//! models are written once and know nothing of gradients. Recorded values lie in the arena: a tape is used up in the
//! scope in which it was made. To keep memory small, trainers keep the input of each block alone and record one block at
//! a time (Chen et al., arXiv 1604.06174). What is costly to compute again may be kept beside it in a [`BlockMemo`]: what
//! attention and the last linear layer gave always, what the others gave where there is room (Korthikanti et al., arXiv 2205.05198, section 5).

use crate::ctx::{AttentionSpec, Ctx, Projection};
use crate::error::{DeviceError, Result, invalid};
use crate::experts::{Experts, Routing};
use crate::grad::{Dropout, DropoutArgs, GradOps};
use crate::lora::{LoraBatch, ModuleIdx};
use crate::ops::RopeTables;
use crate::row_ops::GeluKind;
use crate::step::Step;
use crate::tensor::{Tensor, expect};
use crate::weight::Weight;
use crate::{DType, Shape};

/// What attention gave in a block, kept from the first computation for the second.
#[derive(Clone, Debug)]
pub struct AttentionMemo {
    /// `[rows, heads * head_dim]`.
    pub out: Tensor,
    /// Logarithms of the softmax' denominators, `[rows, heads]`.
    pub lse: Tensor,
}

/// What costly ops gave in a block, kept from the first computation for the second.
#[derive(Clone, Debug)]
pub struct BlockMemo {
    /// Of the block's one attention op.
    pub attention: AttentionMemo,
    /// Of its linear ops, if they are kept.
    pub linears: Option<LinearMemo>,
}

/// What linear ops gave, in the order in which they were called.
#[derive(Clone, Debug)]
pub struct LinearMemo {
    kept: KeptLinears,
    /// Results so far in this pass.
    next: usize,
    /// The latest of them.
    latest: Option<Tensor>,
}

#[derive(Clone, Debug)]
enum KeptLinears {
    /// Each, `[max_rows, out]`; of experts with that many rows for each of a row's.
    All { max_rows: usize, outs: Vec<Tensor> },
    /// The last of so many, once it is known how many there are.
    Last { out: Tensor, count: Option<usize> },
}

impl LinearMemo {
    /// Keeps all results. Room for so many rows is taken when the ops first run.
    pub fn all(max_rows: usize) -> Self {
        LinearMemo { kept: KeptLinears::All { max_rows, outs: Vec::new() }, next: 0, latest: None }
    }

    /// Keeps in `out` what the last linear op gives, if it turns out to be what the block gives.
    pub fn last(out: Tensor) -> Self {
        LinearMemo { kept: KeptLinears::Last { out, count: None }, next: 0, latest: None }
    }

    /// Whether this is what the last linear op gave, so that it is kept.
    pub fn gave(&self, result: &Tensor) -> bool {
        self.latest.as_ref().is_some_and(|t| t.is_same_place(result))
    }

    /// Takes note of what the block gave in a pass that keeps.
    pub fn block_gave(&mut self, result: &Tensor) {
        let (gave, next) = (self.gave(result), self.next);
        if let KeptLinears::Last { count, .. } = &mut self.kept {
            *count = gave.then_some(next);
        }
    }
}

/// A value and its gradient, from which [`Ctx::backward`] starts.
#[derive(Clone, Debug)]
pub struct Seed<'a> {
    /// What the recorded ops gave.
    pub value: &'a Tensor,
    /// Its gradient, of the same shape. It may be overwritten.
    pub gradient: Tensor,
}

/// Ops that were recorded, in order.
#[derive(Debug, Default)]
pub struct Tape {
    pub(crate) ops: Vec<Recorded>,
}

/// An op with its operands.
#[derive(Debug)]
pub(crate) enum Recorded {
    RmsNorm { x: Tensor, weight: Tensor, eps: f32, residual: Option<Tensor>, out: Tensor },
    LayerNorm { x: Tensor, weight: Tensor, eps: f32, out: Tensor },
    Linear { x: Tensor, targets: Vec<RecordedTarget>, with_lora: bool },
    Rope { pairs: Vec<(Tensor, Tensor)>, step: Box<Step>, tables: RopeTables },
    Attention(Box<RecordedAttention>),
    SiluMul { gate: Tensor, up: Tensor, out: Tensor },
    Gelu { x: Tensor, up: Option<Tensor>, kind: GeluKind, out: Tensor },
    SoftCap { x: Tensor, cap: f32, out: Tensor },
    Split { x: Tensor, groups: usize, parts: Vec<Tensor> },
    Gather { x: Tensor, rows: Tensor, out: Tensor },
    Route { logits: Tensor, routing: Routing },
    Dispatch { x: Tensor, routing: Routing, out: Tensor },
    Experts { x: Tensor, layers: Vec<RecordedExperts>, routing: Routing, with_lora: bool },
    Combine { x: Tensor, routing: Routing, residual: Tensor, out: Tensor },
}

#[derive(Debug)]
pub(crate) struct RecordedExperts {
    pub(crate) experts: Experts,
    pub(crate) lora_x: Option<Tensor>,
    pub(crate) out: Tensor,
}

#[derive(Debug)]
pub(crate) struct RecordedAttention {
    pub(crate) qkv: [Tensor; 3],
    pub(crate) memo: AttentionMemo,
    pub(crate) spec: AttentionSpec,
    pub(crate) step: Step,
}

#[derive(Debug)]
pub(crate) struct RecordedTarget {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Tensor>,
    pub(crate) module: Option<ModuleIdx>,
    pub(crate) residual: Option<Tensor>,
    pub(crate) lora_x: Option<Tensor>,
    pub(crate) out: Tensor,
}

impl RecordedTarget {
    pub(crate) fn new(projection: &Projection<'_>, lora_x: Option<&Tensor>, out: &Tensor) -> Self {
        RecordedTarget {
            weight: projection.weight.clone(),
            bias: projection.bias.cloned(),
            module: projection.module,
            residual: projection.residual.cloned(),
            lora_x: lora_x.cloned(),
            out: out.clone(),
        }
    }
}

/// What a context does beside computing, while it trains.
#[derive(Debug, Default)]
pub(crate) struct Training {
    tape: Option<Tape>,
    memo: Option<(BlockMemo, MemoUse)>,
    pub(crate) dropout: Option<RowDropout>,
}

/// Whether ops are computed and kept, or taken from what was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoUse {
    /// Compute, and write.
    Keep,
    /// Do not compute.
    Recall,
}

/// Dropout, and whose rows a step has.
#[derive(Debug, Clone)]
pub(crate) struct RowDropout {
    dropout: Dropout,
    example_idx: Tensor,
    positions: Tensor,
}

impl Training {
    pub(crate) fn record(&mut self, op: impl FnOnce() -> Recorded) {
        if let Some(tape) = &mut self.tape {
            tape.ops.push(op());
        }
    }

    /// Whether a trainer's pass is going on: values are recorded or kept.
    pub(crate) fn is_active(&self) -> bool {
        self.tape.is_some() || self.memo.is_some()
    }

    pub(crate) fn is_recording(&self) -> bool {
        self.tape.is_some()
    }

    pub(crate) fn attention_memo(&self) -> Option<&AttentionMemo> {
        self.memo.as_ref().map(|(memo, _)| &memo.attention)
    }

    pub(crate) fn recalls(&self) -> bool {
        matches!(self.memo, Some((_, MemoUse::Recall)))
    }
}

impl Ctx {
    /// Runs `f` and records the ops that it calls.
    ///
    /// # Errors
    /// Those of `f`; [`DeviceError::Unsupported`] for a device without backward ops.
    pub fn record<R>(&mut self, f: impl FnOnce(&mut Ctx) -> Result<R>) -> Result<(R, Tape)> {
        self.grad_ops()?;
        let outer = self.training.tape.replace(Tape::default());
        let result = f(self);
        let tape = std::mem::replace(&mut self.training.tape, outer);
        Ok((result?, tape.unwrap_or_default()))
    }

    /// Runs `f`, a block with one attention op at most: its costly ops write to `memo`, or are replaced by it.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn with_memo<R>(
        &mut self,
        memo: &mut BlockMemo,
        use_: MemoUse,
        f: impl FnOnce(&mut Ctx) -> Result<R>,
    ) -> Result<R> {
        if let Some(linears) = &mut memo.linears {
            linears.next = 0;
            linears.latest = None;
        }
        self.training.memo = Some((memo.clone(), use_));
        let result = f(self);
        if let Some((used, _)) = self.training.memo.take() {
            *memo = used;
        }
        result
    }

    /// Where a linear op's result goes: to what is kept, if it is. It has `multiple` rows for each of the step's.
    pub(crate) fn linear_out(&mut self, shape: Shape, multiple: usize) -> Result<(Tensor, bool)> {
        let device = self.device().clone();
        let mut linears = self.training.memo.as_mut().and_then(|(memo, _)| memo.linears.as_mut());
        let idx = linears.as_ref().map_or(0, |linears| linears.next);
        let kept = match linears.as_mut().map(|linears| &mut linears.kept) {
            Some(KeptLinears::All { max_rows, outs }) => {
                if outs.len() <= idx {
                    let whole = shape.with_rows(max_rows.saturating_mul(multiple));
                    let bytes = whole.numel().saturating_mul(DType::F32.size_bytes());
                    let memory = device.alloc("kept values", bytes)?;
                    outs.push(Tensor::persistent(memory, whole, DType::F32)?);
                }
                outs.get(idx).cloned()
            }
            Some(KeptLinears::Last { out, count }) if *count == Some(idx + 1) => Some(out.clone()),
            _ => None,
        };
        let (out, is_kept) = match kept {
            Some(out) if out.shape().row_len() == shape.row_len() => (out.rows(0, shape.rows())?, true),
            Some(_) => {
                return invalid("linear", "another order of layers than before, among values that are kept");
            }
            None => (self.alloc(shape, DType::F32)?, false),
        };
        if let Some((BlockMemo { linears: Some(linears), .. }, _)) = &mut self.training.memo {
            linears.next = idx + 1;
            linears.latest = Some(out.clone());
        }
        Ok((out, is_kept))
    }

    /// Sets dropout on what adapters read, for the step that was staged last: `example_idx` `[rows]` U32 numbers the rows'
    /// examples. `None` ends it.
    ///
    /// # Errors
    /// [`DeviceError`] for a probability outside `0 .. 1` or a tensor of another shape; without a staged step.
    pub fn set_dropout(&mut self, dropout: Option<(Dropout, &Tensor)>) -> Result<()> {
        let op = "set_dropout";
        self.training.dropout = match dropout {
            Some((dropout, _)) if !(0.0..1.0).contains(&dropout.probability) => {
                return invalid(op, format!("probability {}", dropout.probability));
            }
            Some((dropout, example_idx)) if dropout.probability > 0.0 => {
                let Some(step) = self.step() else { return invalid(op, "no step was staged") };
                let positions = step.positions.clone();
                expect(op, "examples", example_idx, positions.shape(), DType::U32)?;
                Some(RowDropout { dropout, example_idx: example_idx.clone(), positions })
            }
            _ => None,
        };
        Ok(())
    }

    /// Runs `f` without dropout.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn without_dropout<R>(&mut self, f: impl FnOnce(&mut Ctx) -> Result<R>) -> Result<R> {
        let dropout = self.training.dropout.take();
        let result = f(self);
        self.training.dropout = dropout;
        result
    }

    /// What the adapters of a linear op read in the place of `x`: with dropout a tensor for each projection.
    pub(crate) fn lora_inputs(
        &mut self,
        x: &Tensor,
        projections: &[Projection<'_>],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut inputs = vec![None; projections.len()];
        let Some(rows) = self.training.dropout.clone().filter(|_| lora.is_some()) else { return Ok(inputs) };
        for (input, projection) in inputs.iter_mut().zip(projections) {
            let Some(module) = projection.module else { continue };
            expect(
                "dropout",
                "x",
                x,
                Shape::from([rows.positions.shape().rows(), x.shape().row_len()]),
                DType::F32,
            )?;
            let out = self.alloc(x.shape(), DType::F32)?;
            let args = rows.args(module, x, &out, false);
            // SAFETY: checked above; `out` is fresh.
            unsafe { self.grad_ops()?.dropout(args)? };
            *input = Some(out);
        }
        Ok(inputs)
    }

    pub(crate) fn grad_ops(&mut self) -> Result<&mut dyn GradOps> {
        let device = self.device().clone();
        self.ops_mut()
            .grad()
            .ok_or_else(|| DeviceError::Unsupported { device: device.name(), what: "training".to_owned() })
    }
}

impl RowDropout {
    /// The same for pairs of rows and experts.
    pub(crate) fn of_pairs(&self, ctx: &mut Ctx, routing: &Routing) -> Result<Self> {
        let shape = Shape::from([routing.num_rows()]);
        let mut gather = |of: &Tensor| -> Result<Tensor> {
            expect("dropout", "rows", of, shape, DType::U32)?;
            let out = ctx.alloc([routing.num_pairs(), 1], DType::U32)?;
            // SAFETY: checked above; the rows of a routing are rows of its step, and elements are copied whatever they are.
            unsafe { ctx.ops_mut().gather_rows(&of.reshape([routing.num_rows(), 1])?, &routing.rows, &out)? };
            out.reshape([routing.num_pairs()])
        };
        let (example_idx, positions) = (gather(&self.example_idx)?, gather(&self.positions)?);
        Ok(RowDropout { dropout: self.dropout, example_idx, positions })
    }

    /// The same for some rows.
    pub(crate) fn rows(&self, first: usize, len: usize) -> Result<Self> {
        let (example_idx, positions) = (self.example_idx.rows(first, len)?, self.positions.rows(first, len)?);
        Ok(RowDropout { dropout: self.dropout, example_idx, positions })
    }

    pub(crate) fn args<'a>(
        &'a self,
        module: ModuleIdx,
        x: &'a Tensor,
        out: &'a Tensor,
        accumulate: bool,
    ) -> DropoutArgs<'a> {
        DropoutArgs {
            dropout: self.dropout,
            module: module.0,
            example_idx: &self.example_idx,
            positions: &self.positions,
            x,
            out,
            accumulate,
        }
    }
}
