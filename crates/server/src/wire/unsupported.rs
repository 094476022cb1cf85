//! Fields that other servers know and this one does not.
//!
//! A field nobody knows is ignored, as clients expect. A field that is known and would change the answer is refused by
//! its name, since ignoring it would give an answer that was not asked for. Values that ask for nothing (null, an
//! empty list, a sampler's neutral value) pass.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The first field that is refused, with the reason.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Unsupported(pub Option<(&'static str, &'static str)>);

/// Which values of a field ask for nothing.
#[derive(Clone, Copy)]
enum Passes {
    /// `null`, `false`, `""`, `[]`, `{}`.
    Empty,
    /// These numbers.
    Numbers(&'static [f64]),
    /// These strings.
    Strings(&'static [&'static str]),
    /// A list of nothing but `text`.
    OnlyText,
}

const GRAMMAR: &str = "use response_format, or structured_outputs with json, regex, choice or grammar";
const FUNCTIONS: &str = "use tools and tool_choice, which have taken its place";
const MEDIA: &str = "this server reads and writes text only";
const BEAM: &str = "beam search is not implemented";
const SAMPLER: &str = "this sampler is not implemented; use temperature, top_k, top_p, min_p and penalties";
const SEARCH: &str = "this server does not search the web";

const FIELDS: &[(&str, Passes, &str)] = &[
    ("guided_whitespace_pattern", Passes::Empty, GRAMMAR),
    ("structural_tag", Passes::Empty, GRAMMAR),
    ("functions", Passes::Empty, FUNCTIONS),
    ("function_call", Passes::Strings(&["none", "auto"]), FUNCTIONS),
    ("audio", Passes::Empty, MEDIA),
    ("modalities", Passes::OnlyText, MEDIA),
    ("image_data", Passes::Empty, MEDIA),
    ("mm_processor_kwargs", Passes::Empty, MEDIA),
    ("prompt_embeds", Passes::Empty, MEDIA),
    ("web_search_options", Passes::Empty, SEARCH),
    ("suffix", Passes::Empty, "filling in the middle is not implemented"),
    ("use_beam_search", Passes::Empty, BEAM),
    ("logits_processors", Passes::Empty, SAMPLER),
    ("samplers", Passes::Empty, SAMPLER),
    ("typical_p", Passes::Numbers(&[1.0]), SAMPLER),
    ("tfs_z", Passes::Numbers(&[1.0]), SAMPLER),
    ("mirostat", Passes::Numbers(&[0.0]), SAMPLER),
    ("mirostat_mode", Passes::Numbers(&[0.0]), SAMPLER),
    ("dry_multiplier", Passes::Numbers(&[0.0]), SAMPLER),
    ("xtc_probability", Passes::Numbers(&[0.0]), SAMPLER),
    ("dynatemp_range", Passes::Numbers(&[0.0]), SAMPLER),
    ("top_n_sigma", Passes::Numbers(&[0.0, -1.0]), SAMPLER),
    ("no_repeat_ngram_size", Passes::Numbers(&[0.0]), SAMPLER),
];

/// As much of a value as a rule asks about.
#[derive(Debug)]
enum Shape {
    Empty,
    Number(f64),
    String(String),
    OnlyText,
    Other,
}

impl Shape {
    fn passes(&self, rule: Passes) -> bool {
        match (self, rule) {
            (Self::Empty, _) => true,
            (Self::Number(number), Passes::Numbers(numbers)) => numbers.contains(number),
            (Self::String(text), Passes::Strings(texts)) => texts.contains(&text.as_str()),
            (Self::OnlyText, Passes::OnlyText) => true,
            _ => false,
        }
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: Error>(self) -> Result<Shape, E> {
        Ok(Shape::Empty)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Shape, E> {
        Ok(if value { Shape::Other } else { Shape::Empty })
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Shape, E> {
        Ok(Shape::Number(value as f64))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Shape, E> {
        Ok(Shape::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Shape, E> {
        Ok(Shape::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Shape, E> {
        Ok(if value.is_empty() { Shape::Empty } else { Shape::String(value.chars().take(32).collect()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = Shape::Empty;
        while let Some(element) = seq.next_element::<Shape>()? {
            let is_text = matches!(&element, Shape::String(text) if text == "text");
            shape = match (is_text, shape) {
                (true, Shape::Empty | Shape::OnlyText) => Shape::OnlyText,
                _ => Shape::Other,
            };
        }
        Ok(shape)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut shape = Shape::Empty;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            shape = Shape::Other;
        }
        Ok(shape)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct UnsupportedVisitor;

impl<'de> Visitor<'de> for UnsupportedVisitor {
    type Value = Unsupported;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unsupported, A::Error> {
        let mut refused = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let Some((name, rule, why)) = FIELDS.iter().find(|(name, ..)| *name == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if !map.next_value::<Shape>()?.passes(*rule) {
                refused = refused.or(Some((*name, *why)));
            }
        }
        Ok(Unsupported(refused))
    }
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UnsupportedVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> Option<&'static str> {
        serde_json::from_str::<Unsupported>(json).unwrap().0.map(|(name, _)| name)
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (json, name) in [
            (r#"{"functions":[{"name":"f"}]}"#, "functions"),
            (r#"{"function_call":{"name":"f"}}"#, "function_call"),
            (r#"{"modalities":["text","audio"]}"#, "modalities"),
            (r#"{"audio":{"voice":"x"}}"#, "audio"),
            (r#"{"mirostat":2}"#, "mirostat"),
            (r#"{"typical_p":0.5}"#, "typical_p"),
            (r#"{"use_beam_search":true}"#, "use_beam_search"),
            (r#"{"suffix":"x"}"#, "suffix"),
        ] {
            assert_eq!(refused(json), Some(name), "{json}");
        }
    }

    #[test]
    fn what_asks_for_nothing_passes() {
        for json in [
            "{}",
            r#"{"response_format":null,"tools":[],"functions":null,"audio":null,"suffix":""}"#,
            r#"{"response_format":{"type":"text"},"tool_choice":"none","modalities":["text"]}"#,
            r#"{"mirostat":0,"typical_p":1,"top_n_sigma":-1.0,"use_beam_search":false,"structured_outputs":{}}"#,
            r#"{"something_new":{"type":"json_schema","tools":[1]}}"#,
        ] {
            assert_eq!(refused(json), None, "{json}");
        }
    }
}
