//! A short run of what a fuzzer would do, on stable: nothing may panic or run away.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use support::{byte_level_vocab, sentencepiece_vocab};
use wardrobe_text::{
    ChatInput, ChatTemplate, DetokenizeOptions, DetokenizeStream, GgufVocab, Message, TemplateLimits,
    TokenId, Tokenizer, TokenizerConfig, fuzz_chat_template,
};

/// Pieces of templates; random sequences of them are often nearly valid.
const FRAGMENTS: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-",
    "+",
    " for m in messages ",
    " endfor ",
    " if ",
    " else ",
    " endif ",
    " set x = ",
    " macro f(a) ",
    " endmacro ",
    " generation ",
    " endgeneration ",
    " raw ",
    " endraw ",
    "messages",
    "[0]",
    "['content']",
    ".role",
    " | tojson",
    " | tojson(indent=2)",
    " | length",
    " | join(',')",
    " ~ ",
    " + ",
    " * ",
    " ** ",
    " / ",
    " // ",
    " % ",
    " == ",
    " not in ",
    " is defined",
    "'text'",
    "\"",
    "'",
    "\\",
    "9999999999",
    "-1",
    "1e308",
    "namespace(a=1)",
    "raise_exception('no')",
    "strftime_now('%Y %q')",
    "range(1000000)",
    "f(f)",
    "loop.index",
    " break ",
    " continue ",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ":",
    ",",
    "é",
    "\u{1f600}",
    "\r\n",
    "\0",
    ".split()",
    ".strip('x')",
    ".items()",
    ".format(1)",
    "[::-1]",
    "[1:-1]",
    "x",
    "self",
    " include 'chat_template' ",
    " import 'a' as b ",
    " extends 'x' ",
    " block y ",
    " endblock ",
    " filter upper ",
    " endfilter ",
    " call f() ",
    " endcall ",
    " with x=1 ",
    " endwith ",
    " autoescape true ",
    " do x ",
    "caller()",
    "lipsum()",
    "cycler(1)",
    "dict(a=1)",
];

fn template_source() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(prop::sample::select(FRAGMENTS), 0..24).prop_map(|parts| parts.concat()),
        prop::collection::vec(prop::sample::select(FRAGMENTS), 0..12)
            .prop_map(|parts| format!("{{% for m in messages %}}{{{{ {} }}}}{{% endfor %}}", parts.concat())),
        "\\PC{0,64}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn chat_templates(source in template_source(), text in "\\PC{0,16}") {
        let limits = TemplateLimits { fuel_instructions: 20_000, max_output_bytes: 1 << 16, ..TemplateLimits::default() };
        let messages = [Message::text("user", &text), Message::text("assistant", "x")];
        if let Ok(template) = ChatTemplate::new(&source, limits) {
            for continue_final_message in [false, true] {
                let input = ChatInput { messages: &messages, continue_final_message, ..ChatInput::default() };
                if let Ok(rendered) = template.render(&input) {
                    prop_assert!(rendered.len() <= limits.max_output_bytes);
                }
            }
        }
        fuzz_chat_template(source.as_bytes());
    }

    #[test]
    fn chat_template_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        fuzz_chat_template(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn vocabularies(
        sentencepiece: bool,
        edits in prop::collection::vec((0usize..6, any::<prop::sample::Index>(), "[a-z\u{2581}Ġ<0x>é ]{0,6}", any::<i32>()), 0..6),
        text in "\\PC{0,24}",
    ) {
        let mut vocab = if sentencepiece { sentencepiece_vocab() } else { byte_level_vocab() };
        for (field, at, word, number) in edits {
            let token = at.index(vocab.tokens.len().max(1)).min(vocab.tokens.len().saturating_sub(1));
            match field {
                0 => vocab.tokens[token] = word,
                1 => if let Some(kind) = vocab.token_types.get_mut(token) { *kind = number % 8 },
                2 => vocab.merges.push(word),
                3 => vocab.bos_id = u32::try_from(number % 400).ok(),
                4 => if let Some(scores) = &mut vocab.scores { scores[token] = f32::from_bits(number as u32) },
                _ => vocab.tokens.truncate(at.index(400)),
            }
            if vocab.tokens.is_empty() {
                break;
            }
        }
        use_tokenizer(vocab, &text);
    }

    #[test]
    fn tokenizer_files(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\":,a-z0-9 ]{0,64}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            let _ = Tokenizer::from_tokenizer_json(bytes, None);
            let _ = TokenizerConfig::from_json(bytes);
        }
    }
}

fn use_tokenizer(vocab: GgufVocab, text: &str) {
    let Ok(tokenizer) = Tokenizer::from_gguf(vocab) else { return };
    let mut ids = tokenizer.encode(text, true).unwrap();
    ids.extend((0..tokenizer.vocab_size() as u32 + 2).map(TokenId));
    let mut stream = DetokenizeStream::new(tokenizer.clone(), DetokenizeOptions::default());
    for id in ids {
        let _ = stream.push(id);
        let _ = (tokenizer.token_str(id), tokenizer.is_special(id), tokenizer.decode(&[id], true));
    }
    let _ = stream.flush();
}
