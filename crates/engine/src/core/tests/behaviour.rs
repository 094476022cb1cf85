//! What a request does, one thing at a time.

use super::*;
use crate::constraint::Allowed;
use crate::executor::SampleSpec;
use crate::request::SamplingParams;
use crate::response::{Finish, StopCause};
use crate::validate::{Bounds, validate};

fn bench() -> Bench {
    Bench::new(ROOMY, plain())
}

fn prompt(len: u32) -> Request {
    Request { ignore_eos: true, max_tokens: Some(8), ..Request::new(tokens((0..len).map(|i| 1 + i % 90))) }
}

#[test]
fn length_usage_and_seed() {
    let mut bench = bench();
    let completion = bench.ask(prompt(20).with_seed(3));
    let choice = &completion.choices[0];
    assert_eq!((choice.token_ids.len(), &choice.finish), (8, &Some(Finish::Length)));
    assert_eq!(choice.text.len(), 8);
    assert_eq!(completion.summary.seed, 3);
    let usage = completion.summary.usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (20, 8, 0));
    assert!(completion.summary.timings.time_to_first_token.is_some());
    let again = bench.ask(prompt(20).with_seed(3));
    assert_eq!(answer(&again), answer(&completion));
    assert_eq!(again.summary.usage.cached_tokens, 16);
    let other = bench.ask(prompt(20).with_seed(4));
    assert_ne!(answer(&other), answer(&completion));
    bench.assert_at_rest();
}

#[test]
fn chunks_prefix_hits_and_pressure_do_not_change_the_answer() {
    let expected = bench().ask(prompt(100).with_seed(9));
    for max_chunk_tokens in [1, 7, 16, 33] {
        let config = EngineConfig { max_chunk_tokens, ..plain() };
        let mut bench = Bench::new(Size { num_blocks: 7, ..ROOMY }, config);
        for _ in 0..2 {
            let completion = bench.ask(prompt(100).with_seed(9));
            assert_eq!(answer(&completion), answer(&expected));
        }
    }
}

#[test]
fn choices_differ_and_share_the_prompt() {
    let mut bench = bench();
    let completion = bench.ask(prompt(64).with_seed(1).with_n(4));
    assert_eq!(completion.choices.len(), 4);
    assert_eq!(completion.summary.usage.completion_tokens, 32);
    let texts: std::collections::BTreeSet<_> = completion.choices.iter().map(|c| &c.text).collect();
    assert_eq!(texts.len(), 4);
    // Three siblings found three full blocks each.
    assert_eq!(bench.stats().prefix_hit_tokens, 3 * 48);
    bench.assert_at_rest();
}

#[test]
fn siblings_start_when_the_first_choice_fails_before_its_first_token() {
    let mut bench = Bench::new(ROOMY, EngineConfig { max_chunk_tokens: 8, ..plain() });
    let stream = bench.submit(prompt(40).with_n(2));
    bench.turn();
    bench.control.fail_next(crate::simulation::SimFailure::Sequence(0));
    bench.settle();
    let (completion, terminals) = finished(stream);
    assert_eq!(terminals, [1, 1]);
    assert!(matches!(completion.choices[0].finish, Some(Finish::Error { .. })));
    assert_eq!(completion.choices[1].finish, Some(Finish::Length));
    bench.assert_at_rest();
}

