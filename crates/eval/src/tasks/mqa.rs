//! `mqa`: a question about many documents, one of which has the answer; by how many there are and where that one is.
//!
//! A line has `question`, `answer` or `answers`, and `documents` (or `ctxs`): texts, or objects with `text` and perhaps
//! `title`. The one with the answer is named by its place (`gold`), or it says so itself (`isgold`, `hasanswer`); else it is
//! the first with a right answer in it. Or a line has that document alone (`document`), and others come from a corpus. Lines
//! of `prompt` and `completion` are taken as they are.

use serde_json::Value;

use super::{Compare, Score, Task, Way, best_of_each, number, question_with_text_golds};
use crate::items::{Fields, Item, Random};
use crate::measures::{normalized, token_f1};
use crate::settings::{Document, Ignored, TaskSettings};

pub(super) struct Mqa;

const CONTAINS: &str = "contains";
const DOCUMENTS: &str = "documents";
const POSITION: &str = "position";
const MAX_DOCUMENTS: usize = 1000;
/// Where an item says nothing of places, and others are asked for: the first, the middle, the last.
const NUM_POSITIONS: usize = 3;

impl Task for Mqa {
    fn name(&self) -> &'static str {
        "mqa"
    }

    fn purpose(&self) -> &'static str {
        "questions about many documents, one of which has the answer"
    }

    fn about(&self) -> &'static str {
        "contains: a right answer is in the answer; exact: it is the answer; f1: words that they share. All without case, \
         ASCII punctuation, articles and superfluous white space, as in SQuAD's evaluation, the best over right answers. \
         documents: how many there are; position: where the one with the answer is, from 1"
    }

    fn main_measure(&self) -> &'static str {
        CONTAINS
    }

    fn read(&self, fields: &Fields, settings: &TaskSettings) -> Result<Vec<Item>, String> {
        let Some(question) = fields.text("question")? else { return question_with_text_golds(fields) };
        let golds = fields.golds(&["answer"])?.ok_or("has neither `answer` nor `answers`")?;
        if golds.iter().any(|gold| gold.trim().is_empty()) {
            return Err("a right answer is empty".to_owned());
        }
        let source = Source::of(fields, &golds)?;
        let mut items = Vec::new();
        let counts = match settings.num_documents.as_slice() {
            [] => vec![source.num_own()],
            counts => counts.to_vec(),
        };
        for count in counts {
            for (documents, position) in source.arranged(count, settings, fields.line)? {
                let mut item = Item::new(fields.line, prompt(&documents, question), golds.clone());
                item.numbers.push((DOCUMENTS.to_owned(), documents.len() as f64));
                item.numbers.extend(position.map(|at| (POSITION.to_owned(), at as f64 + 1.0)));
                let is_taken = |name: &str| name == DOCUMENTS || name == POSITION;
                item.numbers.extend(fields.numbers().into_iter().filter(|(name, _)| !is_taken(name)));
                items.push(item);
            }
        }
        Ok(items)
    }

    fn way(&self) -> Way<'_> {
        Way::Answers(self)
    }

    fn groups(&self) -> &'static [&'static [&'static str]] {
        &[&[POSITION, DOCUMENTS], &[DOCUMENTS], &[POSITION]]
    }
}

impl Compare for Mqa {
    fn compare(&self, item: &Item, answer: &str, _: &TaskSettings) -> Score {
        let own = normalized(answer, Ignored::SQUAD);
        best_of_each(item, |gold| {
            let right = normalized(gold, Ignored::SQUAD);
            // A gold of articles alone is in everything.
            let contains = if right.is_empty() { own.is_empty() } else { own.contains(&right) };
            Score::of([
                (CONTAINS, number(contains)),
                ("exact", number(own == right)),
                ("f1", token_f1(gold, answer)),
            ])
        })
    }
}

/// Documents as they are shown, and the place of the one with the answer, from 0, where it is known.
type Arranged = (Vec<Document>, Option<usize>);

/// The documents of a line.
struct Source {
    documents: Vec<Document>,
    gold: Option<usize>,
    answers: Vec<String>,
}

