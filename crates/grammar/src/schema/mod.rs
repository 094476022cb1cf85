//! A JSON schema before it is compiled: within limits, every keyword known to be honoured, or the place named of one that
//! is not.

mod formats;
mod sample;

use serde_json::{Map, Value, json};

use crate::error::{GrammarError, Result};

/// Levels of a schema.
const MAX_DEPTH: usize = 96;
/// Values in it, of all kinds.
const MAX_VALUES: usize = 100_000;
/// Bytes of its strings and names.
const MAX_BYTES: usize = 2 << 20;
/// The most repetitions that a bound may ask for.
const MAX_COUNT: u64 = 1 << 20;

/// Keywords that say something about instances and are honoured by the grammar, or say nothing about them.
const HONOURED: [&str; 42] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$ref",
    "$schema",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "description",
    "enum",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "id",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "readOnly",
    "required",
    "title",
    "type",
    "writeOnly",
];

/// Keywords of JSON Schema that say something about instances which no grammar here can hold a text to. What is in neither
/// list is no keyword, and means nothing (JSON Schema 2020-12, core, section 6.5).
const UNSUPPORTED: [&str; 16] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "contentSchema",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords that say nothing about instances.
const ANNOTATIONS: [&str; 15] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "description",
    "examples",
    "id",
    "readOnly",
    "title",
    "writeOnly",
];

/// Whether a keyword says nothing about instances.
pub(crate) fn is_annotation(keyword: &str) -> bool {
    ANNOTATIONS.contains(&keyword)
}

/// A schema, ready to be compiled.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) schema: Value,
    /// What was left out, with its place.
    pub(crate) warnings: Vec<String>,
    /// Texts that end strings whose patterns are hard to come upon.
    pub(crate) samples: Vec<String>,
}

/// Checks a schema and brings it into the form that the grammar takes. If it is not `strict`, what cannot be honoured is
/// left out with a warning.
pub(crate) fn prepare(schema: &Value, strict: bool) -> Result<Prepared> {
    let mut walk = Walk { strict, warnings: Vec::new(), samples: Vec::new() };
    let schema = walk.schema(schema, "$")?;
    Ok(Prepared { schema, warnings: walk.warnings, samples: walk.samples })
}

/// Refuses what is too large before anything is done with it: here and elsewhere values are gone through by recursion.
pub(crate) fn check_size(schema: &Value) -> Result<()> {
    let too_large = |message: String| Err(GrammarError::TooLarge { kind: "schema", message });
    let (mut values, mut bytes) = (0, 0);
    let mut left = vec![(schema, 0)];
    while let Some((value, depth)) = left.pop() {
        values += 1;
        if depth > MAX_DEPTH {
            return too_large(format!("it is over {MAX_DEPTH} levels deep"));
        }
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(members) => {
                bytes += members.keys().map(String::len).sum::<usize>();
                left.extend(members.values().map(|member| (member, depth + 1)));
            }
            _ => {}
        }
        if values + left.len() > MAX_VALUES {
            return too_large(format!("it has over {MAX_VALUES} values"));
        }
        if bytes > MAX_BYTES {
            return too_large(format!("its texts have over {MAX_BYTES} bytes"));
        }
    }
    Ok(())
}

struct Walk {
    strict: bool,
    warnings: Vec<String>,
    samples: Vec<String>,
}

/// The most samples that are kept: every one is tried.
const MAX_SAMPLES: usize = 64;

/// What a keyword holds.
enum Holds {
    /// One schema, or `true` or `false`.
    Schema,
    /// Several, in a list.
    List,
    /// Several, by names of the user's.
    Named,
    /// Either of the first two.
    SchemaOrList,
    /// None.
    Nothing,
}

fn holds(keyword: &str) -> Holds {
    match keyword {
        "additionalItems" | "additionalProperties" => Holds::Schema,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Holds::List,
        "$defs" | "definitions" | "patternProperties" | "properties" => Holds::Named,
        "items" => Holds::SchemaOrList,
        _ => Holds::Nothing,
    }
}

