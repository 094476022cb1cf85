//! What a schema does not allow, as a schema, where that can be said.

use serde_json::{Map, Value, json};

use super::is_annotation;

const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// The schema of all that `schema` does not allow.
pub(super) fn negate(schema: &Value) -> Option<Value> {
    let members = match schema {
        Value::Bool(allows) => return Some(Value::Bool(!allows)),
        Value::Object(members) => members,
        _ => return None,
    };
    let says = members.iter().filter(|(keyword, _)| !is_annotation(keyword));
    // All of its keywords have to hold: it is enough that one does not.
    let mut ways =
        says.map(|(keyword, value)| keyword_negated(keyword, value)).collect::<Option<Vec<_>>>()?;
    match ways.len() {
        0 => Some(Value::Bool(false)),
        1 => ways.pop(),
        _ => Some(json!({"anyOf": ways})),
    }
}

/// For keywords that mean the same whatever stands beside them.
fn keyword_negated(keyword: &str, value: &Value) -> Option<Value> {
    match keyword {
        "not" => Some(value.clone()),
        "type" => without_types(value),
        "anyOf" => each(value, "allOf"),
        "allOf" => each(value, "anyOf"),
        "const" => without_values(std::slice::from_ref(value)),
        "enum" => without_values(value.as_array()?),
        // What is no object has every property that is required of objects.
        "required" => {
            let absent = value.as_array()?.iter().map(|name| {
                let mut properties = Map::new();
                properties.insert(name.as_str()?.to_owned(), Value::Bool(false));
                Some(json!({"properties": properties}))
            });
            Some(json!({"type": "object", "anyOf": absent.collect::<Option<Vec<_>>>()?}))
        }
        "properties" => {
            let wrong = value.as_object()?.iter().map(|(name, schema)| {
                let mut properties = Map::new();
                properties.insert(name.clone(), negate(schema)?);
                Some(json!({"type": "object", "required": [name], "properties": properties}))
            });
            Some(json!({"anyOf": wrong.collect::<Option<Vec<_>>>()?}))
        }
        "minimum" => Some(json!({"type": "number", "exclusiveMaximum": value})),
        "maximum" => Some(json!({"type": "number", "exclusiveMinimum": value})),
        "exclusiveMinimum" if value.is_number() => Some(json!({"type": "number", "maximum": value})),
        "exclusiveMaximum" if value.is_number() => Some(json!({"type": "number", "minimum": value})),
        "minLength" => fewer(value, "string", "maxLength"),
        "maxLength" => more(value, "string", "minLength"),
        "minItems" => fewer(value, "array", "maxItems"),
        "maxItems" => more(value, "array", "minItems"),
        _ => None,
    }
}

fn each(schemas: &Value, joined_by: &str) -> Option<Value> {
    let negated = schemas.as_array()?.iter().map(negate).collect::<Option<Vec<_>>>()?;
    let mut joined = Map::new();
    joined.insert(joined_by.to_owned(), Value::Array(negated));
    Some(Value::Object(joined))
}

fn without_types(types: &Value) -> Option<Value> {
    let names: Vec<&str> = match types {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    // Numbers that are not whole are no type.
    if names.contains(&"integer") && !names.contains(&"number") {
        return None;
    }
    let left: Vec<&str> = TYPES.into_iter().filter(|name| !names.contains(name)).collect();
    Some(if left.is_empty() { Value::Bool(false) } else { json!({"type": left}) })
}

/// Of the values of types that have few.
fn without_values(values: &[Value]) -> Option<Value> {
    if !values.iter().all(|value| value.is_boolean() || value.is_null()) {
        return None;
    }
    let few = [Value::Null, Value::Bool(true), Value::Bool(false)];
    let left: Vec<&Value> = few.iter().filter(|value| !values.contains(value)).collect();
    let others = json!({"type": ["number", "string", "array", "object"]});
    Some(if left.is_empty() { others } else { json!({"anyOf": [others, {"enum": left}]}) })
}

fn fewer(count: &Value, of_type: &str, keyword: &str) -> Option<Value> {
    Some(match count.as_u64()?.checked_sub(1) {
        Some(most) => {
            let mut schema = Map::new();
            schema.insert("type".to_owned(), json!(of_type));
            schema.insert(keyword.to_owned(), json!(most));
            Value::Object(schema)
        }
        None => Value::Bool(false),
    })
}

fn more(count: &Value, of_type: &str, keyword: &str) -> Option<Value> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!(of_type));
    schema.insert(keyword.to_owned(), json!(count.as_u64()?.checked_add(1)?));
    Some(Value::Object(schema))
}
