//! Drafting against made-up machines: what a step takes is a function of its rows, what a text does is scripted.

use super::*;

/// A text that repeats itself in parts.
struct Script {
    /// What it says, prompt included.
    text: Vec<TokenId>,
    num_prompt_tokens: usize,
}

/// A sequence that says its script.
struct Speaker {
    script: Script,
    said: usize,
    drafter: Drafter,
}

fn noise(i: usize) -> TokenId {
    TokenId((i as u64 * 0x9e37_79b9 % 1_000_003) as u32)
}

/// A prompt of `len` tokens, and an answer that repeats it, after its first token, `times` times.
fn repeating(len: usize, times: usize) -> Script {
    let prompt: Vec<TokenId> = (0..len).map(noise).collect();
    Script { text: prompt.repeat(times + 1), num_prompt_tokens: len }
}

/// A text of few tokens whose pairs often come again, but mean nothing.
fn chatter(len: usize, seed: usize) -> Script {
    let token = |i: usize| TokenId((noise(i * 31 + seed).0 >> 3) % 12);
    Script { text: (0..len + 32).map(token).collect(), num_prompt_tokens: 32 }
}

/// Lines of a person's years each, a record as an example, and then the record of one of the persons: its keys come as in the
/// example, its years as in that line, where nothing tells which.
fn record(seed: usize) -> Script {
    let [key_born, key_died, comma, open, dash, close, space, quote] = [20, 21, 22, 23, 24, 25, 26, 27];
    let random = |i: usize| noise(seed * 1000 + i).0 as usize;
    let digits =
        |i: usize| [1, 7 + (random(i) % 3) as u32, (random(i + 1) % 10) as u32, (random(i + 2) % 10) as u32];
    let persons: Vec<_> =
        (0..8).map(|i| (1000 + random(i) as u32, digits(10 * i), digits(10 * i + 5))).collect();
    let mut text = Vec::new();
    for (idx, (name, born, died)) in persons.iter().enumerate() {
        text.extend([*name, open, space]);
        text.extend(born);
        text.extend([dash, space]);
        text.extend(died);
        text.extend([close, comma]);
        text.extend((0..6).map(|i| 100 + (random(100 + 10 * idx + i) % 300) as u32));
    }
    let told = |text: &mut Vec<u32>, nation: u32, born: [u32; 4], died: [u32; 4]| {
        text.extend([30, 31, 32, quote, nation, comma, quote, key_born, quote, space]);
        text.extend(born);
        text.extend([comma, quote, key_died, quote, space]);
        text.extend(died);
        for key in [40, 50] {
            text.extend([comma, quote, key, key + 1, key + 2, quote, 60 + (random(key as usize) % 2) as u32]);
        }
        text.push(33);
    };
    told(&mut text, 99, [1, 8, 0, 1], [1, 8, 9, 9]);
    text.extend([34, 35]);
    let num_prompt_tokens = text.len();
    let (_, born, died) = persons[random(500) % 8];
    told(&mut text, 100 + (random(501) % 300) as u32, born, died);
    Script { text: text.into_iter().map(TokenId).collect(), num_prompt_tokens }
}

/// What a run came to.
struct Ran {
    seconds: f64,
    /// When each speaker was done.
    done_at: Vec<f64>,
    drafted: usize,
}

/// Lets scripts be said, each sequence in every step until it is done; a step of so many rows takes `seconds`.
fn say(mode: Speculation, scripts: Vec<Script>, seconds: impl Fn(usize) -> f64) -> Ran {
    say_after(&mut Speculator::new(mode), scripts, seconds)
}