impl Source {
    fn of(fields: &Fields, golds: &[String]) -> Result<Self, String> {
        let answers: Vec<String> = golds.iter().map(|gold| normalized(gold, Ignored::SQUAD)).collect();
        let listed = ["documents", "ctxs"].iter().find_map(|key| Some((*key, fields.get(key)?)));
        let (key, list) = match (listed, fields.get("document")) {
            (Some((key, Value::Array(list))), _) => (key, list.clone()),
            (None, Some(document)) => ("document", vec![document.clone()]),
            (None, None) => ("documents", Vec::new()),
            (Some((key, _)), _) => return Err(format!("`{key}` is no list")),
        };
        if list.len() > MAX_DOCUMENTS {
            return Err(format!("`{key}` has {} documents, more than {MAX_DOCUMENTS}", list.len()));
        }
        let read = |(at, value)| document(value).ok_or_else(|| format!("`{key}` has no text at {at}"));
        let documents = list.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let flagged = |flags: &[&str]| {
            list.iter().position(|document| flags.iter().any(|flag| document[*flag] == true))
        };
        let named = match fields.get("gold").or_else(|| fields.get("gold_index")) {
            None => None,
            Some(at) => {
                let at = at.as_u64().and_then(|at| usize::try_from(at).ok()).filter(|at| *at < list.len());
                Some(at.ok_or("`gold` is the place of none of the documents")?)
            }
        };
        let mut own = Self { documents, gold: None, answers };
        own.gold = named
            .or_else(|| flagged(&["isgold", "is_gold"]))
            .or_else(|| flagged(&["hasanswer", "has_answer"]))
            .or_else(|| (key == "document").then_some(0))
            .or_else(|| own.documents.iter().position(|document| own.answers_in(document)));
        Ok(own)
    }

    fn num_own(&self) -> usize {
        self.documents.len()
    }

    fn answers_in(&self, document: &Document) -> bool {
        let text = normalized(&document.text, Ignored::SQUAD);
        self.answers.iter().any(|answer| !answer.is_empty() && text.contains(answer))
    }

    /// So many documents with the right one at each of the places, from 0.
    fn arranged(&self, count: usize, settings: &TaskSettings, line: usize) -> Result<Vec<Arranged>, String> {
        let is_whole = count == self.num_own();
        let Some(gold) = self.gold.filter(|_| !is_whole || settings.num_positions.is_some()) else {
            return match is_whole {
                true => Ok(vec![(self.documents.clone(), self.gold)]),
                false => Err("it is not known which document has the answer: `gold` names it".to_owned()),
            };
        };
        let mut others: Vec<&Document> =
            self.documents.iter().enumerate().filter(|(at, _)| *at != gold).map(|(_, own)| own).collect();
        others.truncate(count.saturating_sub(1));
        let mut random = Random(settings.seed ^ line as u64);
        let corpus = &settings.distractors;
        let mut left_tries = 20 * count;
        while others.len() + 1 < count && !corpus.is_empty() && left_tries > 0 {
            left_tries -= 1;
            let Some(drawn) = corpus.get(random.below(corpus.len())) else { break };
            let is_known = others.contains(&drawn) || self.documents.get(gold) == Some(drawn);
            if !is_known && !self.answers_in(drawn) {
                others.push(drawn);
            }
        }
        if others.len() + 1 < count {
            let num = others.len() + 1;
            return Err(format!("has {num} documents with those that could be added, not {count}"));
        }
        let gold = self.documents.get(gold).cloned().unwrap_or_default();
        let num = settings.num_positions.unwrap_or(NUM_POSITIONS).clamp(1, count.max(1));
        let mut places: Vec<usize> = (0..num).map(|i| i * (count - 1) / (num - 1).max(1)).collect();
        places.dedup();
        let at_place = |place: usize| {
            let mut documents: Vec<Document> = others.iter().map(|other| (*other).clone()).collect();
            documents.insert(place.min(documents.len()), gold.clone());
            (documents, Some(place))
        };
        Ok(places.into_iter().map(at_place).collect())
    }
}

/// A text, or an object with one.
pub(crate) fn document(value: &Value) -> Option<Document> {
    let text = value
        .as_str()
        .or_else(|| ["text", "contents", "passage"].iter().find_map(|key| value[*key].as_str()))?;
    let title = value["title"].as_str().unwrap_or_default();
    Some(Document { title: title.to_owned(), text: text.to_owned() })
}

