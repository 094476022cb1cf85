//! What an output holds, counted line by line in bounded memory.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;

use wardrobe_generator::Usage;

use super::line::{LabelLine, LineError};
use crate::input::one_line;

/// Fields that are counted; what comes later is not.
const MAX_FIELDS: usize = 256;
/// Different values of one field that are counted; what comes later is not.
const MAX_VALUES: usize = 1000;
/// Of a value; longer ones that begin alike are counted as one.
const MAX_VALUE_CHARS: usize = 120;
/// Kinds of errors that are told apart.
const MAX_KINDS: usize = 64;

/// Labels, errors, tokens, and how the labels' values are distributed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LabelSummary {
    /// Records with a label.
    pub num_labels: u64,
    /// Records without one.
    pub num_errors: u64,
    /// The errors by type.
    pub errors: ErrorCounts,
    /// Labels that were brought to an end since their tokens ran out.
    pub num_cut: u64,
    /// Tokens of all records.
    pub usage: Usage,
    /// The labels' fields, in the order in which they came.
    pub fields: Vec<FieldSummary>,
    /// Values of fields that came after the most that are counted.
    pub num_left_out: u64,
    #[serde(skip)]
    places: HashMap<String, usize>,
}

/// Errors by type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ErrorCounts(pub BTreeMap<String, ErrorCount>);

impl ErrorCounts {
    /// Counts one.
    pub fn add(&mut self, error: &LineError) {
        // Kinds are few, unless the file was not written by us.
        if self.0.len() < MAX_KINDS || self.0.contains_key(&error.kind) {
            let count = self.0.entry(error.kind.clone()).or_default();
            if count.num == 0 {
                count.first = error.message.chars().take(MAX_VALUE_CHARS * 3).collect();
            }
            count.num += 1;
        }
    }

    /// A line for each type, for people.
    pub(crate) fn to_text(&self) -> String {
        let line = |(kind, count): (&String, &ErrorCount)| {
            format!("  {} {kind}, the first: {}\n", count.num, one_line(&count.first, 160))
        };
        self.0.iter().map(line).collect()
    }
}

/// Errors of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ErrorCount {
    /// How many.
    pub num: u64,
    /// What the first says.
    pub first: String,
}

/// How the values of one field are distributed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FieldSummary {
    /// Its path: `address.city`; `tags[]` are the items of lists; empty if labels are no objects.
    pub path: String,
    /// Values, null among them.
    pub num: u64,
    /// How many are null.
    pub num_null: u64,
    /// Values that are numbers.
    pub numbers: Numbers,
    /// Lengths of values that are lists.
    pub lengths: Numbers,
    /// Values that are strings, numbers or booleans, with how often each is there.
    pub values: BTreeMap<String, u64>,
    /// Values that came when as many different ones were counted as can be.
    pub num_uncounted: u64,
}

/// Numbers, in short.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Numbers {
    /// How many.
    pub num: u64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// All together.
    pub sum: f64,
}

impl Numbers {
    fn add(&mut self, value: f64) {
        if self.num == 0 {
            (self.min, self.max) = (value, value);
        }
        self.num += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += value;
    }

    /// The mean; `None` of nothing.
    pub fn mean(&self) -> Option<f64> {
        (self.num > 0).then(|| self.sum / self.num as f64)
    }
}

impl FieldSummary {
    /// Labels without this field; not of items of lists.
    pub fn num_missing(&self, summary: &LabelSummary) -> u64 {
        if self.path.contains("[]") { 0 } else { summary.num_labels.saturating_sub(self.num) }
    }

    /// The most frequent values, at most so many; of equally frequent ones those first that sort first.
    pub fn most_frequent(&self, most: usize) -> Vec<(&str, u64)> {
        let mut values: Vec<(&str, u64)> =
            self.values.iter().map(|(text, num)| (text.as_str(), *num)).collect();
        values.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        values.truncate(most);
        values
    }

