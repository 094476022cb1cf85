//! How the pre-tokenizers that `tokenizer.ggml.pre` names cut text into words.
//!
//! A GGUF file holds only a name; the rules belong to the model's original `tokenizer.json`, and are
//! written down here as facts, from those files and from llama.cpp's table of names. A name that is not
//! here is an error: another model's rules would give ids that the model was not trained on.

use crate::{Result, TextError};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// One cut: matches become words, and so does the text between them.
enum Cut {
    /// Every digit on its own (`\p{N}`).
    EachDigit,
    /// The words of GPT-2.
    Gpt2,
    /// The matches of an expression.
    Regex(&'static str),
}

/// A cut as a `tokenizer.json` has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum GivenCut {
    /// Every digit on its own.
    EachDigit,
    /// The matches of an expression, or the words of GPT-2.
    Regex(String),
}

/// A name for these cuts, if one is known whose rules are the same.
pub(super) fn name_of(cuts: &[GivenCut], nfc: bool, ignore_merges: bool) -> Option<&'static str> {
    let is_same = |(rule, given): (&Cut, &GivenCut)| match (rule, given) {
        (Cut::EachDigit, GivenCut::EachDigit) => true,
        (Cut::Gpt2, GivenCut::Regex(given)) => given == GPT2,
        (Cut::Regex(rule), GivenCut::Regex(given)) => given == rule,
        _ => false,
    };
    let same = RULES.iter().find(|rules| {
        rules.nfc == nfc
            && rules.ignore_merges == ignore_merges
            && rules.cuts.len() == cuts.len()
            && rules.cuts.iter().zip(cuts).all(is_same)
    });
    same.and_then(|rules| rules.names.first()).copied()
}

/// What a name stands for.
struct Rules {
    names: &'static [&'static str],
    cuts: &'static [Cut],
    /// The original tokenizer composes characters (NFC) first.
    nfc: bool,
    /// A word that is a token is taken whole, whatever the merge rules give.
    ignore_merges: bool,
    /// A beginning-of-text token is put first unless the file says otherwise.
    add_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const RULES: &[Rules] = &[
    Rules {
        names: &["smollm", "starcoder", "refact"],
        cuts: &[Cut::EachDigit, Cut::Gpt2],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["command-r"],
        cuts: &[Cut::EachDigit, Cut::Gpt2],
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["gpt-2", "phi-2", "jais"],
        cuts: &[Cut::Gpt2],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules { names: &["mpt", "olmo"], cuts: &[Cut::Gpt2], nfc: true, ignore_merges: false, add_bos: false },
    Rules {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        cuts: &[Cut::Regex(LLAMA3)],
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    Rules {
        names: &["dbrx", "smaug-bpe"],
        cuts: &[Cut::Regex(LLAMA3)],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["qwen2", "deepseek-r1-qwen"],
        cuts: &[Cut::Regex(QWEN2)],
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["seed-coder"],
        cuts: &[Cut::Regex(SEED_CODER)],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules { names: &["tekken"], cuts: &[Cut::Regex(TEKKEN)], nfc: false, ignore_merges: true, add_bos: true },
    Rules {
        names: &["gpt-4o", "llama4"],
        cuts: &[Cut::Regex(GPT_4O)],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["deepseek-v3"],
        cuts: &[
            Cut::Regex(r"\p{N}{1,3}"),
            Cut::Regex("[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
            Cut::Regex(DEEPSEEK_V3),
        ],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["falcon"],
        cuts: &[Cut::Regex(r"[\p{P}\$\+<=>\^~\|`]+"), Cut::Gpt2, Cut::Regex("[0-9][0-9][0-9]")],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["default"],
        cuts: &[
            Cut::Regex(r"[\p{P}\$\+<=>\^~\|]+"),
            Cut::Gpt2,
            Cut::Regex(r"\p{N}+"),
            Cut::Regex("[0-9][0-9][0-9]"),
        ],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
];

/// The names of `tokenizer.ggml.pre` that [`crate::Tokenizer::from_gguf`] knows.
pub fn supported_pre_tokenizers() -> impl Iterator<Item = &'static str> {
    RULES.iter().flat_map(|rules| rules.names).copied()
}

/// What the rest of a byte-level tokenizer needs to know about a name.
pub(super) struct PreTokenization {
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool,
}

/// The pre-tokenizer that `name` stands for.
pub(super) fn named(name: Option<&str>) -> Result<PreTokenization> {
    let Some(rules) = RULES.iter().find(|rules| name.is_some_and(|name| rules.names.contains(&name))) else {
        return Err(TextError::UnknownPreTokenizer {
            pre: name.unwrap_or_default().to_owned(),
            known: supported_pre_tokenizers().collect::<Vec<_>>().join(", "),
        });
    };
    let mut steps: Vec<PreTokenizerWrapper> = Vec::with_capacity(rules.cuts.len() + 1);
    for cut in rules.cuts {
        steps.push(match cut {
            Cut::EachDigit => Digits::new(true).into(),
            // GPT-2's own step also spells bytes as characters, which must come last: only cut here.
            Cut::Gpt2 => regex(GPT2)?.into(),
            Cut::Regex(expression) => regex(expression)?.into(),
        });
    }
    // No step of its own may cut after this one: it spells every byte as a printable character.
    steps.push(ByteLevel::new(false, false, false).into());
    Ok(PreTokenization {
        pre_tokenizer: Sequence::new(steps).into(),
        normalizer: rules.nfc.then_some(NormalizerWrapper::NFC(NFC)),
        ignore_merges: rules.ignore_merges,
        add_bos: rules.add_bos,
    })
}

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

fn regex(expression: &str) -> Result<Split> {
    Split::new(SplitPattern::Regex(expression.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| TextError::Vocabulary { message: format!("pre-tokenizer {expression:?}: {error}") })
}

/// Whether a `tokenizer.json`'s splitting expression is one of those here, all of which end a word
/// between a letter and a space.
pub(super) fn ends_words_at_spaces(expression: &str) -> bool {
    [LLAMA3, QWEN2, SEED_CODER, TEKKEN, GPT_4O, DEEPSEEK_V3, GPT2].contains(&expression)
}
