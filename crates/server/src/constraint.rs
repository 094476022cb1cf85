//! From a request's fields to what its answer is held to.

use std::sync::Arc;

use serde_json::Value;
use wardrobe_engine::Constraint;
use wardrobe_grammar::{GrammarError, Spec, Whitespace};

use crate::body::JsonObject;
use crate::error::{ApiError, Result};
use crate::loose::LooseSchemas;
use crate::state::ServerState;
use crate::wire::constraint::{ConstraintFields, ResponseFormat};

/// A spec with the field that it comes from.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    pub field: &'static str,
    pub spec: Spec,
    pub whitespace: Whitespace,
}

/// What a body says of its answer.
pub(crate) struct BodyConstraint {
    /// What it is to be held to.
    pub asked: Option<Asked>,
    /// It is to be text, also where the adapter carries a schema.
    pub is_text: bool,
}

impl BodyConstraint {
    /// Reads the fields that say so.
    pub fn new(body: &JsonObject) -> Result<Self> {
        let fields: ConstraintFields = body.parse()?;
        let is_text = matches!(fields.response_format, Some(ResponseFormat::Text));
        Ok(Self { asked: asked(fields)?, is_text })
    }
}

/// What an answer is held to.
#[derive(Default)]
pub(crate) struct Held {
    pub constraint: Option<Constraint>,
    /// What of it is looked at when the answer is there.
    pub loose: Option<Arc<LooseSchemas>>,
}

/// Compiles what an answer is held to, off the runtime's thread.
pub(crate) async fn compile(state: &Arc<ServerState>, asked: Option<Asked>) -> Result<Held> {
    let Some(Asked { field, spec, whitespace }) = asked else { return Ok(Held::default()) };
    let compiler = state.model.compiler.clone();
    let compile = move || {
        let template = compiler.compile(&spec, whitespace)?;
        tracing::debug!(field, engine = ?template.engine(), template = ?template, "an answer is held to a constraint");
        let loose = LooseSchemas::new(&spec, &template).map(Arc::new);
        Ok(Held { constraint: Some(Constraint(template)), loose })
    };
    let compiled = tokio::task::spawn_blocking(compile).await;
    let compiled =
        compiled.map_err(|error| ApiError::internal(format!("compiling a constraint: {error}")))?;
    compiled.map_err(|error| refused(field, &error))
}

fn refused(field: &'static str, error: &GrammarError) -> ApiError {
    match error {
        GrammarError::Engine { .. } => ApiError::internal(error.to_string()),
        _ => ApiError::invalid(field, format!("is refused: {error}")).with_code("invalid_constraint"),
    }
}

/// The one spec that is asked for.
fn asked(fields: ConstraintFields) -> Result<Option<Asked>> {
    let mut found: Vec<Asked> = Vec::new();
    let mut add = |field, spec, whitespace| found.push(Asked { field, spec, whitespace });
    let spaced = Whitespace::Spaced;
    let schema = |schema, strict| Spec::JsonSchema { schema, strict };
    match fields.response_format {
        None | Some(ResponseFormat::Text) => {}
        Some(ResponseFormat::JsonObject { schema: None }) => add("response_format", Spec::JsonObject, spaced),
        Some(ResponseFormat::JsonObject { schema: Some(given) }) => {
            add("response_format", schema(given, false), spaced);
        }
        Some(ResponseFormat::JsonSchema { json_schema }) => match json_schema.schema {
            Some(given) => {
                add("response_format", schema(given, json_schema.strict.unwrap_or(false)), spaced);
            }
            None => return Err(ApiError::invalid("response_format.json_schema", "has no `schema`")),
        },
    }
    if let Some(outputs) = fields.structured_outputs {
        let field = "structured_outputs";
        if outputs.whitespace_pattern.is_some() {
            let why = "white space is fixed, so that it cannot go on for ever; leave it out";
            return Err(ApiError::unsupported("structured_outputs.whitespace_pattern", why));
        }
        let compact = outputs.disable_any_whitespace == Some(true);
        let style = if compact { Whitespace::Compact } else { spaced };
        if let Some(given) = outputs.json {
            add(field, schema(parsed(given, field)?, false), style);
        }
        outputs.regex.into_iter().for_each(|regex| add(field, Spec::Regex(regex), style));
        outputs.choice.into_iter().for_each(|choice| add(field, Spec::Choice(choice), style));
        outputs.grammar.into_iter().for_each(|text| add(field, grammar(text), style));
        if outputs.json_object == Some(true) {
            add(field, Spec::JsonObject, style);
        }
    }
    if let Some(given) = fields.guided_json {
        add("guided_json", schema(parsed(given, "guided_json")?, false), spaced);
    }
    if let Some(given) = fields.json_schema {
        add("json_schema", schema(parsed(given, "json_schema")?, false), spaced);
    }
    fields.guided_regex.into_iter().for_each(|regex| add("guided_regex", Spec::Regex(regex), spaced));
    fields.guided_choice.into_iter().for_each(|choice| add("guided_choice", Spec::Choice(choice), spaced));
    fields.guided_grammar.into_iter().for_each(|text| add("guided_grammar", grammar(text), spaced));
    // llama.cpp's clients send an empty one.
    let given = fields.grammar.into_iter().filter(|text| !text.trim().is_empty());
    given.for_each(|gbnf| add("grammar", Spec::Gbnf(gbnf), spaced));
    fields.regex.into_iter().for_each(|regex| add("regex", Spec::Regex(regex), spaced));
    fields.ebnf.into_iter().for_each(|gbnf| add("ebnf", Spec::Gbnf(gbnf), spaced));
    if let [first, second, ..] = found.as_slice() {
        let reason = format!("is set beside `{}`; an answer is held to one thing", first.field);
        return Err(ApiError::invalid(second.field, reason));
    }
    Ok(found.pop())
}

