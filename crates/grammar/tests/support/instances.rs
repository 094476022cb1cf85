//! Instances of schemas, as a text that is held to the schema would spell them. Tests use this, and programs that measure.

use serde_json::{Map, Number, Value};
use wardrobe_grammar::{Session, Template};
use wardrobe_text::TokenId;

/// Bytes that a search for an order of members tries.
const MAX_TRIED: usize = 60_000;

/// How numbers are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// As they are: `75.0`, `1e-6`.
    AsTheyAre,
    /// As a constraint has them: `75`, `0.000001`.
    Plain,
}

/// The schemas that may say something of a value: the one given, and what it refers to or combines. Of alternatives that
/// which names most of its members comes first.
fn parts<'a>(schema: &'a Value, root: &'a Value, value: &Value, depth: usize) -> Vec<&'a Value> {
    if depth > 8 || !schema.is_object() {
        return Vec::new();
    }
    let mut found = vec![schema];
    let reference = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#'));
    if let Some(target) = reference.and_then(|pointer| root.pointer(pointer)) {
        found.extend(parts(target, root, value, depth + 1));
    }
    let list = |keyword: &str| schema[keyword].as_array().into_iter().flatten();
    let of = |part: &'a Value| parts(part, root, value, depth + 1);
    found.extend(list("allOf").flat_map(of));
    let mut alternatives: Vec<_> = list("anyOf").chain(list("oneOf")).map(of).collect();
    let names = |name: &str, alternative: &[&Value]| {
        alternative.iter().any(|part| part["properties"].get(name).is_some())
    };
    alternatives.sort_by_cached_key(|alternative| {
        let members = value.as_object().into_iter().flat_map(Map::keys);
        std::cmp::Reverse(members.filter(|name| names(name, alternative)).count())
    });
    found.extend(alternatives.into_iter().flatten());
    found.extend(["if", "then", "else"].into_iter().filter_map(|keyword| schema.get(keyword)).flat_map(of));
    for keyword in ["dependencies", "dependentSchemas"] {
        found.extend(schema[keyword].as_object().into_iter().flat_map(Map::values).flat_map(of));
    }
    found
}

/// The value with the members of its objects in the order in which the schema names them, those that it does not name last.
pub fn in_schemas_order(value: &Value, schema: &Value, root: &Value) -> Value {
    let of_value = parts(schema, root, value, 0);
    match value {
        Value::Array(items) => {
            let schema_of = |i: usize| {
                of_value.iter().find_map(|part| {
                    let listed = part["prefixItems"].get(i).or_else(|| part["items"].get(i));
                    listed.or_else(|| part.get("items")).or_else(|| part.get("additionalItems"))
                })
            };
            let item = |(i, item)| in_schemas_order(item, schema_of(i).unwrap_or(&Value::Null), root);
            items.iter().enumerate().map(item).collect()
        }
        Value::Object(members) => {
            let properties: Vec<_> =
                of_value.iter().filter_map(|part| part["properties"].as_object()).collect();
            let named: Vec<&String> = properties.iter().flat_map(|properties| properties.keys()).collect();
            let place = |name: &String| named.iter().position(|known| *known == name).unwrap_or(usize::MAX);
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| place(name));
            let member = |(name, member): (&String, &Value)| {
                let schema = properties.iter().find_map(|properties| properties.get(name));
                let others = || of_value.iter().find_map(|part| part.get("additionalProperties"));
                let schema = schema.or_else(others).unwrap_or(&Value::Null);
                (name.clone(), in_schemas_order(member, schema, root))
            };
            Value::Object(members.into_iter().map(member).collect())
        }
        _ => value.clone(),
    }
}

/// Digits without an exponent, if they are not too many.
fn plain(number: &Number) -> Option<String> {
    let text = format!("{}", number.as_f64().filter(|_| number.is_f64())?);
    (text.len() <= 24).then_some(text)
}

