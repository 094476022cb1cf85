//! Which task, and what it is told: flags, each for the tasks that look at it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::builder::{PossibleValue, PossibleValuesParser};
use wardrobe::eval::{self, Ignored, Price, Task, TaskSettings, Way, WordList};

use super::super::failure::UsageError;
use super::super::open;

/// More numbers of one flag are a mistake.
const MAX_VALUES: usize = 32;
const MAX_PRICES_BYTES: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct TaskArgs {
    /// What is asked for
    #[arg(long, value_name = "TASK", default_value = "record", value_parser = tasks())]
    task: String,
    /// choices, perplexity: do not begin texts with the model's BOS token, as lm-eval does by default
    #[arg(long)]
    no_bos: bool,
    /// perplexity: context lengths in tokens, with commas [default: 512,1024,2048]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    contexts: Vec<usize>,
    /// perplexity: tokens that a window goes on [default: half of the context]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// exact-match: what does not matter, of case, punctuation, articles, space, digits; or nothing [default: the first four]
    #[arg(long, value_name = "WHAT,WHAT", value_delimiter = ',')]
    ignore: Vec<Ignore>,
    /// rouge: compare the stems of words (Porter's)
    #[arg(long)]
    stem: bool,
    /// mqa: show so many documents; with commas several [default: those that an item has]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    documents: Vec<usize>,
    /// mqa: put the document with the answer at so many places, evenly from the first to the last
    #[arg(long, value_name = "N")]
    positions: Option<usize>,
    /// mqa: JSONL file of documents to add, each a text or {"title", "text"}; those with a right answer in them are not
    #[arg(long, value_name = "FILE", requires = "documents")]
    distractors: Option<PathBuf>,
    /// Words that are spelled right, one a line, beside those of question and answer
    #[arg(long, value_name = "FILE")]
    word_list: Option<PathBuf>,
}

/// A thing that does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ignore {
    Case,
    Punctuation,
    Articles,
    Space,
    Digits,
    Nothing,
}

fn tasks() -> PossibleValuesParser {
    let value = |task: &&'static dyn Task| {
        PossibleValue::new(task.name()).help(task.purpose()).aliases(task.other_names().iter().copied())
    };
    PossibleValuesParser::new(eval::TASKS.iter().map(value).collect::<Vec<_>>())
}

impl TaskArgs {
    pub fn task(&self) -> anyhow::Result<&'static dyn Task> {
        let task = eval::task(&self.task);
        Ok(task.ok_or_else(|| UsageError(format!("there is no task {}", self.task)))?)
    }

    /// Finds what can be wrong without reading anything.
    pub fn check(&self) -> anyhow::Result<()> {
        let task = self.task()?;
        let wrong = |text: String| Err(UsageError(text).into());
        let has_answers = matches!(task.way(), Way::Answers(_));
        let flags = [
            ("--no-bos", self.no_bos, !has_answers, "choices and perplexity"),
            ("--contexts", !self.contexts.is_empty(), task.name() == "perplexity", "perplexity"),
            ("--stride", self.stride.is_some(), task.name() == "perplexity", "perplexity"),
            ("--ignore", !self.ignore.is_empty(), task.name() == "exact-match", "exact-match"),
            ("--stem", self.stem, task.name() == "rouge", "rouge"),
            ("--documents", !self.documents.is_empty(), task.name() == "mqa", "mqa"),
            ("--positions", self.positions.is_some(), task.name() == "mqa", "mqa"),
            (
                "--word-list",
                self.word_list.is_some(),
                has_text_golds(task),
                "tasks with right answers that are texts",
            ),
        ];
        for (flag, is_given, is_for_it, whose) in flags {
            if is_given && !is_for_it {
                return wrong(format!("{flag} is for {whose}; the task is {}", task.name()));
            }
        }
        for (flag, values, least) in [("--contexts", &self.contexts, 2), ("--documents", &self.documents, 1)]
        {
            if values.len() > MAX_VALUES || values.iter().any(|value| *value < least) {
                return wrong(format!("{flag} has at most {MAX_VALUES} numbers, each {least} at least"));
            }
        }
        let shortest = self.contexts.iter().min().copied().unwrap_or(512);
        if self.stride.is_some_and(|stride| stride == 0 || stride >= shortest) {
            return wrong(format!("--stride is at least 1 and less than the shortest context, {shortest}"));
        }
        if self.positions.is_some_and(|positions| !(1..=MAX_VALUES).contains(&positions)) {
            return wrong(format!("--positions is 1 to {MAX_VALUES}"));
        }
        if self.ignore.len() > 1 && self.ignore.contains(&Ignore::Nothing) {
            return wrong("--ignore nothing stands alone".to_owned());
        }
        Ok(())
    }

    /// Whether a seed draws something.
    pub fn draws(&self) -> bool {
        self.distractors.is_some()
    }

    /// What the task is told; `seed` draws distractors.
    pub fn settings(&self, seed: Option<u64>) -> anyhow::Result<TaskSettings> {
        let mut settings = TaskSettings {
            stem: self.stem,
            stride: self.stride,
            num_documents: self.documents.clone(),
            num_positions: self.positions,
            seed: seed.unwrap_or(0),
            begin: !self.no_bos,
            ..TaskSettings::default()
        };
        if !self.contexts.is_empty() {
            settings.contexts = self.contexts.clone();
        }
        if !self.ignore.is_empty() {
            let has = |what| self.ignore.contains(&what);
            settings.ignored = Ignored {
                case: has(Ignore::Case),
                punctuation: has(Ignore::Punctuation),
                articles: has(Ignore::Articles),
                space: has(Ignore::Space),
                digits: has(Ignore::Digits),
            };
        }
        if let Some(path) = &self.distractors {
            settings.distractors = read(path, eval::read_documents)?.into();
        }
        if let Some(path) = &self.word_list {
            settings.words = read(path, WordList::read)?;
        }
        Ok(settings)
    }
}