#[test]
fn stop_tokens_end_ids_and_min_tokens() {
    let mut bench = bench();
    let free = bench.ask(prompt(10).with_seed(2)).choices.remove(0);
    let third = free.token_ids[2];
    assert!(!free.token_ids[..2].contains(&third), "the test needs a token that is new");
    let stop = |change: fn(&mut Request), bench: &mut Bench| {
        let mut request = Request { stop_token_ids: vec![third], ..prompt(10).with_seed(2) };
        change(&mut request);
        bench.ask(request).choices.remove(0)
    };
    let stopped = stop(|_| {}, &mut bench);
    assert_eq!(stopped.finish, Some(Finish::Stop(StopCause::Token(third))));
    assert_eq!(stopped.token_ids, free.token_ids[..3]);
    assert_eq!(stopped.text, free.text[..2], "the stop token's text is cut off");
    let included = stop(|r| r.include_stop_str_in_output = true, &mut bench);
    assert_eq!(included.text, free.text[..3]);
    let later = stop(|r| r.min_tokens = 5, &mut bench);
    assert!(later.token_ids.len() >= 5 && !later.token_ids[..5].contains(&third));
    let eos = Request { ignore_eos: false, max_tokens: Some(200), ..prompt(10) };
    let ended =
        bench.ask(Request { sampling: SamplingParams { seed: Some(1), ..eos.sampling.clone() }, ..eos });
    assert_eq!(ended.choices[0].finish, Some(Finish::Stop(StopCause::Eos(SIM_EOS))));
}

#[test]
fn stop_strings_cut_the_text() {
    let mut bench = bench();
    let free = bench.ask(prompt(10).with_seed(2)).choices.remove(0);
    let stop = &free.text[3..6];
    assert_eq!(free.text.find(stop), Some(3));
    let request = prompt(10).with_seed(2).with_stop(stop);
    let stopped = bench.ask(request.clone()).choices.remove(0);
    assert_eq!(stopped.finish, Some(Finish::Stop(StopCause::String(stop.to_owned()))));
    assert_eq!((stopped.text.as_str(), stopped.token_ids.len()), (&free.text[..3], 6));
    let included = bench.ask(Request { include_stop_str_in_output: true, ..request }).choices.remove(0);
    assert_eq!(included.text, free.text[..6]);
    // A stop string that has begun when the output ends is text after all.
    let begun = format!("{}zzzz", &free.text[6..8]);
    let unmatched = bench.ask(prompt(10).with_seed(2).with_stop(begun)).choices.remove(0);
    assert_eq!((unmatched.text, unmatched.finish), (free.text, Some(Finish::Length)));
}

#[test]
fn logprobs_of_output_and_prompt() {
    let mut bench = bench();
    let request = Request {
        logprobs: Some(3),
        prompt_logprobs: Some(2),
        logprob_token_ids: tokens([7]),
        ..prompt(40).with_seed(1)
    };
    // A prefix in the cache must not be read when the prompt's log-probabilities are asked for.
    bench.ask(prompt(40).with_seed(1));
    let completion = bench.ask(request.clone());
    let rows = completion.prompt_logprobs.as_ref().unwrap();
    assert_eq!(rows.len(), 40);
    assert!(rows[0].is_none());
    for (idx, row) in rows.iter().enumerate().skip(1) {
        let row = row.as_ref().unwrap();
        assert_eq!((row.token, row.top.len()), (request.prompt_token_ids[idx], 2));
    }
    assert_eq!(completion.summary.usage.cached_tokens, 0);
    let choice = &completion.choices[0];
    for (token, row) in choice.token_ids.iter().zip(&choice.logprobs) {
        assert_eq!((row.token, row.top.len()), (*token, 4));
        assert_eq!(row.top[3].token, TokenId(7));
        assert!(!row.bytes.is_empty());
    }
    let scored = bench.ask(Request { max_tokens: Some(0), ..request.clone() });
    assert_eq!(scored.prompt_logprobs, completion.prompt_logprobs);
    assert_eq!(scored.choices[0].token_ids, []);
    assert_eq!(scored.choices[0].finish, Some(Finish::Length));
    // What is before the first token of interest may come from the cache, and the others are told alike.
    for (from, cached) in [(0, 0), (16, 0), (17, 16), (33, 32), (36, 32), (39, 32), (40, 32), (99, 32)] {
        let some = bench.ask(Request { prompt_logprobs_from: from, max_tokens: Some(0), ..request.clone() });
        assert_eq!(some.summary.usage.cached_tokens, cached, "from {from}");
        let rows = some.prompt_logprobs.unwrap();
        let from = from.clamp(1, 40);
        assert!(rows.len() == 40 && rows[..from].iter().all(Option::is_none), "from {from}");
        assert_eq!(rows[from..], completion.prompt_logprobs.as_ref().unwrap()[from..], "from {from}");
    }
}

