//! `record`: an answer that is one JSON object, compared with gold field by field. `needle`: the same, where what the record
//! says has to be found in a long text, by the text's length and by how deep in it that is.
//!
//! Nested objects are flattened to paths (`date_of_birth.year`); anything else, lists too, is one value. Numbers are
//! compared as numbers (`1801` is `1801.0`), everything else exactly: `"1801"` is no number. An answer that is not one
//! JSON object from end to end, white space aside, has no field right.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Compare, Metric, Score, Scored, Task, Way, best_by, number};
use crate::items::{Fields as LineFields, Item};
use crate::settings::TaskSettings;
use crate::statistics::means;

pub(super) struct Record {
    name: &'static str,
    purpose: &'static str,
    groups: &'static [&'static [&'static str]],
}

pub(super) const RECORD: Record =
    Record { name: "record", purpose: "a JSON object, compared field by field", groups: &[] };

pub(super) const NEEDLE: Record = Record {
    name: "needle",
    purpose: "the same by a text's length and by how deep in it the answer is",
    groups: &[&["length", "depth"], &["length"], &["depth"]],
};

const VALID: &str = "valid";
const FIELDS: &str = "fields";
const DATES: &str = "dates";
const EXACT: &str = "exact";
const BALANCED: &str = "balanced";
/// Before the name of a field that is a measure of its own.
const FIELD_PREFIX: &str = "field ";
/// Fields that count as dates beside those that have "date" in their path.
const DATE_FIELDS: [&str; 5] = ["born", "died", "year", "month", "day"];

/// More is no record that a model answers with, and each is a column of the report.
const MAX_FIELDS: usize = 256;

type Path = Vec<String>;
type Fields = Vec<(Path, Value)>;

impl Task for Record {
    fn name(&self) -> &'static str {
        self.name
    }

    fn purpose(&self) -> &'static str {
        self.purpose
    }

    fn about(&self) -> &'static str {
        "valid: the answer is one JSON object; fields: gold fields that it has right, nothing where it is not valid; dates: \
         the same for dates (born, died, year, month, day, and date in a field's path); exact: all fields right and no \
         others; balanced: mean over fields of the mean over a field's gold values of how often the value was right, \
         so that a rare value counts as much as a frequent one; dates are left out of it"
    }

    fn main_measure(&self) -> &'static str {
        FIELDS
    }

    fn read(&self, fields: &LineFields, _: &TaskSettings) -> Result<Vec<Item>, String> {
        let item = fields.question()?;
        for gold in &item.golds {
            match fields_of(gold) {
                Some(fields) if fields.len() > MAX_FIELDS => {
                    let num = fields.len();
                    return Err(format!("the right answer has {num} fields, more than {MAX_FIELDS}"));
                }
                Some(fields) if !fields.is_empty() => {}
                _ => return Err("the right answer is no JSON object with fields".to_owned()),
            }
        }
        Ok(vec![item])
    }

    fn way(&self) -> Way<'_> {
        Way::Answers(self)
    }

    fn groups(&self) -> &'static [&'static [&'static str]] {
        self.groups
    }

    fn summarise(&self, scored: &[Scored<'_>]) -> Vec<Metric> {
        let mut metrics = means(scored);
        if let Some(balanced) = balanced(scored) {
            let at =
                metrics.iter().position(|metric| metric.name == EXACT).map_or(metrics.len(), |at| at + 1);
            metrics.insert(at, balanced);
        }
        metrics
    }
}

impl Compare for Record {
    fn compare(&self, item: &Item, answer: &str, _: &TaskSettings) -> Score {
        let answer = fields_of(answer);
        best_by(item, FIELDS, |gold| compared(gold, answer.as_ref()))
    }

    fn has_text_golds(&self) -> bool {
        false
    }

    fn majority_answer(&self, golds: &[&str]) -> Option<String> {
        let mut tallies = Tallies::default();
        for (path, value) in golds.iter().filter_map(|gold| fields_of(gold)).flatten() {
            tallies.count(path, value, false);
        }
        let mut record = Map::new();
        for field in tallies.fields {
            // The first of equals, so that the order of the file decides and not that of a hash.
            let most = field.values.iter().map(|tally| tally.num_items).max()?;
            let tally = field.values.into_iter().find(|tally| tally.num_items == most)?;
            put(&mut record, &field.path, tally.value);
        }
        (!record.is_empty()).then(|| Value::Object(record).to_string())
    }
}

