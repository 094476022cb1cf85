//! Answers as Rust values: a type's schema holds the answer, and the answer becomes a value of the type.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use wardrobe_engine::{Choice, TokenId};
use wardrobe_grammar::{Compiler, Limits, Spec, Template, Whitespace, close_objects};

use crate::error::{Error, Result};
use crate::model::Model;

/// The schema of a type, to hold answers to. Objects have the type's fields and no others ([`close_objects`]), in their order.
pub fn schema_of<T: JsonSchema>() -> Spec {
    let mut schema = schemars::schema_for!(T).to_value();
    close_objects(&mut schema);
    Spec::JsonSchema { schema, strict: true }
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

    /// Where a shape is, or what it is.
    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    struct Placed {
        id: u8,
        #[serde(flatten)]
        shape: Shape,
        #[serde(flatten)]
        origin: Origin,
        note: Option<Note>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Shape {
        Point { x: i8, y: i8 },
        Circle(Circle),
        Nothing,
    }

    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    struct Circle {
        radius: u8,
    }

    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    struct Origin {
        by: bool,
    }

    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    #[serde(untagged)]
    enum Note {
        Marked { mark: bool },
        Shaped { about: Shape },
    }

    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Event {
        Stopped,
        Moved { to: Circle },
        Failed(bool),
    }

    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    struct Log {
        first: Event,
        #[serde(flatten)]
        last: Event2,
    }

    #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, JsonSchema)]
    #[serde(tag = "t", content = "c")]
    enum Event2 {
        Seen(bool),
        Heard { by: Origin },
        Missed,
    }

    /// Random answers are values of the type, and have nothing that the type does not.
    fn check_answers<T: JsonSchema + DeserializeOwned + serde::Serialize>(others: &[&str]) {
        let ends = [TokenId(256)];
        let tokenizer = wardrobe_text::Tokenizer::made_up(257, None, &ends).unwrap();
        let compiler = Compiler::of_tokenizer(tokenizer, &ends, Limits::default());
        let spec = schema_of::<T>();
        let template =
            compiler.compile(&spec, Whitespace::default()).unwrap_or_else(|e| panic!("{e}\n{spec:?}"));
        let mut seen = std::collections::HashSet::<&str>::new();
        let mut state = 7_u64;
        for _ in 0..40 {
            let mut session = template.session();
            let mut text = Vec::new();
            let mut mask = vec![0; 9];
            loop {
                session.fill_mask(&mut mask).unwrap();
                let allowed: Vec<u32> =
                    (0..257).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let token = TokenId(allowed[(state >> 33) as usize % allowed.len()]);
                if ends.contains(&token) {
                    break;
                }
                session.accept(token).unwrap();
                text.push(token.0 as u8);
            }
            let text = String::from_utf8(text).unwrap();
            let value: T = value_of(&Choice { text: text.clone(), ..Choice::default() }).unwrap();
            // What the type does not know would be missing.
            let again: serde_json::Value = serde_json::to_value(&value).unwrap();
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            let without_null = |value: serde_json::Value| match value {
                serde_json::Value::Object(members) => {
                    members.into_iter().filter(|(_, v)| !v.is_null()).collect()
                }
                other => other,
            };
            assert_eq!(without_null(read), without_null(again), "{text}");
            seen.extend(others.iter().filter(|part| text.contains(**part)));
        }
        assert_eq!(seen.len(), others.len(), "of {others:?} there were {seen:?}");
    }

    #[test]
    fn enums_of_every_kind_are_answered() {
        check_answers::<Placed>(&[
            "\"point\"",
            "\"circle\"",
            "\"nothing\"",
            "\"radius\"",
            "\"mark\"",
            "\"about\"",
        ]);
        check_answers::<Shape>(&["\"point\"", "\"circle\"", "\"nothing\""]);
        check_answers::<Event>(&["\"stopped\"", "\"moved\"", "\"failed\""]);
        check_answers::<Log>(&["\"Seen\"", "\"Heard\"", "\"Missed\""]);
    }
}
