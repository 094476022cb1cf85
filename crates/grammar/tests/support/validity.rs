//! A validator of JSON Schema as small as the tests' own schemas ask for. It shares nothing with the crate.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;

fn count(schema: &Value, keyword: &str) -> Option<usize> {
    schema.get(keyword).map(|count| count.as_u64().unwrap() as usize)
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type: {other}"),
    }
}

/// Whether the schema allows the value.
pub fn is_valid(value: &Value, schema: &Value, root: &Value) -> bool {
    let members = match schema {
        Value::Bool(allows) => return *allows,
        schema => schema.as_object().unwrap(),
    };
    members.iter().all(|(keyword, given)| holds(keyword, given, value, schema, root))
}

fn holds(keyword: &str, given: &Value, value: &Value, schema: &Value, root: &Value) -> bool {
    let valid = |schema: &Value| is_valid(value, schema, root);
    let list = || given.as_array().unwrap().iter();
    match keyword {
        "$defs" | "then" | "else" => true,
        "$ref" => valid(root.pointer(given.as_str().unwrap().strip_prefix('#').unwrap()).unwrap()),
        "type" if given.is_array() => list().any(|name| is_of_type(value, name.as_str().unwrap())),
        "type" => is_of_type(value, given.as_str().unwrap()),
        "enum" => list().any(|one| one == value),
        "const" => given == value,
        "allOf" => list().all(valid),
        "anyOf" => list().any(valid),
        "oneOf" => list().filter(|schema| valid(schema)).count() == 1,
        "not" => !valid(given),
        "if" => schema.get(if valid(given) { "then" } else { "else" }).is_none_or(valid),
        // Whole numbers need not fit in a float.
        "multipleOf" if value.is_i64() && given.is_i64() => {
            value.as_i64().unwrap() % given.as_i64().unwrap() == 0
        }
        _ => match value {
            Value::Number(number) => holds_of_number(keyword, given, number.as_f64().unwrap()),
            Value::String(text) => holds_of_text(keyword, given, text),
            Value::Array(items) => match keyword {
                "items" => items
                    .iter()
                    .skip(schema["prefixItems"].as_array().map_or(0, Vec::len))
                    .all(|item| is_valid(item, given, root)),
                "prefixItems" => items.iter().zip(list()).all(|(item, schema)| is_valid(item, schema, root)),
                "minItems" => items.len() >= count(schema, keyword).unwrap(),
                "maxItems" => items.len() <= count(schema, keyword).unwrap(),
                _ => true,
            },
            Value::Object(_) => holds_of_object(keyword, given, value, schema, root),
            _ => true,
        },
    }
}

fn holds_of_number(keyword: &str, given: &Value, number: f64) -> bool {
    let bound = given.as_f64().unwrap_or(f64::NAN);
    match keyword {
        "minimum" => number >= bound,
        "maximum" => number <= bound,
        "exclusiveMinimum" => number > bound,
        "exclusiveMaximum" => number < bound,
        "multipleOf" => (number / bound).fract() == 0.0,
        _ => true,
    }
}

fn holds_of_text(keyword: &str, given: &Value, text: &str) -> bool {
    match keyword {
        "minLength" => text.chars().count() >= given.as_u64().unwrap() as usize,
        "maxLength" => text.chars().count() <= given.as_u64().unwrap() as usize,
        "pattern" => regex_automata::meta::Regex::new(given.as_str().unwrap()).unwrap().is_match(text),
        _ => true,
    }
}

fn holds_of_object(keyword: &str, given: &Value, value: &Value, schema: &Value, root: &Value) -> bool {
    let members = value.as_object().unwrap();
    match keyword {
        "properties" => given
            .as_object()
            .unwrap()
            .iter()
            .all(|(name, schema)| members.get(name).is_none_or(|member| is_valid(member, schema, root))),
        "additionalProperties" => members
            .iter()
            .all(|(name, member)| schema["properties"].get(name).is_some() || is_valid(member, given, root)),
        "required" => {
            given.as_array().unwrap().iter().all(|name| members.contains_key(name.as_str().unwrap()))
        }
        "dependentRequired" => given.as_object().unwrap().iter().all(|(name, needs)| {
            !members.contains_key(name)
                || needs.as_array().unwrap().iter().all(|need| members.contains_key(need.as_str().unwrap()))
        }),
        "minProperties" => members.len() >= count(schema, keyword).unwrap(),
        "maxProperties" => members.len() <= count(schema, keyword).unwrap(),
        _ => true,
    }
}
