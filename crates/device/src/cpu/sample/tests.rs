//! The sampler against a plain f64 reading of its definition.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::conformance::{probabilities, token_fits};
use crate::sample::TokenCount;

/// The token at `u`, give or take rounding: all whose share of the unit interval comes within `slack`.
fn acceptable(probabilities: &[f64], u: f64, slack: f64) -> Vec<u32> {
    let mut below = 0.0;
    let mut tokens = Vec::new();
    for (t, &p) in probabilities.iter().enumerate() {
        if p > 0.0 && u >= below - slack && u <= below + p + slack {
            tokens.push(t as u32);
        }
        below += p;
    }
    tokens
}

fn random_logits(seed: u64, len: usize, spread: f64) -> Vec<f32> {
    // Sums of uniforms are near enough normal.
    (0..len as u64)
        .map(|i| ((0..4).map(|j| philox::uniform(seed, j, i)).sum::<f64>() - 2.0) as f32 * spread as f32)
        .collect()
}

fn token(logits: &[f32], row: &SampleRow) -> u32 {
    sample_row(logits, row, &mut SampleScratch::default()).token
}

/// Draws at many positions and compares each with the reference's inverse of the same number.
fn check_draws(logits: &[f32], row: &SampleRow, draws: u64) {
    let mut row = row.clone();
    let expected = probabilities(logits, &row);
    let mut scratch = SampleScratch::default();
    for position in 0..draws {
        row.position = position;
        let got = sample_row(logits, &row, &mut scratch).token;
        let u = philox::uniform(row.seed, row.choice, position);
        let want = acceptable(&expected, u, 2e-6);
        assert!(want.contains(&got), "{got} drawn at {u}, acceptable {want:?}, {row:?}");
    }
}

#[test]
fn draws_invert_the_distribution_under_every_filter() {
    let rows = [
        SampleRow::default(),
        SampleRow { temperature: 1.0, ..Default::default() },
        SampleRow { temperature: 0.7, top_k: 5, ..Default::default() },
        SampleRow { temperature: 1.3, top_k: 900, ..Default::default() },
        SampleRow { temperature: 1.0, top_p: 0.9, ..Default::default() },
        SampleRow { temperature: 5.0, top_p: 0.97, ..Default::default() },
        SampleRow { temperature: 1.0, min_p: 0.05, ..Default::default() },
        SampleRow { temperature: 1.0, top_k: 50, top_p: 0.8, min_p: 0.1, ..Default::default() },
        SampleRow { temperature: 1.0, top_p: 0.5, min_p: 0.001, ..Default::default() },
        SampleRow { temperature: 1e4, ..Default::default() },
        SampleRow { temperature: 1e-6, ..Default::default() },
        SampleRow { temperature: 0.05, top_p: 0.99, ..Default::default() },
    ];
    for (seed, len) in [(1, 1), (2, 2), (3, 17), (4, 64), (5, 65), (6, 1000), (7, 5003)] {
        for spread in [0.0, 2.0, 8.0] {
            let logits = random_logits(seed, len, spread);
            for row in &rows {
                check_draws(&logits, row, 25);
            }
        }
    }
}