/// The specification of the sample after `output`, for a request on a vocabulary of [`VOCAB`].
fn spec_after(request: Request, output: &[TokenId]) -> SampleSpec {
    let limits = crate::RequestLimits::default();
    let valid = validate(
        request,
        &Bounds { limits: &limits, vocab_size: VOCAB, max_context_tokens: 100, eos_token_ids: &[] },
    )
    .unwrap();
    let mut choice = output::ChoiceOutput::new(0, &valid, &SimCodec);
    for token in output {
        let sampled = crate::Sampled { token: *token, ..crate::Sampled::default() };
        choice.accept(&valid, sampled, &[SIM_EOS], &SimCodec, true);
    }
    choice.sample_spec(&valid, 5, output, &[SIM_EOS])
}

#[test]
fn what_the_sampler_is_told() {
    let sampling = SamplingParams {
        presence_penalty: 0.5,
        bad_words: vec![tokens([8, 9]), tokens([7])],
        allowed_token_ids: Some(tokens([1, 2])),
        ..SamplingParams::default()
    };
    let request = Request { min_tokens: 3, stop_token_ids: tokens([42]), ..Request::new(tokens([1, 1, 2])) };
    let spec = spec_after(request.with_sampling(sampling), &tokens([2, 8]));
    assert_eq!(spec.banned, tokens([42, 0, 9, 7]));
    let counts: Vec<_> = spec.history.iter().map(|c| (c.token.0, c.output_count, c.in_prompt)).collect();
    assert_eq!(counts, [(1, 0, true), (2, 1, true), (8, 1, false)]);
    assert_eq!((spec.position, spec.seed, spec.top_logprobs), (2, 5, None));
    assert!(matches!(&spec.allowed, Allowed::These(mask) if mask[0] == 0b110));
    let plain = spec_after(Request::new(tokens([1])), &tokens([2, 8, 8]));
    assert!(plain.history.is_empty() && plain.banned.is_empty() && plain.allowed == Allowed::All);
}

#[test]
fn salts_adapters_and_scales_do_not_share_prefixes() {
    let mut bench = bench();
    bench.load("ada", adapter(1).in_process("a"), false).unwrap();
    bench.load("bob", adapter(2).in_process("b"), false).unwrap();
    let variants = [
        prompt(40),
        Request { cache_salt: Some("x".into()), ..prompt(40) },
        Request { cache_salt: Some("y".into()), ..prompt(40) },
        prompt(40).with_adapter("ada"),
        prompt(40).with_adapter("bob"),
        Request { adapter_scale: 0.5, ..prompt(40).with_adapter("ada") },
    ];
    for round in 0..2 {
        for request in &variants {
            let cached = bench.ask(request.clone()).summary.usage.cached_tokens;
            assert_eq!(cached, round * 32, "{request:?}");
        }
    }
    // The same content under another name is the same; other content under the same name is not.
    bench.load("eve", adapter(1).in_process("a"), false).unwrap();
    assert_eq!(bench.ask(prompt(40).with_adapter("eve")).summary.usage.cached_tokens, 32);
    bench.load("ada", adapter(3).in_process("a"), true).unwrap();
    assert_eq!(bench.ask(prompt(40).with_adapter("ada")).summary.usage.cached_tokens, 0);
    bench.assert_at_rest();
}

