//! Objects that have the properties which their schema names, and no others.
//!
//! A schema that names properties and does not speak of others allows all others. Where an answer is written to be read by
//! code, nobody would read them; so such objects are closed, by `additionalProperties: false`.
//!
//! That keyword knows the properties beside it and no others, while the schema of one object may be in several parts: `allOf`,
//! `anyOf`, `oneOf`, `$ref`. A part that was closed by itself would forbid the properties of the other parts. So the parts of
//! an object are taken together: who closes it names the properties of all that hold with it. Where parts are alternatives that
//! bring properties of their own, as an enum's variants do, each of them is closed, and has its own and the common ones. A
//! `$ref` to a part is replaced by what it refers to, since that is closed by itself elsewhere.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// Schemas that may be copied into the place of references, in values, and how many in each other.
const MAX_COPIED: usize = 20_000;
const MAX_COPIES: usize = 16;

/// Names that may be looked at. Where there are more, the rest stays as it is.
const MAX_NAMES: usize = 1_000_000;

/// Keywords whose value is a schema, or a list of schemas, of something inside the value that is described.
const INSIDE: [&str; 7] = [
    "items",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
    "additionalProperties",
    "unevaluatedProperties",
    "contentSchema",
];

/// Keywords whose value has schemas by names.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// Keywords that allow properties which nothing names, or make others depend on what is there.
const OPEN: [&str; 7] = [
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "if",
    "dependentSchemas",
    "dependencies",
];

/// Closes every object whose schema names properties and does not speak of others. Values that look like schemas (`const`,
/// `enum`, `default`, `examples`) stay as they are, and so do conditions (`not`, `if`, `contains`).
pub fn close_objects(schema: &mut Value) {
    let original = schema.clone();
    let known = HashMap::new();
    let mut closer =
        Closer { root: &original, known, copied_left: MAX_COPIED, depth: 0, names_left: MAX_NAMES };
    closer.visit(schema, &Names::default(), true);
}

/// Properties that are named, in order, and whether there may be others.
#[derive(Debug, Clone, Default)]
struct Names {
    /// Each is `true`.
    named: Map<String, Value>,
    is_open: bool,
}

impl Names {
    fn add(&mut self, other: &Names) {
        self.is_open |= other.is_open;
        for name in other.named.keys() {
            if !self.named.contains_key(name) {
                self.named.insert(name.clone(), json!(true));
            }
        }
    }

    fn and(&self, other: &Names) -> Names {
        let mut both = self.clone();
        both.add(other);
        both
    }

    fn is_within(&self, other: &Names) -> bool {
        other.is_open || !self.is_open && self.named.keys().all(|name| other.named.contains_key(name))
    }
}

struct Closer<'a> {
    /// As it was given.
    root: &'a Value,
    /// What references lead to names.
    known: HashMap<String, Names>,
    copied_left: usize,
    /// Copies that are within each other here.
    depth: usize,
    names_left: usize,
}

fn list<'a>(members: &'a Map<String, Value>, keyword: &str) -> impl Iterator<Item = &'a Value> {
    members.get(keyword).and_then(Value::as_array).into_iter().flatten()
}

fn list_mut<'a>(members: &'a mut Map<String, Value>, keyword: &str) -> impl Iterator<Item = &'a mut Value> {
    members.get_mut(keyword).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The properties that a schema names itself.
fn own(members: &Map<String, Value>) -> Names {
    let named = members.get("properties").and_then(Value::as_object);
    let says_open = |keyword: &&str| members.get(*keyword).is_some_and(|value| *value != json!(false));
    Names {
        named: named.into_iter().flat_map(Map::keys).map(|name| (name.clone(), json!(true))).collect(),
        is_open: OPEN.iter().any(says_open),
    }
}

/// Whether values may be objects that are not written out.
fn may_be_object(members: &Map<String, Value>) -> bool {
    let is_object = |kind: &Value| kind == "object";
    let typed = match members.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(is_object),
        Some(kind) => is_object(kind),
    };
    typed && !members.contains_key("const") && !members.contains_key("enum")
}

