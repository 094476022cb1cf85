//! GPT-NeoX: Pythia, RedPajama-INCITE, GPT-NeoX-20B (Black et al., arXiv 2204.06745; Biderman et al., arXiv 2304.01373).
//!
//! Layer norms and biases everywhere; queries, keys and values in one projection, head by head; a part of each head rotates; a
//! plain MLP with GELU, which reads what attention reads (a parallel residual) or what it gives.

use std::sync::Arc;

use wardrobe_device::{AttentionSpec, Ctx, GeluKind, Result as DeviceResult, Step, Tensor};
use wardrobe_formats::{HiddenAct, ModelConfig};

use super::parts::{self, Block, Frame, Norm, Stack};
use crate::error::{ModelError, Result};
use crate::loader::{Linear, Loader};
use crate::{BlockState, Decoder};

/// Paths of the embedding and of the head.
pub(super) const ENDS: (&str, &str) = ("gpt_neox.embed_in", "embed_out");

#[derive(Debug)]
struct Layer {
    input_norm: Norm,
    qkv: Linear,
    dense: Linear,
    spec: AttentionSpec,
    post_attention_norm: Norm,
    up: Linear,
    down: Linear,
    gelu: GeluKind,
    parallel_residual: bool,
}

/// Loads one.
pub(super) fn load(mut l: Loader<'_>, config: ModelConfig) -> Result<Arc<dyn Decoder>> {
    let gelu = match config.hidden_act {
        HiddenAct::Gelu => GeluKind::Erf,
        HiddenAct::GeluTanh => GeluKind::Tanh,
        HiddenAct::Silu | HiddenAct::Relu => return Err(parts::unsupported_act(&config)),
    };
    let (hidden, inner, q_size) = (config.hidden_size, config.intermediate_size, config.q_size());
    if config.num_kv_heads != config.num_heads {
        return Err(ModelError::Unsupported {
            architecture: config.architecture,
            what: format!("{} heads of keys for {}", config.num_kv_heads, config.num_heads),
        });
    }
    let embedding = l.weight(&format!("{}.weight", ENDS.0), config.vocab_size, hidden)?;
    let layers = (0..config.num_layers)
        .map(|i| {
            let at = |part: &str| format!("gpt_neox.layers.{i}.{part}");
            Ok(Layer {
                input_norm: Norm::layer(&mut l, &config, &at("input_layernorm"))?,
                qkv: l.linear(&at("attention.query_key_value"), 3 * q_size, hidden)?,
                dense: l.linear(&at("attention.dense"), hidden, q_size)?,
                spec: parts::attention_spec(&config, i),
                post_attention_norm: Norm::layer(&mut l, &config, &at("post_attention_layernorm"))?,
                up: l.linear(&at("mlp.dense_h_to_4h"), inner, hidden)?,
                down: l.linear(&at("mlp.dense_4h_to_h"), hidden, inner)?,
                gelu,
                parallel_residual: config.parallel_residual,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = Norm::layer(&mut l, &config, "gpt_neox.final_layer_norm")?;
    let (head, tied) = parts::head(&mut l, &config, ENDS.1, &embedding)?;
    let frame = Frame { embedding, embedding_scale: 1.0, norm, head, tied };
    // Masks, and tables that are computed, of older checkpoints.
    Stack::finish(l, config, frame, layers, |name| {
        name.ends_with(".attention.bias")
            || name.ends_with(".attention.masked_bias")
            || name.ends_with(".attention.rotary_emb.inv_freq")
    })
}

impl Block for Layer {
    fn row_elements(c: &ModelConfig) -> [usize; 3] {
        let (h, q, kv, inner) = (c.hidden_size, c.q_size(), c.kv_size(), c.intermediate_size);
        // What is split is there twice, and so are its gradients; two norms read one value.
        let gradients = 3 * h + (inner + h).max(5 * q + 4 * kv + h);
        [6 * h + 4 * q + 5 * kv + 2 * inner, q + 2 * kv + h + inner, gradients]
    }

    fn forward(&self, ctx: &mut Ctx, x: &Tensor, step: &Step, state: BlockState<'_>) -> DeviceResult<Tensor> {
        let lora = state.lora.map(|table| step.lora(table));
        let lora = lora.as_ref();
        let AttentionSpec { num_heads, head_dim, .. } = self.spec;
        let normed = self.input_norm.apply(ctx, x)?;
        let [qkv] = ctx.linear(&normed, [self.qkv.projection(None)], lora)?;
        let [q, k, v] = ctx.split(&qkv, num_heads, [head_dim; 3])?;
        let [q, k] = ctx.rope([&q, &k], head_dim, step, state.rope)?;
        let attended = ctx.paged_attention([&q, &k, &v], &self.spec, state.kv, step)?;
        let [attended] = ctx.linear(&attended, [self.dense.projection(Some(x))], lora)?;

        let of_mlp = if self.parallel_residual { x } else { &attended };
        let normed = self.post_attention_norm.apply(ctx, of_mlp)?;
        let [inner] = ctx.linear(&normed, [self.up.projection(None)], lora)?;
        let inner = ctx.gelu(&inner, self.gelu)?;
        let [x] = ctx.linear(&inner, [self.down.projection(Some(&attended))], lora)?;
        Ok(x)
    }
}
