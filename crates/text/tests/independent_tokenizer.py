"""Token ids from tokenizers that are not ours, for tests/independent.rs to compare with.

    independent_tokenizer.py gguf FILE.gguf COUNT    llama.cpp (PyPI: llama-cpp-python), on that vocabulary
    independent_tokenizer.py gguf-pre FILE.gguf,PRE COUNT
                                                     the same with another pre-tokenizer (PyPI: gguf as well)
    independent_tokenizer.py sentencepiece PREFIX COUNT
                                                     SentencePiece (PyPI: sentencepiece), on a small model that
                                                     is trained here; PREFIX is `prefix` or `no-prefix`

Prints one JSON object: `strings`, `ids` (special tokens are read), and for sentencepiece also `vocab`, `decoded`.
"""

import io
import json
import random
import sys
import unicodedata

# Characters that every Unicode version since 8.0 has: tables of different versions then agree on their classes.
ASSIGNED = [
    chr(code)
    for code in range(0x110000)
    if unicodedata.ucd_3_2_0.category(chr(code)) not in ("Cn", "Cs", "Co")
    and unicodedata.ucd_3_2_0.category(chr(code)) == unicodedata.category(chr(code))
]
BY_CATEGORY = {}
for character in ASSIGNED:
    BY_CATEGORY.setdefault(unicodedata.category(character), []).append(character)

WORDS = (
    "the quick brown fox jumps over a lazy dog and then it's we'll I'VE don't HTTPServer snake_case "
    "naïve café Straße Москва привет こんにちは 東京 한국어 العربية עברית हिन्दी ไทย Ελληνικά "
    "3.14159 2024 1000000 ½ Ⅷ ٣٤٥ <s> </s> <unk> <0x41> ▁ ▁▁x"
).split()
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2003", "\u200b", " \t ", "      "]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "é", "ก็", "a\u0323\u0301"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\n", "<|im_", "|>", "<repo_name>"]


def random_string(rng, special):
    pieces = []
    for _ in range(rng.randrange(1, 24)):
        kind = rng.randrange(9)
        if kind <= 1:
            pieces.append(rng.choice(WORDS))
        elif kind == 2:
            pieces.append(rng.choice(SPACES))
        elif kind == 3:
            pieces.append("".join(rng.choice(ASSIGNED) for _ in range(rng.randrange(1, 6))))
        elif kind == 4:
            pieces.append(rng.choice(BY_CATEGORY[rng.choice(sorted(BY_CATEGORY))]))
        elif kind == 5:
            pieces.append("".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 12))))
        elif kind == 6:
            pieces.append(rng.choice(EMOJI))
        elif kind == 7:
            pieces.append(" " + rng.choice(WORDS))
        else:
            pieces.append(rng.choice(SPECIAL) if special else str(rng.randrange(10 ** rng.randrange(1, 12))))
    # NUL ends a C string in some bindings.
    return "".join(pieces).replace("\0", "")


def with_llama_cpp(path, count, composed=False):
    import llama_cpp

    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    rng = random.Random(20240607)
    strings = [random_string(rng, True) for _ in range(count)]
    if composed:
        # llama.cpp leaves out this step of the original tokenizers.
        strings = [unicodedata.normalize("NFC", string) for string in strings]
    ids = [model.tokenize(string.encode(), add_bos=False, special=True) for string in strings]
    return {"strings": strings, "ids": ids}


def with_pre_tokenizer(path, pre, count):
    """The vocabulary under another pre-tokenizer: its words differ, so the ids tell whether the rules do."""
    import gguf
    import tempfile

    fields = gguf.GGUFReader(path).fields
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        writer = gguf.GGUFWriter(file.name, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(fields["tokenizer.ggml.tokens"].contents())
        writer.add_token_types(fields["tokenizer.ggml.token_type"].contents())
        writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return with_llama_cpp(file.name, count, pre in ("qwen2", "command-r", "olmo"))


def with_sentencepiece(prefix, count):
    import sentencepiece

    rng = random.Random(7)
    lines = []
    for _ in range(4000):
        lines.append(" ".join(rng.choice(WORDS[:40]) for _ in range(rng.randrange(3, 12))))
        lines.append("".join(rng.choice("abcdefgh ") for _ in range(30)) + " aaaa ababab    x")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<sep>", "[[x]]"],
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = processor.get_piece_size()
    types = []
    for id in range(size):
        types.append(
            2 if processor.is_unknown(id)
            else 3 if processor.is_control(id)
            else 5 if processor.is_unused(id)
            else 6 if processor.is_byte(id)
            else 1
        )
    for symbol in ("<sep>", "[[x]]"):
        types[processor.piece_to_id(symbol)] = 4
    vocab = {
        "model": "llama",
        "tokens": [processor.id_to_piece(id) for id in range(size)],
        "scores": [processor.get_score(id) for id in range(size)],
        "token_types": types,
        "bos_id": processor.bos_id(),
        "eos_id": processor.eos_id(),
        "unk_id": processor.unk_id(),
        "add_bos": False,
        "add_space_prefix": prefix,
    }
    rng = random.Random(99)
    strings = [random_string(rng, False) for _ in range(count)]
    # SentencePiece's control symbols never come from text, and a text's own ▁ is not told apart from a space.
    strings = [s.replace("<s>", "").replace("</s>", "").replace("<unk>", "") for s in strings]
    ids = processor.encode(strings)
    return {"strings": strings, "ids": ids, "decoded": processor.decode(ids), "vocab": vocab}


def main():
    kind, argument, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if kind == "gguf":
        result = with_llama_cpp(argument, count)
    elif kind == "gguf-pre":
        result = with_pre_tokenizer(*argument.split(","), count)
    else:
        result = with_sentencepiece(argument == "prefix", count)
    json.dump(result, sys.stdout)


main()
