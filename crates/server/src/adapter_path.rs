//! Which folders an adapter may be loaded from: those under the adapter root, and nothing else.
//!
//! A path from a client is checked twice. By its text: absolute paths outside of the root and `..` are refused before the
//! file system is asked, so that no answer tells what exists elsewhere. Then as it resolves: the folder, and every
//! entry in it that is a link, must lie under the root. What is loaded is the resolved path, in which no link is left.
//!
//! Someone who can write under the root may still swap a folder between the check and the load; after a load the
//! caller checks once more ([`AdapterRoot::resolve`]) and takes the adapter away if its path has come to lead out.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::{ApiError, Result, ServerError};

const MAX_PATH_BYTES: usize = 4096;
const MAX_ENTRIES: usize = 4096;

/// The adapter root.
#[derive(Clone, Debug)]
pub(crate) struct AdapterRoot {
    /// As configured, for absolute paths that clients build from it.
    given: PathBuf,
    /// Absolute and without links.
    resolved: PathBuf,
}

impl AdapterRoot {
    pub fn new(path: &Path) -> Result<Self, ServerError> {
        let bad = |reason: String| ServerError::AdapterRoot { path: path.to_owned(), reason };
        let resolved = fs::canonicalize(path).map_err(|error| bad(error.to_string()))?;
        if !resolved.is_dir() {
            return Err(bad("is not a folder".to_owned()));
        }
        fs::read_dir(&resolved).map_err(|error| bad(error.to_string()))?;
        Ok(Self { given: path.to_owned(), resolved })
    }

    /// A path as clients see it: without the root's own place.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.resolved).unwrap_or(path).display().to_string()
    }

    /// The path of an existing folder under the root.
    pub fn resolve(&self, requested: &str) -> Result<PathBuf> {
        let inside = self.inside(requested)?;
        let resolved = fs::canonicalize(self.resolved.join(inside)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => not_found(requested),
            _ => forbidden("cannot be reached"),
        })?;
        self.check_inside(&resolved)?;
        if !resolved.is_dir() {
            let reason = "is a file; an adapter is a folder as PEFT's save_pretrained writes it";
            return Err(ApiError::invalid("lora_path", reason).with_code("adapter_refused"));
        }
        self.check_entries(&resolved)?;
        Ok(resolved)
    }

    /// Whether clients can load what lies at this path.
    pub fn contains(&self, path: &Path) -> bool {
        fs::canonicalize(path).is_ok_and(|resolved| self.check_inside(&resolved).is_ok())
    }

    /// A text for clients, without the root's own place.
    pub fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for root in [&self.resolved, &self.given] {
            let root = root.display().to_string();
            // A root of `/` or `.` hides nothing and would take letters out of words.
            if root.trim_matches(['/', '.']).is_empty() {
                continue;
            }
            let below = format!("{}/", root.trim_end_matches('/'));
            text = text.replace(&below, "").replace(&root, "the adapter root");
        }
        text
    }

    /// The part below the root, by the path's text alone.
    fn inside(&self, requested: &str) -> Result<PathBuf> {
        if requested.is_empty() || requested.len() > MAX_PATH_BYTES || requested.contains('\0') {
            return Err(ApiError::invalid("lora_path", "is empty, too long or has a null character"));
        }
        let path = Path::new(requested);
        let below = match path.has_root() || path.is_absolute() {
            false => path,
            true => path
                .strip_prefix(&self.resolved)
                .or_else(|_| path.strip_prefix(&self.given))
                .map_err(|_| forbidden("is outside of the adapter root"))?,
        };
        let mut inside = PathBuf::new();
        for component in below.components() {
            match component {
                Component::Normal(name) => inside.push(name),
                Component::CurDir => {}
                _ => return Err(forbidden("may not leave the adapter root")),
            }
        }
        if inside.as_os_str().is_empty() {
            return Err(forbidden("is the adapter root itself"));
        }
        Ok(inside)
    }

    fn check_inside(&self, resolved: &Path) -> Result<()> {
        match resolved.strip_prefix(&self.resolved) {
            Ok(below) if !below.as_os_str().is_empty() => Ok(()),
            _ => Err(forbidden("leads out of the adapter root")),
        }
    }

    /// Links inside of an adapter's folder may not lead out either.
    fn check_entries(&self, folder: &Path) -> Result<()> {
        let unreadable = |_| forbidden("cannot be read");
        for (count, entry) in fs::read_dir(folder).map_err(unreadable)?.enumerate() {
            if count >= MAX_ENTRIES {
                return Err(ApiError::invalid("lora_path", format!("has more than {MAX_ENTRIES} entries")));
            }
            let entry = entry.map_err(unreadable)?;
            if entry.file_type().map_err(unreadable)?.is_symlink() {
                let target = fs::canonicalize(entry.path());
                self.check_inside(&target.map_err(|_| forbidden("has a link that leads nowhere"))?)?;
            }
        }
        Ok(())
    }
}

