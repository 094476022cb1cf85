//! A JSON schema before it is compiled: within limits, every keyword known to be honoured, or the place named of one that
//! is not.

mod formats;
mod negate;
mod redundant;
mod references;
mod rewrite;
mod sample;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use self::references::{References, escape};
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
const HONOURED: [&str; 39] = [
    "$comment",
    "$defs",
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
const UNSUPPORTED: [&str; 6] =
    ["$dynamicRef", "$recursiveRef", "contains", "contentSchema", "maxContains", "minContains"];

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

/// What becomes of `oneOf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OneOf {
    /// Nothing: the grammar takes it where it can see that its schemas exclude each other.
    AsItIs,
    /// Each schema, and none of the others, where that can be said.
    Split,
}

/// Checks a schema and brings it into the form that the grammar takes. If it is not `strict`, what cannot be honoured is
/// left out with a warning.
pub(crate) fn prepare(schema: &Value, strict: bool, one_of: OneOf) -> Result<Prepared> {
    let mut walk = Walk {
        root: schema,
        references: References::new(schema),
        moved: HashMap::new(),
        strict,
        one_of,
        written: 0,
        warnings: Vec::new(),
        samples: Vec::new(),
    };
    let mut prepared = walk.schema(schema, &Place::root())?;
    walk.move_targets(&mut prepared)?;
    Ok(Prepared { schema: prepared, warnings: walk.warnings, samples: walk.samples })
}

/// Where in the schema one is.
struct Place {
    /// As people write it: `$.properties.name`.
    path: String,
    /// As a JSON pointer.
    pointer: String,
}

impl Place {
    fn root() -> Self {
        Place { path: "$".to_owned(), pointer: String::new() }
    }

    fn member(&self, name: &str) -> Self {
        Place { path: format!("{}.{name}", self.path), pointer: format!("{}/{}", self.pointer, escape(name)) }
    }

    fn item(&self, idx: usize) -> Self {
        Place { path: format!("{}[{idx}]", self.path), pointer: format!("{}/{idx}", self.pointer) }
    }
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

/// A schema in the making.
#[derive(Default)]
struct Said {
    members: Map<String, Value>,
    /// What has to hold besides: its `allOf`.
    besides: Vec<Value>,
}

struct Walk<'a> {
    root: &'a Value,
    references: References,
    /// Names of what references refer to outside of the root's definitions, by JSON pointer.
    moved: HashMap<String, String>,
    strict: bool,
    one_of: OneOf,
    /// Schemas and names so far: saying keywords in others can write small schemas out at great length.
    written: usize,
    warnings: Vec<String>,
    samples: Vec<String>,
}

const OTHER_THAN_OBJECTS: [&str; 5] = ["null", "boolean", "number", "string", "array"];

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
        "additionalItems"
        | "additionalProperties"
        | "propertyNames"
        | "unevaluatedItems"
        | "unevaluatedProperties" => Holds::Schema,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Holds::List,
        "$defs" | "definitions" | "dependentSchemas" | "patternProperties" | "properties" => Holds::Named,
        "items" => Holds::SchemaOrList,
        _ => Holds::Nothing,
    }
}

