//! What architectures are put together from: a stack of blocks between an embedding and a head, norms, and the usual attention
//! and MLP.

use std::fmt;
use std::sync::Arc;

use wardrobe_device::{
    AttentionSpec, Ctx, GeluKind, LoraBatch, LoraTable, Projection, Result, Step, Tensor, Weight,
};
use wardrobe_formats::{Digest, HiddenAct, ModelConfig};

use crate::error::{self, ModelError};
use crate::loader::{Linear, Loader};
use crate::{BlockState, Decoder, Module, RowElements};

/// Paths of the embedding and of the head.
pub(super) const ENDS: (&str, &str) = ("model.embed_tokens", "lm_head");

/// One block of a stack.
pub(super) trait Block: Send + Sync + fmt::Debug {
    /// What [`Decoder::row_elements`] says of blocks, of its [`RowElements::values`], `linears` and `gradients`.
    fn row_elements(config: &ModelConfig) -> [usize; 3];

    /// See [`Decoder::block`].
    fn forward(&self, ctx: &mut Ctx, x: &Tensor, step: &Step, state: BlockState<'_>) -> Result<Tensor>;
}

/// A decoder whose blocks are of one kind.
#[derive(Debug)]
pub(super) struct Stack<B> {
    config: ModelConfig,
    embedding: Weight,
    /// Factor on embedded tokens.
    embedding_scale: f32,
    blocks: Vec<B>,
    norm: Norm,
    head: Linear,
    modules: Vec<Module>,
    weight_bytes: usize,
    content_digest: Digest,
}

/// What a stack has around its blocks.
pub(super) struct Frame {
    pub(super) embedding: Weight,
    pub(super) embedding_scale: f32,
    pub(super) norm: Norm,
    pub(super) head: Linear,
    /// Whether the head is the embedding's weight.
    pub(super) tied: bool,
}

impl<B: Block + 'static> Stack<B> {
    /// Puts it together, once nothing of the model is left over. `ignored` tells of tensors that are known and not needed.
    pub(super) fn finish(
        l: Loader<'_>,
        config: ModelConfig,
        frame: Frame,
        blocks: Vec<B>,
        ignored: impl Fn(&str) -> bool,
    ) -> error::Result<Arc<dyn Decoder>> {
        let Frame { embedding, embedding_scale, norm, head, tied } = frame;
        let (modules, weight_bytes, content_digest) = l.finish(&config, |name| {
            name.ends_with("rotary_emb.inv_freq") || (tied && HEADS.contains(&name)) || ignored(name)
        })?;
        Ok(Arc::new(Stack {
            config,
            embedding,
            embedding_scale,
            blocks,
            norm,
            head,
            modules,
            weight_bytes,
            content_digest,
        }))
    }
}

/// Heads by their tensors' names. transformers 5 calls GPT-NeoX' as it calls the others'.
const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// The head: the embedding's weight where it is tied to that, else one of its own. Some files carry a copy of a tied head.
pub(super) fn head(
    l: &mut Loader<'_>,
    config: &ModelConfig,
    path: &str,
    embedding: &Weight,
) -> error::Result<(Linear, bool)> {
    let own = HEADS.into_iter().find(|name| l.has(name)).filter(|_| !config.tie_word_embeddings);
    let Some(name) = own else { return Ok((l.register(path, embedding.clone(), None), true)) };
    let weight = l.weight(name, config.vocab_size, config.hidden_size)?;
    let bias = l.optional_vector(&name.replace(".weight", ".bias"), config.vocab_size)?;
    Ok((l.register(path, weight, bias), false))
}

impl<B: Block> Decoder for Stack<B> {
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

    fn row_elements(&self) -> RowElements {
        let [values, linears, gradients] = B::row_elements(&self.config);
        let capped = 1 + usize::from(self.config.logit_softcap.is_some());
        RowElements { values, linears, gradients, head: capped * self.config.vocab_size }
    }

    fn embed(&self, ctx: &mut Ctx, step: &Step) -> Result<Tensor> {
        ctx.embed_scaled(step.token_ids(), &self.embedding, self.embedding_scale)
    }

