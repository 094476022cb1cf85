//! Our measures against Python packages that are not ours.
//!
//! `WARDROBE_PYTHON`: a Python with the packages of `requirements.txt`. Without it the test says that it was skipped.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use wardrobe_eval::{
    EvalOptions, Item, Target, TaskSettings, evaluate, indel_ratio, read_items, rouge, task,
};
use wardrobe_generator::{
    Answer, AskError, Generator, Message, Question, RetryPolicy, Scorer, Stopped, TokenScore,
};

/// Says it past the test harness's capture.
fn skipped(test: &str, why: &str) {
    std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes()).unwrap();
}

/// Asks the script, which answers a JSON list with a JSON list.
fn reference(test: &str, kind: &str, input: &serde_json::Value) -> Option<serde_json::Value> {
    let Some(python) = std::env::var("WARDROBE_PYTHON").ok().filter(|path| !path.is_empty()) else {
        skipped(test, "WARDROBE_PYTHON names no Python");
        return None;
    };
    let found = Command::new(&python)
        .args(["-c", "import Levenshtein, numpy, rouge_score"])
        .stderr(Stdio::null())
        .status();
    if !found.unwrap().success() {
        skipped(test, &format!("{python} lacks what requirements.txt names"));
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent.py");
    let mut child = Command::new(&python)
        .args([script, kind])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script} failed");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn text(&mut self, max_chars: usize) -> String {
        let letters: Vec<char> = "abcde  .ßé漢🙂".chars().collect();
        (0..self.below(max_chars + 1)).map(|_| letters[self.below(letters.len())]).collect()
    }
}

