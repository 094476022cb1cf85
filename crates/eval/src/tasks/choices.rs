//! `choices`: multiple choice by likelihood. The model is not asked for a letter; the answer is the choice that is likeliest
//! after the question.
//!
//! Choices and questions come to tokens as in EleutherAI's lm-evaluation-harness: white space at a question's end belongs to
//! the choice, question and choice are tokenized together, and what goes beyond the question's own tokens is the choice's.

use serde_json::Value;
use wardrobe_generator::AskError;

use super::{Score, Task, Way, Weigh, Weighed, number};
use crate::items::{Fields, Item};
use crate::settings::TaskSettings;
use crate::weighing::{Weighing, unfit};

pub(super) struct ChoicesTask;

const ACC: &str = "acc";
const ACC_NORM: &str = "acc_norm";
const ACC_BYTES: &str = "acc_bytes";
/// More is no multiple choice.
const MAX_CHOICES: usize = 64;

impl Task for ChoicesTask {
    fn name(&self) -> &'static str {
        "choices"
    }

    fn other_names(&self) -> &'static [&'static str] {
        &["arc"]
    }

    fn purpose(&self) -> &'static str {
        "multiple choice by likelihood"
    }

    fn about(&self) -> &'static str {
        "acc: the likeliest choice is the right one; acc_norm: the one with the most log-probability for each of its \
         characters is; acc_bytes: for each of its UTF-8 bytes. Questions are given without a chat template"
    }

    fn main_measure(&self) -> &'static str {
        ACC
    }

    fn read(&self, fields: &Fields, _: &TaskSettings) -> Result<Vec<Item>, String> {
        let (texts, labels) = choices(fields)?;
        if !(2..=MAX_CHOICES).contains(&texts.len()) {
            return Err(format!("has {} choices, not 2 to {MAX_CHOICES}", texts.len()));
        }
        if texts.iter().any(String::is_empty) {
            return Err("a choice is empty".to_owned());
        }
        let right = right_choice(fields, &labels)?;
        let gold = texts.get(right).cloned().ok_or("the right answer is none of the choices")?;
        let prompt = match (fields.text("prompt")?, question(fields)?) {
            (Some(prompt), _) => prompt.to_owned(),
            (None, Some(question)) => format!("Question: {question}\nAnswer:"),
            (None, None) => return Err("has neither `prompt` nor `question`".to_owned()),
        };
        if prompt.trim().is_empty() {
            return Err("the question is empty".to_owned());
        }
        let item = Item::new(fields.line, prompt, vec![gold]);
        Ok(vec![Item { choices: texts, right_choice: Some(right), numbers: fields.numbers(), ..item }])
    }

    fn way(&self) -> Way<'_> {
        Way::Likelihoods(self)
    }
}

/// Texts and labels: `choices` as a list of texts, of `{"text", "label"}`, or ARC's `{"text": […], "label": […]}`; or
/// beneath `question`, as AI2 gives ARC out.
fn choices(fields: &Fields) -> Result<(Vec<String>, Vec<String>), String> {
    let own = fields.get("choices").or_else(|| fields.get("question")?.get("choices"));
    let own = own.ok_or("has no `choices`")?;
    let wrong = || "`choices` is neither a list of texts nor one of `text` and `label`".to_owned();
    let texts_of = |list: &Value| -> Option<Vec<String>> {
        list.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
    };
    if let Some(object) = own.as_object() {
        let texts = object.get("text").and_then(texts_of).ok_or_else(wrong)?;
        let labels = object.get("label").and_then(texts_of).unwrap_or_else(|| letters(texts.len()));
        return if labels.len() == texts.len() { Ok((texts, labels)) } else { Err(wrong()) };
    }
    if let Some(texts) = texts_of(own) {
        let labels = letters(texts.len());
        return Ok((texts, labels));
    }
    let list = own.as_array().ok_or_else(wrong)?;
    let pair =
        |choice: &Value| Some((choice["text"].as_str()?.to_owned(), choice["label"].as_str()?.to_owned()));
    let pairs = list.iter().map(pair).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    Ok(pairs.into_iter().unzip())
}

fn letters(num: usize) -> Vec<String> {
    ('A'..='Z').chain('a'..='z').take(num).map(String::from).collect()
}

fn question(fields: &Fields) -> Result<Option<String>, String> {
    match fields.get("question") {
        Some(Value::Object(question)) => match question.get("stem").and_then(Value::as_str) {
            Some(stem) => Ok(Some(stem.to_owned())),
            None => Err("`question` has no `stem`".to_owned()),
        },
        _ => fields.text("question").map(|text| text.map(str::to_owned)),
    }
}

/// A number is a place from 0, unless it is text and a label; a text is a label.
fn right_choice(fields: &Fields, labels: &[String]) -> Result<usize, String> {
    let keys = ["answer", "answerKey", "label", "gold"];
    let (key, answer) = keys.iter().find_map(|key| Some((key, fields.get(key)?))).ok_or("has no `answer`")?;
    let found = match answer {
        Value::Number(at) => {
            at.as_u64().and_then(|at| usize::try_from(at).ok()).filter(|at| *at < labels.len())
        }
        Value::String(label) => {
            let label = label.trim();
            labels.iter().position(|own| own.eq_ignore_ascii_case(label)).or_else(|| {
                // Some of ARC's questions have numbers where others have letters, in the labels or in the key.
                let at = label.parse::<usize>().ok()?.checked_sub(1)?;
                (at < labels.len()).then_some(at)
            })
        }
        _ => None,
    };
    found.ok_or_else(|| format!("`{key}` names none of the {} choices", labels.len()))
}