    fn block(
        &self,
        ctx: &mut Ctx,
        block_idx: usize,
        x: &Tensor,
        step: &Step,
        state: BlockState<'_>,
    ) -> Result<Tensor> {
        match self.blocks.get(block_idx) {
            Some(block) => block.forward(ctx, x, step, state),
            None => Ok(x.clone()),
        }
    }

    fn final_norm(&self, ctx: &mut Ctx, x: &Tensor, step: &Step) -> Result<Tensor> {
        let x = ctx.gather_logit_rows(x, step)?;
        self.norm.apply(ctx, &x)
    }

    fn head(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        first_row: usize,
        step: &Step,
        lora: Option<&Arc<LoraTable>>,
    ) -> Result<Tensor> {
        let (slots, scales) = step.logit_lora(first_row, hidden.shape().rows())?;
        let lora = lora.map(|table| LoraBatch { table, slots: &slots, scales: &scales });
        let projection = Projection { residual: None, ..self.head.projection(None) };
        let [logits] = ctx.linear(hidden, [projection], lora.as_ref())?;
        match self.config.logit_softcap {
            Some(cap) => ctx.softcap(&logits, cap as f32),
            None => Ok(logits),
        }
    }
}

/// An RMS norm over the residual stream.
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Its weights have `offset` added.
    pub(super) fn load(
        l: &mut Loader<'_>,
        config: &ModelConfig,
        path: &str,
        offset: f32,
    ) -> error::Result<Self> {
        let weight = l.offset_vector(&format!("{path}.weight"), config.hidden_size, offset)?;
        Ok(RmsNorm { weight, eps: config.rms_norm_eps as f32 })
    }

    /// Of each row of `x`, for a linear layer.
    pub(super) fn apply(&self, ctx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        ctx.rms_norm(x, &self.weight, self.eps)
    }

    /// Of each row of `x`, added to `residual`.
    pub(super) fn apply_onto(&self, ctx: &mut Ctx, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        ctx.rms_norm_add(x, &self.weight, self.eps, residual)
    }
}

/// A norm before linear layers.
#[derive(Debug)]
pub(super) enum Norm {
    Rms(RmsNorm),
    Layer { weight: Tensor, bias: Tensor, eps: f32 },
}

impl Norm {
    /// An RMS norm.
    pub(super) fn rms(l: &mut Loader<'_>, config: &ModelConfig, path: &str) -> error::Result<Self> {
        RmsNorm::load(l, config, path, 0.0).map(Norm::Rms)
    }

    /// A layer norm over the residual stream.
    pub(super) fn layer(l: &mut Loader<'_>, config: &ModelConfig, path: &str) -> error::Result<Self> {
        let weight = l.vector(&format!("{path}.weight"), config.hidden_size)?;
        let bias = l.vector(&format!("{path}.bias"), config.hidden_size)?;
        Ok(Norm::Layer { weight, bias, eps: config.rms_norm_eps as f32 })
    }

    /// Of each row of `x`, for a linear layer.
    pub(super) fn apply(&self, ctx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        match self {
            Norm::Rms(norm) => norm.apply(ctx, x),
            Norm::Layer { weight, bias, eps } => ctx.layer_norm(x, [weight, bias], *eps),
        }
    }
}

/// Heads, scale, window and bound of a layer's attention.
pub(super) fn attention_spec(config: &ModelConfig, layer_idx: usize) -> AttentionSpec {
    AttentionSpec {
        num_heads: config.num_heads,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        scale: config.attention_scale() as f32,
        window: config.window(layer_idx),
        softcap: config.attention_softcap.map(|cap| cap as f32),
    }
}

/// Grouped-query attention with rotary positions.
#[derive(Debug)]
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    pub(super) o: Linear,
    /// Norms of each head of queries and of keys, and their epsilon.
    head_norms: Option<([Tensor; 2], f32)>,
    spec: AttentionSpec,
}

