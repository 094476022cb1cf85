//! Our measures against Python packages that are not ours.
//!
//! `WARDROBE_PYTHON`: a Python with the packages of `requirements.txt`. Without it the test says that it was skipped.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use wardrobe_eval::{indel_ratio, task};

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
    let found = Command::new(&python).args(["-c", "import Levenshtein"]).stderr(Stdio::null()).status();
    if !found.unwrap().success() {
        skipped(test, &format!("{python} lacks Levenshtein"));
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
    for (answer, expected) in answers.iter().zip(expected) {
        let score = record.score(gold, answer);
        let actual = serde_json::json!([score.get("valid"), score.get("fields"), score.get("dates")]);
        assert_eq!(&actual, expected, "{answer}");
        num_valid += usize::from(score.get("valid") == Some(1.0));
    }
    assert!(num_valid > 50 && num_valid < 450, "{num_valid}");
}