#[test]
fn a_replaced_adapter_finishes_what_it_began() {
    let mut bench = bench();
    let request = Request { max_tokens: Some(30), ..prompt(20).with_adapter("ada").with_seed(1) };
    bench.load("ada", adapter(1).in_process("one"), false).unwrap();
    let one = bench.ask(request.clone());
    let (running, queued) = (bench.submit(request.clone()), bench.submit(request.clone()));
    bench.turn();
    bench.load("ada", adapter(2).in_process("two"), true).unwrap();
    let new = bench.submit(request.clone());
    bench.turn();
    bench.shared.registry.unload("ada", None).unwrap();
    assert!(bench.try_submit(request).is_err());
    bench.settle();
    for stream in [running, queued] {
        assert_eq!(answer(&finished(stream).0), answer(&one));
    }
    assert_ne!(answer(&finished(new).0), answer(&one));
    bench.assert_at_rest();
    assert_eq!(bench.stats().bound_slots, 0, "slots of ended generations are cleared");
    assert_eq!(bench.shared.registry.host_bytes(), 0);
}

#[test]
fn waiting_for_a_slot_blocks_nobody_else_and_ends() {
    let config = EngineConfig { max_slot_skips: 3, ..plain() };
    let mut bench = Bench::new(Size { num_slots: 1, ..ROOMY }, config);
    bench.load("ada", adapter(1).in_process("a"), false).unwrap();
    bench.load("bob", adapter(2).in_process("b"), false).unwrap();
    let long = Request { max_tokens: Some(20), ..prompt(4) };
    let _first = bench.submit(long.clone().with_adapter("ada"));
    bench.turn();
    let mut bob = bench.submit(long.clone().with_adapter("bob"));
    bench.turn();
    let base = bench.submit(Request { max_tokens: Some(1), ..prompt(4) });
    bench.turn();
    bench.turn();
    assert_eq!(finished(base).1, [1], "the base passes whoever waits for a slot");
    assert_eq!(bench.stats().waiting_adapters, ["bob"]);
    // A stream of requests for the resident adapter may pass it only so often.
    let mut others = Vec::new();
    for _ in 0..200 {
        others.push(bench.submit(long.clone().with_adapter("ada")));
        bench.turn();
        if bob.try_next().is_some() {
            break;
        }
    }
    assert!(others.len() < 100, "bob had to wait for {} requests", others.len());
    bench.settle();
    assert!(others.into_iter().all(|stream| finished(stream).1 == [1]));
}

#[test]
fn priorities_run_first_and_preempt() {
    let config = EngineConfig { max_num_sequences: 2, ..plain() };
    let mut bench = Bench::new(ROOMY, config);
    let low = |bench: &Bench| bench.submit(Request { priority: 5, max_tokens: Some(50), ..prompt(10) });
    let (first, second) = (low(&bench), low(&bench));
    bench.turn();
    let urgent = bench.submit(Request { priority: -1, max_tokens: Some(3), ..prompt(10) });
    for _ in 0..4 {
        bench.turn();
    }
    assert_eq!(finished(urgent).1, [1]);
    assert_eq!(bench.stats().preemptions, 1);
    bench.settle();
    for stream in [first, second] {
        assert_eq!(finished(stream).0.choices[0].token_ids.len(), 50);
    }
}

#[test]
fn a_slow_reader_pauses_and_is_cancelled() {
    let config = EngineConfig {
        stream_buffer_tokens: 4,
        stream_stall_timeout: Duration::from_millis(100),
        ..EngineConfig::default()
    };
    let mut bench = Bench::new(ROOMY, config);
    let mut stream = bench.submit(Request { max_tokens: Some(12), ..prompt(10) });
    bench.settle();
    let paused = bench.stats();
    assert_eq!((paused.generation_tokens, paused.running_sequences), (4, 1));
    let Next::Wait(Some(until)) = bench.last else { panic!("it must look again: {:?}", bench.last) };
    // Reading lets it go on.
    assert!(stream.try_next().is_some());
    bench.settle();
    assert_eq!(bench.stats().generation_tokens, 8);
    bench.now = until + Duration::from_millis(200);
    bench.settle();
    let (completion, terminals) = finished(stream);
    assert_eq!(terminals, [1]);
    assert!(matches!(completion.choices[0].finish, Some(Finish::Cancelled { .. })));
    bench.assert_at_rest();
}