/// What an answer is worth whose fields these are, if it is a JSON object.
fn compared(gold: &str, answer: Option<&Fields>) -> Score {
    let gold = fields_of(gold).unwrap_or_default();
    let (valid, none) = (answer.is_some(), Fields::new());
    let answer = answer.unwrap_or(&none);
    let right: Vec<(&Path, bool)> =
        gold.iter().map(|(path, value)| (path, is_right(answer, path, value))).collect();
    let mut score = vec![(VALID.to_owned(), number(valid))];
    let mut share = |name: &str, of: &dyn Fn(&Path) -> bool| {
        let (num, num_right) = right
            .iter()
            .filter(|(path, _)| of(path))
            .fold((0.0, 0.0), |(num, sum), (_, right)| (num + 1.0, sum + number(*right)));
        if num > 0.0 {
            score.push((name.to_owned(), num_right / num));
        }
    };
    share(FIELDS, &|_| true);
    share(DATES, &is_date);
    let exact = valid && right.iter().all(|(_, right)| *right) && answer.len() == gold.len();
    score.push((EXACT.to_owned(), number(exact)));
    score
        .extend(right.iter().map(|(path, right)| (format!("{FIELD_PREFIX}{}", shown(path)), number(*right))));
    Score(score)
}

/// The fields of a text that is one JSON object, in its order; of keys that are there twice, the last.
fn fields_of(text: &str) -> Option<Fields> {
    match serde_json::from_str(text.trim()) {
        Ok(Value::Object(map)) => {
            let mut fields = Vec::new();
            flatten(map, &mut Vec::new(), &mut fields);
            Some(fields)
        }
        _ => None,
    }
}

/// Depth is bounded by the parser's.
fn flatten(map: Map<String, Value>, path: &mut Path, fields: &mut Fields) {
    for (key, value) in map {
        path.push(key);
        match value {
            Value::Object(inner) if !inner.is_empty() => flatten(inner, path, fields),
            value => fields.push((path.clone(), value)),
        }
        path.pop();
    }
}

fn put(map: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            map.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let inner = map.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
            // In some golds the key may have a plain value: the object, which came later, holds more.
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn is_right(answer: &Fields, path: &Path, gold: &Value) -> bool {
    answer.iter().any(|(own, value)| own == path && same(value, gold))
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (a.as_f64().is_some() && a.as_f64() == b.as_f64()),
        _ => a == b,
    }
}

fn is_date(path: &Path) -> bool {
    path.iter().any(|key| key.to_lowercase().contains("date"))
        || path.last().is_some_and(|key| DATE_FIELDS.contains(&key.to_lowercase().as_str()))
}

fn shown(path: &Path) -> String {
    path.join(".")
}

/// How often each value of each field is gold, and how often it was right then, in the order of first appearance.
#[derive(Default)]
struct Tallies {
    fields: Vec<FieldTally>,
}

struct FieldTally {
    path: Path,
    values: Vec<Tally>,
    /// Place of a value, by its text.
    places: HashMap<String, usize>,
}

struct Tally {
    value: Value,
    num_items: usize,
    num_right: usize,
}

impl Tallies {
    fn count(&mut self, path: Path, value: Value, is_right: bool) {
        let at = self.fields.iter().position(|field| field.path == path).unwrap_or_else(|| {
            self.fields.push(FieldTally { path, values: Vec::new(), places: HashMap::new() });
            self.fields.len() - 1
        });
        let Some(field) = self.fields.get_mut(at) else { return };
        // Numbers that are the same have one text.
        let text = match value.as_f64() {
            Some(number) => format!("{number:?}"),
            None => value.to_string(),
        };
        let next = field.values.len();
        let place = *field.places.entry(text).or_insert(next);
        if place == next {
            field.values.push(Tally { value, num_items: 0, num_right: 0 });
        }
        if let Some(tally) = field.values.get_mut(place) {
            tally.num_items += 1;
            tally.num_right += usize::from(is_right);
        }
    }
}

