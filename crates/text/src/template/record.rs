//! Prompts from records: the same Jinja as chat templates, over the fields of one record.

use minijinja::{Environment, UndefinedBehavior, Value as TemplateValue};
use serde_json::{Map, Value};

use super::input::to_template;
use super::{NAME, TemplateError, TemplateLimits, environment, render};

/// The variable with all fields, for names that are none in Jinja: `{{ record["full name"] }}`.
const RECORD: &str = "record";

/// A prompt in words of one's own: text with `{{ field }}` in it. A field that a record lacks is an error, unless the
/// template provides for it (`{{ field | default("none") }}`).
#[derive(Debug)]
pub struct RecordTemplate {
    environment: Environment<'static>,
    source: String,
    /// What it takes from a record, in the order of their names.
    fields: Vec<String>,
    limits: TemplateLimits,
}

impl RecordTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// The source is not valid or too long.
    pub fn new(source: &str, limits: TemplateLimits) -> Result<Self, TemplateError> {
        let environment = environment(source, limits, UndefinedBehavior::Strict)?;
        let globals: Vec<&str> = environment.globals().map(|(name, _)| name).collect();
        let template = environment.get_template(NAME).map_err(super::syntax_error)?;
        let mut fields: Vec<String> = template.undeclared_variables(false).into_iter().collect();
        fields.retain(|name| !globals.contains(&name.as_str()));
        fields.sort_unstable();
        Ok(Self { environment, source: source.to_owned(), fields, limits })
    }

    /// The source, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The names that it takes from a record; none: it gives the same text for all.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// The text of a record.
    ///
    /// # Errors
    /// The record lacks a field, the template fails on it or refuses it, or a limit is exceeded.
    pub fn render(&self, record: &Map<String, Value>) -> Result<String, TemplateError> {
        let taken =
            self.fields.iter().filter_map(|name| Some((name.as_str(), to_template(record.get(name)?))));
        let mut variables: Vec<(&str, TemplateValue)> = taken.collect();
        let takes_all = self.fields.iter().any(|name| name == RECORD) && !record.contains_key(RECORD);
        if takes_all {
            let all = record.iter().map(|(name, value)| (name.as_str(), to_template(value)));
            variables.push((RECORD, TemplateValue::from_pairs(all)));
        }
        render(&self.environment, TemplateValue::from_pairs(variables), self.limits).map_err(|error| {
            let lacks = |name: &&String| *name != RECORD && !record.contains_key(*name);
            match (&error, self.fields.iter().find(lacks)) {
                (TemplateError::Render { .. }, Some(field)) => TemplateError::UnknownField {
                    field: field.clone(),
                    known: record.keys().cloned().collect(),
                },
                _ => error,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, record: Value) -> Result<String, String> {
        let Value::Object(record) = record else { panic!("an object") };
        let template = RecordTemplate::new(source, TemplateLimits::default());
        template.and_then(|template| template.render(&record)).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_are_variables() {
        let record =
            || json!({"text": "a <b>", "n": 3, "full name": "Ada", "tags": ["x", "y"], "none": null});
        for (source, text) in [
            ("Label: {{ text }}\nas {\"n\": {{ n }}}", "Label: a <b>\nas {\"n\": 3}"),
            ("{{ record[\"full name\"] }} {{ tags | join(', ') }}", "Ada x, y"),
            ("{% for tag in tags %}[{{ tag }}]{% endfor %}", "[x][y]"),
            ("{{ missing | default('none') }}{% if other is defined %}!{% endif %}", "none"),
            ("{{ tags | tojson }} {{ text.upper() }}", "[\"x\", \"y\"] A <B>"),
        ] {
            assert_eq!(render(source, record()).unwrap(), text);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = render("{{ text }} {{ labl }}", json!({"text": "a", "label": 1})).unwrap_err();
        assert!(error.contains("\"labl\"") && error.contains("\"text\", \"label\""), "{error}");
        assert!(render("{{ record.nope }}", json!({"a": 1})).is_err());
        assert!(render("{{ a.b }}", json!({"a": {}})).unwrap_err().contains("undefined"));
        assert!(render("{{ a", json!({"a": 1})).is_err());
        assert_eq!(render("{{ raise_exception('no ' + a) }}", json!({"a": "way"})).unwrap_err(), "no way");
        let fields = |source: &str| RecordTemplate::new(source, TemplateLimits::default()).unwrap().fields;
        assert_eq!(
            fields("{{ b }}{% set c = 1 %}{{ c }}{% for i in range(a) %}{{ i }}{% endfor %}"),
            ["a", "b"]
        );
        assert!(fields("{text} {% set x = namespace() %}").is_empty());
    }
}