#[test]
fn the_ratio_equals_levenshteins() {
    let mut random = Random(1);
    let mut pairs: Vec<(String, String)> = (0..500).map(|_| (random.text(150), random.text(150))).collect();
    pairs.extend([("kitten", "sitting"), ("", ""), ("", "x")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    // Cuts of one text, as answers of this task are.
    let text = random.text(2000);
    let tail = |n: usize| text.chars().skip(text.chars().count().saturating_sub(n)).collect::<String>();
    pairs.extend([
        (tail(300), tail(180)),
        (tail(10), tail(700)),
        (tail(64), tail(64)),
        (tail(129), tail(65)),
    ]);
    let input = serde_json::json!(pairs);
    let Some(expected) = reference("the_ratio_equals_levenshteins", "ratio", &input) else { return };
    for ((a, b), expected) in pairs.iter().zip(expected.as_array().unwrap()) {
        let (actual, expected) = (indel_ratio(a, b), expected.as_f64().unwrap());
        assert!((actual - expected).abs() < 1e-12, "{a:?} {b:?}: {actual} {expected}");
    }
}

#[test]
fn records_are_scored_as_python_scores_them() {
    let gold =
        r#"{"nationality": "French", "born": 1852, "died": 1931, "sportsperson": false, "politician": true}"#;
    let mut answers: Vec<String> = [
        gold,
        r#"{"nationality": "French", "born": 1852.0, "died": "1931", "sportsperson": 0, "politician": 1}"#,
        r#"{"nationality": "French", "nationality": "Dutch", "born": 1852}"#,
        r#"{"nationality": "Fr\u0065nch", "died": 1.931e3}"#,
        "[1]",
        "null",
        "",
        "{}{}",
    ]
    .map(str::to_owned)
    .to_vec();
    // Damaged ones: a character replaced, or the end gone.
    let mut random = Random(2);
    for _ in 0..500 {
        let mut chars: Vec<char> = gold.chars().collect();
        for _ in 0..=random.below(3) {
            let at = random.below(chars.len());
            chars[at] = ['"', '{', '}', ',', '0', '7', 'e', ' '][random.below(8)];
        }
        if random.below(4) == 0 {
            chars.truncate(random.below(chars.len()));
        }
        answers.push(chars.into_iter().collect());
    }
    let input = serde_json::json!({ "gold": gold, "answers": answers });
    let Some(expected) = reference("records_are_scored_as_python_scores_them", "record", &input) else {
        return;
    };
    let expected = expected.as_array().unwrap();
    let (mut num_valid, record) = (0, task("record").unwrap());
    let item = Item::new(1, "", vec![gold.to_owned()]);
    for (answer, expected) in answers.iter().zip(expected) {
        let score = record.score(&item, answer, &TaskSettings::default()).unwrap();
        let actual = serde_json::json!([score.get("valid"), score.get("fields"), score.get("dates")]);
        assert_eq!(&actual, expected, "{answer}");
        num_valid += usize::from(score.get("valid") == Some(1.0));
    }
    assert!(num_valid > 50 && num_valid < 450, "{num_valid}");
}

/// Sentences of words that have stems, over several lines.
fn prose(random: &mut Random, max_words: usize) -> String {
    const ROOTS: [&str; 40] = [
        "relat",
        "condition",
        "ration",
        "vali",
        "digit",
        "operat",
        "feudal",
        "decis",
        "hope",
        "call",
        "form",
        "sensi",
        "trouble",
        "hop",
        "tan",
        "fall",
        "hiss",
        "fizz",
        "fail",
        "fil",
        "happ",
        "sk",
        "tr",
        "sp",
        "agre",
        "plaster",
        "motor",
        "generaliz",
        "oscillat",
        "gyroscop",
        "adjust",
        "defens",
        "irrit",
        "replac",
        "depend",
        "adopt",
        "communis",
        "activ",
        "angular",
        "bowdler",
    ];
    const ENDINGS: [&str; 44] = [
        "", "s", "es", "ies", "ed", "eed", "ied", "ing", "y", "ational", "tional", "enci", "anci", "izer",
        "bli", "alli", "entli", "eli", "ousli", "ization", "ation", "ator", "alism", "iveness", "fulness",
        "ousness", "aliti", "iviti", "biliti", "fulli", "logi", "icate", "ative", "alize", "ical", "ness",
        "ement", "ion", "ll", "e", "eing", "yy", "9", "'s",
    ];
    const OTHERS: [&str; 14] = [
        "skies",
        "dying",
        "news",
        "innings",
        "proceed",
        "die",
        "a",
        "42nd",
        "naïve",
        "ΑΒΣ",
        "İstanbul",
        "K9",
        "x-ray",
        "—",
    ];
    let num = random.below(max_words + 1);
    let mut text = String::new();
    for _ in 0..num {
        match random.below(6) {
            0 => text += OTHERS[random.below(OTHERS.len())],
            _ => {
                text += ROOTS[random.below(ROOTS.len())];
                text += ENDINGS[random.below(ENDINGS.len())];
            }
        }
        text += [" ", " ", " ", ", ", ". ", "\n", "\n\n", " The "][random.below(8)];
    }
    text
}

#[test]
fn rouge_equals_rouge_scores() {
    let mut random = Random(3);
    let mut pairs: Vec<(Vec<String>, String)> = Vec::new();
    for round in 0..150 {
        let golds = (0..1 + random.below(3)).map(|_| prose(&mut random, 40)).collect::<Vec<_>>();
        // Half of the answers share much with a right one.
        let answer = match round % 2 {
            0 => prose(&mut random, 40),
            _ => golds[0].split(' ').filter(|_| random.below(4) > 0).collect::<Vec<_>>().join(" "),
        };
        pairs.push((golds, answer));
    }
    pairs.push((vec![String::new()], String::new()));
    pairs.push((vec!["one\ntwo".to_owned()], "two\none".to_owned()));
    let Some(expected) = reference("rouge_equals_rouge_scores", "rouge", &serde_json::json!(pairs)) else {
        return;
    };
    for ((golds, answer), expected) in pairs.iter().zip(expected.as_array().unwrap()) {
        for (stems, expected) in [false, true].into_iter().zip(expected.as_array().unwrap()) {
            let best = |of: fn(&wardrobe_eval::Rouge) -> f64| {
                golds.iter().map(|gold| of(&rouge(gold, answer, stems))).fold(0.0, f64::max)
            };
            let actual = [
                best(|r| r.rouge_1),
                best(|r| r.rouge_2),
                best(|r| r.rouge_l),
                best(|r| r.rouge_l_sum.unwrap()),
            ];
            for (actual, expected) in actual.iter().zip(expected.as_array().unwrap()) {
                let expected = expected.as_f64().unwrap();
                assert!(
                    (actual - expected).abs() < 1e-9,
                    "{stems} {golds:?} {answer:?}: {actual} {expected}"
                );
            }
        }
    }
}

#[test]
fn short_answers_are_scored_as_python_scores_them() {
    let mut random = Random(4);
    let words = [
        "the", "a", "An", "Eiffel", "eiffel", "Tower", "tower.", "42", "(Paris)", "d'Or", "Œuvre", "x_a",
        "A.", "",
    ];
    let mut text = |max: usize| -> String {
        (0..random.below(max + 1)).map(|_| words[random.below(words.len())]).collect::<Vec<_>>().join(" ")
    };
    let mut pairs: Vec<(Vec<String>, String)> = Vec::new();
    for _ in 0..400 {
        pairs.push((vec![text(3) + "z", text(3), text(4)], text(6)));
    }
    let name = "short_answers_are_scored_as_python_scores_them";
    let Some(expected) = reference(name, "answers", &serde_json::json!(pairs)) else { return };
    let (mqa, exact) = (task("mqa").unwrap(), task("exact-match").unwrap());
    let settings = TaskSettings::default();
    let mut num_right = 0;
    for ((golds, answer), expected) in pairs.iter().zip(expected.as_array().unwrap()) {
        let item = Item::new(1, "", golds.clone());
        let score = mqa.score(&item, answer, &settings).unwrap();
        for (name, expected) in ["contains", "exact", "f1"].into_iter().zip(expected.as_array().unwrap()) {
            let (actual, expected) = (score.get(name).unwrap(), expected.as_f64().unwrap());
            assert!((actual - expected).abs() < 1e-12, "{name} {golds:?} {answer:?}: {actual} {expected}");
        }
        assert_eq!(exact.score(&item, answer, &settings).unwrap().get("normalized"), score.get("exact"));
        num_right += usize::from(score.get("exact") == Some(1.0));
    }
    assert!(num_right > 20 && num_right < 380, "{num_right}");
}

/// Tokens are characters; how likely one is, a formula says.
struct Formula {
    nats: fn(tokens: &[u32], at: usize) -> f64,
}

impl Generator for Formula {
    fn name(&self) -> &str {
        "formula"
    }

    fn identity(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn concurrency(&self) -> usize {
        2
    }

    fn generate(&self, _: &Question, _: &Stopped<'_>) -> Result<Answer, AskError> {
        panic!("nothing is generated")
    }

    fn scorer(&self) -> Option<&dyn Scorer> {
        Some(self)
    }
}

impl Scorer for Formula {
    fn tokenize(&self, text: &str, _: bool) -> Result<Vec<u32>, AskError> {
        Ok(text.chars().map(u32::from).collect())
    }

    fn tokenize_chat(&self, _: &[Message]) -> Result<Vec<u32>, AskError> {
        panic!("no chat is asked for")
    }

    fn max_context_tokens(&self) -> Option<usize> {
        Some(256)
    }

    fn score(&self, tokens: &[u32], _: &Stopped<'_>) -> Result<Vec<TokenScore>, AskError> {
        assert!(tokens.len() <= 256);
        let score = |at| TokenScore { logprob: -(self.nats)(tokens, at), is_likeliest: false };
        Ok((1..tokens.len()).map(score).collect())
    }
}

fn options(settings: &TaskSettings) -> EvalOptions<'static> {
    let ms = std::time::Duration::from_millis;
    let retry = RetryPolicy { first_wait: ms(1), max_wait: ms(1), patience: ms(10) };
    EvalOptions { retry, settings: settings.clone(), ..EvalOptions::default() }
}

#[test]
fn choices_are_chosen_as_the_harness_chooses() {
    // Nats of a token by its character and the one before it.
    let formula =
        Formula { nats: |tokens, at| f64::from((tokens[at] * 31 + tokens[at - 1] * 17) % 97) / 10.0 + 0.01 };
    let mut random = Random(5);
    let mut lines = Vec::new();
    for _ in 0..200 {
        let mut texts: Vec<String> = (0..2 + random.below(4)).map(|_| random.text(12) + "e").collect();
        texts.sort();
        texts.dedup();
        let prompt = format!("{}?{}", random.text(20), ["", " ", "  "][random.below(3)]);
        let right = random.below(texts.len().max(1));
        lines.push((prompt, texts, right));
    }
    lines.retain(|(_, texts, _)| texts.len() > 1);
    let text: String = lines
        .iter()
        .map(|(prompt, texts, right)| {
            serde_json::json!({"prompt": prompt, "choices": texts, "answer": right}).to_string() + "\n"
        })
        .collect();
    // Likelihoods of what follows, by the formula and from the texts alone.
    let input: Vec<_> = lines
        .iter()
        .map(|(prompt, texts, right)| {
            let likelihoods: Vec<f64> = texts
                .iter()
                .map(|choice| {
                    let parts =
                        prompt.ends_with(char::is_whitespace) || choice.starts_with(char::is_whitespace);
                    let whole: Vec<u32> = format!("{prompt}{}{choice}", if parts { "" } else { " " })
                        .chars()
                        .map(u32::from)
                        .collect();
                    let start = prompt.trim_end().chars().count();
                    -(start..whole.len()).map(|at| (formula.nats)(&whole, at)).sum::<f64>()
                })
                .collect();
            (texts, right, likelihoods)
        })
        .collect();
    let name = "choices_are_chosen_as_the_harness_chooses";
    let Some(expected) = reference(name, "choices", &serde_json::json!(input)) else { return };
    let (task, settings) = (task("choices").unwrap(), TaskSettings::default());
    let (items, problems) = read_items(text.as_bytes(), task, &settings).unwrap();
    assert!(problems.is_empty() && items.len() == lines.len(), "{problems:?}");
    let report = evaluate(&items, task, &[Target::new(&formula)], options(&settings)).unwrap();
    let mut num_different = 0;
    for (outcome, expected) in report.results[0].outcomes.iter().zip(expected.as_array().unwrap()) {
        let score = &outcome.answer().unwrap().score;
        let actual = serde_json::json!([score.get("acc"), score.get("acc_norm"), score.get("acc_bytes")]);
        assert_eq!(&actual, expected);
        num_different += usize::from(score.get("acc") != score.get("acc_norm"));
    }
    assert!(num_different > 5, "{num_different}");
}

#[test]
fn perplexity_slides_as_the_usual_recipe_does() {
    // The same as in independent.py: tokens are their own places.
    let formula = Formula {
        nats: |tokens, at| {
            let place = tokens[at] - u32::from('一');
            f64::from(place * 7919 % 1009) / 100.0 + 1.0 / (1.0 + at as f64)
        },
    };
    let cases: Vec<(usize, usize, usize)> =
        [(2, 2), (10, 4), (11, 4), (100, 16), (255, 256), (600, 64), (1000, 256)]
            .into_iter()
            .flat_map(|(length, context)| {
                [1, context / 4, context / 2, context - 1]
                    .into_iter()
                    .filter(|stride| *stride > 0)
                    .map(move |stride| (length, context, stride))
            })
            .collect();
    let name = "perplexity_slides_as_the_usual_recipe_does";
    let Some(expected) = reference(name, "windows", &serde_json::json!(cases)) else { return };
    let task = task("perplexity").unwrap();
    for ((length, context, stride), expected) in cases.iter().zip(expected.as_array().unwrap()) {
        let text: String = ('一'..).take(*length).collect();
        let settings =
            TaskSettings { contexts: vec![*context], stride: Some(*stride), ..TaskSettings::default() };
        let line = serde_json::json!({"text": text}).to_string();
        let (items, _) = read_items(line.as_bytes(), task, &settings).unwrap();
        let report = evaluate(&items, task, &[Target::new(&formula)], options(&settings)).unwrap();
        let (nats, num) = (expected[0].as_f64().unwrap(), expected[1].as_f64().unwrap());
        for (name, expected) in [
            ("perplexity", (nats / num).exp()),
            ("bits_per_token", nats / num / 2f64.ln()),
            ("bits_per_byte", nats / text.len() as f64 / 2f64.ln()),
        ] {
            let actual = report.results[0].metric(name).unwrap();
            let case = format!("{name} of {length} tokens, {context} by {stride}");
            assert!((actual / expected - 1.0).abs() < 1e-9, "{case}: {actual} {expected}");
        }
    }
}
