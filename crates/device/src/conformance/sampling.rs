//! Sampling and log-probabilities against a plain reading of their definition.

use std::sync::Arc;

use super::random::Random;
use super::{Expected, Subject, upload};
use crate::{LogprobRow, SampleRow, TokenCount, TokenLogprobs};

/// NaN counts as minus infinity, and plus infinity as the largest finite number.
fn sane(v: f64) -> f64 {
    if v.is_nan() { f64::NEG_INFINITY } else { v.min(f64::from(f32::MAX)) }
}

/// Best first, equals by id, those above minus infinity only.
fn ranked(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&t| values[t] > f64::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap().then(a.cmp(&b)));
    order
}

fn is_allowed(row: &SampleRow, token: usize) -> bool {
    row.allowed.as_ref().is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1)
}

/// The definition, step by step: what every token's probability is; all 0 if there is no candidate.
pub(crate) fn probabilities(logits: &[f32], row: &SampleRow) -> Vec<f64> {
    let mut values: Vec<f64> = logits.iter().map(|&v| sane(f64::from(v))).collect();
    let mut edit = |token: u32, change: &dyn Fn(f64) -> f64| {
        let v = &mut values[token as usize];
        if *v > f64::NEG_INFINITY {
            *v = sane(change(*v));
        }
    };
    for &(token, bias) in &row.logit_bias {
        edit(token, &|v| v + f64::from(bias));
    }
    for seen in &row.history {
        let repetition = f64::from(row.repetition_penalty);
        edit(seen.token, &|v| if v > 0.0 { v / repetition } else { v * repetition });
        if seen.output_count > 0 {
            let frequency = f64::from(row.frequency_penalty) * f64::from(seen.output_count);
            edit(seen.token, &|v| v - frequency - f64::from(row.presence_penalty));
        }
    }
    for (t, v) in values.iter_mut().enumerate() {
        if row.banned.contains(&(t as u32)) || !is_allowed(row, t) {
            *v = f64::NEG_INFINITY;
        }
    }
    let mut order = ranked(&values);
    let mut probabilities = vec![0.0; values.len()];
    let Some(&best) = order.first() else { return probabilities };
    if row.temperature <= 0.0 {
        probabilities[best] = 1.0;
        return probabilities;
    }
    let mass = |t: usize| ((values[t] - values[best]) / f64::from(row.temperature)).exp();
    if row.top_k > 0 {
        order.truncate(row.top_k as usize);
    }
    if row.top_p < 1.0 {
        let wanted = f64::from(row.top_p) * order.iter().map(|&t| mass(t)).sum::<f64>();
        let mut sum = 0.0;
        let mut count = 0;
        while count == 0 || (sum < wanted && count < order.len()) {
            sum += mass(order[count]);
            count += 1;
        }
        order.truncate(count);
    }
    order.retain(|&t| mass(t) >= f64::from(row.min_p.min(1.0)));
    let total: f64 = order.iter().map(|&t| mass(t)).sum();
    for t in order {
        probabilities[t] = mass(t) / total;
    }
    probabilities
}

/// The row's random number: 53 bits of Philox4x32-10 (Salmon et al., SC 2011), keyed by the seed, at the counter of
/// position and choice.
fn uniform(row: &SampleRow) -> f64 {
    let halves = |v: u64| [v & 0xFFFF_FFFF, v >> 32];
    let [low, high] = halves(row.position);
    let mut counter = [low, high, u64::from(row.choice), 0];
    let mut key = halves(row.seed);
    for _ in 0..10 {
        let [left_low, left_high] = halves(0xD251_1F53 * counter[0]);
        let [right_low, right_high] = halves(0xCD9E_8D57 * counter[2]);
        counter = [right_high ^ counter[1] ^ key[0], right_low, left_high ^ counter[3] ^ key[1], left_low];
        key = [(key[0] + 0x9E37_79B9) & 0xFFFF_FFFF, (key[1] + 0xBB67_AE85) & 0xFFFF_FFFF];
    }
    ((counter[0] << 32 | counter[1]) >> 11) as f64 / (1u64 << 53) as f64
}

/// Whether `token` is what the row's random number falls on, give or take rounding: of the cuts as of the draw.
pub(crate) fn token_fits(logits: &[f32], row: &SampleRow, token: u32) -> bool {
    let u = uniform(row);
    let slack = if row.temperature > 0.0 { 1e-5 } else { 0.0 };
    let nudges = [(1.0, 1.0), (1.0 - 1e-5, 1.0), (1.0 + 1e-5, 1.0), (1.0, 1.0 - 1e-5), (1.0, 1.0 + 1e-5)];
    nudges.iter().any(|&(p, m)| {
        let row = SampleRow { top_p: row.top_p * p, min_p: row.min_p * m, ..row.clone() };
        let probabilities = probabilities(logits, &row);
        let below: f64 = probabilities.iter().take(token as usize).sum();
        let own = probabilities[token as usize];
        own > 0.0 && u >= below - slack && u <= below + own + slack
    })
}

