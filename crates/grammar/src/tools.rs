//! Functions that may be called, before they are compiled: within limits, and their parameters as schemas of objects.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use wardrobe_text::is_function_name;

use crate::closing::close_objects;
use crate::error::{GrammarError, Result};
use crate::schema::{self, OneOf, Prepared};
use crate::spec::{Beside, ToolCalls};

/// Functions that may be offered at once.
const MAX_FUNCTIONS: usize = 128;

const KIND: &str = "set of functions";

/// Refuses what is too large to be looked at, and what is no set of functions.
pub(crate) fn check_size(calls: &ToolCalls) -> Result<()> {
    let invalid = |message: String| Err(GrammarError::Invalid { kind: KIND, message });
    if calls.functions.len() > MAX_FUNCTIONS {
        let message = format!("{} functions are over the limit of {MAX_FUNCTIONS}", calls.functions.len());
        return Err(GrammarError::TooLarge { kind: KIND, message });
    }
    if calls.functions.is_empty() || calls.max_calls == 0 {
        return invalid("there is nothing to call".to_owned());
    }
    let mut names = HashSet::new();
    for function in &calls.functions {
        let name = &function.name;
        if !is_function_name(name) {
            return invalid(format!("{name:?} is not a name of 1 to 64 letters, digits, `_` and `-`"));
        }
        if !names.insert(name) {
            return invalid(format!("two functions have the name {name:?}"));
        }
        schema::check_size(&function.parameters).map_err(|error| of(name, error))?;
    }
    match &calls.beside {
        Beside::Json { schema, .. } => schema::check_size(schema),
        Beside::Nothing | Beside::Text => Ok(()),
    }
}

/// The parameters of each function; then the schema of what an answer may be beside calls, if there is one.
pub(crate) fn prepare(calls: &ToolCalls, one_of: OneOf) -> Result<Vec<Prepared>> {
    let mut all = Vec::with_capacity(calls.functions.len() + 1);
    for function in &calls.functions {
        let name = &function.name;
        let parameters = parameters(&function.parameters).map_err(|error| of(name, error))?;
        let mut prepared =
            schema::prepare(&parameters, function.strict, one_of).map_err(|error| of(name, error))?;
        for warning in &mut prepared.warnings {
            *warning = format!("function {name}: {warning}");
        }
        all.push(prepared);
    }
    if let Beside::Json { schema, strict } = &calls.beside {
        all.push(schema::prepare(schema, *strict, one_of)?);
    }
    Ok(all)
}

/// A function's parameters as the schema of an object that has no others.
fn parameters(schema: &Value) -> Result<Value> {
    let mut schema = match schema {
        Value::Null => Map::new(),
        Value::Object(members) => members.clone(),
        _ => return Err(invalid("its parameters are no schema of an object")),
    };
    match schema.get("type") {
        None => {
            schema.insert("type".to_owned(), json!("object"));
        }
        Some(kind) if kind == "object" => {}
        Some(_) => return Err(invalid("its parameters are not of the type \"object\"")),
    }
    let says_more =
        ["properties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "additionalProperties"];
    if !says_more.iter().any(|keyword| schema.contains_key(*keyword)) {
        schema.insert("properties".to_owned(), json!({}));
    }
    let mut schema = Value::Object(schema);
    close_objects(&mut schema);
    Ok(schema)
}

fn invalid(message: &str) -> GrammarError {
    GrammarError::Invalid { kind: KIND, message: message.to_owned() }
}

/// An error of one function's parameters.
fn of(name: &str, error: GrammarError) -> GrammarError {
    let tell = |message: String| format!("function {name}: {message}");
    match error {
        GrammarError::Unsupported { keyword, path, detail } => GrammarError::Unsupported {
            keyword,
            path: format!("{path} of the parameters of function {name}"),
            detail,
        },
        GrammarError::Invalid { message, .. } => GrammarError::Invalid { kind: KIND, message: tell(message) },
        GrammarError::Unsatisfiable { message, .. } => {
            GrammarError::Unsatisfiable { kind: KIND, message: tell(message) }
        }
        GrammarError::TooLarge { message, .. } => {
            GrammarError::TooLarge { kind: KIND, message: tell(message) }
        }
        other => other,
    }
}
