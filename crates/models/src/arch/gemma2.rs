//! Gemma 2 (Gemma Team, arXiv 2408.00118).
//!
//! Norms before and after attention and MLP, which multiply by one more than their weights; a GELU-gated MLP; bounded scores and
//! logits; every other layer has a sliding window; embedded tokens are multiplied by the root of their width.

use std::sync::Arc;

use wardrobe_device::{Ctx, Result as DeviceResult, Step, Tensor, WeightFormat};
use wardrobe_formats::ModelConfig;

use super::parts::{self, Attention, Block, Frame, GatedMlp, Norm, RmsNorm, Stack};
use crate::error::Result;
use crate::loader::Loader;
use crate::{BlockState, Decoder};

#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    pre_mlp_norm: RmsNorm,
    mlp: GatedMlp,
    post_mlp_norm: RmsNorm,
}

/// Loads one.
pub(super) fn load(mut l: Loader<'_>, config: ModelConfig) -> Result<Arc<dyn Decoder>> {
    let (embed, head) = parts::ENDS;
    let embedding = l.weight(&format!("{embed}.weight"), config.vocab_size, config.hidden_size)?;
    let layers = (0..config.num_layers)
        .map(|i| {
            let norm = |l: &mut Loader<'_>, part: &str| {
                RmsNorm::load(l, &config, &format!("model.layers.{i}.{part}"), 1.0)
            };
            Ok(Layer {
                input_norm: norm(&mut l, "input_layernorm")?,
                attention: Attention::load(&mut l, &config, i, config.attention_bias)?,
                post_attention_norm: norm(&mut l, "post_attention_layernorm")?,
                pre_mlp_norm: norm(&mut l, "pre_feedforward_layernorm")?,
                mlp: GatedMlp::load(&mut l, &config, i)?,
                post_mlp_norm: norm(&mut l, "post_feedforward_layernorm")?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = Norm::Rms(RmsNorm::load(&mut l, &config, "model.norm", 1.0)?);
    let (head, tied) = parts::head(&mut l, &config, head, &embedding)?;
    // transformers rounds the factor to the type of the weights.
    let root = (config.hidden_size as f32).sqrt();
    let embedding_scale = match embedding.format() {
        WeightFormat::BF16 => half::bf16::from_f32(root).to_f32(),
        WeightFormat::F16 => half::f16::from_f32(root).to_f32(),
        _ => root,
    };
    let frame = Frame { embedding, embedding_scale, norm, head, tied };
    Stack::finish(l, config, frame, layers, |_| false)
}

impl Block for Layer {
    fn row_elements(c: &ModelConfig) -> [usize; 3] {
        let (h, q, kv, inner) = (c.hidden_size, c.q_size(), c.kv_size(), c.intermediate_size);
        // As Llama's, and the norms after attention and MLP.
        let gradients = 2 * h + (2 * inner + 2 * h).max(4 * q + 2 * kv + 2 * h);
        [8 * h + 3 * q + 3 * kv + 3 * inner, q + 2 * kv + 2 * h + 2 * inner, gradients]
    }

    fn forward(&self, ctx: &mut Ctx, x: &Tensor, step: &Step, state: BlockState<'_>) -> DeviceResult<Tensor> {
        let lora = state.lora.map(|table| step.lora(table));
        let lora = lora.as_ref();
        let normed = self.input_norm.apply(ctx, x)?;
        let attended = self.attention.attend(ctx, &normed, step, state, lora)?;
        let [attended] = ctx.linear(&attended, [self.attention.o.projection(None)], lora)?;
        let x = self.post_attention_norm.apply_onto(ctx, &attended, x)?;
        let normed = self.pre_mlp_norm.apply(ctx, &x)?;
        let out = self.mlp.forward(ctx, &normed, None, lora)?;
        self.post_mlp_norm.apply_onto(ctx, &out, &x)
    }
}