fn random_row(random: &mut Random, vocab: usize) -> SampleRow {
    let mut token = {
        let mut random = random.clone();
        move || random.below(vocab) as u32
    };
    let mut history: Vec<u32> = (0..random.below(40)).map(|_| token()).collect();
    history.sort_unstable();
    history.dedup();
    let mask: Arc<[u32]> = (0..vocab.div_ceil(32)).map(|_| (random.bits() & random.bits()) as u32).collect();
    SampleRow {
        temperature: random.pick(&[0.0, 0.0, 0.3, 0.8, 1.0, 1.5, 50.0]),
        top_k: random.pick(&[0, 0, 1, 7, 50, 1_000_000]),
        top_p: random.pick(&[1.0, 1.0, 0.0, 0.5, 0.95]),
        min_p: random.pick(&[0.0, 0.0, 0.1, 1.0]),
        repetition_penalty: random.pick(&[1.0, 1.3]),
        presence_penalty: random.pick(&[0.0, 0.7]),
        frequency_penalty: random.pick(&[0.0, 0.2]),
        history: history
            .into_iter()
            .map(|token| TokenCount { token, output_count: token % 3, in_prompt: true })
            .collect(),
        logit_bias: (0..random.below(5)).map(|i| (token(), i as f32 - 1.5)).collect(),
        banned: (0..random.below(5)).map(|_| token()).collect(),
        allowed: (random.below(3) == 0).then_some(mask),
        seed: random.bits(),
        choice: random.below(3) as u32,
        position: random.bits() >> 20,
        top_logprobs: (random.below(3) == 0).then_some(random.below(21) as u32),
        logprob_tokens: (0..random.below(4)).map(|_| token()).collect(),
    }
}

/// Compares with the softmax of `values`; `allowed` says what it is confined to.
fn check_logprobs(subject: &Subject, values: &[f64], token: u32, top: usize, got: &TokenLogprobs) {
    let order = ranked(values);
    let best = order.first().map_or(0.0, |&t| values[t]);
    let log_total = order.iter().map(|&t| (values[t] - best).exp()).sum::<f64>().ln();
    let check = |what: &str, token: u32, got: f32| {
        let v = values[token as usize];
        if v == f64::NEG_INFINITY {
            assert_eq!(got, f32::NEG_INFINITY, "{what} of token {token}");
        } else {
            let want = v - best - log_total;
            let expected = Expected { value: want, magnitude: v.abs() + best.abs() + 1.0, extra: 0.0 };
            subject.check(&format!("{what} of token {token}"), &[got], &[expected]);
        }
    };
    check("log-probability", token, got.logprob);
    if let Some(place) = order.iter().position(|&t| t == token as usize) {
        assert_eq!(got.rank as usize, place + 1, "rank of token {token}");
    }
    let best_tokens: Vec<usize> = got.top.iter().map(|t| t.0 as usize).collect();
    assert_eq!(best_tokens, order[..top.min(order.len())], "most probable tokens");
    got.top.iter().for_each(|&(t, p)| check("log-probability among the best", t, p));
    got.asked.iter().for_each(|&(t, p)| check("log-probability asked for", t, p));
}

fn random_logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let spread = random.pick(&[0.5, 3.0, 8.0]);
    let mut logits: Vec<f32> = (0..vocab).map(|_| random.range(-spread..spread)).collect();
    // Ties for the best, and what must never be drawn.
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    for _ in 0..3 {
        logits[random.below(vocab)] = top;
        logits[random.below(vocab)] = f32::NAN;
        logits[random.below(vocab)] = f32::NEG_INFINITY;
    }
    logits
}

pub(super) fn draws(subject: &Subject) {
    let mut random = Random::new(81);
    for (vocab, num_rows) in [(1, 2), (5, 13), (33, 33), (1000, 64), (49_152, 9)] {
        let mut logits = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..num_rows {
            logits.extend(random_logits(&mut random, vocab));
            rows.push(random_row(&mut random, vocab));
        }
        let mut ctx = subject.ctx(1 << 12);
        let tensor = upload(&mut ctx, [num_rows, vocab], &logits);
        let sampled = ctx.sample(&tensor, &rows).unwrap();
        assert_eq!(
            ctx.read_f32(&tensor).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            super::bits(&logits)
        );
        for ((logits, row), got) in logits.chunks(vocab).zip(&rows).zip(&sampled) {
            let what = format!("{}: token {} for {row:?}", subject.device.name(), got.token);
            if probabilities(logits, row).iter().all(|&p| p == 0.0) {
                let lowest =
                    (0..vocab as u32).find(|t| is_allowed(row, *t as usize) && !row.banned.contains(t));
                assert_eq!(got.token, lowest.unwrap_or(0), "{what}");
            } else {
                assert!(token_fits(logits, row, got.token), "{what}");
            }
            let wanted = row.top_logprobs.is_some() || !row.logprob_tokens.is_empty();
            assert_eq!(got.logprobs.is_some(), wanted, "{what}");
            let values: Vec<f64> = logits
                .iter()
                .enumerate()
                .map(|(t, &v)| if is_allowed(row, t) { sane(f64::from(v)) } else { f64::NEG_INFINITY })
                .collect();
            if let Some(report) = &got.logprobs {
                let asked: Vec<u32> = report.asked.iter().map(|a| a.0).collect();
                assert_eq!(asked, row.logprob_tokens);
                check_logprobs(subject, &values, got.token, row.top_logprobs.unwrap_or(0) as usize, report);
            }
        }
    }
}

pub(super) fn logprobs(subject: &Subject) {
    let mut random = Random::new(82);
    for (vocab, num_rows) in [(1, 1), (7, 5), (1000, 33), (49_152, 3)] {
        let logits: Vec<f32> = (0..num_rows).flat_map(|_| random_logits(&mut random, vocab)).collect();
        let rows: Vec<LogprobRow> = (0..num_rows)
            .map(|_| LogprobRow { target: random.below(vocab) as u32, top: random.pick(&[0, 1, 5, 20]) })
            .collect();
        let mut ctx = subject.ctx(1 << 12);
        let tensor = upload(&mut ctx, [num_rows, vocab], &logits);
        let reports = ctx.logprobs(&tensor, &rows).unwrap();
        for ((logits, row), got) in logits.chunks(vocab).zip(&rows).zip(&reports) {
            let values: Vec<f64> = logits.iter().map(|&v| sane(f64::from(v))).collect();
            check_logprobs(subject, &values, row.target, row.top as usize, got);
        }
    }
}