fn forbidden(reason: &str) -> ApiError {
    ApiError::forbidden(format!("`lora_path` {reason}"))
        .with_param("lora_path")
        .with_code("adapter_path_forbidden")
}

fn not_found(requested: &str) -> ApiError {
    let shown: String = requested.chars().take(256).collect();
    ApiError::not_found(format!("there is no adapter at {shown:?} in the adapter root"))
        .with_param("lora_path")
        .with_code("adapter_path_not_found")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn status(root: &AdapterRoot, path: &str) -> u16 {
        root.resolve(path).map_or_else(|error| error.status.as_u16(), |_| 200)
    }

    #[test]
    fn only_what_is_under_the_root_resolves() {
        let outer = tempfile::tempdir().unwrap();
        let base = outer.path().join("root");
        for folder in ["root/good", "root/nested/deep", "outside"] {
            fs::create_dir_all(outer.path().join(folder)).unwrap();
        }
        fs::write(outer.path().join("outside/secret"), "x").unwrap();
        fs::write(base.join("good/file"), "x").unwrap();
        symlink(outer.path().join("outside"), base.join("escape")).unwrap();
        symlink("good", base.join("alias")).unwrap();
        symlink("../..", base.join("nested/up")).unwrap();
        fs::create_dir(base.join("smuggler")).unwrap();
        symlink(outer.path().join("outside/secret"), base.join("smuggler/weights")).unwrap();
        fs::create_dir(base.join("linked")).unwrap();
        symlink("../good/file", base.join("linked/file")).unwrap();
        fs::create_dir(base.join("dangling")).unwrap();
        symlink("nowhere", base.join("dangling/file")).unwrap();
        let root = AdapterRoot::new(&base).unwrap();

        let absolute = |name: &str| outer.path().join(name).display().to_string();
        let long = "a/".repeat(3000);
        for (path, expected) in [
            ("good", 200),
            ("./good/", 200),
            ("nested/deep", 200),
            ("alias", 200),
            ("linked", 200),
            (&absolute("root/good"), 200),
            ("missing", 404),
            ("good/file/below", 404),
            ("", 400),
            ("a\0b", 400),
            (&long, 400),
            ("good/file", 400),
            (".", 403),
            ("..", 403),
            ("../outside", 403),
            ("good/../../outside", 403),
            ("good/../good", 403),
            ("/etc", 403),
            (&absolute("outside"), 403),
            (&absolute("root"), 403),
            (&absolute("root/../outside"), 403),
            (&absolute("rootless"), 403),
            ("escape", 403),
            ("escape/secret", 403),
            ("nested/up", 403),
            ("nested/up/outside", 403),
            ("smuggler", 403),
            ("dangling", 403),
        ] {
            assert_eq!(status(&root, path), expected, "{path:?}");
        }
        assert_eq!(root.resolve("alias").unwrap(), fs::canonicalize(base.join("good")).unwrap());
        assert_eq!(root.shown(&root.resolve("good").unwrap()), "good");
        assert!(root.contains(&base.join("nested/../good")) && root.contains(&base.join("alias")));
        assert!(!root.contains(&outer.path().join("outside")) && !root.contains(&base));
        let text = format!("cannot read {}: no; see {}", absolute("root/good/file"), absolute("root"));
        assert_eq!(root.hide(&text), "cannot read good/file: no; see the adapter root");
    }

    #[test]
    fn the_root_must_be_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        for path in [file, folder.path().join("missing")] {
            assert!(matches!(AdapterRoot::new(&path), Err(ServerError::AdapterRoot { .. })), "{path:?}");
        }
    }
}
