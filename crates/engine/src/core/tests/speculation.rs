//! Drafts: answers are those without, and what was drafted leaves nothing behind.

use super::constraints::{Failure, Pairs, held_to, pairs, until_ended};
use super::load::{Random, Scenario, random_request, run, tight};
use super::*;
use crate::request::SamplingParams;
use crate::response::Finish;

fn drafting() -> EngineConfig {
    EngineConfig { speculation: Speculation::Always, ..EngineConfig::default() }
}

/// The answer with drafts, which is that without; and the steps of both.
fn compare(echo: u64, request: &Request) -> (Completion, [u64; 2], EngineStats) {
    let asked = |config| {
        let mut bench = Bench::echoing(echo, ROOMY, config);
        if let Some(name) = &request.adapter {
            bench.load(name, adapter(7).in_process("alone"), false).unwrap();
        }
        let stream = bench.submit(request.clone());
        until_ended(&mut bench);
        let (completion, terminals) = finished(stream);
        assert!(terminals.iter().all(|ends| *ends == 1));
        bench.assert_at_rest();
        (completion, bench.control.steps(), bench.stats())
    };
    let (without, steps_without, stats) = asked(plain());
    assert_eq!((stats.drafts, stats.drafted_tokens, stats.accepted_tokens), (0, 0, 0));
    let (with, steps_with, stats) = asked(drafting());
    assert_eq!(answer(&with), answer(&without), "{request:?}");
    assert_eq!(with.summary.usage, without.summary.usage);
    assert!(steps_with <= steps_without, "{request:?}");
    assert!(stats.accepted_tokens <= stats.drafted_tokens);
    (with, [steps_with, steps_without], stats)
}

#[test]
fn random_requests_get_the_answers_that_they_get_without() {
    let mut random = Random(17);
    let (mut drafted, mut accepted, mut steps) = (0, 0, [0, 0]);
    for idx in 0..400 {
        let echo = 3 + idx % 6;
        let request = Request { max_tokens: Some(random.below(90) as usize), ..random_request(&mut random) };
        let request = Request {
            min_tokens: random.below(8).min(request.max_tokens.unwrap() as u64) as usize,
            ..request
        };
        let (_, took, stats) = compare(echo, &request);
        drafted += stats.drafted_tokens;
        accepted += stats.accepted_tokens;
        steps = [steps[0] + took[0], steps[1] + took[1]];
    }
    println!("{drafted} tokens drafted, {accepted} right; {} steps instead of {}", steps[0], steps[1]);
    assert!(accepted > 2000 && drafted > accepted + 1000);
    assert!(steps[0] * 10 < steps[1] * 8, "{steps:?}");
}

