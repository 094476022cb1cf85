//! Keywords that say nothing beside others, or say what others say: the grammar takes some of them only in certain company.

use serde_json::{Map, Value, json};

use super::{Place, Walk};

/// References that lead to references.
const MAX_LINKS: usize = 8;

/// What becomes of a bound on the number of properties.
pub(super) enum Bound {
    /// It stays.
    Stays,
    /// Other keywords say it already.
    Said,
    /// This schema says the same.
    As(Value),
}

impl Walk<'_> {
    /// Whether a keyword of a schema can be left out without a change to what the schema says. Beside a reference that comes
    /// back to itself the grammar takes no other keyword.
    pub(super) fn is_redundant(
        &self,
        keyword: &str,
        value: &Value,
        members: &Map<String, Value>,
        place: &Place,
    ) -> bool {
        match keyword {
            "additionalProperties" => {
                (value == &json!(true) || value == &json!({}))
                    && !members.contains_key("unevaluatedProperties")
            }
            // All of the ways, or what is referred to, are of the same type.
            "type" if value.is_string() => {
                let is_said = |way: &Value| self.type_of(way, place) == Some(value);
                let all = |ways: &Vec<Value>| !ways.is_empty() && ways.iter().all(is_said);
                let by_ways = |keyword: &str| members.get(keyword).and_then(Value::as_array).is_some_and(all);
                let referred = |reference| self.type_of(&json!({"$ref": reference}), place) == Some(value);
                by_ways("anyOf") || by_ways("oneOf") || members.get("$ref").is_some_and(referred)
            }
            _ => false,
        }
    }

    /// The type that a schema names, or what it refers to.
    fn type_of<'a>(&'a self, schema: &Value, place: &Place) -> Option<&'a Value> {
        let mut pointer = self.references.resolve(schema.get("$ref")?.as_str()?, &place.pointer)?;
        for _ in 0..MAX_LINKS {
            let target = self.root.pointer(&pointer)?;
            if let Some(name) = target.get("type") {
                return Some(name);
            }
            pointer = self.references.resolve(target.get("$ref")?.as_str()?, &pointer)?;
        }
        None
    }
}

/// A bound on the number of properties, of an object that has those of a list alone.
pub(super) fn bound(keyword: &str, count: u64, members: &Map<String, Value>) -> Bound {
    let is_closed = members.get("additionalProperties") == Some(&json!(false))
        && members.get("patternProperties").is_none_or(|patterns| patterns == &json!({}));
    let properties = members.get("properties").and_then(Value::as_object);
    let (true, Some(properties)) = (is_closed, properties) else { return Bound::Stays };
    let required = members.get("required").and_then(Value::as_array);
    let is_required = |name: &&String| required.is_some_and(|names| names.iter().any(|given| given == *name));
    let num_required = properties.keys().filter(is_required).count() as u64;
    let all = properties.len() as u64;
    match keyword {
        "maxProperties" if count >= all => Bound::Said,
        "minProperties" if count <= num_required => Bound::Said,
        "minProperties" if count == all => {
            Bound::As(json!({"required": properties.keys().collect::<Vec<_>>()}))
        }
        "minProperties" if count == 1 => {
            let ways: Vec<Value> = properties.keys().map(|name| json!({"required": [name]})).collect();
            Bound::As(json!({"anyOf": ways}))
        }
        _ => Bound::Stays,
    }
}
