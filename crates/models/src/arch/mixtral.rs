//! Mixtral (Jiang et al., arXiv 2401.04088): Mistral's blocks, with a mixture of experts in the place of the MLP.
//!
//! A router, a linear layer, gives each token a number for every expert; the largest are taken, and what these experts give
//! is added up by the softmax of the numbers. Adapters may adapt attention, the router (`block_sparse_moe.gate`) and each
//! expert's layers (`block_sparse_moe.experts.E.w1`, `w3`, `w2`: gate, up, down).

use std::sync::Arc;

use wardrobe_device::{
    AttentionSpec, Ctx, Experts, LoraBatch, LoraTable, Projection, Result as DeviceResult, Step, Tensor,
    Weight,
};
use wardrobe_formats::{Digest, ExpertsConfig, HiddenAct, ModelConfig};

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
    router: Linear,
    gate: Experts,
    up: Experts,
    down: Experts,
}

/// A Mixtral on a device.
#[derive(Debug)]
struct Mixtral {
    config: ModelConfig,
    top_k: usize,
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
    let unsupported =
        |what: String| ModelError::Unsupported { architecture: config.architecture.clone(), what };
    if config.hidden_act != HiddenAct::Silu {
        return Err(unsupported(format!("the activation {:?}", config.hidden_act)));
    }
    let Some(ExpertsConfig { num_experts, num_experts_per_tok }) = config.experts else {
        return Err(unsupported("a configuration without experts".to_owned()));
    };
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q_size, kv_size) = (config.q_size(), config.kv_size());
    let embedding = l.weight("model.embed_tokens.weight", config.vocab_size, hidden)?;
    let layers = (0..config.num_layers)
        .map(|i| {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            let input_norm = l.vector(&at("input_layernorm.weight"), hidden)?;
            let q = l.linear(&at("self_attn.q_proj"), q_size, hidden)?;
            let k = l.linear(&at("self_attn.k_proj"), kv_size, hidden)?;
            let v = l.linear(&at("self_attn.v_proj"), kv_size, hidden)?;
            let o = l.linear(&at("self_attn.o_proj"), hidden, q_size)?;
            let post_attention_norm = l.vector(&at("post_attention_layernorm.weight"), hidden)?;
            let router = l.linear(&at("block_sparse_moe.gate"), num_experts, hidden)?;
            // In the order in which they are used.
            let parts = [("w1", inner, hidden), ("w3", inner, hidden), ("w2", hidden, inner)];
            let [gate, up, down] = l.experts(&at("block_sparse_moe.experts"), num_experts, parts)?;
            Ok(Layer { input_norm, q, k, v, o, post_attention_norm, router, gate, up, down })
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
    };
    Ok(Arc::new(Mixtral {
        config,
        top_k: num_experts_per_tok,
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

impl Decoder for Mixtral {
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
        let [logits] = ctx.linear(&normed, [layer.router.projection(None)], lora)?;
        let routing = ctx.route(&logits, self.top_k)?;
        let dispatched = ctx.dispatch(&normed, &routing)?;
        let [gate, up] = ctx.expert_linear(&dispatched, [&layer.gate, &layer.up], &routing, lora)?;
        let inner = ctx.silu_mul(&gate, &up)?;
        let [down] = ctx.expert_linear(&inner, [&layer.down], &routing, lora)?;
        ctx.combine(&down, &routing, &x)
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