/// The same of an engine that has said others before.
fn say_after(speculator: &mut Speculator, scripts: Vec<Script>, seconds: impl Fn(usize) -> f64) -> Ran {
    let mut speakers: Vec<Speaker> = scripts
        .into_iter()
        .map(|script| Speaker { said: script.num_prompt_tokens, script, drafter: Drafter::default() })
        .collect();
    let mut ran = Ran { seconds: 0.0, done_at: vec![0.0; speakers.len()], drafted: 0 };
    loop {
        let running: Vec<usize> =
            (0..speakers.len()).filter(|i| speakers[*i].said < speakers[*i].script.text.len()).collect();
        if running.is_empty() {
            return ran;
        }
        let step = Step { sequences: running.len(), rows: running.len() };
        let mut guesses: Vec<Option<Guess>> = Vec::new();
        for i in &running {
            let Speaker { script, said, drafter } = &mut speakers[*i];
            let limits = Limits {
                max_tokens: (script.text.len() - *said - 1).min(MAX_DRAFT_TOKENS),
                min_chance: speculator.min_chance(),
                force: false,
                common: &speculator.odds,
                ends: &|_| false,
            };
            let may = speculator.is_on() && speculator.may_draft(drafter);
            guesses.push(if may { drafter.guess(&script.text[..*said], &limits) } else { None });
        }
        let with: Vec<_> =
            running.iter().zip(&guesses).map(|(i, g)| (&speakers[*i].drafter, g.as_ref())).collect();
        let lengths =
            if speculator.is_on() { speculator.choose(step, 512, &with) } else { vec![0; with.len()] };
        let rows = step.rows + lengths.iter().sum::<usize>();
        let took = seconds(rows);
        ran.seconds += took;
        ran.drafted += rows - step.rows;
        let settled = speculator.settle(step, rows - step.rows, took);
        for ((i, guess), length) in running.iter().zip(&guesses).zip(lengths) {
            let Speaker { script, said, drafter } = &mut speakers[*i];
            let draft = guess.as_ref().map_or(&[][..], |guess| &guess.draft.tokens[..length]);
            let right = draft.iter().zip(&script.text[*said..]).take_while(|(a, b)| a == b).count();
            for _ in 0..right + 1 {
                *said += 1;
                drafter.observe(&script.text[..*said], 1, &mut speculator.odds, &mut |_| true);
            }
            let own = Own { draft_tokens: length, accepted_samples: right };
            drafter.settle(&settled, (length > 0).then_some(&own));
            if *said >= script.text.len() {
                ran.done_at[*i] = ran.seconds;
            }
        }
    }
}

/// A small model on a CPU: each row has its price.
fn rows_cost(rows: usize) -> f64 {
    0.002 + 0.001 * rows as f64
}

/// A GPU: up to some rows all are the same.
fn rows_are_free(rows: usize) -> f64 {
    0.01 + 0.000_01 * rows as f64
}

#[test]
fn a_text_that_repeats_itself_is_said_faster() {
    for (seconds, at_least) in [(rows_cost as fn(usize) -> f64, 1.8), (rows_are_free, 6.0)] {
        let without = say(Speculation::Off, vec![repeating(100, 2)], seconds).seconds;
        let with = say(Speculation::Auto, vec![repeating(100, 2)], seconds).seconds;
        assert!(without / with > at_least, "{} times as fast", without / with);
    }
    // Of all that rows may cost: as many rows as tokens take as long.
    let dear = |rows: usize| 0.003 * rows as f64;
    let without = say(Speculation::Off, vec![repeating(100, 4)], dear).seconds;
    let with = say(Speculation::Auto, vec![repeating(100, 4)], dear).seconds;
    assert!(with / without < 1.03, "{}", with / without);
}

#[test]
fn nobody_loses_more_than_a_small_part_of_its_time() {
    for seconds in [rows_cost as fn(usize) -> f64, rows_are_free, |rows| 0.001 + 0.003 * rows as f64] {
        let scripts = || vec![chatter(400, 1), chatter(400, 2), chatter(300, 3)];
        let without = say(Speculation::Off, scripts(), seconds);
        let with = say(Speculation::Auto, scripts(), seconds);
        for (with, without) in with.done_at.iter().zip(&without.done_at) {
            assert!(with / without < 1.0 + MAX_LOSS + 0.02, "{with} s instead of {without} s");
        }
    }
}

