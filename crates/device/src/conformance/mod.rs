//! The cases that every device has to pass, against scalar references in f64 that are written from the definition of
//! each op and share no code with any device.
//!
//! A device's own tests expand [`crate::conformance_suite!`] with the subjects to run on; each case becomes a test.
//! Cases work through [`Ctx`] alone, so they see what a model sees. A failing case panics with the op, the shape and
//! the element at fault.
//!
//! Two kinds of promises are checked: *values*, within bounds relative to the sum of the magnitudes that were added,
//! and, of devices that claim it, *batch invariance*: a row is the same bits whatever it is computed beside.

// A failed case panics, as a failed test does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attention;
mod elementwise;
mod experts;
mod invariance;
mod linear;
mod lora;
mod quant;
mod random;
mod replay;
mod rope;
mod rows;
mod sampling;
mod tiny_model;
mod training;
mod transfers;

use std::sync::Arc;

use crate::{Ctx, CtxConfig, DType, Device, Result, Step, StepInputs, StepLimits, Tensor};
pub use invariance::fingerprint;
pub use random::with_seed;
#[cfg(test)]
pub(crate) use sampling::{probabilities, token_fits};
pub use tiny_model::{Chunk, TinyBatch, TinyModel};

/// What a device claims, and is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Promises {
    /// Quantised linear layers round their input, 32 to a scale, to whole numbers of this largest magnitude.
    pub activation_steps: Option<u16>,
    /// Largest error relative to the sum of magnitudes added, rounding of the input apart.
    pub tolerance: f64,
    /// A row's result is the same bits under any neighbours and chunking.
    pub batch_invariant: bool,
    /// It has backward ops.
    pub trains: bool,
    /// A layer of F16 weights may take what lies beyond binary16 as its largest number.
    pub f16_saturates: bool,
}

impl Promises {
    /// What the CUDA device promises: what enters a product on tensor cores is rounded to bf16, by 2^-8 at most, both factors of
    /// some; keys and values as the cache has them.
    pub const CUDA: Promises = Promises {
        activation_steps: None,
        tolerance: 8.5e-3,
        batch_invariant: false,
        trains: true,
        f16_saturates: true,
    };
}

/// A device under test.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The device.
    pub device: Arc<dyn Device>,
    /// Its claims.
    pub promises: Promises,
}

/// Largest step in the suite.
const LIMITS: StepLimits = StepLimits { max_rows: 1024, max_seqs: 16, max_blocks: 64 };

impl Subject {
    /// A fresh context whose arena is full of NaN, so that what an op leaves unwritten shows.
    fn ctx(&self, arena_bytes: usize) -> Ctx {
        let mut ctx = Ctx::new(self.device.clone(), CtxConfig { arena_bytes, step: LIMITS }).unwrap();
        poison(&mut ctx, arena_bytes);
        ctx
    }

    /// Checks `got` against `want`, within the device's tolerance of `magnitude` and `extra`.
    fn check(&self, what: &str, got: &[f32], want: &[Expected]) {
        assert_eq!(got.len(), want.len(), "{}: {what}: length", self.device.name());
        for (i, (&got, want)) in got.iter().zip(want).enumerate() {
            let bound = self.promises.tolerance * want.magnitude + want.extra + f64::from(f32::MIN_POSITIVE);
            let error = (f64::from(got) - want.value).abs();
            assert!(
                error <= bound,
                "{}: {what}: element {i} is {got:e}, expected {:e} within {bound:e}, off by {error:e}",
                self.device.name(),
                want.value,
            );
        }
    }
}

/// Fills all that is free of the arena with NaN.
fn poison(ctx: &mut Ctx, arena_bytes: usize) {
    let len = arena_bytes.saturating_sub(ctx.arena_used_bytes()).saturating_sub(64) / 4;
    let nan = ctx.upload_f32("NaN", [len], &vec![f32::NAN; len]).unwrap();
    ctx.scratch(|ctx| {
        let filled = ctx.silu_mul(&nan, &nan)?;
        assert!(ctx.read_f32(&filled)?.iter().all(|v| v.is_nan()), "NaN went missing");
        Ok(())
    })
    .unwrap();
}

/// What one element should be.
#[derive(Debug, Clone, Copy, Default)]
struct Expected {
    value: f64,
    /// Sum of the magnitudes of what was added up.
    magnitude: f64,
    /// Error allowed besides.
    extra: f64,
}

