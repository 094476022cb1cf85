//! Which names are safe as files of ours, and the folder names made from references.

use sha2::{Digest, Sha256};

/// Longest relative path accepted from a listing, a manifest or a reference.
const MAX_PATH_BYTES: usize = 512;

/// Whether `path` is a relative path that stays inside the folder it is joined to, on every platform: components of
/// printable characters parted by `/`, none of them empty, `.` or `..`, no backslash, no drive, no trailing dot.
pub(crate) fn is_safe_relative_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_PATH_BYTES
        && path.split('/').all(|part| {
            !part.is_empty()
                && part.len() <= 200
                && part != "."
                && part != ".."
                && !part.ends_with('.')
                && part
                    .chars()
                    .all(|c| !c.is_control() && !matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|'))
        })
}

/// A folder name for `text`: its letters with everything else as `-`, and a part of its SHA-256, so that two texts have
/// two names and a person still recognises them. At most 120 bytes.
pub(crate) fn folder_name(text: &str) -> String {
    named_folder(text, text)
}

/// [`folder_name`] with `shown` for the person and `identity` for the checksum.
pub(crate) fn named_folder(shown: &str, identity: &str) -> String {
    let mut name = String::with_capacity(120);
    for c in shown.chars().take(100) {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' => name.push(c),
            _ => name.push('-'),
        }
    }
    let name = name.trim_start_matches(['.', '-']);
    let digest = hex(&Sha256::digest(identity.as_bytes()));
    format!("{name}--{}", digest.get(..16).unwrap_or_default())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(DIGITS.get(usize::from(nibble)));
        }
    }
    text
}

/// Whether `text` is `length` hexadecimal digits.
pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in
            ["config.json", "sub/model.gguf", "model-00001-of-00002.safetensors", "a b/c..d.gguf", "…/é.gguf"]
        {
            assert!(is_safe_relative_path(path), "{path}");
        }
        let long = "a/".repeat(400) + "b";
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "a/",
            "./a",
            "..",
            "a\\..\\b",
            "C:x",
            "a\0b",
            "a\nb",
            "a/..",
            "x.",
            &long,
        ] {
            assert!(!is_safe_relative_path(path), "{path:?}");
        }
    }

    #[test]
    fn folder_names_are_plain_distinct_and_bounded() {
        let names = ["o/n", "o-n", "o/n@main", "o/n@r/1", "../../x", ".hidden", "é", "", &"x".repeat(5000)];
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            let folder = folder_name(name);
            assert!(
                folder.len() <= 120 && is_safe_relative_path(&folder) && !folder.contains('/'),
                "{folder}"
            );
            assert!(!folder.starts_with('.'));
            assert!(seen.insert(folder));
        }
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(hex(&[0, 1, 0xab, 0xff]), "0001abff");
        assert!(is_hex("00Ff", 4) && !is_hex("00Ff", 5) && !is_hex("00g0", 4));
    }
}
