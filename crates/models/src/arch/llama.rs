//! The Llama family: Llama 2, 3, 3.1, SmolLM2, Mistral (Touvron et al., arXiv 2302.13971; Jiang et al.,
//! arXiv 2310.06825).
//!
//! Pre-norm blocks of grouped-query attention with rotary positions and a SiLU-gated MLP; RMS norm; the head tied to
//! the embedding or its own.

use std::sync::Arc;

use wardrobe_device::{
    AttentionSpec, Ctx, LoraBatch, LoraTable, Projection, Result as DeviceResult, Step, Tensor, Weight,
};
use wardrobe_formats::{Digest, HiddenAct, ModelConfig};

use crate::error::{ModelError, Result};
use crate::loader::{Linear, Loader};
use crate::{BlockState, Decoder, Module};

#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_attention_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A Llama-family decoder on a device.
#[derive(Debug)]
struct Llama {
    config: ModelConfig,
    attention: AttentionSpec,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    modules: Vec<Module>,
    weight_bytes: usize,
    content_digest: Digest,
}

/// Loads one.
pub(super) fn load(mut l: Loader<'_>, config: ModelConfig) -> Result<Arc<dyn Decoder>> {
    if config.hidden_act != HiddenAct::Silu {
        return Err(ModelError::Unsupported {
            architecture: config.architecture,
            what: format!("the activation {:?}", config.hidden_act),
        });
    }
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q_size, kv_size) = (config.q_size(), config.kv_size());
    let embedding = l.weight("model.embed_tokens.weight", config.vocab_size, hidden)?;
    let layers = (0..config.num_layers)
        .map(|i| {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            Ok(Layer {
                input_norm: l.vector(&at("input_layernorm.weight"), hidden)?,
                q: l.linear(&at("self_attn.q_proj"), q_size, hidden)?,
                k: l.linear(&at("self_attn.k_proj"), kv_size, hidden)?,
                v: l.linear(&at("self_attn.v_proj"), kv_size, hidden)?,
                o: l.linear(&at("self_attn.o_proj"), hidden, q_size)?,
                post_attention_norm: l.vector(&at("post_attention_layernorm.weight"), hidden)?,
                gate: l.linear(&at("mlp.gate_proj"), inner, hidden)?,
                up: l.linear(&at("mlp.up_proj"), inner, hidden)?,
                down: l.linear(&at("mlp.down_proj"), hidden, inner)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = l.vector("model.norm.weight", hidden)?;
    // Some files carry a copy of a tied head.
    let tied = config.tie_word_embeddings || !l.has("lm_head.weight");
    let head = if tied {
        l.register("lm_head", embedding.clone(), None)
    } else {
        l.linear("lm_head", config.vocab_size, hidden)?
    };
    let (modules, weight_bytes, content_digest) = l.finish(&config, |name| {
        name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
    })?;
    let attention = AttentionSpec {
        num_heads: config.num_heads,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        scale: 1.0 / (config.head_dim as f32).sqrt(),
        window: config.sliding_window,
        softcap: None,
    };
    Ok(Arc::new(Llama {
        config,
        attention,
        embedding,
        layers,
        norm,
        head,
        modules,
        weight_bytes,
        content_digest,
    }))
}

impl Decoder for Llama {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn modules(&self) -> &[Module] {
        &self.modules
    }

    fn content_digest(&self) -> Digest {
        self.content_digest
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn embed(&self, ctx: &mut Ctx, step: &Step) -> DeviceResult<Tensor> {
        ctx.embed(step.token_ids(), &self.embedding)
    }

    fn block(
        &self,
        ctx: &mut Ctx,
        block_idx: usize,
        x: &Tensor,
        step: &Step,
        state: BlockState<'_>,
    ) -> DeviceResult<Tensor> {
        let Some(layer) = self.layers.get(block_idx) else { return Ok(x.clone()) };
        let lora = state.lora.map(|table| step.lora(table));
        let lora = lora.as_ref();
        let eps = self.config.rms_norm_eps as f32;

        let normed = ctx.rms_norm(x, &layer.input_norm, eps)?;
        let qkv = [layer.q.projection(None), layer.k.projection(None), layer.v.projection(None)];
        let [q, k, v] = ctx.linear(&normed, qkv, lora)?;
        let [q, k] = ctx.rope([&q, &k], self.config.head_dim, step, state.rope)?;
        let attended = ctx.paged_attention([&q, &k, &v], &self.attention, state.kv, step)?;
        let [x] = ctx.linear(&attended, [layer.o.projection(Some(x))], lora)?;

        let normed = ctx.rms_norm(&x, &layer.post_attention_norm, eps)?;
        let [gate, up] =
            ctx.linear(&normed, [layer.gate.projection(None), layer.up.projection(None)], lora)?;
        let inner = ctx.silu_mul(&gate, &up)?;
        let [x] = ctx.linear(&inner, [layer.down.projection(Some(&x))], lora)?;
        Ok(x)
    }

    fn final_norm(&self, ctx: &mut Ctx, x: &Tensor, step: &Step) -> DeviceResult<Tensor> {
        let x = ctx.gather_logit_rows(x, step)?;
        ctx.rms_norm(&x, &self.norm, self.config.rms_norm_eps as f32)
    }

    fn head(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        first_row: usize,
        step: &Step,
        lora: Option<&Arc<LoraTable>>,
    ) -> DeviceResult<Tensor> {
        let (slots, scales) = step.logit_lora(first_row, hidden.shape().rows())?;
        let lora = lora.map(|table| LoraBatch { table, slots: &slots, scales: &scales });
        let projection = Projection { residual: None, ..self.head.projection(None) };
        let [logits] = ctx.linear(hidden, [projection], lora.as_ref())?;
        Ok(logits)
    }
}
