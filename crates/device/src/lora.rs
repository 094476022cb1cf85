//! LoRA operands of a linear layer (Hu et al., arXiv 2106.09685): `y += scale * (x Aᵀ) Bᵀ`, for any mix of adapters.

use std::sync::{Arc, PoisonError, RwLock};

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
    /// A transposed, `[in, rank]`: F32, F16 or BF16. See [`LoraFactors::pack_a`].
    pub a: Tensor,
    /// `[out, rank]` in panels of 16 outputs: same element type as `a`. See [`LoraFactors::pack_b`].
    pub b: Tensor,
    /// `alpha / rank` (or `alpha / sqrt(rank)` for rank-stabilised LoRA).
    pub scale: f32,
    /// DoRA's factor per output, `[out]` F32: `m / ‖W + scale B A‖` (Liu et al., arXiv 2402.09353, eq. 5). It
    /// multiplies base and update alike, not the bias.
    pub out_scale: Option<Tensor>,
}

impl LoraFactors {
    /// Rank of the update.
    pub fn rank(&self) -> usize {
        self.a.shape().row_len()
    }

    /// The bytes of [`LoraFactors::a`] from those of A, `[rank, in]`, whose elements take `element_bytes`: a step reads
    /// all ranks of one input after the other.
    pub fn pack_a(a: &[u8], rank: usize, element_bytes: usize) -> Vec<u8> {
        fn of<const N: usize>(a: &[u8], rank: usize) -> Vec<u8> {
            let elements = a.as_chunks::<N>().0;
            let mut packed = vec![[0; N]; elements.len()];
            transpose(elements, rank, &mut packed);
            packed.into_flattened()
        }
        if element_bytes == 2 { of::<2>(a, rank) } else { of::<4>(a, rank) }
    }

    /// The bytes of [`LoraFactors::b`] from those of B, `[out, rank]`: 16 outputs after the other (fewer at the end),
    /// and of these all outputs of one rank after the other, so that a step reads 16 outputs at once and all in order.
    pub fn pack_b(b: &[u8], rank: usize, element_bytes: usize) -> Vec<u8> {
        fn of<const N: usize>(b: &[u8], rank: usize) -> Vec<u8> {
            let elements = b.as_chunks::<N>().0;
            let mut packed = vec![[0; N]; elements.len()];
            let rank = rank.max(1);
            let panels = elements.chunks(PANEL_OUTPUTS * rank).zip(packed.chunks_mut(PANEL_OUTPUTS * rank));
            for (panel, packed) in panels {
                transpose(panel, panel.len() / rank, packed);
            }
            packed.into_flattened()
        }
        if element_bytes == 2 { of::<2>(b, rank) } else { of::<4>(b, rank) }
    }

    /// Whether these are factors for a layer `[out, in]`.
    fn check(&self, layer: Shape) -> Result<()> {
        let op = "LoraFactors";
        if self.a.shape().dims().len() != 2 || self.b.shape().dims().len() != 2 {
            return invalid(op, "A and B must be matrices");
        }
        if self.b.shape().row_len() != self.rank() || self.rank() == 0 {
            return invalid(op, format!("A transposed is {} but B is {}", self.a.shape(), self.b.shape()));
        }
        let actual = Shape::from([self.b.shape().rows(), self.a.shape().rows()]);
        if actual != layer {
            return Err(DeviceError::Shape { op, operand: "B and A", expected: layer, actual });
        }
        if self.a.dtype() != self.b.dtype() || self.a.dtype() == DType::U32 {
            return invalid(op, format!("A is {:?} and B is {:?}", self.a.dtype(), self.b.dtype()));
        }
        if let Some(s) = &self.out_scale
            && (s.dtype() != DType::F32 || s.shape().numel() != self.b.shape().rows())
        {
            return invalid(op, format!("output scale {} for {} outputs", s.shape(), self.b.shape().rows()));
        }
        Ok(())
    }
}

/// Outputs of a panel of [`LoraFactors::b`].
const PANEL_OUTPUTS: usize = 16;

/// Writes the transpose of a matrix of `rows` rows.
fn transpose<T: Copy>(matrix: &[T], rows: usize, to: &mut [T]) {
    let cols = (matrix.len() / rows.max(1)).max(1);
    for (r, row) in matrix.chunks(cols).enumerate() {
        for (to, element) in to.chunks_exact_mut(rows.max(1)).zip(row) {
            if let Some(to) = to.get_mut(r) {
                *to = *element;
            }
        }
    }
}

/// One adapter's factors by module, `None` where it leaves a module alone.
pub type LoraModules = Arc<[Option<LoraFactors>]>;

/// What a slot of a [`LoraTable`] holds.
#[derive(Clone, Debug)]
pub struct BoundAdapter {
    /// The factors.
    pub modules: LoraModules,
    /// Largest rank among them.
    pub max_rank: usize,
    /// Whether any of them has an [`LoraFactors::out_scale`].
    pub has_out_scales: bool,
}

/// Which adapter sits in which slot. Bound between steps by whoever owns the slots; read by the device in a step.
#[derive(Debug)]
pub struct LoraTable {
    /// `[out, in]` of each module's layer.
    layers: Box<[Shape]>,
    slots: RwLock<Slots>,
}