#[test]
fn under_load_every_answer_equals_the_one_given_alone_without() {
    let seeds = std::env::var("WARDROBE_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let (mut preemptions, mut accepted, mut compared, mut cancelled) = (0, 0, 0, 0);
    for seed in 1..=seeds.unwrap_or(12).max(12) {
        let size = Size {
            num_blocks: 9 + 3 * (seed as usize % 4),
            num_slots: 1 + seed as usize % 3,
            max_context_tokens: 112,
        };
        let speculation = if seed % 4 == 0 { Speculation::Auto } else { Speculation::Always };
        let config = EngineConfig { speculation, prefix_cache: seed != 5, ..tight() };
        let echo = 4 + seed % 4;
        let seen = run(&Scenario { seed, requests: 80, size, config, failures: seed % 2 == 0, echo });
        preemptions += seen.preemptions;
        accepted += seen.accepted;
        compared += seen.compared;
        cancelled += seen.cancelled;
        assert!(seen.accepted <= seen.drafted);
    }
    println!(
        "{compared} equal, {accepted} tokens accepted, {preemptions} preemptions, {cancelled} cancelled"
    );
    assert!(compared > 300 && accepted > 2000 && preemptions > 100 && cancelled > 30);
}

#[test]
fn what_is_held_to_a_grammar_is_the_same_at_every_budget() {
    let mut accepted = 0;
    for echo in [4, 7, 8] {
        for max_tokens in (2..24).chain([40, 64]) {
            for logprobs in [None, Some(1)] {
                let request = held_to(&pairs(12)).with_max_tokens(max_tokens);
                let sampling = SamplingParams { frequency_penalty: 0.25, ..request.sampling.clone() };
                let request = Request { logprobs, n: 2, sampling, ..request };
                accepted += compare(echo, &request).2.accepted_tokens;
            }
        }
    }
    assert!(accepted > 200, "{accepted}");
}

#[test]
fn a_grammar_that_fails_along_a_draft_fails_only_where_it_is_reached() {
    let mut failed = 0;
    for failure in [Failure::Error, Failure::Panic] {
        for after in [2, 3, 6, 7] {
            let broken = Pairs { failure: Some((after, failure)), ..pairs(12) };
            for max_tokens in [4, 8, 30] {
                let request = held_to(&broken).with_max_tokens(max_tokens);
                let (completion, ..) = compare(8, &Request { logprobs: Some(0), ..request });
                let finish = completion.choices[0].finish.as_ref().unwrap();
                // It may have come to its end before.
                let fails = matches!(finish, Finish::Error { .. });
                assert!(!fails || max_tokens > after, "{finish:?}");
                failed += usize::from(fails);
            }
        }
    }
    assert!(failed > 4, "{failed}");
}

#[test]
fn masks_along_a_draft_that_are_late_delay_their_sequence_alone() {
    let ids = |completion: &Completion| completion.choices[0].token_ids.clone();
    let want = ids(&compare(8, &held_to(&pairs(12)).with_max_tokens(30)).0);
    let mut bench = Bench::echoing(8, ROOMY, drafting());
    bench.control.set_mask_patience(Duration::ZERO);
    let slow = pairs(12);
    let held = bench.submit(held_to(&slow).with_max_tokens(30));
    let other = bench.submit(Request::new(tokens([5])).with_max_tokens(20));
    let patience = Instant::now() + Duration::from_secs(20);
    let mut turns = 0;
    // The gate is closed for some turns, again and again.
    while bench.turn() != Next::Wait(None) {
        assert!(Instant::now() < patience, "it never ends");
        turns += 1;
        slow.gate.set_closed(turns % 4 != 0);
    }
    slow.gate.set_closed(false);
    assert_eq!(ids(&finished(held).0), want);
    assert!(finished(other).0.choices[0].finish.is_some());
    bench.assert_at_rest();
}

#[test]
fn a_draft_takes_no_blocks_from_others_and_gives_its_own_back() {
    // Room for two sequences and a block: none for drafts, as long as both run.
    let size = Size { num_blocks: 7, num_slots: 1, max_context_tokens: 48 };
    let request = |first: u32| {
        let prompt = tokens((0..16).map(|i| first + i % 4));
        Request { ignore_eos: true, ..Request::new(prompt).with_max_tokens(30).with_seed(1) }
    };
    let asked = |config| {
        let mut bench = Bench::echoing(8, size, config);
        let streams = [request(10), request(20)].map(|request| bench.submit(request));
        bench.settle();
        bench.assert_at_rest();
        (streams.map(|stream| finished(stream).0.choices), bench.stats())
    };
    let (without, plain_stats) = asked(plain());
    let (with, stats) = asked(drafting());
    assert_eq!(with, without);
    assert!(stats.preemptions <= plain_stats.preemptions, "{} preemptions", stats.preemptions);
    assert!(stats.accepted_tokens > 0);
}

#[test]
fn a_step_with_drafts_keeps_to_its_budget() {
    let config = EngineConfig { max_batch_tokens: 10, max_num_sequences: 4, ..drafting() };
    let mut bench = Bench::echoing(8, ROOMY, config);
    let streams: Vec<_> = (0..4)
        .map(|idx| {
            let prompt = tokens((0..12).map(|i| 1 + 20 * idx + i % 3));
            bench.submit(Request { ignore_eos: true, ..Request::new(prompt).with_max_tokens(40) })
        })
        .collect();
    let mut most = 0;
    while bench.turn() == Next::Turn {
        most = most.max(bench.stats().last_step_tokens);
    }
    assert_eq!(most, 10);
    assert!(bench.stats().accepted_tokens > 0);
    drop(streams);
}
