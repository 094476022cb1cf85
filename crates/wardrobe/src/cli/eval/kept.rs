//! Answers that are kept while an evaluation runs, so that one that was ended asks nothing again.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use wardrobe::answers::{Answers, Remembering};
use wardrobe::generate::Generator;

use crate::cli::output;

/// Behind the name of the first report, for as long as there is none.
const ENDING: &str = ".answers.sqlite";

/// Where answers are kept.
pub struct Kept {
    answers: Answers,
    /// The file is the user's, and stays.
    stays: bool,
}

impl Kept {
    /// In the file that was named, or else beside the first report; without either nowhere.
    pub fn open(named: Option<&Path>, reports: &[PathBuf]) -> anyhow::Result<Option<Self>> {
        let (path, stays) = match (named, reports.first()) {
            (Some(path), _) => (path.to_owned(), true),
            (None, Some(report)) => {
                let mut path = report.clone().into_os_string();
                path.push(ENDING);
                (path.into(), false)
            }
            (None, None) => return Ok(None),
        };
        let answers = Answers::open(&path).context("answers cannot be kept")?;
        Ok(Some(Self { answers, stays }))
    }

    /// In front of who answers.
    pub fn remembering<'a>(&'a self, generator: &'a dyn Generator) -> Remembering<'a> {
        Remembering::new(generator, &self.answers)
    }

    /// Tells whoever has no report what there is.
    pub fn tell(&self) {
        if self.answers.num().is_ok_and(|num| num > 0) {
            let path = self.answers.path().display();
            output::note(&format!("what was answered is kept in {path}: the same command goes on"));
        }
    }

    /// The reports are written, and nothing is needed that the user did not ask for.
    pub fn done(self) -> anyhow::Result<()> {
        if self.stays {
            return Ok(());
        }
        let path = self.answers.path().to_owned();
        drop(self.answers);
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}
