//! Answers as Rust values: a type's schema holds the answer, and the answer becomes a value of the type.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wardrobe_engine::{Choice, TokenId};
use wardrobe_grammar::{Compiler, Limits, Spec, Template, Whitespace};

use crate::error::{Error, Result};
use crate::model::Model;

/// The schema of a type, to hold answers to. Objects have the type's fields and no others, in their order.
pub fn schema_of<T: JsonSchema>() -> Spec {
    let mut schema = schemars::schema_for!(T).to_value();
    close(&mut schema);
    Spec::JsonSchema { schema, strict: true }
}

/// Closes every object that has properties and says nothing of others: nobody would read them.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(close);
            if members.contains_key("properties") && !members.contains_key("additionalProperties") {
                members.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// The value that an answer is, which was held to [`schema_of`] its type.
///
/// # Errors
/// [`Error::Answer`] if it is none: then it was not held to it, or the type refuses what its schema allows.
pub fn value_of<T: DeserializeOwned>(choice: &Choice) -> Result<T> {
    serde_json::from_str(&choice.text)
        .map_err(|error| Error::Answer { text: choice.text.clone(), reason: error.to_string() })
}

impl Model {
    /// A compiler of what answers of this model are held to, with limits of its own. It keeps what it has compiled.
    pub fn compiler_within(&self, limits: Limits) -> Compiler {
        let ends: Vec<_> = self.config().eos_token_ids.iter().map(|&id| TokenId(id)).collect();
        Compiler::of_tokenizer(self.tokenizer().clone(), &ends, limits)
    }

    /// Compiles a spec with the model's own compiler ([`Model::compiler`]), with default white space.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it is refused.
    pub fn compile(&self, spec: &Spec) -> Result<Arc<Template>> {
        Ok(self.compiler().compile(spec, Whitespace::default())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize, JsonSchema)]
    struct Person {
        name: String,
        born: Option<i64>,
        jobs: Vec<Job>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Job {
        Politician,
        Athlete,
    }

    #[test]
    fn a_types_schema_is_closed_and_in_order() {
        let Spec::JsonSchema { schema, strict: true } = schema_of::<Person>() else { panic!("no schema") };
        let names: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["name", "born", "jobs"]);
        assert_eq!(schema["additionalProperties"], false);
        let choice = |text: &str| Choice { text: text.to_owned(), ..Choice::default() };
        let ada: Person =
            value_of(&choice(r#"{"name": "Ada", "born": null, "jobs": ["politician"]}"#)).unwrap();
        assert_eq!(ada, Person { name: "Ada".into(), born: None, jobs: vec![Job::Politician] });
        let error = value_of::<Person>(&choice("{\"name\": 3}")).unwrap_err().to_string();
        assert!(error.contains("integer `3`"), "{error}");
    }
}