#[test]
fn frequencies_match_the_exact_distribution() {
    let logits = random_logits(11, 40, 2.0);
    let rows = [
        SampleRow { temperature: 1.0, seed: 42, ..Default::default() },
        SampleRow { temperature: 0.8, top_k: 12, top_p: 0.95, seed: 43, ..Default::default() },
        SampleRow { temperature: 2.0, min_p: 0.2, seed: 44, choice: 3, ..Default::default() },
    ];
    for row in rows {
        let expected = probabilities(&logits, &row);
        let mut counts = vec![0u32; logits.len()];
        let mut scratch = SampleScratch::default();
        let draws = 40_000;
        for position in 0..draws {
            let row = SampleRow { position, ..row.clone() };
            counts[sample_row(&logits, &row, &mut scratch).token as usize] += 1;
        }
        let mut chi = 0.0;
        let mut degrees = -1.0;
        for (&n, &p) in counts.iter().zip(&expected) {
            let expected = p * draws as f64;
            if p == 0.0 {
                assert_eq!(n, 0);
            } else {
                chi += (f64::from(n) - expected).powi(2) / expected;
                degrees += 1.0;
            }
        }
        // Wilson and Hilferty's approximation of the 0.999 quantile.
        let limit =
            degrees * f64::powi(1.0 - 2.0 / (9.0 * degrees) + 3.09 * f64::sqrt(2.0 / (9.0 * degrees)), 3);
        assert!(chi < limit, "{chi} over {limit}");
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    let mut logits = vec![0.0; 300];
    for t in [77, 130, 299] {
        logits[t] = 1.0;
    }
    assert_eq!(token(&logits, &SampleRow::default()), 77);
    let hot = SampleRow { temperature: 1.0, ..Default::default() };
    assert_eq!(token(&logits, &SampleRow { top_k: 1, ..hot.clone() }), 77);
    assert_eq!(token(&logits, &SampleRow { top_p: 0.0, ..hot.clone() }), 77);
    // Two of three equals survive; then the tied best alone.
    let drawn = |row: &SampleRow| {
        let mut seen: Vec<u32> =
            (0..200).map(|position| token(&logits, &SampleRow { position, ..row.clone() })).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(drawn(&SampleRow { top_k: 2, ..hot.clone() }), [77, 130]);
    assert_eq!(drawn(&SampleRow { min_p: 1.0, ..hot.clone() }), [77, 130, 299]);
    assert_eq!(drawn(&SampleRow { min_p: 7.0, ..hot.clone() }), [77, 130, 299]);
    assert_eq!(drawn(&SampleRow { temperature: 1e-6, ..hot.clone() }), [77, 130, 299]);
    assert_eq!(drawn(&SampleRow { temperature: 1e-6, top_p: 0.5, ..hot }), [77, 130]);
    // The two zeros are equal.
    assert_eq!(token(&[-1.0, -0.0, 0.0], &SampleRow::default()), 1);
    let zeros = SampleRow { temperature: 1.0, top_k: 2, ..Default::default() };
    assert_ne!(token(&[-0.0, 0.0, 0.0], &zeros), 2);
}

#[test]
fn extreme_temperatures_are_greedy_or_uniform() {
    let logits = random_logits(3, 100, 5.0);
    let best = token(&logits, &SampleRow::default());
    for temperature in [-1.0, f32::NAN, 1e-6, 1e-30, f32::MIN_POSITIVE, 1e-45] {
        for position in 0..20 {
            assert_eq!(token(&logits, &SampleRow { temperature, position, ..Default::default() }), best);
        }
    }
    for temperature in [1e9, f32::MAX, f32::INFINITY] {
        for (top_p, min_p) in [(1.0, 0.0), (0.5, 0.0), (1.0, 0.5)] {
            let mut seen = [false; 100];
            for position in 0..2000 {
                let row = SampleRow { temperature, top_p, min_p, position, ..Default::default() };
                seen[token(&logits, &row) as usize] = true;
            }
            let count = seen.iter().filter(|s| **s).count();
            assert_eq!(count, if top_p < 1.0 { 50 } else { 100 });
        }
    }
}

#[test]
fn not_a_number_is_never_drawn_and_infinity_wins() {
    let mut logits = random_logits(9, 200, 3.0);
    for t in (0..200).step_by(3) {
        logits[t] = f32::NAN;
    }
    for row in [
        SampleRow::default(),
        SampleRow { temperature: 1.0, ..Default::default() },
        SampleRow { temperature: 1.0, top_k: 10, ..Default::default() },
        SampleRow { temperature: 1.0, top_p: 0.9, ..Default::default() },
        SampleRow { temperature: 1.0, min_p: 0.01, ..Default::default() },
    ] {
        check_draws(&logits, &row, 50);
        let mut wins = logits.clone();
        wins[100] = f32::INFINITY;
        assert_eq!(token(&wins, &row), 100);
        let biased = SampleRow { logit_bias: vec![(101, f32::INFINITY), (0, 5.0)], ..row.clone() };
        assert_eq!(token(&logits, &biased), 101);
        let reported = SampleRow { top_logprobs: Some(3), ..row };
        let got = sample_row(&wins, &reported, &mut SampleScratch::default()).logprobs.unwrap();
        assert_eq!((got.logprob, got.rank, got.top[0]), (0.0, 1, (100, 0.0)));
    }
}

#[test]
fn without_a_candidate_the_lowest_allowed_id_is_taken() {
    let mask: Arc<[u32]> = Arc::from([0, 0b1011_0000u32, 0]);
    for hopeless in [f32::NAN, f32::NEG_INFINITY] {
        let logits = [hopeless; 80];
        for temperature in [0.0, 1.0] {
            let row = SampleRow { temperature, ..Default::default() };
            assert_eq!(token(&logits, &row), 0);
            let banned = SampleRow { banned: vec![1, 0, 3], ..row.clone() };
            assert_eq!(token(&logits, &banned), 2);
            let masked = SampleRow { allowed: Some(mask.clone()), banned: vec![36], ..row.clone() };
            assert_eq!(token(&logits, &masked), 37);
            let nothing = SampleRow { allowed: Some(Arc::from([0u32; 3])), ..row.clone() };
            assert_eq!(token(&logits, &nothing), 0);
            let all_banned = SampleRow { banned: (0..80).collect(), top_logprobs: Some(4), ..row };
            let got = sample_row(&[1.0; 80], &all_banned, &mut SampleScratch::default());
            assert_eq!((got.token, got.has_candidate), (0, false));
            assert_eq!(got.logprobs.unwrap().top.len(), 4);
        }
        let row = LogprobRow { target: 3, top: 5 };
        let got = logprobs_row(&logits, &row, &mut SampleScratch::default());
        assert_eq!((got.logprob, got.rank), (f32::NEG_INFINITY, 4));
        assert!(got.top.is_empty());
    }
    assert_eq!(token(&[], &SampleRow::default()), 0);
}

#[test]
fn penalties_and_biases_follow_their_formulas() {
    let logits = [2.0, -1.0, 0.5, 1.9, -3.0];
    let seen = |token, output_count, in_prompt| TokenCount { token, output_count, in_prompt };
    let best = |row: SampleRow| token(&logits, &row);
    // 2.0 / 1.1 < 1.9; only in the prompt is enough.
    let row = SampleRow { repetition_penalty: 1.1, history: vec![seen(0, 0, true)], ..Default::default() };
    assert_eq!(best(row.clone()), 3);
    // Presence and frequency count the output only.
    let row = SampleRow { repetition_penalty: 1.0, presence_penalty: 1.0, frequency_penalty: 1.0, ..row };
    assert_eq!(best(row.clone()), 0);
    assert_eq!(best(SampleRow { history: vec![seen(0, 1, true)], ..row.clone() }), 3);
    let row = SampleRow { presence_penalty: 0.0, frequency_penalty: -2.0, ..row };
    assert_eq!(best(SampleRow { history: vec![seen(1, 2, false), seen(2, 1, false)], ..row.clone() }), 1);
    assert_eq!(best(SampleRow { logit_bias: vec![(4, 4.0), (4, 4.0)], ..row.clone() }), 4);
    assert_eq!(best(SampleRow { logit_bias: vec![(4, 100.0)], banned: vec![4], ..row.clone() }), 0);
    // Biases come before penalties.
    let row = SampleRow { logit_bias: vec![(4, 6.0)], repetition_penalty: 2.0, ..SampleRow::default() };
    assert_eq!(best(row.clone()), 4);
    assert_eq!(best(SampleRow { history: vec![seen(4, 1, false)], ..row }), 0);
}

#[test]
fn logprobs_are_of_the_raw_or_the_masked_distribution() {
    let logits = random_logits(21, 3000, 4.0);
    let log_total = |keep: &dyn Fn(usize) -> bool| {
        let kept = logits.iter().enumerate().filter(|(t, _)| keep(*t));
        kept.map(|(_, &v)| f64::from(v).exp()).sum::<f64>().ln()
    };
    let allowed: Arc<[u32]> = (0..94u32).map(|w| w.wrapping_mul(0x9E37_79B9)).collect();
    let is_allowed = |t: usize| allowed[t / 32] >> (t % 32) & 1 == 1;
    for mask in [None, Some(allowed.clone())] {
        let row = SampleRow {
            temperature: 0.3,
            top_k: 7,
            logit_bias: vec![(5, 3.0)],
            banned: vec![8],
            top_logprobs: Some(20),
            logprob_tokens: vec![8, 2999, 5],
            allowed: mask.clone(),
            ..Default::default()
        };
        let keep: &dyn Fn(usize) -> bool = if mask.is_some() { &is_allowed } else { &|_| true };
        let base = log_total(keep);
        let want = |t: u32| {
            if keep(t as usize) { f64::from(logits[t as usize]) - base } else { f64::NEG_INFINITY }
        };
        let close = |t: u32, got: f32| {
            let want = want(t);
            assert!(f64::from(got) == want || (f64::from(got) - want).abs() < 1e-5, "{t}: {got} for {want}");
        };
        let got = sample_row(&logits, &row, &mut SampleScratch::default());
        let report = got.logprobs.unwrap();
        close(got.token, report.logprob);
        let mut order: Vec<u32> = (0..3000).filter(|&t| keep(t as usize)).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        let rank = order.iter().position(|&t| t == got.token).unwrap() + 1;
        assert_eq!(report.rank as usize, rank);
        assert_eq!(report.top.iter().map(|t| t.0).collect::<Vec<_>>(), order[..20]);
        report.top.iter().for_each(|&(t, p)| close(t, p));
        assert_eq!(report.asked.iter().map(|t| t.0).collect::<Vec<_>>(), row.logprob_tokens);
        report.asked.iter().for_each(|&(t, p)| close(t, p));
        for target in [order[0], order[17], order[order.len() - 1]] {
            let got = logprobs_row(&logits, &LogprobRow { target, top: 2 }, &mut SampleScratch::default());
            if mask.is_none() {
                close(target, got.logprob);
                assert_eq!(got.rank as usize, order.iter().position(|&t| t == target).unwrap() + 1);
                assert_eq!(got.top.len(), 2);
            }
        }
    }
    let plain = sample_row(&logits, &SampleRow::default(), &mut SampleScratch::default());
    assert_eq!(plain.logprobs, None);
}

#[test]
fn a_few_edits_and_a_copy_of_the_row_agree() {
    let logits = random_logits(5, 20_000, 5.0);
    let few: Vec<(u32, f32)> = (0..15).map(|i| (i * 970, (i % 7) as f32 - 3.0)).collect();
    let full_mask: Arc<[u32]> = vec![u32::MAX; 625].into();
    let row = SampleRow { logit_bias: few, banned: vec![0, 19_999, 970, 971], ..Default::default() };
    let copied = SampleRow { allowed: Some(full_mask), ..row.clone() };
    assert_eq!(token(&logits, &row), token(&logits, &copied));
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -12.0f32..12.0,
        2 => (-3i8..3).prop_map(f32::from),
        1 => Just(f32::NAN),
        1 => Just(f32::NEG_INFINITY),
        1 => any::<f32>().prop_map(|v| if v == f32::INFINITY { 0.0 } else { v }),
    ]
}

fn any_row(vocab: u32) -> impl Strategy<Value = SampleRow> {
    let filters = (
        prop_oneof![Just(0.0f32), 0.05f32..3.0],
        prop_oneof![Just(0u32), 1..2 * vocab],
        prop_oneof![Just(1.0f32), 0.0f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..1.0],
    );
    let seen = (0..vocab, 0..4u32, any::<bool>());
    let tokens = prop::collection::vec(0..vocab, 0..10);
    let edits = (
        prop::collection::vec((0..vocab, -5.0f32..5.0), 0..10),
        tokens,
        prop::collection::hash_map(0..vocab, seen, 0..10),
        prop::option::of(prop::collection::vec(any::<u32>(), vocab.div_ceil(32) as usize)),
        (0.5f32..2.0, -1.0f32..1.0, -1.0f32..1.0),
        any::<(u64, u32, u64)>(),
    );
    (filters, edits).prop_map(|((temperature, top_k, top_p, min_p), edits)| {
        let (logit_bias, banned, history, allowed, penalties, (seed, choice, position)) = edits;
        SampleRow {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: penalties.0,
            presence_penalty: penalties.1,
            frequency_penalty: penalties.2,
            history: history
                .into_iter()
                .map(|(token, (_, output_count, in_prompt))| TokenCount {
                    token,
                    output_count,
                    in_prompt: in_prompt || output_count == 0,
                })
                .collect(),
            logit_bias,
            banned,
            allowed: allowed.map(Arc::from),
            seed,
            choice,
            position,
            ..Default::default()
        }
    })
}

proptest! {
    #[test]
    fn any_row_is_drawn_from_its_distribution(
        (logits, row) in (1..400u32).prop_flat_map(|vocab| {
            (prop::collection::vec(any_logit(), vocab as usize), any_row(vocab))
        }),
    ) {
        let got = token(&logits, &row);
        prop_assert!((got as usize) < logits.len());
        let hopeless = probabilities(&logits, &row).iter().all(|&p| p == 0.0);
        let drawn = sample_row(&logits, &row, &mut SampleScratch::default());
        prop_assert_eq!(drawn.has_candidate, !hopeless);
        if hopeless {
            prop_assert_eq!(got, lowest_allowed(logits.len(), &row));
            return Ok(());
        }
        prop_assert!(token_fits(&logits, &row, got), "{}: {:?}", got, row);
        // The same again with used buffers.
        let mut scratch = SampleScratch::default();
        let reversed: Vec<f32> = logits.iter().rev().copied().collect();
        sample_row(&reversed, &SampleRow { allowed: None, ..row.clone() }, &mut scratch);
        prop_assert_eq!(sample_row(&logits, &row, &mut scratch).token, got);
    }
}