impl Walk {
    fn schema(&mut self, schema: &Value, path: &str) -> Result<Value> {
        let members = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(members) => members,
            _ => return invalid(path, "a schema is an object, true or false"),
        };
        let mut out = Map::new();
        // What has to hold besides.
        let mut all = Vec::new();
        for (keyword, value) in members {
            let at = format!("{path}.{keyword}");
            if keyword == "uniqueItems" && value == &json!(true) || UNSUPPORTED.contains(&keyword.as_str()) {
                self.leave_out(keyword, path, "")?;
                continue;
            }
            if !HONOURED.contains(&keyword.as_str()) {
                continue;
            }
            let value = match holds(keyword) {
                Holds::Schema => self.schema(value, &at)?,
                Holds::SchemaOrList if !value.is_array() => self.schema(value, &at)?,
                Holds::List | Holds::SchemaOrList => self.list(value, &at)?,
                Holds::Named => self.named(value, &at)?,
                Holds::Nothing => value.clone(),
            };
            self.member(keyword, value, path, &mut out, &mut all)?;
        }
        if !all.is_empty() {
            out.insert("allOf".to_owned(), Value::Array(all));
        }
        Ok(Value::Object(out))
    }

    /// A keyword whose schemas are ready.
    fn member(
        &mut self,
        keyword: &str,
        value: Value,
        path: &str,
        out: &mut Map<String, Value>,
        all: &mut Vec<Value>,
    ) -> Result<()> {
        match keyword {
            "$ref" => {
                let Some(reference) = value.as_str() else { return invalid(path, "$ref is a text") };
                if reference != "#" && !reference.starts_with("#/") {
                    return Err(GrammarError::Unsupported {
                        keyword: "$ref".to_owned(),
                        path: path.to_owned(),
                        detail: format!("{reference:?} is not within the schema, and nothing is fetched"),
                    });
                }
            }
            "format" => {
                let Some(name) = value.as_str() else { return invalid(path, "format is a text") };
                return match formats::lookup(name) {
                    formats::Known::Keywords(more) => {
                        if let Some(Value::String(pattern)) = more.get("pattern") {
                            self.sample(pattern);
                        }
                        all.push(more);
                        Ok(())
                    }
                    formats::Known::AsItIs => {
                        out.insert(keyword.to_owned(), value);
                        Ok(())
                    }
                    formats::Known::Note => Ok(()),
                    formats::Known::Unsupported => self.leave_out(keyword, path, &format!("{name:?}")),
                };
            }
            "pattern" => {
                let Some(pattern) = value.as_str() else { return invalid(path, "pattern is a text") };
                self.sample(pattern);
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                // 3.0 is a whole number, too.
                let count = value
                    .as_u64()
                    .or(value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 0.0).map(|v| v as u64));
                let Some(count) = count else {
                    return invalid(path, &format!("{keyword} is a whole number from 0 on"));
                };
                if count > MAX_COUNT {
                    // No text is so long: as a least number it cannot be had, as a greatest it says nothing.
                    if keyword.starts_with("min") {
                        let message = format!("{keyword} at {path} is over {MAX_COUNT}");
                        return Err(GrammarError::TooLarge { kind: "schema", message });
                    }
                    return Ok(());
                }
                out.insert(keyword.to_owned(), json!(count));
                return Ok(());
            }
            "allOf" => {
                if let Value::Array(given) = value {
                    all.extend(given);
                }
                return Ok(());
            }
            _ => {}
        }
        out.insert(keyword.to_owned(), value);
        Ok(())
    }

    /// Keeps a text that the pattern matches.
    fn sample(&mut self, pattern: &str) {
        if self.samples.len() < MAX_SAMPLES
            && let Some(text) = sample::shortest(pattern)
            && !self.samples.contains(&text)
        {
            self.samples.push(text);
        }
    }

    fn list(&mut self, value: &Value, path: &str) -> Result<Value> {
        let Some(items) = value.as_array() else { return invalid(path, "a list of schemas is expected") };
        let items = items.iter().enumerate().map(|(i, item)| self.schema(item, &format!("{path}[{i}]")));
        Ok(Value::Array(items.collect::<Result<_>>()?))
    }

    fn named(&mut self, value: &Value, path: &str) -> Result<Value> {
        let Some(members) = value.as_object() else {
            return invalid(path, "an object of schemas is expected");
        };
        let named = members
            .iter()
            .map(|(name, schema)| Ok((name.clone(), self.schema(schema, &format!("{path}.{name}"))?)));
        Ok(Value::Object(named.collect::<Result<_>>()?))
    }

    fn leave_out(&mut self, keyword: &str, path: &str, detail: &str) -> Result<()> {
        let error = GrammarError::Unsupported {
            keyword: keyword.to_owned(),
            path: path.to_owned(),
            detail: detail.to_owned(),
        };
        if self.strict {
            return Err(error);
        }
        self.warnings.push(error.to_string());
        Ok(())
    }
}

fn invalid<T>(path: &str, message: &str) -> Result<T> {
    Err(GrammarError::Invalid { kind: "schema", message: format!("{message} (at {path})") })
}
