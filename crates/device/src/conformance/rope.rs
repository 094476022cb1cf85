//! Rotary embeddings.

use super::random::Random;
use super::tiny_model::{BOUNDS, Chunk, TinyBatch, rope_table};
use super::{Expected, Subject, upload};
use crate::RopeTables;

/// Several tables, of the whole head or its beginning, chosen per row.
pub(super) fn tables_per_row(subject: &Subject) {
    let mut random = Random::new(41);
    let positions = BOUNDS.max_positions;
    for (head_dim, half, heads) in
        [(64, 32, [3, 1]), (16, 8, [1, 1]), (80, 40, [2, 2]), (64, 16, [4, 1]), (128, 63, [2, 1])]
    {
        let host: Vec<Vec<f32>> =
            (0..BOUNDS.num_rope_tables).map(|t| rope_table(half, 1.0 + 3.0 * t as f64)).collect();
        let mut ctx = subject.ctx(256);
        let tables = host.iter().map(|t| upload(&mut ctx, [positions, half, 2], t)).collect();
        let tables = RopeTables { tables };
        for (first, lens) in [(0, vec![1]), (7, vec![2, 1]), (0, vec![13, 1, 5]), (300, vec![33])] {
            let chunks: Vec<Chunk> = lens
                .iter()
                .enumerate()
                .map(|(s, &len)| Chunk {
                    rope_idx: random.below(BOUNDS.num_rope_tables) as u32,
                    ..Chunk::of(vec![0; len], first, (0..22).map(|b| 22 * s as u32 + b).collect())
                })
                .collect();
            let batch = TinyBatch { chunks };
            let inputs = batch.inputs();
            let rows = inputs.positions.len();
            let x = heads.map(|h| random.normals(rows * h * head_dim));
            let x_tensors = [0, 1].map(|i| upload(&mut ctx, [rows, heads[i] * head_dim], &x[i]));
            for which in [0, 1] {
                let mut ctx = subject.ctx(4 * rows * (heads[0] + heads[1]) * head_dim + 256);
                let step = ctx.stage(&inputs, &BOUNDS).unwrap();
                let outs = ctx.rope([&x_tensors[0], &x_tensors[1]], head_dim, &step, &tables).unwrap();
                let out = ctx.read_f32(&outs[which]).unwrap();
                let mut want = Vec::new();
                for (at, head) in x[which].chunks(head_dim).enumerate() {
                    let row = at / heads[which];
                    let table = &host[inputs.rope_idx[row] as usize];
                    let at = 2 * half * inputs.positions[row] as usize;
                    for (d, &v) in head.iter().enumerate() {
                        let mut sum = Expected::default();
                        if d >= 2 * half {
                            want.push(Expected::exactly(f64::from(v)));
                            continue;
                        }
                        let i = d % half;
                        let (cos, sin) = (f64::from(table[at + 2 * i]), f64::from(table[at + 2 * i + 1]));
                        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                        if d < half {
                            sum.add(a * cos);
                            sum.add(-b * sin);
                        } else {
                            sum.add(b * cos);
                            sum.add(a * sin);
                        }
                        want.push(sum);
                    }
                }
                subject.check(
                    &format!("rope of {half} pairs in heads of {head_dim}, operand {which}"),
                    &out,
                    &want,
                );
            }
        }
    }
}