#[test]
fn dropping_the_stream_frees_everything_at_once() {
    let config = EngineConfig { max_num_sequences: 1, ..plain() };
    let mut bench = Bench::new(ROOMY, config);
    bench.load("ada", adapter(1).in_process("a"), false).unwrap();
    let request = Request { max_tokens: Some(100), ..prompt(20).with_adapter("ada") };
    let (running, waiting) = (bench.submit(request.clone().with_n(2)), bench.submit(request));
    bench.turn();
    let stats = bench.stats();
    assert_eq!((stats.open_requests, stats.running_sequences, stats.waiting_sequences), (2, 1, 2));
    drop((running, waiting));
    bench.turn();
    bench.assert_at_rest();
    assert_eq!(bench.stats().finished_cancelled, 3);
}

#[test]
fn slow_readers_do_not_keep_the_slots() {
    let config = EngineConfig { stream_buffer_tokens: 4, ..plain() };
    let mut bench = Bench::new(Size { num_slots: 1, ..ROOMY }, config);
    bench.load("ada", adapter(1).in_process("a"), false).unwrap();
    bench.load("bob", adapter(2).in_process("b"), false).unwrap();
    let mut slow = bench.submit(prompt(10).with_adapter("ada").with_seed(1));
    bench.settle();
    assert_eq!(bench.stats().leased_slots, 1);
    let other = bench.submit(Request { max_tokens: Some(3), ..prompt(10).with_adapter("bob") });
    bench.settle();
    assert_eq!(finished(other).1, [1]);
    let mut completion = Completion::default();
    while completion.summary.usage.prompt_tokens == 0 {
        while let Some(event) = slow.try_next() {
            completion.apply(event);
        }
        bench.settle();
    }
    drop(slow);
    assert_eq!(completion.choices[0].finish, Some(Finish::Length));
    let again = bench.ask(Request { max_tokens: Some(3), ..prompt(10).with_adapter("ada").with_seed(1) });
    assert!(completion.choices[0].token_ids.starts_with(&again.choices[0].token_ids));
    bench.assert_at_rest();
}

#[test]
fn the_queue_is_bounded() {
    let config = EngineConfig { queue_capacity: 2, max_num_sequences: 1, ..plain() };
    let mut bench = Bench::new(ROOMY, config);
    let _running = bench.submit(prompt(4));
    bench.turn();
    bench.turn();
    let _queued = (bench.submit(prompt(4)), bench.submit(prompt(4)));
    let refused = bench.try_submit(prompt(4)).map(drop).unwrap_err();
    let SubmitError::Overloaded { open, retry_after } = refused else { panic!("{refused}") };
    assert_eq!(open, 3);
    assert!(retry_after >= Duration::from_secs(1));
    bench.settle();
    assert!(bench.try_submit(prompt(4)).is_ok());
}

#[test]
fn room_is_counted_in_sequences_and_includes_rows_that_are_free() {
    let config = EngineConfig { queue_capacity: 2, max_num_sequences: 2, ..plain() };
    let mut bench = Bench::new(ROOMY, config);
    // Idle: two can start at once and two can wait, all before the engine thread has looked.
    let four: Vec<_> = (0..4).map(|_| bench.submit(prompt(4))).collect();
    let refused = bench.try_submit(prompt(4)).map(drop).unwrap_err();
    assert!(matches!(refused, SubmitError::Overloaded { open: 4, .. }), "{refused}");
    bench.turn();
    assert!(bench.try_submit(prompt(4)).is_err());
    bench.settle();
    four.into_iter().for_each(|stream| assert_eq!(finished(stream).0.choices.len(), 1));

    // Choices count: 3 + 2 > 4, 3 + 1 = 4.
    let several = |n| Request { n, ..prompt(4) };
    let _three = bench.submit(several(3));
    assert!(matches!(bench.try_submit(several(2)), Err(SubmitError::Overloaded { open: 3, .. })));
    let _one = bench.submit(several(1));
    bench.settle();

    // More than could ever be there at once is no matter of waiting.
    let never = bench.try_submit(several(5)).map(drop).unwrap_err();
    assert_eq!(never.field(), Some("n"), "{never}");
    let never = bench.shared.submit_all(vec![several(2), several(1), several(2)]).map(drop).unwrap_err();
    assert_eq!(never.field(), Some("prompt"), "{never}");
    assert!(never.to_string().contains("at most 4"), "{never}");
    assert_eq!(bench.try_submit(several(usize::MAX)).map(drop).unwrap_err().field(), Some("n"));
    bench.assert_at_rest();
}