    fn count(&mut self, value: &Value) {
        self.num += 1;
        let text = match value {
            Value::Null => {
                self.num_null += 1;
                return;
            }
            Value::Array(items) => {
                self.lengths.add(items.len() as f64);
                return;
            }
            Value::Object(_) => return,
            Value::Number(number) => {
                if let Some(number) = number.as_f64() {
                    self.numbers.add(number);
                }
                number.to_string()
            }
            Value::Bool(value) => value.to_string(),
            Value::String(text) => text.chars().take(MAX_VALUE_CHARS).collect(),
        };
        let has_room = self.values.len() < MAX_VALUES;
        match self.values.get_mut(&text) {
            Some(num) => *num += 1,
            None if has_room => {
                self.values.insert(text, 1);
            }
            None => self.num_uncounted += 1,
        }
    }
}

impl LabelSummary {
    /// Lines that were counted.
    pub fn num_records(&self) -> u64 {
        self.num_labels + self.num_errors
    }

    /// Counts a line.
    pub fn add(&mut self, line: &LabelLine) {
        if let Some(usage) = &line.usage {
            self.usage += *usage;
        }
        if let Some(error) = &line.error {
            self.num_errors += 1;
            self.errors.add(error);
            return;
        }
        self.num_labels += 1;
        self.num_cut += u64::from(line.finish_reason.as_deref() == Some("length"));
        self.add_value("", &line.label);
    }

    fn add_value(&mut self, path: &str, value: &Value) {
        if let Value::Object(members) = value {
            for (name, member) in members {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                self.add_value(&below, member);
            }
            return;
        }
        let known = self.places.get(path).copied();
        let place = match known {
            Some(place) => place,
            None if self.fields.len() < MAX_FIELDS => {
                self.places.insert(path.to_owned(), self.fields.len());
                self.fields.push(FieldSummary { path: path.to_owned(), ..FieldSummary::default() });
                self.fields.len() - 1
            }
            None => {
                self.num_left_out += 1;
                return;
            }
        };
        if let Some(field) = self.fields.get_mut(place) {
            field.count(value);
        }
        if let Value::Array(items) = value {
            items.iter().for_each(|item| self.add_value(&format!("{path}[]"), item));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn label(label: Value) -> LabelLine {
        LabelLine { label, finish_reason: Some("stop".to_owned()), ..LabelLine::default() }
    }

    #[test]
    fn values_are_counted_by_field() {
        let mut summary = LabelSummary::default();
        summary.add(&label(json!({"a": "x", "n": 1, "in": {"b": true}, "tags": ["p", "q"]})));
        summary.add(&label(json!({"a": "x", "n": 4.5, "in": {"b": null}, "tags": []})));
        summary.add(&label(json!({"a": "y", "n": -2})));
        let error = Some(LineError { kind: "engine".to_owned(), message: "no".to_owned() });
        summary.add(&LabelLine { error, ..LabelLine::default() });
        assert_eq!((summary.num_labels, summary.num_errors, summary.errors.0["engine"].num), (3, 1, 1));
        let paths: Vec<&str> = summary.fields.iter().map(|field| field.path.as_str()).collect();
        assert_eq!(paths, ["a", "n", "in.b", "tags", "tags[]"]);
        let [a, n, b, tags, items] = summary.fields.as_slice() else { panic!("five") };
        assert_eq!(a.most_frequent(9), [("x", 2), ("y", 1)]);
        assert_eq!((n.numbers.min, n.numbers.max, n.numbers.mean()), (-2.0, 4.5, Some(3.5 / 3.0)));
        assert_eq!((b.num_null, b.num_missing(&summary), b.most_frequent(9)), (1, 1, vec![("true", 1)]));
        assert_eq!((tags.lengths.num, tags.lengths.max), (2, 2.0));
        assert_eq!((items.num, items.num_missing(&summary)), (2, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut summary = LabelSummary::default();
        for i in 0..3000 {
            summary.add(&label(json!({"text": format!("{i:04}"), format!("field {i}"): 1})));
        }
        assert_eq!(summary.fields.len(), MAX_FIELDS);
        assert_eq!(summary.num_left_out, 3000 - (MAX_FIELDS as u64 - 1));
        assert_eq!((summary.fields[0].values.len(), summary.fields[0].num_uncounted), (1000, 2000));
        summary.add(&label(json!("é".repeat(100_000))));
        assert!(summary.fields.iter().all(|field| field.values.keys().all(|value| value.len() < 300)));
    }
}
