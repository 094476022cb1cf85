//! Attention.

use super::{ARENA_BYTES, Operands, check, exact, gradient, step_of, weighted};
use crate::conformance::random::Random;
use crate::conformance::tiny_model::BOUNDS;
use crate::conformance::{Subject, upload};
use crate::{AttentionMemo, AttentionSpec, BlockMemo, Ctx, DType, KvConfig, MemoUse, Tensor};

/// Causal attention within sequences, by definition.
fn attend(operands: &Operands, spec: &AttentionSpec, lens: &[usize]) -> Vec<f64> {
    let AttentionSpec { num_heads, num_kv_heads, head_dim, scale, window, softcap } = *spec;
    let group = num_heads / num_kv_heads;
    let mut out = vec![0.0; operands[0].len()];
    let mut first = 0;
    for &len in lens {
        for i in 0..len {
            let from = window.map_or(0, |w| (i + 1).saturating_sub(w));
            for head in 0..num_heads {
                let q = ((first + i) * num_heads + head) * head_dim;
                let of_key = |j: usize| ((first + j) * num_kv_heads + head / group) * head_dim;
                let scores: Vec<f64> = (from..=i)
                    .map(|j| {
                        let k = of_key(j);
                        let products = (0..head_dim).map(|d| operands[0][q + d] * operands[1][k + d]);
                        let score = f64::from(scale) * products.sum::<f64>();
                        softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for (j, score) in (from..=i).zip(scores) {
                    let weight = (score - most).exp() / sum;
                    (0..head_dim).for_each(|d| out[q + d] += weight * operands[2][of_key(j) + d]);
                }
            }
        }
        first += len;
    }
    out
}

pub(in crate::conformance) fn attention(subject: &Subject) {
    if !subject.promises.trains {
        return;
    }
    let mut random = Random::new(74);
    // Heads of both kinds, length of a head, lengths of the sequences, window, bound.
    type Case = ([usize; 2], usize, &'static [usize], Option<usize>, Option<f32>);
    let cases: [Case; 8] = [
        ([3, 1], 64, &[1, 17, 70], None, None),
        ([1, 1], 16, &[560], None, None),
        ([2, 1], 16, &[70], Some(usize::MAX), None),
        ([2, 2], 16, &[130], None, None),
        ([4, 2], 48, &[64, 65, 3], None, None),
        ([2, 1], 32, &[150, 20], Some(40), None),
        ([3, 1], 64, &[1, 17, 70], None, Some(1.5)),
        ([2, 1], 32, &[150, 20], Some(40), Some(4.0)),
    ];
    for ([num_heads, num_kv_heads], head_dim, lens, window, softcap) in cases {
        let scale = (head_dim as f32).sqrt().recip();
        let spec = AttentionSpec { num_heads, num_kv_heads, head_dim, scale, window, softcap };
        let mut ctx = subject.ctx(ARENA_BYTES);
        let inputs = step_of(lens, 0).inputs();
        let rows = inputs.positions.len();
        let step = ctx.stage(&inputs, &BOUNDS).unwrap();
        let widths = [num_heads, num_kv_heads, num_kv_heads].map(|h| h * head_dim);
        let operands = widths.map(|w| random.normals(rows * w));
        let seed = random.normals(rows * widths[0]);
        let tensors: [Tensor; 3] = std::array::from_fn(|i| upload(&mut ctx, [rows, widths[i]], &operands[i]));
        let mut kv = ctx
            .kv_cache(KvConfig {
                num_layers: 1,
                num_blocks: BOUNDS.num_blocks,
                num_kv_heads,
                head_dim,
                dtype: DType::F32,
            })
            .unwrap();
        let attention = AttentionMemo {
            out: ctx.persistent("kept", [rows, widths[0]], DType::F32).unwrap(),
            lse: ctx.persistent("kept", [rows, num_heads], DType::F32).unwrap(),
        };
        let mut memo = BlockMemo { attention, linears: None };
        let [q, k, v] = &tensors;
        let mut run = |ctx: &mut Ctx, use_: MemoUse| {
            let kv = kv.layer_mut(0)?;
            ctx.with_memo(&mut memo, use_, |ctx| ctx.paged_attention([q, k, v], &spec, kv, &step))
        };
        ctx.scratch(|ctx| run(ctx, MemoUse::Keep)).unwrap();
        let loss = |operands: &Operands| weighted(&attend(operands, &spec, lens), &seed);
        let exact = exact(&[&operands[0], &operands[1], &operands[2]]);
        for (idx, of) in tensors.iter().enumerate() {
            let got = gradient(&mut ctx, of, &seed, &[], |ctx| run(ctx, MemoUse::Recall));
            let what = format!("attention over {lens:?}, operand {idx}");
            check(subject, &what, &loss, &exact, (idx, &got), &mut random);
        }
    }
}
