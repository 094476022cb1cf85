//! Which model a request means: the base under one of its names, or an adapter.

use wardrobe_engine::GenerationId;

use crate::error::{ApiError, Result};
use crate::state::ServerState;
use crate::wire::request::{GenerationFields, LoraChoice, LoraId};

/// What answers a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// The name that the answer shows as `model`.
    pub model: String,
    /// Name of the adapter; `None` is the base.
    pub adapter: Option<String>,
    pub adapter_scale: f32,
    pub expected_generation: Option<GenerationId>,
}

/// Reads `model`, `lora` and `expected_generation`. Whether an adapter of the name exists, the engine knows.
pub(crate) fn resolve(state: &ServerState, fields: &GenerationFields) -> Result<Target> {
    let named = fields.model.as_deref().filter(|name| !name.is_empty());
    let mut target = Target {
        model: named.unwrap_or(&state.model.model_id).to_owned(),
        adapter: named.filter(|name| !state.is_base_name(name)).map(str::to_owned),
        adapter_scale: 1.0,
        expected_generation: fields.expected_generation.map(GenerationId),
    };
    match fields.lora.as_deref() {
        None | Some([]) => {}
        Some([choice]) => choose(state, &mut target, choice)?,
        Some(several) => {
            let reason = format!("has {} adapters; a request is answered with one at most", several.len());
            return Err(ApiError::invalid("lora", reason));
        }
    }
    if target.adapter.is_none() && target.expected_generation.is_some() {
        return Err(ApiError::invalid("expected_generation", "is set without an adapter"));
    }
    Ok(target)
}

fn choose(state: &ServerState, target: &mut Target, choice: &LoraChoice) -> Result<()> {
    let (name, generation) = match &choice.id {
        LoraId::Name(name) => (name.clone(), None),
        LoraId::Generation(id) => {
            let adapters = state.model.engine.adapters();
            let adapter = adapters.into_iter().find(|adapter| adapter.generation.0 == *id);
            let adapter = adapter.ok_or_else(|| {
                let message =
                    format!("no adapter is loaded at generation {id}; GET /v1/lora_adapters lists them");
                ApiError::not_found(message).with_param("lora").with_code("adapter_not_found")
            })?;
            (adapter.name, Some(adapter.generation))
        }
    };
    if target.adapter.as_ref().is_some_and(|other| *other != name) {
        return Err(ApiError::invalid("lora", "names another adapter than `model`"));
    }
    let expected = target.expected_generation;
    if let (Some(id), Some(expected)) = (generation, expected)
        && id != expected
    {
        return Err(ApiError::invalid("lora", "names another generation than `expected_generation`"));
    }
    target.adapter = Some(name);
    target.expected_generation = generation.or(expected);
    target.adapter_scale = choice.scale.unwrap_or(1.0) as f32;
    Ok(())
}