#[test]
fn an_end_makes_room_before_its_caller_hears_of_it() {
    let config = EngineConfig { queue_capacity: 1, max_num_sequences: 1, ..plain() };
    let mut bench = Bench::new(ROOMY, config);
    let (first, _second) =
        (bench.submit(prompt(4)), bench.submit(Request { max_tokens: Some(99), ..prompt(4) }));
    let mut first = Some(first);
    while let Some(stream) = &mut first {
        assert!(bench.try_submit(prompt(4)).is_err());
        bench.turn();
        while let Some(event) = stream.try_next() {
            if matches!(event, Event::Summary(_)) {
                first = None;
                break;
            }
        }
    }
    assert!(bench.try_submit(prompt(4)).is_ok());
    bench.settle();
}

#[test]
fn several_requests_are_queued_together_or_not_at_all() {
    let config = EngineConfig { queue_capacity: 4, max_num_sequences: 2, ..plain() };
    let mut bench = Bench::new(ROOMY, config);
    bench.loader.put("/a", adapter(1));
    bench.load("a", source("/a"), false).unwrap();
    let of_a = || prompt(4).with_adapter("a").with_seed(1);
    let unknown = || prompt(4).with_adapter("b");
    let bad = || Request { n: 0, ..of_a() };
    for refused in [vec![of_a(), unknown()], vec![of_a(), of_a(), bad()]] {
        assert!(bench.shared.submit_all(refused).is_err());
        bench.settle();
        bench.assert_at_rest();
    }
    let _open = bench.submit(Request { n: 3, ..prompt(4) });
    let full = bench.shared.submit_all(vec![of_a(); 4]).map(drop).unwrap_err();
    assert!(matches!(full, SubmitError::Overloaded { open: 3, .. }), "{full}");
    assert_eq!(bench.shared.registry.num_leases_and_hidden(), (0, 0));
    let streams = bench.shared.submit_all(vec![of_a(); 3]).unwrap();
    assert_eq!(bench.shared.registry.num_leases_and_hidden(), (3, 0), "one lease a request");
    bench.settle();
    let answers: Vec<_> = streams.into_iter().map(|stream| finished(stream).0).collect();
    assert!(answers.iter().all(|a| a.choices == answers[0].choices && a.summary.generation.is_some()));
    assert!(bench.shared.submit_all(Vec::new()).unwrap().is_empty());
    bench.settle();
}

#[test]
fn a_drain_lets_open_requests_finish_and_then_cancels() {
    for (drain, finishes) in [(1000, true), (3, false)] {
        let mut bench = bench();
        let stream = bench.submit(Request { max_tokens: Some(20), ..prompt(10) });
        bench.turn();
        bench.shared.mailbox.stop(bench.now + Duration::from_millis(drain));
        assert_eq!(bench.try_submit(prompt(1)).map(drop), Err(SubmitError::ShuttingDown));
        while bench.turn() != Next::Stop {}
        let (completion, _) = finished(stream);
        assert_eq!(completion.choices[0].finish == Some(Finish::Length), finishes);
        bench.assert_at_rest();
    }
}