fn has_text_golds(task: &dyn Task) -> bool {
    matches!(task.way(), Way::Answers(compare) if compare.has_text_golds())
}

fn read<T>(path: &Path, read: impl FnOnce(BufReader<File>) -> std::io::Result<T>) -> anyhow::Result<T> {
    let file = File::open(path).map(BufReader::new);
    file.and_then(read).with_context(|| format!("cannot read {}", path.display()))
}

/// One number of items, or two with a comma.
pub fn parse_group(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    let is_good = (1..=2).contains(&names.len()) && names.iter().all(|name| !name.is_empty());
    let is_good = is_good && names.first() != names.get(1);
    if is_good { Ok(names) } else { Err("is neither one name nor two with a comma".to_owned()) }
}

/// Prices by name: those of flags before those of a file, JSON or TOML.
pub fn prices(file: Option<&Path>, flags: &[(String, Price)]) -> anyhow::Result<Vec<(String, Price)>> {
    let mut prices = flags.to_vec();
    if let Some(path) = file {
        let text = open::read_text(path, MAX_PRICES_BYTES)?;
        let is_toml = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
        let table: anyhow::Result<BTreeMap<String, Price>> = match is_toml {
            true => toml::from_str(&text).map_err(Into::into),
            false => serde_json::from_str(&text).map_err(Into::into),
        };
        let table = table.with_context(|| format!("{} is no table of prices", path.display()))?;
        for (name, price) in table {
            price.check().map_err(|error| anyhow::anyhow!("{}: {name}: {error}", path.display()))?;
            prices.push((name, price));
        }
    }
    Ok(prices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_one_name_or_two() {
        assert_eq!(parse_group("length, depth").unwrap(), ["length", "depth"]);
        assert_eq!(parse_group("n").unwrap(), ["n"]);
        for bad in ["", ",", "a,", "a,b,c", "a,a"] {
            assert!(parse_group(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prices_come_from_json_and_toml_and_flags_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let json = path("p.json", r#"{"m": {"input_per_million": 1, "output_per_million": 2.5}}"#);
        let toml = path("p.toml", "[m]\ninput_per_million = 1.0\noutput_per_million = 2.5\n");
        assert_eq!(prices(Some(&json), &[]).unwrap(), prices(Some(&toml), &[]).unwrap());
        let own = eval::parse_price("m=3/4").unwrap();
        assert_eq!(prices(Some(&json), std::slice::from_ref(&own)).unwrap()[0], own);
        for text in ["[]", "{\"m\": 1}", r#"{"m": {"input_per_million": -1, "output_per_million": 1}}"#] {
            let bad = path("bad.json", text);
            assert!(format!("{:#}", prices(Some(&bad), &[]).unwrap_err()).contains("bad.json"), "{text}");
        }
    }
}
