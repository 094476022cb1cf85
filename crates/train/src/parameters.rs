//! What is trained: the factors of every target module, in one flat tensor.
//!
//! Per module A `[rank, in]`, then B transposed `[rank, out]`, then DoRA's magnitudes `[out]`: contiguous, so that the
//! optimizer, the norm of the gradient and a checkpoint see a single range. What ops read is derived from it after each
//! step ([`Parameters::pack`]).

use std::sync::Arc;

use wardrobe_data::SplitMix64;
use wardrobe_device::{
    Ctx, DType, Device, LoraFactors, LoraGrads, LoraModules, LoraTable, ModuleIdx, Tensor, TrainedModule,
};
use wardrobe_formats::PeftAdapter;
use wardrobe_models::{Decoder, adapter_table};

use crate::config::LoraConfig;
use crate::error::{Result, TrainError};

/// A trained module's places in the flat tensor.
#[derive(Debug, Clone)]
pub(crate) struct ModuleLayout {
    pub(crate) path: String,
    pub(crate) idx: ModuleIdx,
    pub(crate) rank: usize,
    pub(crate) input: usize,
    pub(crate) out: usize,
    pub(crate) scale: f64,
    a: usize,
    b: usize,
    magnitude: Option<usize>,
}

/// Where everything lies.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) modules: Vec<ModuleLayout>,
    pub(crate) len: usize,
}

impl Layout {
    pub(crate) fn new(model: &dyn Decoder, lora: &LoraConfig) -> Result<Self> {
        let mut modules = Vec::new();
        let mut len = 0;
        for module in model.modules() {
            if !lora.targets(&module.path) {
                continue;
            }
            let (out, input, rank) = (module.weight.rows(), module.weight.cols(), lora.rank);
            // A router has few outputs, and has the rank of the others all the same.
            let most = if module.path.ends_with(".gate") { input } else { input.min(out) };
            if rank > most {
                let reason = format!("{rank} exceeds the layer {} of {out} by {input}", module.path);
                return Err(TrainError::config("rank", reason));
            }
            let (a, b) = (len, len + rank * input);
            let magnitude = lora.use_dora.then_some(b + rank * out);
            len = b + rank * out + if lora.use_dora { out } else { 0 };
            let scale = lora.scale();
            modules.push(ModuleLayout {
                path: module.path.clone(),
                idx: module.idx,
                rank,
                input,
                out,
                scale,
                a,
                b,
                magnitude,
            });
        }
        if modules.is_empty() {
            let reason = format!("{} match no layer of the model", lora.target_modules.join(", "));
            return Err(TrainError::config("target_modules", reason));
        }
        Ok(Layout { modules, len })
    }

    /// Gradient buffers of one worker.
    pub(crate) fn gradients(&self, ctx: &Ctx) -> Result<Tensor> {
        Ok(ctx.persistent("gradients", [self.len], DType::F32)?)
    }
}

impl ModuleLayout {
    /// Whether it is an expert's.
    pub(crate) fn is_of_expert(&self) -> bool {
        wardrobe_models::is_of_expert(&self.path)
    }

    fn views(&self, flat: &Tensor) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let a = flat.rows(self.a, self.rank * self.input)?.reshape([self.rank, self.input])?;
        let b = flat.rows(self.b, self.rank * self.out)?.reshape([self.rank, self.out])?;
        let magnitude = self.magnitude.map(|at| flat.rows(at, self.out)).transpose()?;
        Ok((a, b, magnitude))
    }
}

/// Parameters with the optimizer's moments.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(crate) layout: Layout,
    pub(crate) values: Tensor,
    pub(crate) moments: [Tensor; 2],
    /// Of the whole batch.
    pub(crate) gradients: Tensor,
    /// One slot, with these factors.
    pub(crate) table: Arc<LoraTable>,
    /// Norms of the frozen rows are found again after each step.
    trained: Vec<Packed>,
    device: Arc<dyn Device>,
}

/// A module's factors as ops read them.
#[derive(Debug)]
struct Packed {
    factors: LoraFactors,
    a_panels: Tensor,
    b_rows: Tensor,
}