#[test]
fn who_only_looks_on_is_not_slowed() {
    // One repeats itself, seven do not; every row costs.
    let scripts = || {
        let mut scripts: Vec<Script> = (0..7).map(|seed| chatter(300, seed)).collect();
        scripts.push(repeating(100, 3));
        scripts
    };
    let without = say(Speculation::Off, scripts(), rows_cost);
    let with = say(Speculation::Auto, scripts(), rows_cost);
    for (with, without) in with.done_at.iter().zip(&without.done_at) {
        assert!(with / without < 1.0 + MAX_LOSS + 0.02, "{with} s instead of {without} s");
    }
    assert!(with.drafted > 0);
}

#[test]
fn many_that_repeat_themselves_draft_as_far_as_it_pays() {
    let scripts = || (0..8).map(|_| repeating(80, 3)).collect::<Vec<_>>();
    let without = say(Speculation::Off, scripts(), rows_are_free).seconds;
    let with = say(Speculation::Auto, scripts(), rows_are_free).seconds;
    assert!(without / with > 4.0, "{}", without / with);
    // Where a row of a full step costs as much as a token: not at all, but to try.
    let dear = |rows: usize| 0.001 * rows as f64;
    let without = say(Speculation::Off, scripts(), dear).seconds;
    let with = say(Speculation::Auto, scripts(), dear).seconds;
    assert!(with / without < 1.03, "{}", with / without);
}

#[test]
fn records_of_one_form_are_said_faster_once_some_are_known() {
    // By the length of a common past alone it is 1.3 and 1.04, and 2.8 and 2.3.
    for (seconds, at_once, at_least) in [
        (rows_cost as fn(usize) -> f64, 1, 1.5),
        (rows_cost, 8, 1.06),
        (rows_are_free, 1, 2.9),
        (rows_are_free, 8, 2.6),
    ] {
        let [without, with] = [Speculation::Off, Speculation::Auto].map(|mode| {
            let mut speculator = Speculator::new(mode);
            let mut say_all = |first: usize| -> f64 {
                let groups = (first..first + 40).step_by(at_once);
                let groups = groups.map(|first| (first..first + at_once).map(record).collect());
                groups.map(|scripts| say_after(&mut speculator, scripts, seconds).seconds).sum()
            };
            say_all(0);
            say_all(40)
        });
        assert!(without / with > at_least, "{} times as fast, {at_once} at once", without / with);
    }
}

#[test]
fn off_is_off_and_always_is_always() {
    assert_eq!(say(Speculation::Off, vec![repeating(50, 2)], rows_are_free).drafted, 0);
    let always = say(Speculation::Always, vec![repeating(50, 2)], |rows| rows as f64);
    assert!(always.drafted >= 90, "{}", always.drafted);
}

#[test]
fn what_has_no_alternative_is_drafted_with_the_token_before_it() {
    let mut guess = Guess::default();
    guess.push(&[TokenId(1)], 0.9);
    guess.push(&[TokenId(2), TokenId(3), TokenId(4)], 0.8);
    assert_eq!((guess.rows(0), guess.rows(1)), (1, 3));
    let speculator = Speculator::new(Speculation::Always);
    let drafter = Drafter::default();
    let step = Step { sequences: 1, rows: 1 };
    // Three rows do not hold the second run, which is not cut.
    assert_eq!(speculator.choose(step, 3, &[(&drafter, Some(&guess))]), [1]);
    assert_eq!(speculator.choose(step, 4, &[(&drafter, Some(&guess))]), [2]);
    let mut draft = guess.draft.clone();
    draft.truncate(1);
    assert_eq!((draft.tokens.len(), draft.samples.as_slice()), (1, &[1][..]));
}