/// A grammar in either notation: rules are `name ::= …` in GBNF and `name: …` in Lark.
fn grammar(text: String) -> Spec {
    if text.contains("::=") { Spec::Gbnf(text) } else { Spec::Lark(text) }
}

/// vLLM's and SGLang's clients also send a schema as text.
fn parsed(schema: Value, field: &'static str) -> Result<Value> {
    match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::invalid(field, format!("is a text that is no JSON: {error}"))),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(body: Value) -> Result<Option<Asked>> {
        asked(serde_json::from_value(body).unwrap())
    }

    #[test]
    fn every_field_that_asks() {
        let schema = |strict| Spec::JsonSchema { schema: json!({"type": "null"}), strict };
        for (body, spec) in [
            (json!({"response_format": {"type": "json_object"}}), Spec::JsonObject),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {"type": "null"}}}}),
                schema(true),
            ),
            (json!({"response_format": {"type": "json_object", "schema": {"type": "null"}}}), schema(false)),
            (json!({"structured_outputs": {"json": {"type": "null"}}}), schema(false)),
            (json!({"structured_outputs": {"json": "{\"type\": \"null\"}"}}), schema(false)),
            (json!({"structured_outputs": {"regex": "a+"}}), Spec::Regex("a+".into())),
            (json!({"structured_outputs": {"choice": ["a"]}}), Spec::Choice(vec!["a".into()])),
            (json!({"structured_outputs": {"grammar": "start: \"a\""}}), Spec::Lark("start: \"a\"".into())),
            (json!({"structured_outputs": {"json_object": true}}), Spec::JsonObject),
            (json!({"guided_json": {"type": "null"}}), schema(false)),
            (json!({"guided_regex": "a+"}), Spec::Regex("a+".into())),
            (json!({"guided_choice": ["a"]}), Spec::Choice(vec!["a".into()])),
            (json!({"guided_grammar": "x"}), Spec::Lark("x".into())),
            (json!({"json_schema": {"type": "null"}}), schema(false)),
            (json!({"json_schema": "{\"type\": \"null\"}"}), schema(false)),
            (json!({"grammar": "root ::= \"a\""}), Spec::Gbnf("root ::= \"a\"".into())),
            (json!({"guided_grammar": "root ::= \"a\""}), Spec::Gbnf("root ::= \"a\"".into())),
            (json!({"ebnf": "root ::= \"a\""}), Spec::Gbnf("root ::= \"a\"".into())),
            (json!({"regex": "a+"}), Spec::Regex("a+".into())),
        ] {
            assert_eq!(of(body.clone()).unwrap().unwrap().spec, spec, "{body}");
        }
        for nothing in [
            json!({}),
            json!({"response_format": {"type": "text"}}),
            json!({"guided_json": null}),
            json!({"grammar": ""}),
        ] {
            assert_eq!(of(nothing).unwrap(), None);
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_field() {
        for (body, field) in [
            (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
            (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs"),
            (json!({"structured_outputs": {"json": "{"}}), "structured_outputs"),
            (json!({"structured_outputs": {"json": {}, "whitespace_pattern": " *"}}), "whitespace_pattern"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
                "response_format",
            ),
        ] {
            let error = of(body.clone()).unwrap_err();
            assert!(format!("{error:?}").contains(field), "{body}: {error:?}");
        }
    }
}
