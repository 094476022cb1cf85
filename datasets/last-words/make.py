#!/usr/bin/env python3
"""Makes items that ask for the last n words of a text, as train.jsonl and test.jsonl.

    python3 datasets/last-words/make.py --wordnet path/to/data.noun
    python3 datasets/last-words/make.py --text docs/ manual.txt --tokens 4096 --n 1-99 --out long-4k

The first makes the files of this folder: texts of 60 to 100 words, n of at most 20; those to train on are also shorter,
since an example teaches little but where its answer begins, and short ones do so for less. The second makes long documents
of any plain prose: files or folders of .txt, .md and .rst. Words are what white space parts. No sentence is in both files.

The same texts, seed and options give the same bytes. `--check` writes nothing and says whether the files are those. The
standard library suffices.
"""

import argparse
import hashlib
import json
import pathlib
import random
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
PROMPT = "Return last {n} words from this text: \n\n{document}"
TEST_SHARE = 1 / 3
PROSE_SUFFIXES = {".txt", ".md", ".rst", ".text"}
# Of English prose with tokenizers of some 50,000 tokens; `wardrobe eval` reports the tokens that were.
TOKENS_PER_WORD = 1.35
# Glosses that a reader would rather not meet in an example.
UNFIT = re.compile(
    r"offensive|slur|disparag|derogat|vulgar|obscen|slang|sexual|genital|intercourse|excre|feces|prostitut|penis|vagina",
    re.IGNORECASE,
)
LIFE = re.compile(r"^(?P<text>[^\"]*?)\s*\((?P<born>1\d{3})-(?P<died>1\d{3}|200\d)\)$")


