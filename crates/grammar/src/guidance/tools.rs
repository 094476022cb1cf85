//! The grammar of an answer that calls functions.

use std::sync::Arc;

use serde_json::{Value, json};
use wardrobe_text::{ID_LEN, NotationPart};

use super::numbers::{Mark, NumberGuard, NumberTokens};
use super::with_options;
use crate::schema::Prepared;
use crate::spec::{Beside, ToolCalls, Whitespace};
use crate::vocabulary::Vocabulary;

/// The answer's numbers: all of it is JSON, or what comes after the mark.
pub(super) fn guard(tokens: Arc<NumberTokens>, calls: &ToolCalls) -> NumberGuard {
    let notation = &calls.notation;
    match calls.beside {
        Beside::Text => {
            let bytes = notation.mark().as_bytes().into();
            NumberGuard::after(tokens, Mark { bytes, at_start: !notation.has_mark() })
        }
        Beside::Nothing | Beside::Json { .. } => NumberGuard::new(tokens),
    }
}

/// The grammar, in Lark.
pub(super) fn lark(
    vocabulary: &Vocabulary,
    calls: &ToolCalls,
    prepared: &[Prepared],
    whitespace: Whitespace,
) -> String {
    let notation = &calls.notation;
    let write = |parts: &[NotationPart]| terms(vocabulary, parts);
    let json = |prepared: &Prepared, strict: bool| {
        format!("%json {}", with_options(prepared.schema.clone(), whitespace, !strict))
    };
    let mut lark = String::new();
    // What all that can come after arguments has in common is written once: a lexer reads ahead no further than it must.
    let (close, last, next) = after_arguments(calls);
    let functions = calls.functions.iter().zip(prepared).map(|(function, prepared)| {
        let mut named = vec![NotationPart::Text(function.name.clone())];
        named.extend(notation.middle.iter().cloned());
        format!("{} {} {}", write(&joined(named)), json(prepared, function.strict), write(&close))
    });
    lark += &format!("call: {}\n", functions.collect::<Vec<_>>().join("\n    | "));
    lark += &match next {
        Some(next) => {
            format!(
                "calls: call ({} call){{0,{}}} {}\n",
                write(&next),
                calls.max_calls.saturating_sub(1),
                write(&last)
            )
        }
        None => format!("calls: call {}\n", write(&last)),
    };
    let first = write(&notation.first);
    lark + &match &calls.beside {
        Beside::Nothing => format!("start: {first} calls\n"),
        Beside::Json { strict, .. } => {
            let answer = prepared.get(calls.functions.len()).map(|prepared| json(prepared, *strict));
            format!("start: {first} calls | {}\n", answer.unwrap_or_default())
        }
        Beside::Text => beside_text(vocabulary, calls),
    }
}

/// Any text; or text and a mark, and from there on calls.
fn beside_text(vocabulary: &Vocabulary, calls: &ToolCalls) -> String {
    let notation = &calls.notation;
    let mark = notation.mark();
    let escaped = regex_syntax::escape(mark).replace('/', "\\/");
    if !notation.has_mark() {
        let first = terms(vocabulary, &notation.first);
        return format!("start: {first} calls | TEXT\nTEXT: /(?s:.*)/ & ~/{escaped}(?s:.*)/\n");
    }
    let mut rest = notation.first.clone();
    if let Some(NotationPart::Text(text)) = rest.first_mut() {
        *text = text.split_off(mark.len());
    }
    let rest = terms(vocabulary, &rest);
    let text = format!("TEXT: /(?s:.*)/ & ~/(?s:.*){escaped}(?s:.*)/\n");
    match vocabulary.special(mark) {
        Some(id) => format!("start: TEXT (<[{id}]> {rest} calls)?\n{text}"),
        None => format!("start: TEXT | led {rest} calls\nled[lazy]: /(?s:.*)/ {}\n{text}", json!(mark)),
    }
}

type Parts = Vec<NotationPart>;

/// What follows every call's arguments, what then ends the answer, and what leads to another call instead.
fn after_arguments(calls: &ToolCalls) -> (Parts, Parts, Option<Parts>) {
    let notation = &calls.notation;
    let Some(next) = notation.next.as_ref().filter(|_| calls.max_calls > 1) else {
        return (notation.last.clone(), Vec::new(), None);
    };
    let (mut last, mut next) = (notation.last.clone(), next.clone());
    let mut common = Vec::new();
    loop {
        match (last.first(), next.first()) {
            (Some(a), Some(b)) if a == b => {
                common.push(last.remove(0));
                next.remove(0);
            }
            (Some(NotationPart::Text(a)), Some(NotationPart::Text(b))) => {
                let len: usize =
                    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
                let (shared, rest_of_last) = a.split_at(len);
                let rests = [rest_of_last.to_owned(), b.split_at(len).1.to_owned()];
                if len > 0 {
                    common.push(NotationPart::Text(shared.to_owned()));
                }
                for (parts, rest) in [&mut last, &mut next].into_iter().zip(rests) {
                    parts.remove(0);
                    if !rest.is_empty() {
                        parts.insert(0, NotationPart::Text(rest));
                    }
                }
                break;
            }
            _ => break,
        }
    }
    (common, last, Some(next))
}

/// Texts that follow each other as one.
fn joined(parts: Parts) -> Parts {
    let mut all: Parts = Vec::new();
    for part in parts {
        match (all.last_mut(), part) {
            (Some(NotationPart::Text(before)), NotationPart::Text(text)) => before.push_str(&text),
            (_, part) => all.push(part),
        }
    }
    all
}

/// Parts in Lark. Special tokens in a text are these tokens: their names as text would be something else to the model.
fn terms(vocabulary: &Vocabulary, parts: &[NotationPart]) -> String {
    let mut terms: Vec<String> = Vec::new();
    for part in parts {
        match part {
            NotationPart::Id => terms.push(format!("/[a-zA-Z0-9]{{{ID_LEN}}}/")),
            NotationPart::Text(text) => {
                let mut rest = text.as_str();
                while let Some((before, id, after)) = vocabulary.first_special(rest) {
                    push_text(&mut terms, before);
                    terms.push(format!("<[{id}]>"));
                    rest = after;
                }
                push_text(&mut terms, rest);
            }
        }
    }
    terms.join(" ")
}

fn push_text(terms: &mut Vec<String>, text: &str) {
    if !text.is_empty() {
        // JSON's strings are Lark's.
        terms.push(Value::from(text).to_string());
    }
}