impl Walk<'_> {
    /// Counts what is written out, within a limit.
    fn write(&mut self, num: usize) -> Result<()> {
        self.written = self.written.saturating_add(num);
        if self.written <= MAX_VALUES {
            return Ok(());
        }
        let message = format!("said in keywords that a grammar knows it has over {MAX_VALUES} values");
        Err(GrammarError::TooLarge { kind: "schema", message })
    }

    fn schema(&mut self, schema: &Value, place: &Place) -> Result<Value> {
        self.write(1)?;
        let members = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(members) => members,
            _ => return invalid(place, "a schema is an object, true or false"),
        };
        let mut out = Said::default();
        for (keyword, value) in members {
            let at = place.member(keyword);
            if self.is_redundant(keyword, value, members, place) {
                continue;
            }
            if let ("minProperties" | "maxProperties", Some(count)) = (keyword.as_str(), value.as_u64()) {
                match redundant::bound(keyword, count, members) {
                    redundant::Bound::Stays => {}
                    redundant::Bound::Said => continue,
                    redundant::Bound::As(schema) => {
                        // Of objects alone, as all such keywords.
                        let schema = match members.get("type") {
                            Some(Value::String(_)) => schema,
                            _ => json!({"anyOf": [{"type": OTHER_THAN_OBJECTS}, schema]}),
                        };
                        out.besides.push(self.schema(&schema, &at)?);
                        continue;
                    }
                }
            }
            if keyword == "uniqueItems" && value == &json!(true) || UNSUPPORTED.contains(&keyword.as_str()) {
                self.leave_out(keyword, place, "")?;
                continue;
            }
            if keyword == "oneOf"
                && self.one_of == OneOf::Split
                && let Some(split) = value.as_array().and_then(|schemas| rewrite::split(schemas))
            {
                out.besides.push(self.schema(&split, &at)?);
                continue;
            }
            let value = match holds(keyword) {
                Holds::Schema => self.schema(value, &at)?,
                Holds::SchemaOrList if !value.is_array() => self.schema(value, &at)?,
                Holds::List | Holds::SchemaOrList => self.list(value, &at)?,
                Holds::Named => self.named(value, &at)?,
                Holds::Nothing => value.clone(),
            };
            if rewrite::REWRITTEN.contains(&keyword.as_str()) {
                self.rewrite(keyword, value, members, place, &mut out)?;
            } else if HONOURED.contains(&keyword.as_str()) {
                self.member(keyword, value, place, &mut out)?;
            }
        }
        // The grammar takes an alternative's properties before those that stand beside it.
        if let Some(names) = members.get("properties").and_then(Value::as_object).filter(|p| !p.is_empty()) {
            let order: Map<String, Value> = names.keys().map(|name| (name.clone(), json!({}))).collect();
            let in_order = |way: Value| json!({"allOf": [{"properties": order}, way]});
            for schema in std::iter::once(&mut out.members)
                .chain(out.besides.iter_mut().filter_map(Value::as_object_mut))
            {
                for keyword in ["anyOf", "oneOf"] {
                    if let Some(Value::Array(ways)) = schema.get_mut(keyword) {
                        self.write(ways.len().saturating_mul(order.len()))?;
                        *ways = std::mem::take(ways).into_iter().map(in_order).collect();
                    }
                }
            }
        }
        if !out.besides.is_empty() {
            out.members.insert("allOf".to_owned(), Value::Array(out.besides));
        }
        Ok(Value::Object(out.members))
    }

    /// A reference as the grammar takes it: to the root, or to one of its definitions.
    fn reference(&mut self, reference: &str, place: &Place) -> Result<String> {
        let Some(pointer) = self.references.resolve(reference, &place.pointer) else {
            return Err(GrammarError::Unsupported {
                keyword: "$ref".to_owned(),
                path: place.path.clone(),
                detail: format!("{reference:?} is not within the schema, and nothing is fetched"),
            });
        };
        let target = self.root.pointer(&pointer);
        if target.is_none_or(|target| !target.is_object() && !target.is_boolean()) {
            return invalid(place, &format!("{reference:?} refers to nothing that is a schema"));
        }
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        let defined = ["/$defs/", "/definitions/"].iter().find_map(|list| pointer.strip_prefix(list));
        if pointer.is_empty() || defined.is_some_and(plain) {
            return Ok(format!("#{pointer}"));
        }
        let next = self.moved.len();
        let name = self.moved.entry(pointer).or_insert_with(|| format!("referred-{next}"));
        Ok(format!("#/$defs/{name}"))
    }

    /// Puts what references refer to elsewhere among the root's definitions.
    fn move_targets(&mut self, prepared: &mut Value) -> Result<()> {
        let mut done: HashMap<String, Value> = HashMap::new();
        while let Some((pointer, name)) =
            self.moved.iter().find(|(_, name)| !done.contains_key(*name)).map(|(p, n)| (p.clone(), n.clone()))
        {
            let path = format!("${}", pointer.replace('/', "."));
            let target = self.root.pointer(&pointer).cloned().unwrap_or_default();
            let target = self.schema(&target, &Place { path, pointer })?;
            done.insert(name, target);
        }
        if let (false, Some(members)) = (done.is_empty(), prepared.as_object_mut()) {
            let definitions = members.entry("$defs").or_insert_with(|| json!({}));
            if let Some(definitions) = definitions.as_object_mut() {
                definitions.extend(done);
            }
        }
        Ok(())
    }

    /// A keyword whose schemas are ready.
    fn member(&mut self, keyword: &str, value: Value, place: &Place, out: &mut Said) -> Result<()> {
        match keyword {
            "$ref" => {
                let Some(reference) = value.as_str() else { return invalid(place, "$ref is a text") };
                let reference = self.reference(reference, place)?;
                out.members.insert(keyword.to_owned(), json!(reference));
                return Ok(());
            }
            "format" => {
                let Some(name) = value.as_str() else { return invalid(place, "format is a text") };
                return match formats::lookup(name) {
                    formats::Known::Keywords(more) => {
                        if let Some(Value::String(pattern)) = more.get("pattern") {
                            self.sample(pattern);
                        }
                        out.besides.push(more);
                        Ok(())
                    }
                    formats::Known::AsItIs => {
                        out.members.insert(keyword.to_owned(), value);
                        Ok(())
                    }
                    formats::Known::Note => Ok(()),
                    formats::Known::Unsupported => self.leave_out(keyword, place, &format!("{name:?}")),
                };
            }
            "pattern" => {
                let Some(pattern) = value.as_str() else { return invalid(place, "pattern is a text") };
                self.sample(pattern);
            }
            "patternProperties" => {
                for pattern in value.as_object().into_iter().flat_map(Map::keys) {
                    self.sample(pattern);
                }
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                // 3.0 is a whole number, too.
                let count = value
                    .as_u64()
                    .or(value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 0.0).map(|v| v as u64));
                let Some(count) = count else {
                    return invalid(place, &format!("{keyword} is a whole number from 0 on"));
                };
                if count > MAX_COUNT {
                    // No text is so long: as a least number it cannot be had, as a greatest it says nothing.
                    if keyword.starts_with("min") {
                        let message = format!("{keyword} at {} is over {MAX_COUNT}", place.path);
                        return Err(GrammarError::TooLarge { kind: "schema", message });
                    }
                    return Ok(());
                }
                out.members.insert(keyword.to_owned(), json!(count));
                return Ok(());
            }
            "allOf" => {
                if let Value::Array(given) = value {
                    out.besides.extend(given);
                }
                return Ok(());
            }
            _ => {}
        }
        out.members.insert(keyword.to_owned(), value);
        Ok(())
    }

    /// Keeps texts that the pattern matches.
    fn sample(&mut self, pattern: &str) {
        if self.samples.len() < MAX_SAMPLES {
            for text in sample::shortest(pattern) {
                if !self.samples.contains(&text) {
                    self.samples.push(text);
                }
            }
        }
    }

    fn list(&mut self, value: &Value, place: &Place) -> Result<Value> {
        let Some(items) = value.as_array() else { return invalid(place, "a list of schemas is expected") };
        let items = items.iter().enumerate().map(|(i, item)| self.schema(item, &place.item(i)));
        Ok(Value::Array(items.collect::<Result<_>>()?))
    }

    fn named(&mut self, value: &Value, place: &Place) -> Result<Value> {
        let Some(members) = value.as_object() else {
            return invalid(place, "an object of schemas is expected");
        };
        let named = members
            .iter()
            .map(|(name, schema)| Ok((name.clone(), self.schema(schema, &place.member(name))?)));
        Ok(Value::Object(named.collect::<Result<_>>()?))
    }

    fn leave_out(&mut self, keyword: &str, place: &Place, detail: &str) -> Result<()> {
        let error = GrammarError::Unsupported {
            keyword: keyword.to_owned(),
            path: place.path.clone(),
            detail: detail.to_owned(),
        };
        if self.strict {
            return Err(error);
        }
        self.warnings.push(error.to_string());
        Ok(())
    }
}

fn invalid<T>(place: &Place, message: &str) -> Result<T> {
    Err(GrammarError::Invalid { kind: "schema", message: format!("{message} (at {})", place.path) })
}
