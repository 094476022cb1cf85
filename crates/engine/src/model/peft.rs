//! Loads PEFT adapters for a model: off the engine thread, whole, checked.

use std::sync::Arc;

use wardrobe_device::{Ctx, CtxConfig, Device, StepLimits};
use wardrobe_formats::peft::{AdapterRope, PeftLimits, SCHEMA_FILE};
use wardrobe_formats::{FormatError, PeftAdapter};
use wardrobe_grammar::{Compiler, Spec, Template, Whitespace};
use wardrobe_models::{Decoder, LoraAdapter, LoraOptions, ModelError, RopeSpec};

use super::parity;
use super::rope::{self, AdapterRopeTable, AdapterScalings};

use crate::adapter::{AdapterLoader, AdapterSource, PreparedAdapter};
use crate::error::AdapterError;
use crate::ids::Digest;

/// Reads adapter folders, or a [`PeftAdapter`] handed over in process.
#[derive(Debug)]
pub struct PeftLoader {
    device: Arc<dyn Device>,
    model: Arc<dyn Decoder>,
    files: PeftLimits,
    options: LoraOptions,
    scalings: AdapterScalings,
    /// Positions that RoPE tables have.
    max_positions: usize,
    /// What the model is called; empty if that is not known.
    model_names: Vec<String>,
    /// For the schemas of adapters that carry one.
    compiler: Option<Arc<Compiler>>,
}

/// A name without organisation and folders, and without what spellings differ in.
fn plain(name: &str) -> String {
    let last = name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
    last.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether two names may be of the same model: one is the other with something added, as a quantisation is.
fn may_be_same(a: &str, b: &str) -> bool {
    let (a, b) = (plain(a), plain(b));
    a.contains(&b) || b.contains(&a)
}

impl PeftLoader {
    /// A loader for adapters of `model` on `device`.
    pub fn new(device: Arc<dyn Device>, model: Arc<dyn Decoder>, options: LoraOptions) -> Self {
        let files = PeftLimits { max_rank: options.max_rank, ..PeftLimits::default() };
        let max_positions = model.config().max_position_embeddings;
        let scalings = AdapterScalings::default();
        PeftLoader {
            device,
            model,
            files,
            options,
            scalings,
            max_positions,
            model_names: Vec::new(),
            compiler: None,
        }
    }

    /// Sets the longest context of any sequence, for adapters that bring RoPE scaling: as the executor's.
    pub fn with_max_context(mut self, max_context_tokens: usize) -> Self {
        self.max_positions = max_context_tokens;
        self
    }

    /// Tells what the model is called, so that adapters of another one are noticed.
    pub fn with_model_names(mut self, names: Vec<String>) -> Self {
        self.model_names = names;
        self
    }

    /// Sets what compiles the schemas of adapters that carry one; without it they are refused.
    pub fn with_compiler(mut self, compiler: Arc<Compiler>) -> Self {
        self.compiler = Some(compiler);
        self
    }

    /// What an adapter's answers are to be held to.
    fn template(&self, adapter: &PeftAdapter) -> Result<Option<Arc<Template>>, AdapterError> {
        let Some(schema) = adapter.schema().cloned() else { return Ok(None) };
        let refused = |reason: String| AdapterError::Refused { reason: format!("{SCHEMA_FILE}: {reason}") };
        let compiler = self.compiler.as_ref();
        let compiler =
            compiler.ok_or_else(|| refused("schemas of adapters are not served here".to_owned()))?;
        let compiled = compiler.compile(&Spec::JsonSchema { schema, strict: true }, Whitespace::default());
        compiled.map(Some).map_err(|error| refused(error.to_string()))
    }

    /// The base model that the adapter's configuration names, if by its name it is another one than this. Names prove
    /// nothing, so this is for a warning: a renamed copy has another name, and shapes alone decide what fits.
    pub fn other_base<'a>(&self, adapter: &'a PeftAdapter) -> Option<&'a str> {
        let base =
            adapter.config().base_model_name_or_path.as_deref().filter(|base| !plain(base).is_empty())?;
        let known = self.model_names.iter().filter(|name| !plain(name).is_empty());
        let mut known = known.peekable();
        (known.peek().is_some() && !known.any(|name| may_be_same(name, base))).then_some(base)
    }
}

