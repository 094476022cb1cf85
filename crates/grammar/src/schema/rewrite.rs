//! Keywords that the grammar does not know, said in others that it does.

use serde_json::{Map, Value, json};

use super::negate::negate;
use super::{Place, Said, Walk, invalid};
use crate::error::Result;

/// Keywords that [`Walk::rewrite`] takes.
pub(super) const REWRITTEN: [&str; 10] = [
    "else",
    "if",
    "not",
    "then",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords beside which `unevaluatedProperties` and `unevaluatedItems` depend on which of their schemas hold.
const APPLICATORS: [&str; 10] =
    ["$dynamicRef", "$ref", "allOf", "anyOf", "contains", "dependentSchemas", "if", "not", "oneOf", "then"];

/// The most schemas of a `oneOf` that are held against each other.
const MAX_SPLIT: usize = 12;

/// `oneOf` these: each, and none of the others.
pub(super) fn split(schemas: &[Value]) -> Option<Value> {
    if schemas.len() > MAX_SPLIT {
        return None;
    }
    let negated = schemas.iter().map(negate).collect::<Option<Vec<_>>>()?;
    let ways = schemas.iter().enumerate().map(|(i, schema)| {
        let others = negated.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, not)| not);
        json!({"allOf": std::iter::once(schema).chain(others).collect::<Vec<_>>()})
    });
    Some(json!({"anyOf": ways.collect::<Vec<_>>()}))
}

impl Walk<'_> {
    /// `members` are the schema's own; `value` has its schemas ready.
    pub(super) fn rewrite(
        &mut self,
        keyword: &str,
        value: Value,
        members: &Map<String, Value>,
        place: &Place,
        out: &mut Said,
    ) -> Result<()> {
        match keyword {
            "not" => match negate(&value) {
                Some(negated) => {
                    out.besides.push(self.schema(&negated, &place.member(keyword))?);
                    Ok(())
                }
                None => self.leave_out(keyword, place, "what this leaves cannot be said"),
            },
            "if" => {
                let branches = [members.get("then"), members.get("else")];
                let Some(negated) = negate(&value) else {
                    return match branches {
                        [None, None] => Ok(()),
                        _ => self.leave_out(keyword, place, "what this leaves to `else` cannot be said"),
                    };
                };
                // If it holds `then` does too; else `else` does.
                for (otherwise, branch) in [&negated, &value].into_iter().zip(branches) {
                    if let Some(branch) = branch {
                        let either = json!({"anyOf": [otherwise, branch]});
                        out.besides.push(self.schema(&either, &place.member(keyword))?);
                    }
                }
                Ok(())
            }
            // Taken with `if`, and nothing without it.
            "then" | "else" => Ok(()),
            "dependentRequired" | "dependentSchemas" | "dependencies" => {
                let Value::Object(named) = value else {
                    return invalid(place, &format!("{keyword} is an object"));
                };
                for (name, needs) in named {
                    let needs = match needs {
                        Value::Array(names) => json!({"required": names}),
                        // Those of `dependencies` were not gone through.
                        schema if keyword == "dependencies" => {
                            self.schema(&schema, &place.member(keyword).member(&name))?
                        }
                        schema => schema,
                    };
                    // Either the property is not there, or what it needs is.
                    let mut absent = Map::new();
                    absent.insert(name, Value::Bool(false));
                    out.besides.push(json!({"anyOf": [{"properties": absent}, needs]}));
                }
                Ok(())
            }
            "propertyNames" => match names(&value) {
                Some(closed) => {
                    out.besides.extend(closed);
                    Ok(())
                }
                None => self.leave_out(
                    keyword,
                    place,
                    "only a pattern, lengths, a constant or an enum can be had",
                ),
            },
            // What is evaluated is known only where nothing depends on the instance.
            _ if value == Value::Bool(true) || value == json!({}) => Ok(()),
            _ if APPLICATORS.iter().any(|applicator| members.contains_key(*applicator)) => {
                self.leave_out(keyword, place, "beside keywords that apply other schemas")
            }
            "unevaluatedProperties" => {
                if !members.contains_key("additionalProperties") {
                    out.members.insert("additionalProperties".to_owned(), value);
                }
                Ok(())
            }
            "unevaluatedItems" => {
                if !members.contains_key("items") {
                    out.members.insert("items".to_owned(), value);
                }
                Ok(())
            }
            _ => self.leave_out(keyword, place, ""),
        }
    }
}

/// `propertyNames` as a schema of the object: `None` if it cannot be said, nothing if it says nothing.
fn names(schema: &Value) -> Option<Option<Value>> {
    let closed = |patterns: Value, properties: Value| {
        Some(Some(json!({
            "properties": properties, "patternProperties": patterns, "additionalProperties": false,
        })))
    };
    let members = match schema {
        Value::Bool(true) => return Some(None),
        Value::Bool(false) => return closed(json!({}), json!({})),
        Value::Object(members) => members,
        _ => return None,
    };
    let says: Vec<&str> =
        members.keys().map(String::as_str).filter(|key| !super::is_annotation(key)).collect();
    let listed = |names: &[Value]| {
        let names = names.iter().filter_map(Value::as_str).map(|name| (name.to_owned(), json!({})));
        closed(json!({}), Value::Object(names.collect()))
    };
    let pattern = |pattern: String| {
        let mut patterns = Map::new();
        patterns.insert(pattern, json!({}));
        closed(Value::Object(patterns), json!({}))
    };
    match says.as_slice() {
        [] => Some(None),
        ["type"] if members.get("type")? == "string" => Some(None),
        ["type"] => closed(json!({}), json!({})),
        ["const"] => listed(std::slice::from_ref(members.get("const")?)),
        ["enum"] | ["type", "enum"] | ["enum", "type"] => listed(members.get("enum")?.as_array()?),
        ["pattern"] | ["type", "pattern"] | ["pattern", "type"] => {
            pattern(members.get("pattern")?.as_str()?.to_owned())
        }
        _ if says.iter().all(|key| matches!(*key, "minLength" | "maxLength" | "type")) => {
            let count = |key: &str| members.get(key).map_or(Some(None), |v| v.as_u64().map(Some));
            let min = count("minLength")?.unwrap_or(0);
            let max = count("maxLength")?.map_or(String::new(), |max| max.to_string());
            pattern(format!("^(?s:.{{{min},{max}}})$"))
        }
        _ => None,
    }
}
