//! Cutting a long text where no word can cross, so that memory and time to a limit stay small.
//!
//! A tokenizer keeps dozens of bytes of bookkeeping for each byte of text. Encoding a text in parts bounds that,
//! and a text over the caller's token limit is refused after the part that crosses it. The ids must not depend
//! on it, so a text is only cut where the tokenizer is known to end a word whatever comes before and after.

/// Where a text may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cutting {
    /// Nowhere: the tokenizer's words may cross spaces.
    Never,
    /// Before a space between two ASCII letters.
    BeforeSpace,
    /// There too, but the tokenizer itself puts a space before every part: the text's own goes.
    DropSpace,
    /// Also where every byte-level pre-tokenizer ends a word: before an ideographic comma or full stop after an
    /// ideograph, and after a single line feed between letters.
    Words,
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
            Cutting::BeforeSpace | Cutting::DropSpace => find_cut(self.rest, self.part_bytes, false),
            Cutting::Words => find_cut(self.rest, self.part_bytes, true),
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

/// The first good place at or after `from`, which is never the start.
fn find_cut(text: &str, from: usize, words: bool) -> Option<usize> {
    if from >= text.len() {
        return None;
    }
    let start = (0..=from.max(1) - 1).rev().find(|at| text.is_char_boundary(*at))?;
    let mut characters = text.get(start..)?.char_indices();
    let mut before = characters.next()?.1;
    let mut at = characters.next()?;
    for after in characters {
        if before.is_ascii_alphabetic() && at.1 == ' ' && after.1.is_ascii_alphabetic() {
            return Some(start + at.0);
        }
        if words && is_ideograph_or_kana(before) && matches!(at.1, '、' | '。' | '，') {
            return Some(start + at.0);
        }
        if words && is_letter(before) && at.1 == '\n' && is_letter(after.1) {
            return Some(start + after.0);
        }
        (before, at) = (at.1, after);
    }
    None
}

fn is_letter(character: char) -> bool {
    character.is_ascii_alphabetic() || is_ideograph_or_kana(character)
}

fn is_ideograph_or_kana(character: char) -> bool {
    matches!(character, '\u{4e00}'..='\u{9fa5}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}')
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
    fn words_end_in_more_places() {
        let text = "日本、東京。 ab\ncd\n\nef 語\nx";
        let parts = |cutting| Parts::new(text, cutting, 1).collect::<Vec<_>>();
        assert_eq!(parts(Cutting::Words), ["日本", "、東京", "。 ab\n", "cd\n\nef 語\n", "x"]);
        assert_eq!(parts(Cutting::BeforeSpace), [text]);
    }

    #[test]
    fn parts_have_about_the_asked_size() {
        let text = "word ".repeat(1000);
        let parts: Vec<_> = Parts::new(&text, Cutting::BeforeSpace, 64).collect();
        assert!(parts.iter().all(|part| part.len() <= 64 + 5));
        assert_eq!(parts.concat(), text);
    }
}