/// Mean over fields of the mean over gold values of how often that value was right. Dates are left out: each has a value of
/// its own, and `dates` says how often they are right.
fn balanced(scored: &[Scored<'_>]) -> Option<Metric> {
    let mut tallies = Tallies::default();
    for item in scored {
        for (path, value) in fields_of(item.item.gold()).unwrap_or_default() {
            if !is_date(&path) {
                let right = item.score.get(&format!("{FIELD_PREFIX}{}", shown(&path))).unwrap_or_default();
                tallies.count(path, value, right > 0.5);
            }
        }
    }
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let of_value = |tally: &Tally| tally.num_right as f64 / tally.num_items as f64;
    let by_field: Vec<f64> =
        tallies.fields.iter().map(|field| mean(field.values.iter().map(of_value).collect())).collect();
    (!by_field.is_empty()).then(|| Metric {
        name: BALANCED.to_owned(),
        value: mean(by_field),
        standard_error: None,
        num_items: scored.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLD: &str = r#"{"nationality": "French", "born": 1852, "died": 1931, "sportsperson": false}"#;

    fn scored(gold: &str, answer: &str) -> Score {
        compared(gold, fields_of(answer).as_ref())
    }

    fn score(gold: &str, answer: &str) -> (f64, f64, Option<f64>, f64) {
        let score = scored(gold, answer);
        (score.get(VALID).unwrap(), score.get(FIELDS).unwrap(), score.get(DATES), score.get(EXACT).unwrap())
    }

    #[test]
    fn fields_are_compared_one_by_one() {
        assert_eq!(score(GOLD, GOLD), (1.0, 1.0, Some(1.0), 1.0));
        let other = r#"  {"sportsperson":false,"born":1852.0,"died":1930,"nationality":"french"}"#;
        assert_eq!(score(GOLD, other), (1.0, 0.5, Some(0.5), 0.0));
        let text = r#"{"nationality": "French", "born": "1852", "died": null, "sportsperson": "false"}"#;
        assert_eq!(score(GOLD, text), (1.0, 0.25, Some(0.0), 0.0));
        let more = r#"{"nationality": "French", "born": 1852, "died": 1931, "sportsperson": false, "x": 1}"#;
        assert_eq!(score(GOLD, more), (1.0, 1.0, Some(1.0), 0.0));
    }

    #[test]
    fn only_one_whole_object_is_valid() {
        for answer in
            ["", "null", "[]", "{} {}", "Sure: {}", "```json\n{}\n```", r#"{"a": 1"#, r#"{"a": 1}."#]
        {
            assert_eq!(score(GOLD, answer), (0.0, 0.0, Some(0.0), 0.0), "{answer}");
        }
        assert_eq!(score(GOLD, "\n{}\n").0, 1.0);
        // The parser's depth is bounded: no answer overflows the stack.
        assert_eq!(score(GOLD, &"{\"a\":".repeat(100_000)).0, 0.0);
    }

    #[test]
    fn nested_objects_are_paths() {
        let gold =
            r#"{"name": "a", "date_of_birth": {"day": 1, "year": 1900}, "tags": ["x", "y"], "none": {}}"#;
        let answer = r#"{"name": "a", "date_of_birth": {"year": 1900}, "tags": ["y", "x"], "none": {}}"#;
        assert_eq!(score(gold, answer), (1.0, 0.6, Some(0.5), 0.0));
        assert_eq!(scored(gold, answer).get("field date_of_birth.year"), Some(1.0));
        let many: Map<String, Value> = (0..=MAX_FIELDS).map(|i| (i.to_string(), Value::Null)).collect();
        for (gold, is_good) in [
            (gold, true),
            ("", false),
            ("{}", false),
            ("3", false),
            (&Value::Object(many).to_string(), false),
        ] {
            let line = serde_json::json!({"prompt": "q", "completion": gold}).to_string();
            let (items, problems) =
                crate::read_items(line.as_bytes(), &RECORD, &TaskSettings::default()).unwrap();
            assert_eq!((items.len(), problems.len()), if is_good { (1, 0) } else { (0, 1) }, "{gold}");
        }
    }

    #[test]
    fn the_majority_is_taken_field_by_field() {
        let golds = [
            r#"{"a": 1, "d": {"year": 5}}"#,
            r#"{"a": 2, "d": {"year": 6}}"#,
            r#"{"a": 2.0, "d": {"year": 7}, "e": true}"#,
        ];
        let answer = RECORD.majority_answer(&golds).unwrap();
        assert_eq!(answer, r#"{"a":2,"d":{"year":5},"e":true}"#);
        assert_eq!(RECORD.majority_answer(&[]), None);
    }

    #[test]
    fn a_rare_value_counts_as_much_as_a_frequent_one() {
        let golds = [r#"{"s": true}"#, r#"{"s": false}"#, r#"{"s": false}"#, r#"{"s": false}"#];
        let scores = golds.map(|gold| scored(gold, r#"{"s": false}"#));
        let items = golds.map(|gold| Item::new(1, "", vec![gold.to_owned()]));
        let scored: Vec<_> = items
            .iter()
            .zip(&scores)
            .map(|(item, score)| Scored { item, answer: r#"{"s": false}"#, score })
            .collect();
        let metrics = RECORD.summarise(&scored);
        let value = |name: &str| metrics.iter().find(|m| m.name == name).unwrap().value;
        assert_eq!((value(FIELDS), value(BALANCED)), (0.75, 0.5));
    }
}
