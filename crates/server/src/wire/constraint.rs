//! Fields that hold an answer to something: OpenAI's `response_format`, vLLM's `structured_outputs` and older `guided_*`,
//! llama.cpp's `json_schema` and `grammar`, SGLang's `json_schema`, `regex` and `ebnf`.

use serde::Deserialize;
use serde_json::Value;

/// All of them. At most one may be set.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConstraintFields {
    pub response_format: Option<ResponseFormat>,
    pub structured_outputs: Option<StructuredOutputs>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<String>,
    pub guided_choice: Option<Vec<String>>,
    pub guided_grammar: Option<String>,
    pub json_schema: Option<Value>,
    pub grammar: Option<String>,
    pub regex: Option<String>,
    pub ebnf: Option<String>,
}

/// `response_format`.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    Text,
    JsonObject {
        /// llama.cpp's addition.
        schema: Option<Value>,
    },
    JsonSchema {
        json_schema: NamedSchema,
    },
}

/// OpenAI's wrapper around a schema.
#[derive(Debug, Deserialize)]
pub(crate) struct NamedSchema {
    pub schema: Option<Value>,
    #[serde(default)]
    pub strict: Option<bool>,
}

/// vLLM's `structured_outputs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StructuredOutputs {
    pub json: Option<Value>,
    pub regex: Option<String>,
    pub choice: Option<Vec<String>>,
    pub grammar: Option<String>,
    pub json_object: Option<bool>,
    pub whitespace_pattern: Option<String>,
    pub disable_any_whitespace: Option<bool>,
}
