//! What is asked for, and what an answer is worth. A task is one file and one line of [`TASKS`].

mod last_words;
mod record;

use serde::Serialize;

/// All tasks.
pub const TASKS: [&dyn Task; 2] = [&record::Record, &last_words::LastWords];

/// The task of this name.
pub fn task(name: &str) -> Option<&'static dyn Task> {
    TASKS.into_iter().find(|task| task.name() == name)
}

/// What one answer is worth: measures by name, in the order in which they are shown. A measure that does not apply to an
/// item is missing.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Score(pub Vec<(String, f64)>);

impl Score {
    /// The value of one measure.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| *value)
    }
}

/// A gold answer, what was answered, and its score.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// The right answer.
    pub gold: &'a str,
    /// The answer.
    pub answer: &'a str,
    /// What it is worth.
    pub score: &'a Score,
}

/// One measure over all items.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Standard error of the value, where it is a mean over items.
    pub standard_error: Option<f64>,
    /// Items that it is over.
    pub num_items: usize,
}

/// A kind of question. Scoring never fails: what cannot be read as an answer is worth nothing.
pub trait Task: Send + Sync {
    /// Its name on the command line and in reports.
    fn name(&self) -> &'static str;

    /// What its measures are, in one paragraph.
    fn about(&self) -> &'static str;

    /// Whether answers can be compared with this gold.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check_gold(&self, gold: &str) -> Result<(), String>;

    /// What an answer is worth.
    fn score(&self, gold: &str, answer: &str) -> Score;

    /// The one answer that is right most often, field by field, if these are the right ones; `None` where no such answer
    /// makes sense.
    fn majority_answer(&self, golds: &[&str]) -> Option<String>;

    /// The measures over all items: by default their means.
    fn summarise(&self, scored: &[Scored<'_>]) -> Vec<Metric> {
        means(scored)
    }
}

/// The mean of every measure over the items that have it, in the order of first appearance.
pub(crate) fn means(scored: &[Scored<'_>]) -> Vec<Metric> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in scored.iter().flat_map(|item| &item.score.0) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mean = |name: &str| {
        let values: Vec<f64> = scored.iter().filter_map(|item| item.score.get(name)).collect();
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
        let standard_error = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        Metric { name: name.to_owned(), value, standard_error, num_items: values.len() }
    };
    names.into_iter().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for one in TASKS {
            assert_eq!(TASKS.iter().filter(|other| other.name() == one.name()).count(), 1);
            assert_eq!(task(one.name()).map(Task::name), Some(one.name()));
        }
        assert!(task("no such task").is_none());
    }

    #[test]
    fn means_are_over_the_items_that_have_the_measure() {
        let scores = [
            Score(vec![("a".into(), 1.0), ("b".into(), 0.5)]),
            Score(vec![("a".into(), 0.0)]),
            Score(vec![("a".into(), 1.0)]),
            Score(vec![("a".into(), 0.0)]),
        ];
        let scored: Vec<_> = scores.iter().map(|score| Scored { gold: "", answer: "", score }).collect();
        let metrics = means(&scored);
        assert_eq!((metrics[0].value, metrics[0].num_items), (0.5, 4));
        // Sample standard deviation sqrt(1/3), over sqrt(4).
        assert!((metrics[0].standard_error.unwrap() - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!((metrics[1].value, metrics[1].num_items, metrics[1].standard_error), (0.5, 1, None));
        assert!(means(&[]).is_empty());
    }
}