impl Expected {
    fn exactly(value: f64) -> Self {
        Expected { value, ..Default::default() }
    }

    fn add(&mut self, term: f64) {
        self.value += term;
        self.magnitude += term.abs();
    }
}

/// Runs a step within the bounds that all of the suite shares.
fn run_step(
    ctx: &mut Ctx,
    inputs: &StepInputs,
    forward: impl FnOnce(&mut Ctx, &Step) -> Result<Tensor>,
) -> Tensor {
    ctx.run_step(inputs, &tiny_model::BOUNDS, forward).unwrap()
}

fn upload(ctx: &mut Ctx, shape: impl Into<crate::Shape>, values: &[f32]) -> Tensor {
    ctx.upload_f32("a test's operand", shape, values).unwrap()
}

fn upload_u32(ctx: &mut Ctx, values: &[u32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    ctx.upload("a test's operand", [values.len()], DType::U32, &bytes).unwrap()
}

/// The bits, so that equality is of bits and NaN has no say.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

macro_rules! cases {
    ($($name:ident: $path:path;)*) => {
        $(
            #[doc = concat!("The case `", stringify!($name), "`; panics if the subject fails it.")]
            pub fn $name(subject: &Subject) {
                $path(subject)
            }
        )*

        /// All cases by name.
        pub const CASES: &[(&str, fn(&Subject))] = &[$((stringify!($name), $name),)*];

        /// Expands to one `#[test]` a case, each run on every subject of the expression: an
        /// `IntoIterator<Item = Subject>`.
        #[macro_export]
        macro_rules! conformance_suite {
            ($subjects:expr) => {
                $(
                    #[test]
                    fn $name() {
                        for subject in $subjects {
                            $crate::conformance::$name(&subject);
                        }
                    }
                )*
            };
        }
    };
}

cases! {
    embed: rows::embed;
    dequantised_rows: rows::dequantised_rows;
    rms_norm: rows::rms_norm;
    silu_mul: rows::silu_mul;
    scaled_embed: elementwise::scaled_embed;
    rms_norm_of_heads: elementwise::rms_norm_of_heads;
    rms_norm_with_a_residual: elementwise::rms_norm_with_a_residual;
    layer_norm: elementwise::layer_norm;
    gelu: elementwise::gelu;
    softcap: elementwise::softcap;
    split: elementwise::split;
    gather_rows: rows::gather_rows;
    uploads_and_reads: transfers::uploads_and_reads;
    scopes_keep_their_result: transfers::scopes_keep_their_result;
    linear: linear::random_activations;
    linear_is_exact_on_representable_activations: linear::representable_activations;
    linear_with_awkward_activations: linear::awkward_activations;
    lora_over_mixed_slots: lora::mixed_slots;
    lora_leaves_other_rows_alone: lora::other_rows_unchanged;
    routing: experts::routing;
    layers_of_experts: experts::layers;
    rope: rope::tables_per_row;
    attention_over_ragged_batches: attention::ragged_batches;
    attention_over_long_contexts: attention::long_contexts;
    attention_with_a_window: attention::windows;
    attention_with_bounded_scores: attention::bounded_scores;
    sample: sampling::draws;
    logprobs: sampling::logprobs;
    linear_is_batch_invariant: invariance::linear_rows;
    experts_are_batch_invariant: experts::rows_alone;
    attention_is_chunking_invariant: invariance::attention_chunks;
    model_is_batch_invariant: invariance::model;
    rms_norm_backward: training::rms_norm;
    rms_norm_of_heads_backward: training::rms_norm_of_heads;
    rms_norm_with_a_residual_backward: training::rms_norm_with_a_residual;
    layer_norm_backward: training::layer_norm;
    gelu_backward: training::gelu;
    softcap_backward: training::softcap;
    split_backward: training::split;
    silu_mul_backward: training::silu_mul;
    rope_backward: training::rope;
    attention_backward: training::attention;
    gathered_rows_backward: training::gathered_rows;
    frozen_layers_backward: training::frozen_layers;
    low_rank_updates_backward: training::low_rank_updates;
    experts_backward: training::experts;
    experts_dropout: training::experts_dropout;
    dropout: training::dropout;
    cross_entropy: training::cross_entropy;
    adamw: training::adamw;
    steps_rerun_with_new_contents: replay::new_contents;
    routed_steps_rerun_with_new_contents: experts::new_contents;
}