impl Parameters {
    /// Fresh ones: A uniform in `±1 / sqrt(in)`, B zero, magnitudes the norms of the weight's rows; from `seed`.
    pub(crate) fn new(ctx: &mut Ctx, model: &dyn Decoder, lora: &LoraConfig, seed: u64) -> Result<Self> {
        let layout = Layout::new(model, lora)?;
        let mut values = vec![0.0_f32; layout.len];
        let mut random = SplitMix64::new(seed);
        for module in &layout.modules {
            let bound = 1.0 / (module.input as f32).sqrt();
            if let Some(a) = values.get_mut(module.a..module.b) {
                a.iter_mut().for_each(|v| *v = uniform(&mut random) * 2.0 * bound - bound);
            }
        }
        let flat = |ctx: &Ctx, what| ctx.persistent(what, [layout.len], DType::F32);
        let moments = [flat(ctx, "first moments")?, flat(ctx, "second moments")?];
        let gradients = flat(ctx, "gradients")?;
        let mut trained = Vec::new();
        let mut modules: Vec<Option<LoraFactors>> = vec![None; model.modules().len()];
        for module in &layout.modules {
            let ModuleLayout { rank, input, out, .. } = *module;
            let part = |n: usize| ctx.persistent("factors", [n, rank], DType::F32);
            let out_scale = if module.magnitude.is_some() {
                Some(ctx.persistent("output scales", [out], DType::F32)?)
            } else {
                None
            };
            let factors =
                LoraFactors { a: part(input)?, b: part(out)?, scale: module.scale as f32, out_scale };
            trained.push(Packed { factors: factors.clone(), a_panels: part(input)?, b_rows: part(out)? });
            if let Some(entry) = modules.get_mut(module.idx.0 as usize) {
                *entry = Some(factors);
            }
        }
        let table = adapter_table(model, 1);
        table.bind(0, LoraModules::from(modules))?;
        let values = ctx.upload_f32("parameters", [layout.len], &values)?;
        let device = ctx.device().clone();
        let parameters =
            Parameters { layout, values, moments, gradients, table: Arc::new(table), trained, device };
        parameters.start_magnitudes(ctx, model)?;
        parameters.pack(ctx, model)?;
        Ok(parameters)
    }

    /// Brings the values into the layouts that ops read.
    pub(crate) fn pack(&self, ctx: &mut Ctx, model: &dyn Decoder) -> Result<()> {
        for (module, packed) in self.layout.modules.iter().zip(&self.trained) {
            let (a, b, magnitude) = module.views(&self.values)?;
            ctx.pack_factor(&a, &packed.factors.a, &packed.a_panels)?;
            ctx.pack_factor(&b, &packed.b_rows, &packed.factors.b)?;
            if let (Some(magnitude), Some(out_scale)) = (magnitude, &packed.factors.out_scale) {
                let norms = self.norms(ctx, model, module)?;
                let magnitude = ctx.read_f32(&magnitude)?;
                let scales: Vec<f32> = magnitude
                    .iter()
                    .zip(norms)
                    .map(|(m, norm)| if norm > 0.0 { m / norm } else { 0.0 })
                    .collect();
                ctx.write_f32(out_scale, &scales)?;
            }
        }
        Ok(())
    }

    /// `‖W + scale B A‖` of each row.
    fn norms(&self, ctx: &mut Ctx, model: &dyn Decoder, module: &ModuleLayout) -> Result<Vec<f32>> {
        let (a, b, _) = module.views(&self.values)?;
        let (a, b_t) = (ctx.read_f32(&a)?, ctx.read_f32(&b)?);
        let b = transposed(&b_t, module.rank);
        let Some(layer) = model.modules().get(module.idx.0 as usize) else { return Ok(Vec::new()) };
        Ok(self.device.update_norms(&layer.weight, [&a, &b], module.scale as f32)?)
    }

