//! What a person writes to name a model.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::catalogue::{self, CATALOGUE, CatalogueModel};
use crate::error::HubError;
use crate::names::is_safe_relative_path;

/// The branch taken where no revision is named.
pub(crate) const DEFAULT_REVISION: &str = "main";

/// A model, as named by a person.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelRef {
    /// A folder or a `.gguf` file on this machine.
    Local(PathBuf),
    /// A short name of the catalogue. An application may pass rows of its own.
    Catalogue(&'static CatalogueModel),
    /// A repository on the hub.
    Repo(RepoRef),
}

/// A repository on the hub: `owner/name[@revision][:file.gguf]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoRef {
    repo: String,
    revision: String,
    file: Option<String>,
}

impl ModelRef {
    /// Reads a reference:
    ///
    /// | text | meaning |
    /// |---|---|
    /// | an existing path, or a text that begins with `/`, `./`, `../` or `~/` | that folder or `.gguf` file |
    /// | `smollm2-135m` | a short name of [`CATALOGUE`] |
    /// | `owner/name` | a repository on the hub, its default branch |
    /// | `owner/name@revision` | the same at a branch, tag or commit (`refs/pr/1` works too) |
    /// | `owner/name:file.gguf`, `owner/name@revision:folder/file.gguf` | one GGUF file of it |
    /// | `hf://owner/name…` | a repository, even if a folder `owner/name` exists here |
    ///
    /// # Errors
    /// [`HubError::BadReference`] with the reason. A path is checked later, by [`pull`](crate::pull).
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("hf://") {
            return RepoRef::parse(rest, text).map(ModelRef::Repo);
        }
        if text.is_empty() || text.contains('\0') {
            return Err(bad(text, "it is empty or holds a zero byte"));
        }
        if let Some(rest) = text.strip_prefix("~/")
            && let Some(home) = std::env::home_dir()
        {
            return Ok(ModelRef::Local(home.join(rest)));
        }
        let path = Path::new(text);
        let looks_like_path = path.is_absolute() || text.starts_with("./") || text.starts_with("../");
        if looks_like_path || text == "." || text == ".." || path.exists() {
            return Ok(ModelRef::Local(path.to_path_buf()));
        }
        if let Some(model) = catalogue::find(text) {
            return Ok(ModelRef::Catalogue(model));
        }
        RepoRef::parse(text, text).map(ModelRef::Repo)
    }
}

/// The form that [`ModelRef::parse`] reads back; also the name that the cache keeps.
impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Local(path) => write!(f, "{}", path.display()),
            ModelRef::Catalogue(model) => f.write_str(model.name),
            ModelRef::Repo(repo) => repo.fmt(f),
        }
    }
}