impl Attention {
    /// Under `model.layers.{layer_idx}.self_attn`.
    pub(super) fn load(
        l: &mut Loader<'_>,
        config: &ModelConfig,
        layer_idx: usize,
        with_biases: bool,
    ) -> error::Result<Self> {
        let at = |part: &str| format!("model.layers.{layer_idx}.self_attn.{part}");
        let (hidden, q_size, kv_size) = (config.hidden_size, config.q_size(), config.kv_size());
        let mut project = |part: &str, size: usize| match with_biases {
            true => l.biased_linear(&at(part), size, hidden),
            false => l.linear(&at(part), size, hidden),
        };
        Ok(Attention {
            q: project("q_proj", q_size)?,
            k: project("k_proj", kv_size)?,
            v: project("v_proj", kv_size)?,
            o: l.linear(&at("o_proj"), hidden, q_size)?,
            head_norms: None,
            spec: attention_spec(config, layer_idx),
        })
    }

    /// Adds `q_norm` and `k_norm`.
    pub(super) fn with_head_norms(
        mut self,
        l: &mut Loader<'_>,
        config: &ModelConfig,
        layer_idx: usize,
    ) -> error::Result<Self> {
        let mut norm = |part: &str| {
            l.vector(&format!("model.layers.{layer_idx}.self_attn.{part}.weight"), config.head_dim)
        };
        self.head_norms = Some(([norm("q_norm")?, norm("k_norm")?], config.rms_norm_eps as f32));
        Ok(self)
    }

    /// What attention gives for normed rows, before the last projection.
    pub(super) fn attend(
        &self,
        ctx: &mut Ctx,
        normed: &Tensor,
        step: &Step,
        state: BlockState<'_>,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<Tensor> {
        let qkv = [self.q.projection(None), self.k.projection(None), self.v.projection(None)];
        let [mut q, mut k, v] = ctx.linear(normed, qkv, lora)?;
        if let Some(([of_q, of_k], eps)) = &self.head_norms {
            q = ctx.rms_norm_heads(&q, of_q, *eps)?;
            k = ctx.rms_norm_heads(&k, of_k, *eps)?;
        }
        let [q, k] = ctx.rope([&q, &k], self.spec.head_dim, step, state.rope)?;
        ctx.paged_attention([&q, &k, &v], &self.spec, state.kv, step)
    }
}

/// An MLP whose inner values are gated.
#[derive(Debug)]
pub(super) struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    act: Act,
}

impl GatedMlp {
    /// Under `model.layers.{layer_idx}.mlp`.
    pub(super) fn load(l: &mut Loader<'_>, config: &ModelConfig, layer_idx: usize) -> error::Result<Self> {
        let at = |part: &str| format!("model.layers.{layer_idx}.mlp.{part}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(GatedMlp {
            gate: l.linear(&at("gate_proj"), inner, hidden)?,
            up: l.linear(&at("up_proj"), inner, hidden)?,
            down: l.linear(&at("down_proj"), hidden, inner)?,
            act: Act::of(config)?,
        })
    }

    /// Its result for normed rows, added to `residual`.
    pub(super) fn forward(
        &self,
        ctx: &mut Ctx,
        normed: &Tensor,
        residual: Option<&Tensor>,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<Tensor> {
        let [gate, up] = ctx.linear(normed, [self.gate.projection(None), self.up.projection(None)], lora)?;
        let inner = self.act.gated(ctx, &gate, &up)?;
        let [out] = ctx.linear(&inner, [self.down.projection(residual)], lora)?;
        Ok(out)
    }
}

/// The function between the halves of a gated MLP.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Silu,
    Gelu(GeluKind),
}

impl Act {
    /// The configuration's.
    pub(super) fn of(config: &ModelConfig) -> error::Result<Self> {
        match config.hidden_act {
            HiddenAct::Silu => Ok(Act::Silu),
            HiddenAct::Gelu => Ok(Act::Gelu(GeluKind::Erf)),
            HiddenAct::GeluTanh => Ok(Act::Gelu(GeluKind::Tanh)),
            HiddenAct::Relu => Err(unsupported_act(config)),
        }
    }

    /// `act(gate) * up`.
    pub(super) fn gated(self, ctx: &mut Ctx, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match self {
            Act::Silu => ctx.silu_mul(gate, up),
            Act::Gelu(kind) => ctx.gelu_mul(gate, up, kind),
        }
    }
}

/// The refusal of an activation that an architecture does not have.
pub(super) fn unsupported_act(config: &ModelConfig) -> ModelError {
    ModelError::Unsupported {
        architecture: config.architecture.clone(),
        what: format!("the activation {:?}", config.hidden_act),
    }
}
