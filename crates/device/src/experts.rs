//! Mixtures of experts (Shazeer et al., arXiv 1701.06538; Jiang et al., arXiv 2401.04088): which experts a row goes to, and
//! the linear layers of which each row takes a few.
//!
//! A row and one of its experts are a *pair*. Pairs stand expert by expert, rows ascending within one, so that an
//! expert's product is that of adjacent rows. Where each expert begins is known to the device alone: nothing of it is read
//! back to compute a step, which may be recorded.

use std::sync::Arc;

use crate::Shape;
use crate::error::{Result, invalid};
use crate::lora::ModuleIdx;
use crate::tensor::Tensor;
use crate::weight::{Weight, WeightData};

/// The modules of a layer's experts, for adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertModules {
    /// The first expert's.
    pub first: ModuleIdx,
    /// How much further on the next expert's is.
    pub stride: u32,
}

impl ExpertModules {
    /// An expert's.
    pub fn of(&self, expert: usize) -> ModuleIdx {
        ModuleIdx(self.first.0 + self.stride * expert as u32)
    }
}

/// A linear layer of which there is one an expert, all `[out, in]`.
#[derive(Debug, Clone)]
pub struct Experts {
    weights: Arc<[Weight]>,
    modules: Option<ExpertModules>,
    table: Option<Arc<dyn WeightData>>,
}

impl Experts {
    /// Checks that the weights are of one shape; `table` is what the device made of them.
    pub(crate) fn new(
        weights: Vec<Weight>,
        modules: Option<ExpertModules>,
        table: Option<Arc<dyn WeightData>>,
    ) -> Result<Self> {
        let op = "experts";
        let Some(first) = weights.first() else { return invalid(op, "no experts") };
        let shape = (first.rows(), first.cols());
        if let Some(idx) = weights.iter().position(|w| (w.rows(), w.cols()) != shape) {
            return invalid(op, format!("expert {idx} is of another shape than the first, {shape:?}"));
        }
        let last = (weights.len() as u64).saturating_mul(modules.map_or(0, |m| u64::from(m.stride)));
        if last + modules.map_or(0, |m| u64::from(m.first.0)) > u64::from(u32::MAX) {
            return invalid(op, format!("modules {modules:?} of {} experts", weights.len()));
        }
        Ok(Experts { weights: weights.into(), modules, table })
    }

    /// By expert.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Indices for adapters; `None` if none may touch them.
    pub fn modules(&self) -> Option<ExpertModules> {
        self.modules
    }

    /// What [`crate::Device::expert_table`] made of the weights.
    pub fn table(&self) -> Option<&dyn WeightData> {
        self.table.as_deref()
    }

    /// Output features of each.
    pub fn rows(&self) -> usize {
        self.weights.first().map_or(0, Weight::rows)
    }

    /// Input features of each.
    pub fn cols(&self) -> usize {
        self.weights.first().map_or(0, Weight::cols)
    }
}

/// The experts of a step's rows. Made by [`crate::Ctx::route`] alone, which is why kernels may trust its numbers.
#[derive(Debug, Clone)]
pub struct Routing {
    pub(crate) num_experts: usize,
    /// `[rows, top_k]` F32.
    pub(crate) weights: Tensor,
    /// `[rows, top_k]` U32.
    pub(crate) experts: Tensor,
    /// `[rows, top_k]` U32.
    pub(crate) places: Tensor,
    /// `[rows * top_k]` U32.
    pub(crate) rows: Tensor,
    /// `[num_experts + 1]` U32.
    pub(crate) starts: Tensor,
}

impl Routing {
    /// Experts that there are.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Rows of the step.
    pub fn num_rows(&self) -> usize {
        self.experts.shape().rows()
    }

    /// Experts that a row goes to.
    pub fn top_k(&self) -> usize {
        self.experts.shape().row_len()
    }

    /// Pairs of a row and an expert.
    pub fn num_pairs(&self) -> usize {
        self.rows.shape().rows()
    }

    /// What each of a row's experts counts, `[rows, top_k]` F32; they add up to one. As other tensors it may have a gradient.
    pub fn weights(&self) -> &Tensor {
        &self.weights
    }

    /// Each row's experts, the likeliest first, `[rows, top_k]` U32.
    pub fn experts(&self) -> &Tensor {
        &self.experts
    }

    /// Where each of them stands among the pairs, `[rows, top_k]` U32.
    pub fn places(&self) -> &Tensor {
        &self.places
    }

    /// The row of each pair, `[pairs]` U32.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The first pair of each expert, and the number of pairs, `[num_experts + 1]` U32.
    pub fn starts(&self) -> &Tensor {
        &self.starts
    }

    /// `[rows, top_k]`.
    pub(crate) fn shape(&self) -> Shape {
        self.experts.shape()
    }
}

/// One of the layers of experts that share an input.
#[derive(Debug)]
pub struct ExpertTarget<'a> {
    /// Each `[out, in]`.
    pub experts: &'a Experts,
    /// What the adapters' part reads in the place of `x`, `[pairs, in]` F32: after dropout, in training.
    pub lora_x: Option<&'a Tensor>,
    /// `[pairs, out]` F32.
    pub out: &'a Tensor,
}
