//! Where a model is, from what a user writes.

use std::path::{Path, PathBuf};

/// A model that mistralrs is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A GGUF file here.
    File(PathBuf),
    /// A folder here, as the hub has its repositories.
    Folder(PathBuf),
    /// A repository of the hub.
    Repository(String),
    /// A GGUF file in a repository of the hub.
    RepositoryFile {
        /// Its owner and its name.
        repository: String,
        /// Its path in there.
        file: String,
    },
}

impl Reference {
    /// Reads `FILE.gguf`, `FOLDER`, `OWNER/NAME` or `OWNER/NAME/FILE.gguf`.
    ///
    /// # Errors
    /// It is none of these, or nothing is there.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = Path::new(text);
        if path.is_file() {
            return match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
                true => Ok(Self::File(path.to_owned())),
                false => Err("is a file, but none that ends in .gguf".to_owned()),
            };
        }
        if path.is_dir() {
            return match path.join("config.json").is_file() {
                true => Ok(Self::Folder(path.to_owned())),
                false => Err("is a folder without config.json".to_owned()),
            };
        }
        let parts: Vec<&str> = text.split('/').collect();
        let is_name = |part: &&str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        match (parts.as_slice(), parts.iter().all(is_name)) {
            ([_, _], true) if !text.ends_with(".gguf") => Ok(Self::Repository(text.to_owned())),
            ([owner, name, .., last], true) if parts.len() > 2 && last.ends_with(".gguf") => {
                let file = parts.get(2..).unwrap_or_default().join("/");
                Ok(Self::RepositoryFile { repository: format!("{owner}/{name}"), file })
            }
            _ => {
                Err("is no file or folder here, nor OWNER/NAME or OWNER/NAME/FILE.gguf of the hub".to_owned())
            }
        }
    }

    /// What it is called in reports.
    pub fn name(&self) -> String {
        let last = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self {
            Self::File(path) => last(&path.with_extension("")),
            Self::Folder(path) => last(path),
            Self::Repository(repository) => repository.clone(),
            Self::RepositoryFile { repository, file } => format!("{repository}/{file}"),
        }
    }

    /// What tells it from another: where it is and, of what is here, its files' sizes and times.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn identity(&self) -> std::io::Result<String> {
        let described = |path: &Path| -> std::io::Result<String> {
            let metadata = path.metadata()?;
            let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok(format!("{name} {} {}", metadata.len(), modified.as_nanos()))
        };
        match self {
            Self::File(path) => described(path),
            Self::Folder(path) => {
                let mut files = Vec::new();
                for entry in path.read_dir()? {
                    let path = entry?.path();
                    if path.is_file() {
                        files.push(described(&path)?);
                    }
                }
                files.sort();
                Ok(files.join("\n"))
            }
            Self::Repository(_) | Self::RepositoryFile { .. } => Ok(self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn references_of_the_hub() {
        let repository = || "owner/name".to_owned();
        assert_eq!(Reference::parse("owner/name"), Ok(Reference::Repository(repository())));
        for file in ["a.gguf", "folder/a.b.gguf"] {
            let found = Reference::parse(&format!("owner/name/{file}")).unwrap();
            assert_eq!(found, Reference::RepositoryFile { repository: repository(), file: file.to_owned() });
        }
        for text in
            ["", "name", "owner/", "owner/name/", "owner/name/file", "../name", "a/b c", "owner/a.gguf"]
        {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn references_to_what_is_here() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        for path in [folder.to_owned(), folder.join("Cargo.toml")] {
            assert!(Reference::parse(path.to_str().unwrap()).is_err(), "{path:?}");
        }
    }
}
