//! A schema as a regular expression over the JSON text that it allows, for schemas of which that says everything.
//!
//! What is taken: objects without further properties, in the schema's order; lists; texts, with lengths or one of a few
//! patterns; numbers without bounds; `true`, `false`, `null`; constants; `anyOf` of these; references that do not come back
//! to themselves. Anything else, and anything that would be too large, is left to the other engine.

use serde_json::{Map, Value};

use crate::schema::is_annotation;
use crate::spec::Whitespace;

/// Characters of the expression, with repetitions written out: a measure of the automaton.
const MAX_SIZE: usize = 8_000;
const MAX_DEPTH: usize = 24;
/// Where no property is required, each may be the first: the expression grows with the square.
const MAX_OPTIONAL: usize = 12;

/// A character of a string, as the other engine writes it: controls in their short form, or as four digits.
const CHARACTER: &str = r#"(?:[^"\\\x00-\x1f\x7f]|\\["\\bfnrt]|\\u00(?:0[0-7bBeEfF]|1[0-9a-fA-F]|7[fF]))"#;
const INTEGER: &str = r"(?:0|-?[1-9][0-9]{0,16})";
/// As many digits as an f64 can tell apart, before and behind the dot; see also `guidance/numbers.rs`.
const NUMBER: &str =
    r"(?:(?:0|-?[1-9][0-9]{0,15})(?:\.[0-9]{1,17})?|-0\.[0-9]{1,17})(?:[eE][+-]?[0-9]{1,2})?";

/// The expression, for the whole text.
pub(super) fn of(schema: &Value, whitespace: Whitespace) -> Option<String> {
    let separators = match whitespace {
        Whitespace::Spaced => (", ", ": "),
        Whitespace::Compact => (",", ":"),
        Whitespace::Flexible => return None,
    };
    let mut pattern = Pattern { root: schema, separators, size: 0 };
    let body = pattern.schema(schema, 0)?;
    // The whole text, and nothing of it is a line of its own.
    Some(format!(r"\A(?:{body})\z"))
}

struct Pattern<'a> {
    root: &'a Value,
    separators: (&'static str, &'static str),
    size: usize,
}