    /// Takes an adapter's values; the moments stay as they are.
    ///
    /// # Errors
    /// [`TrainError::Config`] for one of other modules, ranks or kind.
    pub(crate) fn set(&self, ctx: &mut Ctx, model: &dyn Decoder, adapter: &PeftAdapter) -> Result<()> {
        let refuse = |reason: String| Err(TrainError::config("start", reason));
        let parts = adapter.modules();
        if parts.len() != self.layout.modules.len() {
            let (there, wanted) = (parts.len(), self.layout.modules.len());
            return refuse(format!("the adapter has {there} modules, {wanted} are trained"));
        }
        for module in &self.layout.modules {
            let Some(part) = parts.iter().find(|part| part.module_path == module.path) else {
                return refuse(format!("the adapter has nothing for {}", module.path));
            };
            let shapes = (part.a.shape(), part.b.shape());
            let wanted = (&[module.rank, module.input][..], &[module.out, module.rank][..]);
            if shapes != wanted || (part.scale - module.scale).abs() > 1e-9 * module.scale {
                return refuse(format!("{}: another shape or scale than is trained", module.path));
            }
            let (a, b, magnitude) = module.views(&self.values)?;
            ctx.write_f32(&a, &part.a.to_f32()?)?;
            ctx.write_f32(&b, &transposed(&part.b.to_f32()?, module.out))?;
            match (&part.magnitude, magnitude) {
                (Some(from), Some(to)) => ctx.write_f32(&to, &from.to_f32()?)?,
                (None, None) => {}
                _ => return refuse(format!("{}: only one of the two is DoRA", module.path)),
            }
        }
        self.pack(ctx, model)
    }

    fn start_magnitudes(&self, ctx: &mut Ctx, model: &dyn Decoder) -> Result<()> {
        for module in &self.layout.modules {
            let (.., magnitude) = module.views(&self.values)?;
            if let Some(magnitude) = magnitude {
                let norms = self.norms(ctx, model, module)?;
                ctx.write_f32(&magnitude, &norms)?;
            }
        }
        Ok(())
    }

    /// What the backward pass reads, with gradients that go to `gradients`; by [`ModuleIdx`].
    pub(crate) fn trained(
        &self,
        num_modules: usize,
        gradients: &Tensor,
    ) -> Result<Vec<Option<TrainedModule>>> {
        let mut by_idx = vec![None; num_modules];
        for (module, packed) in self.layout.modules.iter().zip(&self.trained) {
            let (a, b, magnitude) = module.views(gradients)?;
            let (.., values) = module.views(&self.values)?;
            if let Some(entry) = by_idx.get_mut(module.idx.0 as usize) {
                *entry = Some(TrainedModule {
                    factors: packed.factors.clone(),
                    a_panels: packed.a_panels.clone(),
                    b_rows: packed.b_rows.clone(),
                    magnitude: values,
                    grads: LoraGrads { a, b, magnitude },
                });
            }
        }
        Ok(by_idx)
    }

    /// A `[rank, in]`, B `[out, rank]` and magnitudes of each module, of the flat `values`.
    pub(crate) fn export<'a>(&'a self, values: &'a [f32]) -> impl Iterator<Item = ExportedModule<'a>> + 'a {
        self.layout.modules.iter().filter_map(move |module| {
            let a = values.get(module.a..module.b)?;
            let b = values.get(module.b..module.b + module.rank * module.out)?;
            let magnitude = module.magnitude.and_then(|at| values.get(at..at + module.out));
            Some(ExportedModule { layout: module, a, b: transposed(b, module.rank), magnitude })
        })
    }
}

/// A module's factors in the shapes of PEFT's files.
pub(crate) struct ExportedModule<'a> {
    pub(crate) layout: &'a ModuleLayout,
    /// `[rank, in]`.
    pub(crate) a: &'a [f32],
    /// `[out, rank]`.
    pub(crate) b: Vec<f32>,
    /// `[out]`.
    pub(crate) magnitude: Option<&'a [f32]>,
}

/// In `0 .. 1`, of 24 bits.
fn uniform(random: &mut SplitMix64) -> f32 {
    (random.next_u64() >> 40) as f32 / (1_u32 << 24) as f32
}

/// The transpose of a matrix of `rows` rows.
fn transposed(matrix: &[f32], rows: usize) -> Vec<f32> {
    let cols = matrix.len() / rows.max(1);
    (0..cols).flat_map(|c| (0..rows).filter_map(move |r| matrix.get(r * cols + c).copied())).collect()
}