fn spelled(number: &Number, numbers: Numbers) -> String {
    let plain = plain(number).filter(|_| numbers == Numbers::Plain);
    plain.unwrap_or_else(|| number.to_string())
}

/// As Python's `json.dumps` writes it, but for characters beyond ASCII, which stay.
pub fn spaced(value: &Value, numbers: Numbers) -> String {
    let mut out = String::new();
    write_spaced(value, numbers, &mut out);
    out
}

fn write_spaced(value: &Value, numbers: Numbers, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_spaced(item, numbers, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (i, (name, member)) in members.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                out.push_str(&Value::String(name.clone()).to_string());
                out.push_str(": ");
                write_spaced(member, numbers, out);
            }
            out.push('}');
        }
        Value::Number(number) => out.push_str(&spelled(number, numbers)),
        _ => out.push_str(&value.to_string()),
    }
}

/// A spelling of the value that the template allows, its members in whatever order; those that the value has are tried
/// first. `byte` gives the token of a byte. `None` also where the search took too long.
pub fn spelling_of(
    value: &Value,
    numbers: Numbers,
    template: &Template,
    byte: &dyn Fn(u8) -> TokenId,
) -> Option<String> {
    let mut search = Search { session: template.session(), numbers, byte, text: Vec::new(), tried: 0 };
    (search.value(value)? && search.session.may_end().ok()?).then(|| String::from_utf8(search.text).ok())?
}

struct Search<'a> {
    session: Box<dyn Session>,
    numbers: Numbers,
    byte: &'a dyn Fn(u8) -> TokenId,
    text: Vec<u8>,
    tried: usize,
}

impl Search<'_> {
    /// Writes a text, all of it or nothing; `None` if the search is at its end.
    fn text(&mut self, text: &str) -> Option<bool> {
        let before = self.text.len();
        for byte in text.bytes() {
            self.tried += 1;
            if self.tried > MAX_TRIED {
                return None;
            }
            if self.session.accept((self.byte)(byte)).is_err() {
                return self.back(before);
            }
            self.text.push(byte);
        }
        Some(true)
    }

    fn back(&mut self, len: usize) -> Option<bool> {
        self.session.rollback(self.text.len() - len).ok()?;
        self.text.truncate(len);
        Some(false)
    }

    fn value(&mut self, value: &Value) -> Option<bool> {
        let before = self.text.len();
        match value {
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    if !self.text(if i > 0 { ", " } else { "[" })? || !self.value(item)? {
                        return self.back(before);
                    }
                }
                if self.text(if items.is_empty() { "[]" } else { "]" })? {
                    Some(true)
                } else {
                    self.back(before)
                }
            }
            Value::Object(members) => {
                let members: Vec<(&String, &Value)> = members.iter().collect();
                let mut used = vec![false; members.len()];
                if self.text("{")? && self.members(&members, &mut used)? {
                    Some(true)
                } else {
                    self.back(before)
                }
            }
            Value::Number(number) => {
                if self.text(&spelled(number, Numbers::AsTheyAre))? {
                    return Some(true);
                }
                if self.numbers == Numbers::Plain {
                    self.text(&spelled(number, Numbers::Plain))
                } else {
                    Some(false)
                }
            }
            _ => self.text(&value.to_string()),
        }
    }

    fn members(&mut self, members: &[(&String, &Value)], used: &mut [bool]) -> Option<bool> {
        if used.iter().all(|used| *used) {
            return self.text("}");
        }
        let before = self.text.len();
        let is_first = used.iter().all(|used| !used);
        for (i, (name, member)) in members.iter().enumerate() {
            if used[i] {
                continue;
            }
            let key = format!("{}{}: ", if is_first { "" } else { ", " }, Value::String((*name).clone()));
            if self.text(&key)? && self.value(member)? {
                used[i] = true;
                if self.members(members, used)? {
                    return Some(true);
                }
                used[i] = false;
            }
            self.back(before)?;
        }
        Some(false)
    }
}