impl Pattern<'_> {
    fn take(&mut self, size: usize) -> Option<()> {
        self.size = self.size.saturating_add(size);
        (self.size <= MAX_SIZE).then_some(())
    }

    fn schema(&mut self, schema: &Value, depth: usize) -> Option<String> {
        if depth > MAX_DEPTH {
            return None;
        }
        // Also what adds nothing by itself, such as references to references.
        self.take(1)?;
        let members = schema.as_object()?;
        let has =
            |keys: &[&str]| members.keys().all(|key| is_annotation(key) || keys.contains(&key.as_str()));
        if let Some(reference) = members.get("$ref") {
            let target = self.root.pointer(reference.as_str()?.strip_prefix('#')?)?;
            return if has(&["$ref"]) { self.schema(target, depth + 1) } else { None };
        }
        if let Some(values) = members.get("enum") {
            return if has(&["enum", "type"]) { self.constants(values.as_array()?, members) } else { None };
        }
        if let Some(value) = members.get("const") {
            return if has(&["const", "type"]) {
                self.constants(std::slice::from_ref(value), members)
            } else {
                None
            };
        }
        if let Some(ways) = members.get("anyOf") {
            if !has(&["anyOf"]) {
                return None;
            }
            let ways =
                ways.as_array()?.iter().map(|way| self.schema(way, depth + 1)).collect::<Option<Vec<_>>>()?;
            return Some(format!("(?:{})", ways.join("|")));
        }
        match members.get("type")? {
            Value::String(name) => self.of_type(name, members, &has, depth),
            Value::Array(names) => {
                // With more than a name every keyword would have to be sorted to its type.
                if !has(&["type"]) {
                    return None;
                }
                let ways = names.iter().map(|name| self.of_type(name.as_str()?, members, &has, depth));
                Some(format!("(?:{})", ways.collect::<Option<Vec<_>>>()?.join("|")))
            }
            _ => None,
        }
    }

    fn of_type(
        &mut self,
        name: &str,
        members: &Map<String, Value>,
        has: &dyn Fn(&[&str]) -> bool,
        depth: usize,
    ) -> Option<String> {
        match name {
            "null" if has(&["type"]) => Some("null".to_owned()),
            "boolean" if has(&["type"]) => Some("(?:true|false)".to_owned()),
            "integer" if has(&["type"]) => {
                self.take(24)?;
                Some(INTEGER.to_owned())
            }
            "number" if has(&["type"]) => {
                self.take(60)?;
                Some(NUMBER.to_owned())
            }
            "string" if has(&["type", "minLength", "maxLength"]) => {
                let count =
                    |key: &str| members.get(key).map(|v| v.as_u64().and_then(|v| usize::try_from(v).ok()));
                let (min, max) = (count("minLength").unwrap_or(Some(0))?, count("maxLength"));
                let bounds = match max {
                    None => {
                        self.take(10 * (min + 1))?;
                        format!("{{{min},}}")
                    }
                    Some(max) => {
                        let max = max.filter(|max| *max >= min)?;
                        self.take(10 * (max + 1))?;
                        format!("{{{min},{max}}}")
                    }
                };
                Some(format!("\"{CHARACTER}{bounds}\""))
            }
            "array" if has(&["type", "items", "minItems", "maxItems"]) => self.array(members, depth),
            "object" if has(&["type", "properties", "required", "additionalProperties"]) => {
                self.object(members, depth)
            }
            _ => None,
        }
    }

    fn constants(&mut self, values: &[Value], members: &Map<String, Value>) -> Option<String> {
        let fits = |value: &Value| match members.get("type").map(Value::as_str) {
            None => true,
            Some(Some("string")) => value.is_string(),
            Some(Some("boolean")) => value.is_boolean(),
            Some(Some("null")) => value.is_null(),
            Some(Some("integer")) => value.is_i64(),
            _ => false,
        };
        let mut ways = Vec::with_capacity(values.len());
        for value in values.iter().filter(|value| fits(value)) {
            // Other numbers can be written in more than a way, and of what is inside of lists and objects not only this.
            if !(value.is_string() || value.is_boolean() || value.is_null() || value.is_i64()) {
                return None;
            }
            let text = value.to_string();
            // A control character can be written in two ways.
            if text.contains("\\u") || text.contains('\u{7f}') {
                return None;
            }
            self.take(text.len())?;
            ways.push(regex_syntax::escape(&text));
        }
        (!ways.is_empty()).then(|| format!("(?:{})", ways.join("|")))
    }

    fn array(&mut self, members: &Map<String, Value>, depth: usize) -> Option<String> {
        let before = self.size;
        let item = self.schema(members.get("items")?, depth + 1)?;
        let size = self.size - before + 2;
        let count = |key: &str| match members.get(key) {
            None => Some(None),
            Some(value) => Some(Some(usize::try_from(value.as_u64()?).ok()?)),
        };
        let (min, max) = (count("minItems")?.unwrap_or(0), count("maxItems")?);
        let comma = self.separators.0;
        let more = match max {
            Some(0) => return (min == 0).then(|| r"\[\]".to_owned()),
            Some(max) if max < min => return None,
            Some(max) => {
                self.take(size.saturating_mul(max))?;
                format!("{{{},{}}}", min.saturating_sub(1), max - 1)
            }
            None => {
                self.take(size.saturating_mul(min + 1))?;
                format!("{{{},}}", min.saturating_sub(1))
            }
        };
        let items = format!("{item}(?:{comma}{item}){more}");
        Some(if min == 0 { format!(r"\[(?:{items})?\]") } else { format!(r"\[{items}\]") })
    }

    fn object(&mut self, members: &Map<String, Value>, depth: usize) -> Option<String> {
        if members.get("additionalProperties") != Some(&Value::Bool(false)) {
            return None;
        }
        let none = Map::new();
        let properties = members.get("properties").map_or(Some(&none), Value::as_object)?;
        let required: Vec<&str> = match members.get("required") {
            None => Vec::new(),
            Some(names) => names.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?,
        };
        if required.iter().any(|name| !properties.contains_key(*name)) {
            return None;
        }
        let mut parts = Vec::with_capacity(properties.len());
        for (name, property) in properties {
            let name_text = Value::String(name.clone()).to_string();
            if name_text.contains("\\u") {
                return None;
            }
            self.take(name_text.len() + 4)?;
            let value = self.schema(property, depth + 1)?;
            let part = format!("{}{}{value}", regex_syntax::escape(&name_text), self.separators.1);
            parts.push((part, required.contains(&name.as_str())));
        }
        let comma = self.separators.0;
        let Some(first) = parts.iter().position(|(_, required)| *required) else {
            return self.all_optional(&parts);
        };
        let mut text = String::new();
        for (i, (part, required)) in parts.iter().enumerate() {
            text.push_str(&match (i.cmp(&first), required) {
                (std::cmp::Ordering::Less, _) => format!("(?:{part}{comma})?"),
                (std::cmp::Ordering::Equal, _) => part.clone(),
                (std::cmp::Ordering::Greater, true) => format!("{comma}{part}"),
                (std::cmp::Ordering::Greater, false) => format!("(?:{comma}{part})?"),
            });
        }
        Some(format!(r"\{{{text}\}}"))
    }

    /// An object whose properties may all be absent: any of them may be the first.
    fn all_optional(&mut self, parts: &[(String, bool)]) -> Option<String> {
        if parts.len() > MAX_OPTIONAL {
            return None;
        }
        let comma = self.separators.0;
        let mut ways = Vec::with_capacity(parts.len());
        for (i, (first, _)) in parts.iter().enumerate() {
            let later: String =
                parts.iter().skip(i + 1).map(|(part, _)| format!("(?:{comma}{part})?")).collect();
            self.take(first.len() + later.len())?;
            ways.push(format!("{first}{later}"));
        }
        Some(if ways.is_empty() { r"\{\}".to_owned() } else { format!(r"\{{(?:{})?\}}", ways.join("|")) })
    }
}
