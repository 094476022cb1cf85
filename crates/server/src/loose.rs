//! Schemas that are not strict: what of them no grammar holds is named in the answer, and the answer is checked for it when it
//! is there.

use std::collections::{HashMap, HashSet};

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use wardrobe_grammar::{Beside, Spec, Template};

/// Schemas that a check may go through for each value of an answer, with what references lead to. More, or references in a
/// circle, could take for ever.
const MAX_SCHEMAS: usize = 20_000;

/// Characters of a complaint.
const MAX_COMPLAINT_CHARS: usize = 300;

/// What of a request's schemas is not held by its grammar, and how answers are checked for it.
#[derive(Debug)]
pub(crate) struct LooseSchemas {
    warnings: Vec<String>,
    answer: Option<Check>,
    functions: HashMap<String, Check>,
}

#[derive(Debug)]
enum Check {
    Validator(Box<Validator>),
    /// It cannot be checked, for this reason.
    None(String),
}

impl LooseSchemas {
    /// Of what a template was compiled from, if it leaves anything out.
    pub fn new(spec: &Spec, template: &Template) -> Option<Self> {
        if template.warnings().is_empty() {
            return None;
        }
        let mut functions = HashMap::new();
        let mut answer = None;
        match spec {
            Spec::JsonSchema { schema, .. } => answer = Some(Check::new(schema)),
            Spec::ToolCalls(calls) => {
                for function in &calls.functions {
                    functions.insert(function.name.clone(), Check::new(&function.parameters));
                }
                if let Beside::Json { schema, .. } = &calls.beside {
                    answer = Some(Check::new(schema));
                }
            }
            _ => {}
        }
        Some(Self { warnings: template.warnings().to_vec(), answer, functions })
    }

    /// The warnings of an answer that is text.
    pub fn of_text(&self, text: &str) -> Vec<String> {
        let complaint = self.answer.as_ref().and_then(|check| check.complaint(text));
        self.with(complaint.map(|complaint| format!("the answer {complaint}")))
    }

    /// The warnings of an answer that is calls: names and arguments.
    pub fn of_calls<'a>(&self, calls: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
        let complaints = calls.filter_map(|(name, arguments)| {
            let complaint = self.functions.get(name)?.complaint(arguments)?;
            Some(format!("the arguments of {name}: what the model wrote {complaint}"))
        });
        self.with(complaints)
    }

    fn with(&self, complaints: impl IntoIterator<Item = String>) -> Vec<String> {
        self.warnings.iter().cloned().chain(complaints).collect()
    }
}

impl Check {
    fn new(schema: &Value) -> Self {
        if schema.is_null() {
            // A function without parameters.
            return Self::new(&Value::Bool(true));
        }
        if !is_bounded(schema) {
            return Self::None("its references go too far or in a circle".to_owned());
        }
        // Patterns that need backtracking have no bound that adds up over many of them: such a schema is not checked.
        let patterns = PatternOptions::regex();
        let options = jsonschema::options().should_validate_formats(true).with_pattern_options(patterns);
        match options.build(schema) {
            Ok(validator) => Self::Validator(Box::new(validator)),
            Err(error) => Self::None(shortened(&error.to_string())),
        }
    }

    /// What is wrong with a text, if anything is, or is not known.
    fn complaint(&self, text: &str) -> Option<String> {
        let validator = match self {
            Self::Validator(validator) => validator,
            Self::None(reason) => return Some(format!("was not checked against the schema: {reason}")),
        };
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return Some(format!("is no JSON: {error}")),
        };
        let error = validator.validate(&value).err()?;
        let place = error.instance_path().to_string();
        let place = if place.is_empty() { "its root".to_owned() } else { shortened(&place) };
        Some(format!("is not valid by the schema: at {place}, {}", shortened(&error.to_string())))
    }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_COMPLAINT_CHARS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Whether all that references lead to is of a bearable size, without circles.
fn is_bounded(schema: &Value) -> bool {
    let mut walk = Expansion { root: schema, left: MAX_SCHEMAS, open: HashSet::new(), is_root: true };
    walk.go(schema)
}

struct Expansion<'a> {
    root: &'a Value,
    left: usize,
    open: HashSet<&'a str>,
    is_root: bool,
}

impl<'a> Expansion<'a> {
    fn go(&mut self, value: &'a Value) -> bool {
        match value {
            Value::Array(items) => items.iter().all(|item| self.go(item)),
            Value::Object(members) => {
                let Some(left) = self.left.checked_sub(1) else { return false };
                self.left = left;
                if members.contains_key("$dynamicRef") || members.contains_key("$recursiveRef") {
                    return false;
                }
                // Below an id of its own, pointers lead elsewhere than they seem to.
                let names_itself =
                    ["$id", "id"].iter().any(|key| members.get(*key).is_some_and(Value::is_string));
                if names_itself && !std::mem::take(&mut self.is_root) {
                    return false;
                }
                self.is_root = false;
                let follows = match members.get("$ref") {
                    Some(Value::String(reference)) => self.follow(reference),
                    _ => true,
                };
                let inside = |key: &&'a String| !matches!(key.as_str(), "$defs" | "definitions");
                follows && members.iter().filter(|(key, _)| inside(key)).all(|(_, value)| self.go(value))
            }
            _ => true,
        }
    }

    fn follow(&mut self, reference: &'a str) -> bool {
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        // By other ways than a pointer its size is not known.
        let Some(target) = target else { return false };
        if !self.open.insert(reference) {
            return false;
        }
        let bounded = self.go(target);
        self.open.remove(reference);
        bounded
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let check = Check::new(&json!({"properties": {"a": {"type": "array", "uniqueItems": true}}}));
        assert_eq!(check.complaint(r#"{"a": [1, 2]}"#), None);
        let complaint = check.complaint(r#"{"a": [1, 1]}"#).unwrap();
        assert!(complaint.contains("/a") && complaint.contains("unique"), "{complaint}");
        assert!(check.complaint("{").unwrap().contains("no JSON"));
    }

    #[test]
    fn checks_that_could_take_for_ever_are_not_made() {
        let mut doubling = json!({"$defs": {"s0": {"type": "integer"}}, "$ref": "#/$defs/s40"});
        for idx in 1..=40 {
            let below = json!({"$ref": format!("#/$defs/s{}", idx - 1)});
            doubling["$defs"][format!("s{idx}")] = json!({"anyOf": [below, below]});
        }
        for schema in [
            json!({"$ref": "#"}),
            json!({"properties": {"next": {"$ref": "#"}}}),
            json!({"$dynamicRef": "#x"}),
            json!({"$ref": "https://example.com/schema"}),
            // The chain behind an id of its own, with harmless namesakes at the root.
            json!({"$defs": {"s40": true, "s39": true}, "properties": {"a": {"$id": "https://example.com/b",
                "$defs": doubling["$defs"], "$ref": "#/$defs/s40"}}}),
            // Patterns that backtrack.
            json!({"pattern": r"^(a|a)*\1(?=b)$"}),
            doubling,
        ] {
            let complaint = Check::new(&schema).complaint("1").unwrap();
            assert!(complaint.contains("not checked"), "{complaint}");
        }
        let shared = json!({"$defs": {"s": {"type": "integer"}}, "prefixItems": [{"$ref": "#/$defs/s"}, {"$ref": "#/$defs/s"}]});
        assert_eq!(Check::new(&shared).complaint("[1, 2]"), None);
    }
}
