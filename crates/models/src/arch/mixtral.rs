//! Mixtral (Jiang et al., arXiv 2401.04088): Mistral's blocks, with a mixture of experts in the place of the MLP.
//!
//! A router, a linear layer, gives each token a number for every expert; the largest are taken, and what these experts give
//! is added up by the softmax of the numbers. Adapters may adapt attention, the router (`block_sparse_moe.gate`) and each
//! expert's layers (`block_sparse_moe.experts.E.w1`, `w3`, `w2`: gate, up, down).

use std::sync::Arc;

use wardrobe_device::{Ctx, Experts, Result as DeviceResult, Step, Tensor};
use wardrobe_formats::{ExpertsConfig, HiddenAct, ModelConfig};

use super::parts::{self, Attention, Block, Frame, Norm, Stack};
use crate::error::{ModelError, Result};
use crate::loader::{Linear, Loader};
use crate::{BlockState, Decoder};

#[derive(Debug)]
struct Layer {
    input_norm: Norm,
    attention: Attention,
    post_attention_norm: Norm,
    router: Linear,
    /// Experts of a token.
    top_k: usize,
    gate: Experts,
    up: Experts,
    down: Experts,
}

/// Loads one.
pub(super) fn load(mut l: Loader<'_>, config: ModelConfig) -> Result<Arc<dyn Decoder>> {
    if config.hidden_act != HiddenAct::Silu {
        return Err(parts::unsupported_act(&config));
    }
    let Some(ExpertsConfig { num_experts, num_experts_per_tok: top_k }) = config.experts else {
        let what = "a configuration without experts".to_owned();
        return Err(ModelError::Unsupported { architecture: config.architecture, what });
    };
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (embed, head) = parts::ENDS;
    let embedding = l.weight(&format!("{embed}.weight"), config.vocab_size, hidden)?;
    let layers = (0..config.num_layers)
        .map(|i| {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            let input_norm = Norm::rms(&mut l, &config, &at("input_layernorm"))?;
            let attention = Attention::load(&mut l, &config, i, false)?;
            let post_attention_norm = Norm::rms(&mut l, &config, &at("post_attention_layernorm"))?;
            let router = l.linear(&at("block_sparse_moe.gate"), num_experts, hidden)?;
            // In the order in which they are used.
            let parts = [("w1", inner, hidden), ("w3", inner, hidden), ("w2", hidden, inner)];
            let [gate, up, down] = l.experts(&at("block_sparse_moe.experts"), num_experts, parts)?;
            Ok(Layer { input_norm, attention, post_attention_norm, router, top_k, gate, up, down })
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = Norm::rms(&mut l, &config, "model.norm")?;
    let (head, tied) = parts::head(&mut l, &config, head, &embedding)?;
    let frame = Frame { embedding, embedding_scale: 1.0, norm, head, tied };
    Stack::finish(l, config, frame, layers, |_| false)
}

impl Block for Layer {
    fn row_elements(c: &ModelConfig) -> [usize; 3] {
        let (h, q, kv) = (c.hidden_size, c.q_size(), c.kv_size());
        // A row has an inner layer for each expert that it goes to, and what goes to them and comes from them.
        let pairs = c.mlps_per_token();
        let num_experts = c.experts.map_or(0, |experts| experts.num_experts);
        let inner = c.intermediate_size * pairs;
        let routed = 4 * h * pairs + 8 * pairs + 4 * num_experts;
        let gradients = h + (2 * inner + h).max(4 * q + 2 * kv + h);
        // What experts give is added up by another op.
        let linears = q + 2 * kv + h + 2 * inner + num_experts + h * pairs;
        [5 * h + 3 * q + 3 * kv + 3 * inner + routed, linears, gradients]
    }

    fn forward(&self, ctx: &mut Ctx, x: &Tensor, step: &Step, state: BlockState<'_>) -> DeviceResult<Tensor> {
        let lora = state.lora.map(|table| step.lora(table));
        let lora = lora.as_ref();
        let normed = self.input_norm.apply(ctx, x)?;
        let attended = self.attention.attend(ctx, &normed, step, state, lora)?;
        let [x] = ctx.linear(&attended, [self.attention.o.projection(Some(x))], lora)?;

        let normed = self.post_attention_norm.apply(ctx, &x)?;
        let [logits] = ctx.linear(&normed, [self.router.projection(None)], lora)?;
        let routing = ctx.route(&logits, self.top_k)?;
        let dispatched = ctx.dispatch(&normed, &routing)?;
        let [gate, up] = ctx.expert_linear(&dispatched, [&self.gate, &self.up], &routing, lora)?;
        let inner = ctx.silu_mul(&gate, &up)?;
        let [down] = ctx.expert_linear(&inner, [&self.down], &routing, lora)?;
        ctx.combine(&down, &routing, &x)
    }
}
