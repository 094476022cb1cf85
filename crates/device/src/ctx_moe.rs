//! The checked front of the ops of mixtures of experts.

use crate::ctx::Ctx;
use crate::error::{DeviceError, Result, invalid};
use crate::experts::{ExpertModules, ExpertTarget, Experts, Routing};
use crate::lora::LoraBatch;
use crate::ops::Combine;
use crate::tape::{Recorded, RecordedExperts};
use crate::tensor::{Tensor, expect};
use crate::weight::Weight;
use crate::{DType, Shape};

impl Ctx {
    /// The layers of experts that stand in one place of a block.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] for weights of different shapes, or none; [`DeviceError`] where the device cannot use them
    /// together.
    pub fn experts(&self, weights: Vec<Weight>, modules: Option<ExpertModules>) -> Result<Experts> {
        let experts = Experts::new(weights, modules, None)?;
        let table = self.device().expert_table(experts.weights())?;
        Experts::new(experts.weights().to_vec(), modules, table)
    }

    /// The `top_k` experts of each row of `logits` `[rows, num_experts]`; see [`crate::Ops::route`].
    ///
    /// # Errors
    /// [`DeviceError`] for more experts a row than there are, or none; for too many pairs.
    pub fn route(&mut self, logits: &Tensor, top_k: usize) -> Result<Routing> {
        let op = "route";
        let (rows, num_experts) = (logits.shape.rows(), logits.shape.row_len());
        expect(op, "logits", logits, Shape::from([rows, num_experts]), DType::F32)?;
        if top_k == 0 || top_k > num_experts {
            return invalid(op, format!("{top_k} of {num_experts} experts a row"));
        }
        let num_pairs = rows.saturating_mul(top_k);
        if num_pairs > i32::MAX as usize {
            return invalid(op, format!("{rows} rows with {top_k} experts each"));
        }
        let routing = Routing {
            num_experts,
            weights: self.alloc([rows, top_k], DType::F32)?,
            experts: self.alloc([rows, top_k], DType::U32)?,
            places: self.alloc([rows, top_k], DType::U32)?,
            rows: self.alloc([num_pairs], DType::U32)?,
            starts: self.alloc([num_experts + 1], DType::U32)?,
        };
        // SAFETY: checked above; outputs are fresh.
        unsafe { self.ops_mut().route(logits, &routing)? };
        self.training.record(|| Recorded::Route { logits: logits.clone(), routing: routing.clone() });
        Ok(routing)
    }

    /// Rows of `x` `[rows, n]` as the experts take them, `[pairs, n]`.
    ///
    /// # Errors
    /// [`DeviceError`] for another number of rows.
    pub fn dispatch(&mut self, x: &Tensor, routing: &Routing) -> Result<Tensor> {
        let op = "dispatch";
        check_routing(op, routing)?;
        expect(op, "x", x, Shape::from([routing.num_rows(), x.shape.row_len()]), x.dtype)?;
        let out = self.alloc([routing.num_pairs(), x.shape.row_len()], x.dtype)?;
        // SAFETY: checked above; the rows of a routing are rows of its step.
        unsafe { self.ops_mut().gather_rows(x, &routing.rows, &out)? };
        self.training.record(|| Recorded::Dispatch {
            x: x.clone(),
            routing: routing.clone(),
            out: out.clone(),
        });
        Ok(out)
    }