def number_range(text):
    """`60-100`, or `60` for that number alone."""
    low, _, high = text.partition("-")
    bounds = int(low), int(high or low)
    if not 1 <= bounds[0] <= bounds[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no range; write it like 60-100")
    return bounds


def is_for_test(key):
    """Which file a text belongs to follows from its own bytes alone, so that it is never in both."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32


class WordNet:
    """Glosses as sentences, in three styles: prose, spaced like the biographies, and people with their years.

    Data of WordNet: the format is wndb(5WN).
    """

    def __init__(self, path):
        self.styles = {"prose": [], "spaced": [], "people": []}
        with open(path, encoding="latin-1") as lines:
            for line in lines:
                if line.startswith("  "):
                    continue
                data, gloss = line.split(" | ", 1)
                word = data.split()[4].replace("_", " ").lower()
                definition = " ".join(gloss.split('; "')[0].strip(" ;").split())
                if '"' in definition or UNFIT.search(gloss) or not 4 <= len(definition.split()) <= 35:
                    continue
                life = LIFE.match(definition)
                if life:
                    text = f"{word} ( {life['born']} - {life['died']} ) , {life['text']} ."
                    self.styles["people"].append(text)
                else:
                    self.styles["prose"].append(f"{definition[0].upper()}{definition[1:]}.")
                    self.styles["spaced"].append(f"{word} , {definition} .")

    def sentences(self, rng, for_test):
        """An endless run of sentences in one style."""
        style = self.styles[rng.choice(sorted(self.styles))]
        while True:
            sentence = rng.choice(style)
            if is_for_test(sentence) == for_test:
                yield sentence


class Prose:
    """Paragraphs of files, in their order."""

    def __init__(self, paths):
        files = []
        for path in paths:
            found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in PROSE_SUFFIXES)
            files += [p for p in found if p.is_file()]
        self.paragraphs = {False: [], True: []}
        seen = set()
        for path in files:
            for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace")):
                paragraph = " ".join(block.split())
                # Tables, code and headings are no prose; what stands in two files counts once.
                words = paragraph.split()
                letters = sum(c.isalpha() or c == " " for c in paragraph)
                if len(words) < 12 or letters < 0.85 * len(paragraph) or paragraph in seen:
                    continue
                seen.add(paragraph)
                self.paragraphs[is_for_test(paragraph)].append(paragraph)
        for for_test, paragraphs in self.paragraphs.items():
            if not paragraphs:
                sys.exit(f"no prose to {'test' if for_test else 'train'} with in {', '.join(map(str, paths))}")

    def sentences(self, rng, for_test):
        """Paragraphs from a random one on; after the last comes the first."""
        paragraphs = self.paragraphs[for_test]
        at = rng.randrange(len(paragraphs))
        while True:
            yield paragraphs[at % len(paragraphs)]
            at += 1


def document(source, rng, for_test, words_range):
    """Whole sentences up to a length in the range; where the last overshoots, words at the front go.

    Of documents to train on, short ones are more frequent.
    """
    low, high = words_range
    wanted = rng.randint(low, high) if for_test else low + int((high - low + 1) * rng.random() ** 2)
    words = []
    for sentence in source.sentences(rng, for_test):
        words += sentence.split()
        if len(words) >= wanted:
            return words[-words_range[1] :]


def make_items(source, count, for_test, arguments):
    rng = random.Random(f"{arguments.seed} {for_test}")
    items = []
    for _ in range(count):
        words = document(source, rng, for_test, arguments.words if for_test else arguments.train_words)
        n = rng.randint(*arguments.n)
        items.append(
            {
                "prompt": PROMPT.format(n=n, document=" ".join(words)),
                "completion": " ".join(words[-n:]),
                "n": n,
                "document_words": len(words),
            }
        )
    return items


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = arguments.add_mutually_exclusive_group(required=True)
    source.add_argument("--wordnet", type=pathlib.Path, metavar="DATA_NOUN", help="data.noun of WordNet 3.0")
    source.add_argument("--text", type=pathlib.Path, nargs="+", metavar="PATH", help="files or folders of plain prose")
    length = arguments.add_mutually_exclusive_group()
    length.add_argument("--words", type=number_range, default=(60, 100), help="words of a document [default: 60-100]")
    length.add_argument(
        "--tokens", type=number_range, help=f"the same in tokens, taken as {TOKENS_PER_WORD} to a word"
    )
    arguments.add_argument("--train-words", type=number_range, help="the same to train on [default: from 24 for WordNet]")
    arguments.add_argument("--tokens-per-word", type=float, default=TOKENS_PER_WORD, help="for --tokens")
    arguments.add_argument("--n", type=number_range, default=(1, 20), help="how many words to ask for [default: 1-20]")
    arguments.add_argument("--train", type=int, default=1500, help="items to train on [default: 1500]")
    arguments.add_argument("--test", type=int, default=100, help="held-out items [default: 100]")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--out", type=pathlib.Path, default=HERE, help="folder to write to [default: this one]")
    arguments.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing")
    arguments = arguments.parse_args()

    if arguments.tokens:
        arguments.words = tuple(max(1, round(t / arguments.tokens_per_word)) for t in arguments.tokens)
    if not arguments.train_words:
        low, high = arguments.words
        arguments.train_words = (min(low, 24), high) if arguments.wordnet else (low, high)
    if arguments.n[1] > min(arguments.words[0], arguments.train_words[0]):
        sys.exit("--n asks for more words than the shortest document has")
    source = WordNet(arguments.wordnet) if arguments.wordnet else Prose(arguments.text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    different = []
    for name, count in (("train", arguments.train), ("test", arguments.test)):
        items = make_items(source, count, name == "test", arguments)
        text = "".join(json.dumps(item) + "\n" for item in items).encode()
        path = arguments.out / f"{name}.jsonl"
        if arguments.check:
            if not path.exists() or path.read_bytes() != text:
                different.append(str(path))
            continue
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(text)
        unfinished.replace(path)
        print(f"{path}: {len(items)} items, {len(text)} bytes", file=sys.stderr)
    if different:
        sys.exit(f"not what this program makes: {', '.join(different)}")


if __name__ == "__main__":
    main()