impl<'a> Closer<'a> {
    fn target(&self, reference: &str) -> Option<&'a Value> {
        let pointer = reference.strip_prefix('#')?;
        self.root.pointer(pointer)
    }

    /// The properties that a reference's target names.
    fn names_of(&mut self, reference: &str) -> Names {
        if let Some(known) = self.known.get(reference) {
            return known.clone();
        }
        // What leads back to itself adds nothing to it.
        self.known.insert(reference.to_owned(), Names::default());
        let names = self.target(reference).map_or_else(Names::default, |target| self.names(target));
        self.known.insert(reference.to_owned(), names.clone());
        names
    }

    /// The properties that a schema names, in all its parts.
    fn names(&mut self, schema: &Value) -> Names {
        let Value::Object(members) = schema else { return Names::default() };
        let mut names = own(members);
        if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
            names.add(&self.names_of(reference));
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            names.add(&self.names_in(members, keyword));
        }
        names
    }

    fn names_in(&mut self, members: &Map<String, Value>, keyword: &str) -> Names {
        let mut names = Names::default();
        for part in list(members, keyword) {
            let more = self.names(part);
            if !self.spend(&more) {
                return Names { is_open: true, ..Names::default() };
            }
            names.add(&more);
        }
        names
    }

    /// The properties that only alternatives of a schema bring, also where it refers to them.
    fn alternatives(&mut self, schema: &Value, depth: usize) -> Names {
        let Value::Object(members) = schema else { return Names::default() };
        let mut names = self.names_in(members, "anyOf");
        names.add(&self.names_in(members, "oneOf"));
        if depth < MAX_COPIES {
            let target = members.get("$ref").and_then(Value::as_str).and_then(|to| self.target(to));
            for part in list(members, "allOf").chain(target) {
                let more = self.alternatives(part, depth + 1);
                if !self.spend(&more) {
                    break;
                }
                names.add(&more);
            }
        }
        names
    }

    /// Whether there is enough left to go through these names.
    fn spend(&mut self, names: &Names) -> bool {
        self.names_left = self.names_left.saturating_sub(names.named.len() + 1);
        self.names_left > 0
    }

    /// Closes what is inside, and with `closes` the object itself, of which other parts have the names `others`.
    fn visit(&mut self, schema: &mut Value, others: &Names, closes: bool) {
        let Value::Object(members) = schema else { return };
        if !self.spend(others) {
            return;
        }
        for (keyword, value) in members.iter_mut() {
            match value {
                Value::Object(named) if NAMED.contains(&keyword.as_str()) => {
                    named.values_mut().for_each(|value| self.visit(value, &Names::default(), true));
                }
                Value::Array(items) if INSIDE.contains(&keyword.as_str()) => {
                    items.iter_mut().for_each(|value| self.visit(value, &Names::default(), true));
                }
                _ if INSIDE.contains(&keyword.as_str()) => self.visit(value, &Names::default(), true),
                _ => {}
            }
        }
        let given = others.and(&own(members));
        let alternatives = ["anyOf", "oneOf"].map(|keyword| self.names_in(members, keyword));
        let beside =
            alternatives.iter().fold(given.and(&self.names_in(members, "allOf")), |all, one| all.and(one));
        let (mut referred, mut is_closed, mut is_copied) = (Names::default(), false, false);
        if let Some(reference) = members.get("$ref").and_then(Value::as_str).map(str::to_owned) {
            referred = self.names_of(&reference);
            // What it refers to is closed, and may have all that there is; or the two have to become one.
            is_closed = beside.is_within(&referred);
            if !is_closed {
                let Some(target) = self.copy(&reference) else { return };
                members.remove("$ref");
                if let Value::Array(parts) = members.entry("allOf").or_insert_with(|| json!([])) {
                    parts.push(target);
                }
                is_copied = true;
            }
        }
        let closes = closes && !is_closed;
        let all = beside.and(&referred);
        let closes = closes && !members.contains_key("additionalProperties") && !all.is_open;
        let mut by_alternatives = false;
        self.depth += usize::from(is_copied);
        let parts: Vec<Names> = list(members, "allOf").map(|part| self.names(part)).collect();
        for (idx, part) in list_mut(members, "allOf").enumerate() {
            let mut others = given.and(&alternatives[0]).and(&alternatives[1]);
            for (_, names) in parts.iter().enumerate().filter(|(other, _)| *other != idx) {
                if self.spend(names) {
                    others.add(names);
                }
            }
            let own = part.as_object().map(own).unwrap_or_default();
            let brings = closes && !self.alternatives(part, 0).is_within(&others.and(&own));
            by_alternatives |= brings;
            self.visit(part, if brings { &others } else { &all }, brings);
        }
        self.depth -= usize::from(is_copied);
        for keyword in ["then", "else"] {
            members.get_mut(keyword).into_iter().for_each(|part| self.visit(part, &all, false));
        }
        let common = given.and(&self.names_in(members, "allOf"));
        for (idx, keyword) in ["anyOf", "oneOf"].into_iter().enumerate() {
            let [first, second] = &alternatives;
            let (these, those) = if idx == 0 { (first, second) } else { (second, first) };
            let common = common.and(those);
            let brings = closes && !these.is_within(&common);
            by_alternatives |= brings;
            for part in list_mut(members, keyword) {
                self.visit(part, if brings { &common } else { &all }, brings);
            }
        }
        let has_names = !all.named.is_empty() || members.get("properties").is_some_and(Value::is_object);
        if closes && !by_alternatives && has_names && may_be_object(members) {
            if let Value::Object(properties) = members.entry("properties").or_insert_with(|| json!({})) {
                for name in all.named.keys() {
                    if !properties.contains_key(name) {
                        properties.insert(name.clone(), json!(true));
                    }
                }
            }
            members.insert("additionalProperties".to_owned(), json!(false));
        }
    }

    /// What a reference leads to, as it was given; `None` if there is nothing, or too much was copied before.
    fn copy(&mut self, reference: &str) -> Option<Value> {
        let target = self.target(reference).filter(|_| self.depth < MAX_COPIES)?;
        self.copied_left = self.copied_left.checked_sub(count(target, self.copied_left)?)?;
        Some(target.clone())
    }
}

/// How many values there are in a value, unless there are more than `max`.
fn count(value: &Value, max: usize) -> Option<usize> {
    let inner: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Object(members) => Box::new(members.values()),
        Value::Array(items) => Box::new(items.iter()),
        _ => Box::new(std::iter::empty()),
    };
    let mut num = 1_usize;
    for value in inner {
        num += count(value, max.checked_sub(num)?)?;
    }
    (num <= max).then_some(num)
}