/// The slots, and how often each was bound or cleared.
#[derive(Debug, Default)]
struct Slots {
    adapters: Vec<Option<BoundAdapter>>,
    versions: Vec<u64>,
}

impl LoraTable {
    /// A table of `num_slots` empty slots, for adapters of the layers `[out, in]` that the model has by module.
    pub fn new(num_slots: usize, layers: impl IntoIterator<Item = [usize; 2]>) -> Self {
        LoraTable {
            layers: layers.into_iter().map(Shape::from).collect(),
            slots: RwLock::new(Slots { adapters: vec![None; num_slots], versions: vec![0; num_slots] }),
        }
    }

    /// Puts an adapter into a slot, replacing what was there. Its factors must fit each other and their layers: a step
    /// does not look again. Modules at the end may be missing.
    pub fn bind(&self, slot: u32, modules: LoraModules) -> Result<()> {
        if modules.len() > self.layers.len() {
            let have = self.layers.len();
            return invalid("LoraTable", format!("{} modules for a model of {have}", modules.len()));
        }
        let (mut max_rank, mut has_out_scales) = (0, false);
        for (factors, layer) in modules.iter().zip(&self.layers) {
            let Some(factors) = factors else { continue };
            factors.check(*layer)?;
            max_rank = max_rank.max(factors.rank());
            has_out_scales |= factors.out_scale.is_some();
        }
        self.set(slot, Some(BoundAdapter { modules, max_rank, has_out_scales }))
    }

    /// Empties a slot.
    pub fn clear(&self, slot: u32) -> Result<()> {
        self.set(slot, None)
    }

    fn set(&self, slot: u32, adapter: Option<BoundAdapter>) -> Result<()> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let num_slots = slots.adapters.len();
        let Slots { adapters, versions } = &mut *slots;
        match (adapters.get_mut(slot as usize), versions.get_mut(slot as usize)) {
            (Some(entry), Some(version)) => {
                *entry = adapter;
                *version += 1;
                Ok(())
            }
            _ => invalid("LoraTable", format!("slot {slot} of a table of {num_slots}")),
        }
    }

    /// What a slot holds, for a device.
    pub fn adapter(&self, slot: u32) -> Option<BoundAdapter> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.adapters.get(slot as usize)?.clone()
    }

    /// Modules of the model.
    pub fn num_modules(&self) -> usize {
        self.layers.len()
    }

    /// How often each slot was bound or cleared: whoever keeps a copy of what they hold sees by these what has changed.
    pub fn versions(&self) -> Vec<u64> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).versions.clone()
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
    /// Whether the table's adapters were made for this layer.
    pub(crate) fn check(&self, module: ModuleIdx, weight: &Weight) -> Result<()> {
        let actual = Shape::from([weight.rows(), weight.cols()]);
        match self.table.layers.get(module.0 as usize) {
            Some(&expected) if expected != actual => {
                Err(DeviceError::Shape { op: "linear", operand: "a module's weight", expected, actual })
            }
            Some(_) => Ok(()),
            None => {
                let have = self.table.layers.len();
                invalid("linear", format!("module {} of an adapter table for {have}", module.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{CpuDevice, CpuOptions};
    use crate::step::StepLimits;
    use crate::{Ctx, CtxConfig};

    #[test]
    fn what_does_not_fit_the_model_is_not_bound() {
        let device = CpuDevice::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let ctx = Ctx::new(Arc::new(device), CtxConfig { arena_bytes: 0, step }).unwrap();
        let factors = |[rank_a, cols]: [usize; 2], [rank_b, rows]: [usize; 2], dtype_b: DType| {
            Some(LoraFactors {
                a: ctx.persistent("A", [cols, rank_a], DType::F32).unwrap(),
                b: ctx.persistent("B", [rows, rank_b], dtype_b).unwrap(),
                scale: 1.0,
                out_scale: None,
            })
        };
        let table = LoraTable::new(2, [[3, 5], [7, 3]]);
        let bind = |slot: u32, modules: Vec<Option<LoraFactors>>| table.bind(slot, modules.into());

        bind(1, vec![factors([2, 5], [2, 3], DType::F32), factors([4, 3], [4, 7], DType::F32)]).unwrap();
        bind(0, vec![None]).unwrap();
        assert_eq!(table.adapter(1).map(|a| a.max_rank), Some(4));

        let refused = [
            bind(2, vec![factors([2, 5], [2, 3], DType::F32)]),
            bind(1, vec![None, None, None]),
            bind(1, vec![factors([2, 3], [2, 5], DType::F32)]),
            bind(1, vec![None, factors([2, 5], [2, 3], DType::F32)]),
            bind(1, vec![factors([2, 5], [1, 3], DType::F32)]),
            bind(1, vec![factors([2, 5], [2, 3], DType::F16)]),
        ];
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
        // The slot holds what it held.
        assert_eq!(table.adapter(1).map(|a| a.max_rank), Some(4));
        table.clear(1).unwrap();
        assert!(table.adapter(1).is_none() && table.adapter(2).is_none());
    }
}
