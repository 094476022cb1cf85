//! Phi-3, Phi-3.5 and Phi-4 (Abdin et al., arXiv 2404.14219 and 2412.08905).
//!
//! Llama's blocks with queries, keys and values in one projection, and the gate and its counterpart in another; rotary positions
//! by LongRoPE, of a whole head or of a part of it.

use std::sync::Arc;

use wardrobe_device::{AttentionSpec, Ctx, Result as DeviceResult, Step, Tensor};
use wardrobe_formats::ModelConfig;

use super::parts::{self, Act, Block, Frame, Norm, Stack};
use crate::error::Result;
use crate::loader::{Linear, Loader};
use crate::{BlockState, Decoder};

#[derive(Debug)]
struct Layer {
    input_norm: Norm,
    qkv: Linear,
    o: Linear,
    spec: AttentionSpec,
    post_attention_norm: Norm,
    gate_up: Linear,
    down: Linear,
    act: Act,
    inner: usize,
}

/// Loads one.
pub(super) fn load(mut l: Loader<'_>, config: ModelConfig) -> Result<Arc<dyn Decoder>> {
    let act = Act::of(&config)?;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q_size, kv_size) = (config.q_size(), config.kv_size());
    let (embed, head) = parts::ENDS;
    let embedding = l.weight(&format!("{embed}.weight"), config.vocab_size, hidden)?;
    let layers = (0..config.num_layers)
        .map(|i| {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            Ok(Layer {
                input_norm: Norm::rms(&mut l, &config, &at("input_layernorm"))?,
                qkv: l.linear(&at("self_attn.qkv_proj"), q_size + 2 * kv_size, hidden)?,
                o: l.linear(&at("self_attn.o_proj"), hidden, q_size)?,
                spec: parts::attention_spec(&config, i),
                post_attention_norm: Norm::rms(&mut l, &config, &at("post_attention_layernorm"))?,
                gate_up: l.linear(&at("mlp.gate_up_proj"), 2 * inner, hidden)?,
                down: l.linear(&at("mlp.down_proj"), hidden, inner)?,
                act,
                inner,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = Norm::rms(&mut l, &config, "model.norm")?;
    let (head, tied) = parts::head(&mut l, &config, head, &embedding)?;
    let frame = Frame { embedding, embedding_scale: 1.0, norm, head, tied };
    Stack::finish(l, config, frame, layers, |_| false)
}

impl Block for Layer {
    fn row_elements(c: &ModelConfig) -> [usize; 3] {
        let (h, q, kv, inner) = (c.hidden_size, c.q_size(), c.kv_size(), c.intermediate_size);
        // What is split is there twice, and so are its gradients.
        let gradients = 2 * h + (4 * inner + h).max(5 * q + 4 * kv + h);
        [5 * h + 4 * q + 5 * kv + 5 * inner, q + 2 * kv + h + 2 * inner, gradients]
    }

    fn forward(&self, ctx: &mut Ctx, x: &Tensor, step: &Step, state: BlockState<'_>) -> DeviceResult<Tensor> {
        let lora = state.lora.map(|table| step.lora(table));
        let lora = lora.as_ref();
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = self.spec;
        let normed = self.input_norm.apply(ctx, x)?;
        let [qkv] = ctx.linear(&normed, [self.qkv.projection(None)], lora)?;
        let widths = [num_heads, num_kv_heads, num_kv_heads].map(|heads| heads * head_dim);
        let [q, k, v] = ctx.split(&qkv, 1, widths)?;
        let [q, k] = ctx.rope([&q, &k], head_dim, step, state.rope)?;
        let attended = ctx.paged_attention([&q, &k, &v], &self.spec, state.kv, step)?;
        let [x] = ctx.linear(&attended, [self.o.projection(Some(x))], lora)?;

        let normed = self.post_attention_norm.apply(ctx, &x)?;
        let [gate_up] = ctx.linear(&normed, [self.gate_up.projection(None)], lora)?;
        let [gate, up] = ctx.split(&gate_up, 1, [self.inner, self.inner])?;
        let inner = self.act.gated(ctx, &gate, &up)?;
        let [x] = ctx.linear(&inner, [self.down.projection(Some(&x))], lora)?;
        Ok(x)
    }
}
