//! The `prompt` of the completions API in its four shapes: a string, strings, token ids, several lists of them.
//!
//! Read without an intermediate tree, since a prompt may be very long.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use wardrobe_engine::TokenId;

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// All prompts of a request, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Prompts(pub Vec<Prompt>);

/// An element of the outer array.
enum Element {
    Text(String),
    Token(TokenId),
    Tokens(Vec<TokenId>),
}

const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of such arrays";

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or an array of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
        match u32::try_from(id) {
            Ok(id) => Ok(Element::Token(TokenId(id))),
            Err(_) => Err(E::custom(format!("{id} is not a token id"))),
        }
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<Element, E> {
        Err(E::custom(format!("{id} is not a token id")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element::<u32>()? {
            ids.push(TokenId(id));
        }
        Ok(Element::Tokens(ids))
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_unit<E: Error>(self) -> Result<Prompts, E> {
        Ok(Prompts::default())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        let mixed = || A::Error::custom(format!("the prompt must be {EXPECTED}"));
        let mut prompts = Vec::new();
        let mut flat = Vec::new();
        while let Some(element) = seq.next_element::<Element>()? {
            match element {
                Element::Text(text) if flat.is_empty() => prompts.push(Prompt::Text(text)),
                Element::Tokens(ids) if flat.is_empty() => prompts.push(Prompt::Tokens(ids)),
                Element::Token(id) if prompts.is_empty() => flat.push(id),
                _ => return Err(mixed()),
            }
        }
        if !flat.is_empty() {
            prompts.push(Prompt::Tokens(flat));
        }
        Ok(Prompts(prompts))
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Prompt {
        Prompt::Tokens(ids.iter().copied().map(TokenId).collect())
    }

    #[test]
    fn every_shape_is_read() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        let cases = [
            ("null", vec![]),
            ("[]", vec![]),
            (r#""a""#, vec![text("a")]),
            (r#"["a","b\n"]"#, vec![text("a"), text("b\n")]),
            ("[1,2,3]", vec![tokens(&[1, 2, 3])]),
            ("[[1,2],[3],[]]", vec![tokens(&[1, 2]), tokens(&[3]), tokens(&[])]),
            (r#"["a",[1]]"#, vec![text("a"), tokens(&[1])]),
        ];
        for (json, expected) in cases {
            assert_eq!(serde_json::from_str::<Prompts>(json).unwrap().0, expected, "{json}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for json in [
            "1",
            "{}",
            "true",
            "[1,\"a\"]",
            "[[1],2]",
            "[-1]",
            "[4294967296]",
            "[1.5]",
            "[[[1]]]",
            "[null]",
            "[[-1]]",
        ] {
            assert!(serde_json::from_str::<Prompts>(json).is_err(), "{json}");
        }
    }
}
