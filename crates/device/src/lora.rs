//! LoRA operands of a linear layer (Hu et al., arXiv 2106.09685): `y += scale * (x Aᵀ) Bᵀ`, for any mix of adapters.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::error::{DeviceError, Result, invalid};
use crate::weight::Weight;
use crate::{DType, Shape, Tensor};

/// Slot of rows that use no adapter.
pub const NULL_SLOT: u32 = u32::MAX;

/// Index of an adaptable linear layer in a model, in the model's own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModuleIdx(pub u32);

/// The factors of one adapter for one linear layer.
#[derive(Clone, Debug)]
pub struct LoraFactors {
    /// `[rank, in]`: F32, F16 or BF16.
    pub a: Tensor,
    /// B transposed, `[rank, out]`: same element type as `a`.
    pub b_t: Tensor,
    /// `alpha / rank` (or `alpha / sqrt(rank)` for rank-stabilised LoRA).
    pub scale: f32,
    /// DoRA's factor per output, `[out]` F32: `m / ‖W + scale B A‖` (Liu et al., arXiv 2402.09353, eq. 5). It
    /// multiplies base and update alike, not the bias.
    pub out_scale: Option<Tensor>,
}

impl LoraFactors {
    /// Rank of the update.
    pub fn rank(&self) -> usize {
        self.a.shape().rows()
    }

    fn check(&self) -> Result<()> {
        let op = "LoraFactors";
        if self.a.shape().dims().len() != 2 || self.b_t.shape().dims().len() != 2 {
            return invalid(op, "A and B must be matrices");
        }
        if self.b_t.shape().rows() != self.rank() || self.rank() == 0 {
            return invalid(op, format!("A is {} but B transposed is {}", self.a.shape(), self.b_t.shape()));
        }
        if self.a.dtype() != self.b_t.dtype() || self.a.dtype() == DType::U32 {
            return invalid(op, format!("A is {:?} and B is {:?}", self.a.dtype(), self.b_t.dtype()));
        }
        if let Some(s) = &self.out_scale
            && (s.dtype() != DType::F32 || s.shape().numel() != self.b_t.shape().row_len())
        {
            return invalid(
                op,
                format!("output scale {} for {} outputs", s.shape(), self.b_t.shape().row_len()),
            );
        }
        Ok(())
    }
}

/// One adapter's factors by module, `None` where it leaves a module alone.
pub type LoraModules = Arc<[Option<LoraFactors>]>;

/// Which adapter sits in which slot. Bound between steps by whoever owns the slots; read by the device in a step.
#[derive(Debug)]
pub struct LoraTable {
    slots: RwLock<Vec<Option<LoraModules>>>,
}

impl LoraTable {
    /// A table of `num_slots` empty slots.
    pub fn new(num_slots: usize) -> Self {
        LoraTable { slots: RwLock::new(vec![None; num_slots]) }
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.read().len()
    }

    /// Puts an adapter into a slot, replacing what was there; checks the factors' shapes against each other.
    pub fn bind(&self, slot: u32, modules: LoraModules) -> Result<()> {
        modules.iter().flatten().try_for_each(LoraFactors::check)?;
        self.set(slot, Some(modules))
    }

    /// Empties a slot.
    pub fn clear(&self, slot: u32) -> Result<()> {
        self.set(slot, None)
    }

    fn set(&self, slot: u32, modules: Option<LoraModules>) -> Result<()> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let num_slots = slots.len();
        match slots.get_mut(slot as usize) {
            Some(entry) => {
                *entry = modules;
                Ok(())
            }
            None => invalid("LoraTable", format!("slot {slot} of a table of {num_slots}")),
        }
    }

    /// The slots, for a device.
    pub fn read(&self) -> RwLockReadGuard<'_, Vec<Option<LoraModules>>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The adapters of one step's rows.
#[derive(Clone, Copy, Debug)]
pub struct LoraBatch<'a> {
    /// What the slots hold.
    pub table: &'a Arc<LoraTable>,
    /// Slot of each row, `[rows]` U32; [`NULL_SLOT`] for the base model. Rows of one slot should be adjacent.
    pub slots: &'a Tensor,
    /// Factor per row on the adapter's own scale, `[rows]` F32.
    pub scales: &'a Tensor,
}

impl LoraBatch<'_> {
    /// Whether every adapter in the table fits the layer: a slot may be used by any row.
    pub(crate) fn check(&self, module: ModuleIdx, weight: &Weight) -> Result<()> {
        for slot in self.table.read().iter().flatten() {
            let Some(Some(f)) = slot.get(module.0 as usize) else { continue };
            let (a, b) = (f.a.shape(), f.b_t.shape());
            if a.row_len() != weight.cols() || b.row_len() != weight.rows() {
                let expected = Shape::from([f.rank(), weight.cols()]);
                return Err(DeviceError::Shape { op: "linear", operand: "adapter", expected, actual: a });
            }
        }
        Ok(())
    }
}
