//! Cutting a long text where no word can cross, so that memory and time to a limit stay small.
//!
//! A tokenizer keeps dozens of bytes of bookkeeping for each byte of text. Encoding a text in parts bounds that,
//! and a text over the caller's token limit is refused after the part that crosses it. The ids must not depend
//! on it, so a text is only cut between an ASCII letter and a space that an ASCII letter follows, and only for
//! tokenizers known to end a word there.

/// What happens at a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cutting {
    /// The tokenizer's words may cross spaces: never cut.
    Never,
    /// Words end before a space.
    BeforeSpace,
    /// Words end before a space, and the tokenizer itself puts a space before every part: the text's own goes.
    DropSpace,
}

/// The size at which a part ends at the next good place.
pub(super) const PART_BYTES: usize = 32 * 1024;

/// The parts of a text.
pub(super) struct Parts<'t> {
    rest: &'t str,
    cutting: Cutting,
    part_bytes: usize,
}

impl<'t> Parts<'t> {
    pub(super) fn new(text: &'t str, cutting: Cutting, part_bytes: usize) -> Self {
        Self { rest: text, cutting, part_bytes }
    }
}

impl<'t> Iterator for Parts<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        if self.rest.is_empty() {
            return None;
        }
        let cut = match self.cutting {
            Cutting::Never => None,
            Cutting::BeforeSpace | Cutting::DropSpace => find_cut(self.rest.as_bytes(), self.part_bytes),
        };
        let Some(cut) = cut else { return Some(std::mem::take(&mut self.rest)) };
        let (part, rest) = self.rest.split_at(cut);
        self.rest = match self.cutting {
            Cutting::DropSpace => rest.strip_prefix(' ').unwrap_or(rest),
            _ => rest,
        };
        Some(part)
    }
}

/// The first place at or after `from` where an ASCII letter is followed by a space and another.
fn find_cut(text: &[u8], from: usize) -> Option<usize> {
    let start = from.max(1) - 1;
    let found = text.get(start..)?.windows(3).position(|window| {
        window[0].is_ascii_alphabetic() && window[1] == b' ' && window[2].is_ascii_alphabetic()
    })?;
    Some(start + found + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_rebuild_the_text() {
        let text = "ab cd  ef\u{e9} gh ij 1 kl";
        let parts = |cutting| Parts::new(text, cutting, 1).collect::<Vec<_>>();
        assert_eq!(parts(Cutting::Never), [text]);
        assert_eq!(parts(Cutting::BeforeSpace), ["ab", " cd  ef\u{e9} gh", " ij 1 kl"]);
        assert_eq!(parts(Cutting::DropSpace), ["ab", "cd  ef\u{e9} gh", "ij 1 kl"]);
        assert_eq!(Parts::new("", Cutting::BeforeSpace, 1).count(), 0);
    }

    #[test]
    fn parts_have_about_the_asked_size() {
        let text = "word ".repeat(1000);
        let parts: Vec<_> = Parts::new(&text, Cutting::BeforeSpace, 64).collect();
        assert!(parts.iter().all(|part| part.len() <= 64 + 5));
        assert_eq!(parts.concat(), text);
    }
}