    /// Linear layers of the experts that share the input `x` `[pairs, in]`; see [`crate::Ops::expert_linear`].
    ///
    /// # Errors
    /// [`DeviceError`] for operands that do not fit each other.
    pub fn expert_linear<const N: usize>(
        &mut self,
        x: &Tensor,
        layers: [&Experts; N],
        routing: &Routing,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<[Tensor; N]> {
        let op = "expert_linear";
        check_routing(op, routing)?;
        let pairs = routing.num_pairs();
        let given = if x.dtype == self.device().linear_input() { x.dtype } else { DType::F32 };
        expect(op, "x", x, Shape::from([pairs, x.shape.row_len()]), given)?;
        if let Some(lora) = lora {
            expect(op, "adapter slots", lora.slots, Shape::from([routing.num_rows()]), DType::U32)?;
            expect(op, "adapter scales", lora.scales, Shape::from([routing.num_rows()]), DType::F32)?;
        }
        let (mut outs, mut are_kept) = (Vec::with_capacity(N), true);
        for experts in layers {
            if experts.cols() != x.shape.row_len() {
                let expected = Shape::from([pairs, experts.cols()]);
                return Err(DeviceError::Shape { op, operand: "x", expected, actual: x.shape });
            }
            if experts.weights().len() != routing.num_experts {
                let have = experts.weights().len();
                return invalid(op, format!("{have} experts for a routing to {}", routing.num_experts));
            }
            if let (Some(lora), Some(modules)) = (lora, experts.modules()) {
                for (expert, weight) in experts.weights().iter().enumerate() {
                    lora.check(modules.of(expert), weight)?;
                }
            }
            let (out, kept) = self.linear_out(Shape::from([pairs, experts.rows()]), routing.top_k())?;
            are_kept &= kept;
            outs.push(out);
        }
        let lora_xs = self.expert_lora_inputs(x, &layers, routing, lora)?;
        let targets: Vec<ExpertTarget<'_>> = (layers.iter().zip(&outs).zip(&lora_xs))
            .map(|((experts, out), lora_x)| ExpertTarget { experts, lora_x: lora_x.as_ref(), out })
            .collect();
        if !(are_kept && self.training.recalls()) {
            // SAFETY: checked above; outputs are fresh, or nobody else's.
            unsafe { self.ops_mut().expert_linear(x, &targets, routing, lora)? };
        }
        self.training.record(|| Recorded::Experts {
            x: x.clone(),
            layers: (layers.iter().zip(&lora_xs).zip(&outs))
                .map(|((experts, lora_x), out)| RecordedExperts {
                    experts: (*experts).clone(),
                    lora_x: lora_x.clone(),
                    out: out.clone(),
                })
                .collect(),
            routing: routing.clone(),
            with_lora: lora.is_some(),
        });
        outs.try_into().or_else(|_| invalid(op, "as many outputs as layers"))
    }

    /// What a row's experts gave, `x` `[pairs, n]`, added up by their weights, and to `residual` `[rows, n]`.
    ///
    /// # Errors
    /// [`DeviceError`] for operands that do not fit each other.
    pub fn combine(&mut self, x: &Tensor, routing: &Routing, residual: &Tensor) -> Result<Tensor> {
        let op = "combine";
        check_routing(op, routing)?;
        let n = x.shape.row_len();
        expect(op, "x", x, Shape::from([routing.num_pairs(), n]), DType::F32)?;
        expect(op, "residual", residual, Shape::from([routing.num_rows(), n]), DType::F32)?;
        // What a block with experts gives is kept as the last linear layer's result is in others.
        let (out, is_kept) = self.linear_out(Shape::from([routing.num_rows(), n]), 1)?;
        if !(is_kept && self.training.recalls()) {
            let args = Combine { x, routing, weighted: true, residual: Some(residual), out: &out };
            // SAFETY: checked above; the output is fresh, or nobody else's.
            unsafe { self.ops_mut().combine(args)? };
        }
        self.training.record(|| Recorded::Combine {
            x: x.clone(),
            routing: routing.clone(),
            residual: residual.clone(),
            out: out.clone(),
        });
        Ok(out)
    }

    /// The first pair of each expert, and how many it has, read back: for training, whose steps are not recorded.
    pub(crate) fn expert_pairs(&mut self, routing: &Routing) -> Result<Vec<(usize, usize)>> {
        expect("expert_pairs", "starts", &routing.starts, routing.starts.shape, DType::U32)?;
        let mut bytes = vec![0; routing.starts.size_bytes()];
        // SAFETY: live, and `bytes` has its length.
        unsafe { self.ops_mut().read(&routing.starts, &mut bytes)? };
        let starts = || bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize);
        Ok(starts().zip(starts().skip(1)).map(|(first, end)| (first, end.saturating_sub(first))).collect())
    }

    /// What the adapters of experts read in the place of `x`: with dropout a tensor for each layer.
    fn expert_lora_inputs(
        &mut self,
        x: &Tensor,
        layers: &[&Experts],
        routing: &Routing,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut inputs = vec![None; layers.len()];
        let Some(dropout) = self.training.dropout.clone().filter(|_| lora.is_some()) else {
            return Ok(inputs);
        };
        let pairs = self.expert_pairs(routing)?;
        let dropout = dropout.of_pairs(self, routing)?;
        expect("dropout", "x", x, x.shape, DType::F32)?;
        for (input, experts) in inputs.iter_mut().zip(layers) {
            let Some(modules) = experts.modules() else { continue };
            let out = self.alloc(x.shape, DType::F32)?;
            for (expert, &(first, len)) in pairs.iter().enumerate() {
                if len > 0 {
                    let (from, to) = (x.rows(first, len)?, out.rows(first, len)?);
                    let rows = dropout.rows(first, len)?;
                    // SAFETY: views of tensors that were checked; `out` is fresh.
                    unsafe { self.grad_ops()?.dropout(rows.args(modules.of(expert), &from, &to, false))? };
                }
            }
            *input = Some(out);
        }
        Ok(inputs)
    }
}

/// Whether a routing is live.
fn check_routing(op: &'static str, routing: &Routing) -> Result<()> {
    let (pairs, experts) = (Shape::from([routing.num_pairs()]), Shape::from([routing.num_experts + 1]));
    expect(op, "routing", &routing.weights, routing.shape(), DType::F32)?;
    expect(op, "routing", &routing.experts, routing.shape(), DType::U32)?;
    expect(op, "routing", &routing.places, routing.shape(), DType::U32)?;
    expect(op, "routing", &routing.rows, pairs, DType::U32)?;
    expect(op, "routing", &routing.starts, experts, DType::U32)
}
