//! Texts as the readers of the written files take them back: a shell, a TOML file, a systemd unit.

/// A word as a POSIX shell reads it back.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A basic string of TOML. It escapes what JSON does, and the one control character that JSON lets be.
pub(super) fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A path for a setting of a systemd unit that takes it to the end of the line.
pub(super) fn unit_path(text: &str) -> String {
    text.replace('%', "%%")
}

/// A word of a systemd unit, where words are parted by blanks.
pub(super) fn unit_word(text: &str) -> String {
    let mut word = String::from("\"");
    for c in text.chars() {
        match c {
            '\\' | '"' => word.extend(['\\', c]),
            '%' => word.push_str("%%"),
            _ => word.push(c),
        }
    }
    word.push('"');
    word
}

/// An argument of a command of a systemd unit: there a dollar sign would stand for a variable too.
pub(super) fn unit_argument(text: &str) -> String {
    unit_word(text).replace('$', "$$")
}

/// A name of lower-case letters, digits and hyphens that a text is known by, at most 40 characters; `fallback` where
/// nothing of it is left.
pub(super) fn slug(text: &str, fallback: &str) -> String {
    const MAX_CHARS: usize = 40;
    let mut slug = String::new();
    for c in text.chars() {
        if slug.len() >= MAX_CHARS {
            break;
        }
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => slug.push(c),
            _ if slug.is_empty() || slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { fallback.to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(shell_word("http://127.0.0.1:8000/v1"), "http://127.0.0.1:8000/v1");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
    }

    #[test]
    fn toml_reads_back_what_was_written() {
        for text in
            ["plain", "a \"b\" \\ c", "line\nline\ttab\r", "\u{0}\u{1}\u{8}\u{c}\u{1f}\u{7f}", "äß→😀", ""]
        {
            let table: toml::Table = toml::from_str(&format!("k = {}", toml_string(text))).unwrap();
            assert_eq!(table.get("k").and_then(|value| value.as_str()), Some(text));
        }
    }

    #[test]
    fn slugs_are_names() {
        for (text, expected) in [
            ("ft:base:wardrobe:Mine:1a2b", "ft-base-wardrobe-mine-1a2b"),
            ("--x__y--", "x-y"),
            ("→", "endpoint"),
            ("", "endpoint"),
        ] {
            assert_eq!(slug(text, "endpoint"), expected);
        }
        assert_eq!(slug(&"ab-".repeat(30), "x").len(), 40);
    }
}