impl Weigh for ChoicesTask {
    fn weigh(&self, item: &Item, weighing: &Weighing<'_>) -> Result<Weighed, AskError> {
        let prompt = item.question();
        let mut likelihoods = Vec::with_capacity(item.choices.len());
        // One after the other: what the questions have in common is computed for the first of them.
        for choice in &item.choices {
            likelihoods.push(log_likelihood(&prompt, &continuation(&prompt, choice), weighing)?);
        }
        let best = |length: &dyn Fn(&str) -> usize| {
            let values = likelihoods.iter().zip(&item.choices);
            let values = values.map(|(value, choice)| value / length(choice).max(1) as f64);
            // The first of equals.
            let best = values.enumerate().reduce(|best, one| if one.1 > best.1 { one } else { best });
            best.map(|(at, _)| at)
        };
        let is_right = |at: Option<usize>| number(at.is_some() && at == item.right_choice);
        let likeliest = best(&|_| 1);
        let score = Score::of([
            (ACC, is_right(likeliest)),
            (ACC_NORM, is_right(best(&|choice| choice.chars().count()))),
            (ACC_BYTES, is_right(best(&str::len))),
        ]);
        let text = likeliest.and_then(|at| item.choices.get(at)).cloned().unwrap_or_default();
        Ok(Weighed { text, score, likelihoods })
    }
}

/// What comes after the question: a space parts them, unless one of them brings white space.
fn continuation(prompt: &str, choice: &str) -> String {
    let has_space = prompt.ends_with(char::is_whitespace) || choice.starts_with(char::is_whitespace);
    if has_space { choice.to_owned() } else { format!(" {choice}") }
}

/// Log-probability of a continuation.
fn log_likelihood(prompt: &str, continuation: &str, weighing: &Weighing<'_>) -> Result<f64, AskError> {
    let context = prompt.trim_end();
    let whole = weighing.tokenize(&format!("{prompt}{continuation}"))?;
    let own = weighing.tokenize(context)?;
    // Where the end of the question merges with the choice, the last token is the choice's at least.
    let from = own.len().min(whole.len().saturating_sub(1));
    if from == 0 {
        return Err(unfit("the question has no token"));
    }
    let scores = weighing.score_from(&whole, from)?;
    Ok(scores.iter().map(|score| score.logprob).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Item, String> {
        let (mut items, problems) =
            crate::read_items(line.as_bytes(), &ChoicesTask, &TaskSettings::default()).unwrap();
        items.pop().ok_or_else(|| problems[0].message.clone())
    }

    #[test]
    fn all_shapes_are_read() {
        for line in [
            r#"{"question": "Q", "choices": ["x", "y"], "answer": 1}"#,
            r#"{"question": "Q", "choices": ["x", "y"], "answer": "B"}"#,
            r#"{"id": "1", "question": {"stem": "Q", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}, "answerKey": "B"}"#,
            r#"{"id": "1", "question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#,
            r#"{"id": "1", "question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "B", "answer": "2"}"#,
            r#"{"question": "Q", "choices": ["x", "y"], "answerKey": "2"}"#,
        ] {
            let item = read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!((item.question().as_str(), item.gold()), ("Question: Q\nAnswer:", "y"), "{line}");
            assert_eq!(
                (item.choices.as_slice(), item.right_choice),
                (&["x".to_owned(), "y".to_owned()][..], Some(1))
            );
        }
        let item = read(r#"{"prompt": "P:\n", "choices": ["x", "y"], "answer": 0}"#).unwrap();
        assert_eq!(item.question(), "P:\n");
    }

    #[test]
    fn what_is_no_choice_is_told() {
        for (line, named) in [
            (r#"{"question": "Q", "answer": 1}"#, "choices"),
            (r#"{"question": "Q", "choices": ["x"], "answer": 0}"#, "1 choices"),
            (r#"{"question": "Q", "choices": ["x", ""], "answer": 0}"#, "empty"),
            (r#"{"question": "Q", "choices": ["x", 3], "answer": 0}"#, "choices"),
            (r#"{"question": "Q", "choices": ["x", "y"], "answer": 2}"#, "`answer`"),
            (r#"{"question": "Q", "choices": ["x", "y"], "answer": "C"}"#, "`answer`"),
            (r#"{"question": "Q", "choices": ["x", "y"], "answer": -1}"#, "`answer`"),
            (r#"{"question": "Q", "choices": ["x", "y"]}"#, "`answer`"),
            (r#"{"choices": ["x", "y"], "answer": 0}"#, "question"),
            (r#"{"question": {"choices": ["x", "y"]}, "answer": 0}"#, "stem"),
            (r#"{"question": "Q", "choices": {"text": ["x", "y"], "label": ["A"]}, "answer": 0}"#, "label"),
            (r#"{"question": "Q", "choices": [], "answer": 99999999999999999999}"#, "0 choices"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(named), "{line}: {message}");
        }
    }

    #[test]
    fn a_space_parts_question_and_choice() {
        assert_eq!(continuation("Answer:", "x"), " x");
        assert_eq!(continuation("Answer: ", "x"), "x");
        assert_eq!(continuation("Answer:", "\nx"), "\nx");
    }
}