impl AdapterLoader for PeftLoader {
    fn load(&self, source: &AdapterSource) -> Result<Arc<dyn PreparedAdapter>, AdapterError> {
        let read;
        let adapter = match source {
            AdapterSource::Path(path) => {
                read = PeftAdapter::open_within(path, &self.files).map_err(format_error)?;
                &read
            }
            AdapterSource::InProcess { label, payload } => payload
                .downcast_ref::<PeftAdapter>()
                .ok_or_else(|| AdapterError::Refused { reason: format!("{label} is not a PEFT adapter") })?,
        };
        if let Some(base) = self.other_base(adapter) {
            let base: String = base.chars().take(256).collect();
            tracing::warn!(
                adapter = %source, trained_for = base, model = self.model_names.join(", "),
                "the adapter names another base model; its answers may make no sense"
            );
        }
        let template = self.template(adapter)?;
        // A context of its own, since the engine's belongs to the engine thread; it needs no scratch memory.
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(self.device.clone(), CtxConfig { arena_bytes: 0, step })
            .map_err(|e| AdapterError::Io { reason: e.to_string() })?;
        let lora = LoraAdapter::new(&mut ctx, self.model.as_ref(), adapter, &self.options);
        let lora = lora.map_err(model_error)?;
        if let Some(record) = adapter.parity() {
            parity::verify(&self.device, self.model.as_ref(), source, (adapter, &lora), record)?;
        }
        let rope = lora.rope().map(|rope| self.rope(&mut ctx, source, rope)).transpose()?;
        Ok(Arc::new(PreparedLora { lora, rope, template }))
    }
}

impl PeftLoader {
    fn rope(
        &self,
        ctx: &mut Ctx,
        source: &AdapterSource,
        rope: &AdapterRope,
    ) -> Result<PreparedRope, AdapterError> {
        let (own, most) = (rope.max_position_embeddings, self.max_positions);
        if own > most {
            tracing::warn!(
                adapter = %source, context_tokens = own, served_tokens = most,
                "the adapter was trained for a longer context than is served; the setting max_context raises it"
            );
        }
        let spec = RopeSpec::of_adapter(self.model.config(), rope);
        let table = self.scalings.table(ctx, spec, most);
        let table = table.map_err(|e| AdapterError::Io { reason: e.to_string() })?.ok_or_else(|| {
            let most = rope::MAX_SCALINGS;
            let reason =
                format!("brings a RoPE scaling of its own, of which {most} different ones were loaded");
            AdapterError::Refused { reason }
        })?;
        Ok(PreparedRope { table, max_context_tokens: own.min(most) })
    }
}

fn format_error(error: FormatError) -> AdapterError {
    match error {
        FormatError::NotFound { path, .. } => AdapterError::SourceNotFound { path },
        FormatError::Io { .. } => AdapterError::Io { reason: error.to_string() },
        _ => AdapterError::Refused { reason: error.to_string() },
    }
}

fn model_error(error: ModelError) -> AdapterError {
    match error {
        ModelError::Format(error) => format_error(error),
        _ => AdapterError::Refused { reason: error.to_string() },
    }
}

/// A LoRA adapter ready to be bound.
pub(super) struct PreparedLora {
    pub(super) lora: LoraAdapter,
    pub(super) rope: Option<PreparedRope>,
    template: Option<Arc<Template>>,
}

/// Positions that an adapter brings.
pub(super) struct PreparedRope {
    pub(super) table: Arc<AdapterRopeTable>,
    max_context_tokens: usize,
}

impl PreparedAdapter for PreparedLora {
    /// With the RoPE table, also where another adapter shares it.
    fn host_bytes(&self) -> u64 {
        let rope = self.rope.as_ref().map_or(0, |rope| rope.table.tensor.size_bytes());
        (self.lora.size_bytes() + rope) as u64
    }

    fn device_bytes(&self) -> u64 {
        // The loader put the factors where the device computes with them: a slot refers to the same memory.
        self.host_bytes()
    }

    fn digest(&self) -> Digest {
        *self.lora.digest().as_bytes()
    }

    fn rank(&self) -> usize {
        self.lora.max_rank()
    }

    fn num_modules(&self) -> usize {
        self.lora.num_modules()
    }

    fn max_context_tokens(&self) -> Option<usize> {
        self.rope.as_ref().map(|rope| rope.max_context_tokens)
    }

    fn template(&self) -> Option<Arc<Template>> {
        self.template.clone()
    }

    fn rope_idx(&self) -> u32 {
        self.rope.as_ref().map_or(rope::BASE, |rope| rope.table.idx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_same_model_are_told_from_others() {
        let base = "HuggingFaceTB/SmolLM2-135M-Instruct";
        for same in [
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "smollm2_135m_instruct",
            "HuggingFaceTB--SmolLM2-135M-Instruct",
            "/models/SmolLM2-135M-Instruct/",
            "unsloth/SmolLM2-135M-Instruct-bnb-4bit",
        ] {
            assert!(may_be_same(same, base), "{same}");
        }
        for other in ["SmolLM2-360M-Instruct", "meta-llama/Llama-3.2-1B", "Smollm2 135M 8k Lc100K Mix1 Ep2"] {
            assert!(!may_be_same(other, base), "{other}");
        }
    }
}
