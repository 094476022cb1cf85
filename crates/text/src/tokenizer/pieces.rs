//! The bytes that every token stands for, in one allocation.
//!
//! Decoding, streaming, log-probabilities and grammars all read this table, so that they cannot disagree.

use crate::{Result, TextError, TokenId};

/// How a vocabulary spells bytes in its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: every byte is a printable character.
    ByteLevel,
    /// SentencePiece's: U+2581 is a space, `<0xNN>` is a byte, everything else is itself.
    SentencePiece,
}

const SPECIAL: u8 = 1;
const PRESENT: u8 = 2;

/// Bytes and flags of every id.
#[derive(Debug)]
pub(super) struct PieceTable {
    bytes: Box<[u8]>,
    /// The end of each piece in `bytes`; it starts where the one before ends.
    ends: Box<[u32]>,
    flags: Box<[u8]>,
}

impl PieceTable {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self, id: TokenId) -> Option<&[u8]> {
        let index = id.index();
        if self.flags.get(index)? & PRESENT == 0 {
            return None;
        }
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)? as usize,
            None => 0,
        };
        self.bytes.get(start..*self.ends.get(index)? as usize)
    }

    pub(super) fn is_special(&self, id: TokenId) -> bool {
        self.flags.get(id.index()).is_some_and(|flags| flags & SPECIAL != 0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TokenId, &[u8])> {
        (0..self.len() as u32).map(TokenId).filter_map(|id| Some((id, self.bytes(id)?)))
    }
}

/// Fills a [`PieceTable`] id by id.
pub(super) struct PieceTableBuilder {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    flags: Vec<u8>,
}

impl PieceTableBuilder {
    pub(super) fn with_capacity(tokens: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(tokens.saturating_mul(8)),
            ends: Vec::with_capacity(tokens),
            flags: Vec::with_capacity(tokens),
        }
    }

    /// An id without a token.
    pub(super) fn push_hole(&mut self) {
        self.ends.push(self.bytes.len() as u32);
        self.flags.push(0);
    }

    /// An ordinary token.
    pub(super) fn push_piece(&mut self, piece: &str, spelling: Spelling) -> Result<()> {
        spell(piece, spelling, &mut self.bytes);
        self.end(PRESENT)
    }

    /// A token that stands for its text as it is.
    pub(super) fn push_added(&mut self, text: &str, spelling: Spelling, special: bool) -> Result<()> {
        match spelling {
            Spelling::ByteLevel => self.bytes.extend_from_slice(text.as_bytes()),
            Spelling::SentencePiece => spell(text, spelling, &mut self.bytes),
        }
        self.end(if special { PRESENT | SPECIAL } else { PRESENT })
    }

    fn end(&mut self, flags: u8) -> Result<()> {
        let end = u32::try_from(self.bytes.len()).map_err(|_| TextError::Vocabulary {
            message: "the pieces have over 4 GiB of text".to_owned(),
        })?;
        self.ends.push(end);
        self.flags.push(flags);
        Ok(())
    }

    pub(super) fn build(self) -> PieceTable {
        PieceTable { bytes: self.bytes.into(), ends: self.ends.into(), flags: self.flags.into() }
    }
}

/// The byte that `<0xNN>` stands for.
pub(super) fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

fn spell(piece: &str, spelling: Spelling, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    match spelling {
        Spelling::ByteLevel => {
            for character in piece.chars() {
                match byte_of(character) {
                    Some(byte) => bytes.push(byte),
                    None => {
                        // Not spelled in bytes at all: the piece is its own text.
                        bytes.truncate(start);
                        bytes.extend_from_slice(piece.as_bytes());
                        return;
                    }
                }
            }
        }
        Spelling::SentencePiece => match fallback_byte(piece) {
            Some(byte) => bytes.push(byte),
            None => {
                for part in piece.split_inclusive('\u{2581}') {
                    match part.strip_suffix('\u{2581}') {
                        Some(text) => {
                            bytes.extend_from_slice(text.as_bytes());
                            bytes.push(b' ');
                        }
                        None => bytes.extend_from_slice(part.as_bytes()),
                    }
                }
            }
        },
    }
}

/// The byte that a character stands for in GPT-2's spelling: printable Latin-1 characters are
/// themselves, and the 68 other bytes are U+0100 and on, in order.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The character of a byte in that spelling.
pub(super) fn character_of(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0..=0x20 => code + 0x100,
        0xad => 0x143,
        _ => code - 0x7f + 0x121,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut seen = std::collections::BTreeMap::new();
        for code in 0..0x200 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of) {
                assert!(seen.insert(byte, code).is_none(), "two characters for byte {byte}");
            }
        }
        assert_eq!(seen.len(), 256);
        // Facts of GPT-2's table: a space is U+0120, a line feed U+010A, the soft hyphen comes last.
        assert_eq!((seen[&b' '], seen[&b'\n'], seen[&0xad]), (0x120, 0x10a, 0x143));
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(alphabet.iter().all(|character| byte_of(*character).is_some()));
        assert!((0..=u8::MAX).all(|byte| byte_of(character_of(byte)) == Some(byte)));
    }

    #[test]
    fn fallback_pieces() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xfF>"), Some(255));
        for other in ["<0xG0>", "<0x+1>", "<0x0>", "0x00", "<0x00", "<0x000>"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }

    #[test]
    fn spelling_of_pieces() {
        let bytes = |piece, spelling| {
            let mut bytes = Vec::new();
            spell(piece, spelling, &mut bytes);
            bytes
        };
        assert_eq!(bytes("\u{120}the", Spelling::ByteLevel), b" the");
        assert_eq!(bytes("\u{e9}", Spelling::ByteLevel), [0xe9]);
        assert_eq!(bytes("a\u{4e00}", Spelling::ByteLevel), "a\u{4e00}".as_bytes());
        assert_eq!(bytes("\u{2581}a\u{2581}\u{2581}b\u{2581}", Spelling::SentencePiece), b" a  b ");
        assert_eq!(bytes("<0xE4>", Spelling::SentencePiece), [0xe4]);
    }
}
