//! The data sets that the repository ships: their gold against their own texts, their splits, their balance.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use wardrobe_eval::{TaskSettings, read_items, task};

fn rows(path: &str) -> Vec<Value> {
    let text =
        std::fs::read_to_string(format!("{}/../../datasets/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let name = if path.starts_with("last-words") { "last-words" } else { "record" };
    let (items, problems) =
        read_items(text.as_bytes(), task(name).unwrap(), &TaskSettings::default()).unwrap();
    assert!(problems.is_empty(), "{path}: {problems:?}");
    assert_eq!(items.len(), text.lines().count());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

fn people(rows: &[Value]) -> HashSet<&str> {
    let beside = rows.iter().flat_map(|row| row["beside"].as_array().unwrap());
    beside.chain(rows.iter().map(|row| &row["synset"])).map(|synset| synset.as_str().unwrap()).collect()
}

#[test]
fn every_biography_has_its_record_in_its_own_text() {
    let mut names = HashSet::new();
    for row in rows("biographies/train.jsonl").iter().chain(&rows("biographies/test.jsonl")) {
        let (prompt, record) = (text(row, "prompt"), text(row, "completion"));
        let (biographies, question) = prompt.split_once("\n\n").unwrap();
        let asked = question.strip_prefix("Write the JSON record of ").unwrap();
        let (name, example) = asked.split_once(". Answer only with JSON like ").unwrap();
        assert_eq!(
            example,
            r#"{"nationality": "Greek", "born": 1801, "died": 1899, "sportsperson": true, "politician": false}"#
        );
        let record: Value = serde_json::from_str(record).unwrap();
        let keys: Vec<&String> = record.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["nationality", "born", "died", "sportsperson", "politician"]);
        // The name and its years stand once, at the depth that the row says.
        let own = format!("{name} ( {} - {} ) , ", record["born"], record["died"]);
        assert_eq!(biographies.matches(&own).count(), 1, "{prompt}");
        let at = biographies.find(&own).unwrap();
        let starts: Vec<usize> = starts(biographies);
        assert_eq!(starts.len(), 3, "{prompt}");
        let place = starts.iter().position(|start| *start == at).unwrap_or_else(|| panic!("{prompt}"));
        assert_eq!(row["depth"].as_f64(), Some(place as f64 / 2.0));
        // Up to the next person the gloss has the nationality's word, which for Americans is another.
        let end = starts.get(place + 1).copied().unwrap_or(biographies.len());
        let gloss = &biographies[at..end];
        let word = text(&record, "nationality");
        let is_said = gloss.contains(word)
            || (word == "American" && (gloss.contains("United States") || gloss.contains("US;")));
        assert!(is_said, "{word}: {gloss}");
        assert!(!(record["sportsperson"] == true && record["politician"] == true));
        for start in starts {
            let full: String = biographies[start..].split(" ( ").next().unwrap().to_owned();
            assert!(names.insert(full.clone()), "{full} is there twice");
        }
    }
}

/// Where a biography starts: two lower-case words, two years in spaced brackets.
fn starts(text: &str) -> Vec<usize> {
    let words: Vec<(usize, &str)> = text
        .split(' ')
        .scan(0, |at, word| {
            let start = *at;
            *at += word.len() + 1;
            Some((start, word))
        })
        .collect();
    let is_year = |word: &str| word.len() == 4 && word.bytes().all(|b| b.is_ascii_digit());
    let is_start = |w: &[(usize, &str)]| {
        w[2].1 == "(" && is_year(w[3].1) && w[4].1 == "-" && is_year(w[5].1) && w[6].1 == ")" && w[7].1 == ","
    };
    words.windows(8).filter(|w| is_start(w)).map(|w| w[0].0).collect()
}

#[test]
fn train_and_test_share_nobody_and_are_balanced() {
    let (train, test) = (rows("biographies/train.jsonl"), rows("biographies/test.jsonl"));
    assert!(people(&train).is_disjoint(&people(&test)));
    for (rows, num_rows, num_people) in [(&train, 400, 280), (&test, 200, 132)] {
        assert_eq!(rows.len(), num_rows);
        let asked: HashSet<&str> = rows.iter().map(|row| text(row, "synset")).collect();
        assert_eq!(asked.len(), num_people);
        let records: Vec<Value> =
            rows.iter().map(|row| serde_json::from_str(text(row, "completion")).unwrap()).collect();
        let share = |is: &dyn Fn(&Value) -> bool| {
            records.iter().filter(|record| is(record)).count() as f64 / num_rows as f64
        };
        assert!(share(&|r| r["sportsperson"] == true) >= 0.25);
        assert!(share(&|r| r["politician"] == true) >= 0.33);
        assert!(share(&|r| r["nationality"] == "American") < 0.4);
        let mut depths: HashMap<String, usize> = HashMap::new();
        rows.iter().for_each(|row| *depths.entry(row["depth"].to_string()).or_default() += 1);
        assert!(depths.len() == 3 && depths.values().all(|count| *count >= num_rows / 3), "{depths:?}");
    }
}

#[test]
fn last_words_are_the_last_words() {
    let mut documents = HashSet::new();
    let (train, test) = (rows("last-words/train.jsonl"), rows("last-words/test.jsonl"));
    for (row, lengths) in
        train.iter().map(|row| (row, 24..=100)).chain(test.iter().map(|row| (row, 60..=100)))
    {
        let n = row["n"].as_u64().unwrap() as usize;
        let head = format!("Return last {n} words from this text: \n\n");
        let words: Vec<&str> = text(row, "prompt").strip_prefix(&head).unwrap().split_whitespace().collect();
        assert!((1..=20).contains(&n) && lengths.contains(&words.len()), "{n} of {}", words.len());
        assert_eq!(row["document_words"].as_u64(), Some(words.len() as u64));
        assert_eq!(text(row, "completion"), words[words.len() - n..].join(" "));
        assert!(documents.insert(words.join(" ")));
    }
}