fn prompt(documents: &[Document], question: &str) -> String {
    let mut text = String::new();
    if !documents.is_empty() {
        text.push_str("Answer the question with what these documents say, in as few words as possible.\n\n");
    }
    for (at, document) in documents.iter().enumerate() {
        let title = if document.title.is_empty() { String::new() } else { format!(" ({})", document.title) };
        text.push_str(&format!("Document {}{title}: {}\n\n", at + 1, document.text));
    }
    text.push_str(&format!("Question: {question}\nAnswer:"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &Value, settings: &TaskSettings) -> Result<Vec<Item>, String> {
        let (items, problems) = crate::read_items(line.to_string().as_bytes(), &Mqa, settings).unwrap();
        problems.first().map_or(Ok(items), |problem| Err(problem.message.clone()))
    }

    fn corpus(num: usize) -> std::sync::Arc<[Document]> {
        (0..num).map(|at| Document { title: String::new(), text: format!("Filler {at}.") }).collect()
    }

    #[test]
    fn documents_are_taken_as_they_are_or_arranged() {
        let line = serde_json::json!({
            "question": "Who?", "answers": ["Ada", "Lovelace"], "year": 1843,
            "ctxs": [{"title": "A", "text": "Nobody."}, {"title": "B", "text": "It was Ada.", "hasanswer": true}, "Nor he."],
        });
        let items = read(&line, &TaskSettings::default()).unwrap();
        assert_eq!(items.len(), 1);
        assert_eq!((items[0].number(DOCUMENTS), items[0].number(POSITION)), (Some(3.0), Some(2.0)));
        assert_eq!((items[0].number("year"), items[0].golds.len()), (Some(1843.0), 2));
        assert!(items[0].question().ends_with("Document 3: Nor he.\n\nQuestion: Who?\nAnswer:"));

        let settings = TaskSettings {
            num_documents: vec![2, 5],
            num_positions: Some(5),
            distractors: corpus(40),
            ..TaskSettings::default()
        };
        let items = read(&line, &settings).unwrap();
        let places: Vec<_> = items
            .iter()
            .map(|item| (item.number(DOCUMENTS).unwrap(), item.number(POSITION).unwrap()))
            .collect();
        assert_eq!(
            places,
            [(2.0, 1.0), (2.0, 2.0), (5.0, 1.0), (5.0, 2.0), (5.0, 3.0), (5.0, 4.0), (5.0, 5.0)]
        );
        for item in &items {
            let own = format!("Document {} (B): It was Ada.", item.number(POSITION).unwrap());
            assert!(item.question().contains(&own), "{}", item.question());
            assert_eq!(
                item.question().matches("Document ").count(),
                item.number(DOCUMENTS).unwrap() as usize
            );
        }
        assert_eq!(items, read(&line, &settings).unwrap());
    }

    #[test]
    fn a_single_document_gets_others_that_lack_the_answer() {
        let line =
            serde_json::json!({"question": "Which?", "answer": "filler 7", "document": "It is Filler 7!"});
        let settings =
            TaskSettings { num_documents: vec![9], distractors: corpus(12), ..TaskSettings::default() };
        let items = read(&line, &settings).unwrap();
        assert_eq!(
            items.iter().map(|item| item.number(POSITION).unwrap()).collect::<Vec<_>>(),
            [1.0, 5.0, 9.0]
        );
        assert!(items.iter().all(|item| item.question().matches("Filler 7").count() == 1));
        let too_few = TaskSettings { num_documents: vec![20], ..settings };
        assert!(read(&line, &too_few).unwrap_err().contains("not 20"));
    }

    #[test]
    fn what_cannot_be_asked_is_told() {
        for (line, named) in [
            (serde_json::json!({"question": "q", "documents": []}), "answers"),
            (serde_json::json!({"question": "q", "answers": []}), "answers"),
            (serde_json::json!({"question": "q", "answer": "a", "documents": "x"}), "documents"),
            (serde_json::json!({"question": "q", "answer": "a", "documents": ["x", 3]}), "at 1"),
            (serde_json::json!({"question": "q", "answer": "a", "documents": ["x"], "gold": 1}), "gold"),
            (serde_json::json!({"question": "q", "answer": "a", "documents": vec!["x"; 1001]}), "1001"),
        ] {
            assert!(read(&line, &TaskSettings::default()).unwrap_err().contains(named), "{line}");
        }
        let unknown = serde_json::json!({"question": "q", "answer": "a b", "documents": ["x", "y"]});
        assert_eq!(read(&unknown, &TaskSettings::default()).unwrap()[0].number(POSITION), None);
        let two = TaskSettings { num_documents: vec![1], ..TaskSettings::default() };
        assert!(read(&unknown, &two).unwrap_err().contains("gold"));
    }

    #[test]
    fn answers_count_as_in_squad() {
        let item = Item::new(1, "", vec!["the Eiffel Tower".to_owned(), "a".to_owned()]);
        let score = |answer: &str| Mqa.compare(&item, answer, &TaskSettings::default()).0;
        let named = |values: [f64; 3]| {
            ["contains", "exact", "f1"].map(String::from).into_iter().zip(values).collect::<Vec<_>>()
        };
        assert_eq!(score("Eiffel tower."), named([1.0, 1.0, 1.0]));
        assert_eq!(score("It is the Eiffel Tower"), named([1.0, 0.0, 2.0 * 0.5 / 1.5]));
        assert_eq!(score("London"), named([0.0, 0.0, 0.0]));
    }
}