impl RepoRef {
    /// A repository by its parts: `repo` is `owner/name`, `revision` a branch, tag or commit (default `main`), `file`
    /// one `.gguf` file.
    ///
    /// # Errors
    /// [`HubError::BadReference`] if a part has characters that the hub does not allow there.
    pub fn new(repo: &str, revision: Option<&str>, file: Option<&str>) -> Result<Self, HubError> {
        let mut input = repo.to_owned();
        if let Some(revision) = revision {
            input = format!("{input}@{revision}");
        }
        if let Some(file) = file {
            input = format!("{input}:{file}");
        }
        let parts: Vec<&str> = repo.split('/').collect();
        let valid = |part: &&str| {
            !part.is_empty()
                && part.len() <= 96
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && !part.contains("..")
                && !part.starts_with(['.', '-'])
                && !part.ends_with(['.', '-'])
        };
        if parts.len() == 1 {
            let names: Vec<&str> = CATALOGUE.iter().map(|model| model.name).collect();
            let reason = format!(
                "there is no such file or folder and no such short name (those are: {}); a repository on the hub is \
                 written owner/name",
                names.join(", ")
            );
            return Err(bad(&input, &reason));
        }
        if parts.len() != 2 || !parts.iter().all(valid) {
            return Err(bad(
                &input,
                "there is no such file or folder, and it is not owner/name of letters, digits, `.`, `_` and `-`",
            ));
        }
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        let valid_revision = is_safe_relative_path(revision)
            && revision.len() <= 200
            && !revision.contains("..")
            && revision.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/+".contains(&b));
        if !valid_revision {
            return Err(bad(&input, "the part after @ is not a branch, tag or commit"));
        }
        if let Some(file) = file
            && !(is_safe_relative_path(file) && file.to_ascii_lowercase().ends_with(".gguf"))
        {
            return Err(bad(&input, "the part after : is not the path of a .gguf file in the repository"));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned(), file: file.map(str::to_owned) })
    }

    fn parse(text: &str, input: &str) -> Result<Self, HubError> {
        if text.contains("://") {
            return Err(bad(input, "a web address is not a reference; write owner/name"));
        }
        let (head, file) = match text.split_once(':') {
            Some((head, file)) => (head, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = match head.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (head, None),
        };
        Self::new(repo, revision, file)
    }

    /// `owner/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The one `.gguf` file asked for.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl fmt::Display for RepoRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

fn bad(input: &str, reason: &str) -> HubError {
    // A reference can be as long as a command line; an error message should not be.
    let mut shown: String = input.chars().filter(|c| !c.is_control()).take(200).collect();
    if shown.len() < input.len() && input.chars().nth(200).is_some() {
        shown.push('…');
    }
    HubError::BadReference { input: shown, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(text: &str) -> (String, String, Option<String>) {
        match ModelRef::parse(text).unwrap() {
            ModelRef::Repo(r) => (r.repo, r.revision, r.file),
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn repositories() {
        let own = |a: &str, b: &str, c: Option<&str>| (a.to_owned(), b.to_owned(), c.map(str::to_owned));
        assert_eq!(repo("o/n"), own("o/n", "main", None));
        assert_eq!(repo("hf://o/n@v1.0"), own("o/n", "v1.0", None));
        assert_eq!(repo("o/n@refs/pr/1"), own("o/n", "refs/pr/1", None));
        assert_eq!(repo(" o/n:q/m.Q4_1.GGUF "), own("o/n", "main", Some("q/m.Q4_1.GGUF")));
        assert_eq!(repo("O_1.x/n-2@abc:m.gguf"), own("O_1.x/n-2", "abc", Some("m.gguf")));
        for text in ["o/n", "o/n@v1.0", "o/n@refs/pr/1:a/b.gguf"] {
            assert_eq!(ModelRef::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(ModelRef::parse("o/n@main").unwrap().to_string(), "o/n");
    }

    #[test]
    fn short_names_and_paths() {
        let ModelRef::Catalogue(model) = ModelRef::parse("smollm2-135m").unwrap() else { panic!() };
        assert_eq!(model.name, "smollm2-135m");
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().to_str().unwrap();
        assert_eq!(ModelRef::parse(text).unwrap(), ModelRef::Local(dir.path().to_path_buf()));
        assert!(matches!(ModelRef::parse("./no-such.gguf").unwrap(), ModelRef::Local(_)));
        assert!(matches!(ModelRef::parse("/no/such").unwrap(), ModelRef::Local(_)));
        // `src` exists beside this test's working folder; with the prefix it is a repository (and a bad one).
        assert!(matches!(ModelRef::parse("src").unwrap(), ModelRef::Local(_)));
        assert!(ModelRef::parse("hf://src").is_err());
    }

    #[test]
    fn hostile_and_wrong_text_is_refused_with_a_reason() {
        let long = "x".repeat(100_000);
        for text in [
            "",
            "  ",
            "o/n/x",
            "o/",
            "/../\0",
            "o/..",
            "o/n@",
            "o/n@../../x",
            "o/n@a b",
            "o/n:",
            "o/n:x.bin",
            "o/n:../x.gguf",
            "o/n:/x.gguf",
            "o/n:a\\x.gguf",
            "https://host/o/n",
            "o/n?x=1",
            "o/n#x",
            "o/n%2e",
            "-o/n",
            "ö/n",
            &long,
        ] {
            let error = ModelRef::parse(text).unwrap_err();
            assert!(matches!(error, HubError::BadReference { .. }), "{text:?}: {error:?}");
            assert!(error.to_string().len() < 1000);
        }
        let error = ModelRef::parse("smollm").unwrap_err().to_string();
        assert!(error.contains("smollm2-135m") && error.contains("owner/name"), "{error}");
    }
}
