#!/usr/bin/env python3
"""Makes train.jsonl and test.jsonl of this folder from WordNet 3.0's noun database.

    python3 datasets/biographies/make.py path/to/data.noun
    python3 datasets/biographies/make.py path/to/data.noun --check

An item has three short biographies whose names are swapped for others, and asks for one of them as a JSON record. The
gold record needs no model: years and nationality are in the gloss, `sportsperson` and `politician` follow from the
hypernyms. A person whose gold is open to doubt is never asked for, and may still stand beside who is.

The same file, seed and counts give the same bytes. `--check` writes nothing and says whether the files are those. The
standard library suffices.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Of data.noun of WordNet 3.0 as Princeton released it and Debian's wordnet-base carries it.
KNOWN_SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
QUESTION = (
    "Write the JSON record of {name}. Answer only with JSON like "
    '{{"nationality": "Greek", "born": 1801, "died": 1899, "sportsperson": true, "politician": false}}'
)
NUM_IN_PROMPT = 3
MAX_GLOSS_WORDS = 45
MAX_PROMPT_CHARS = 800
TEST_SHARE = 1 / 3
# Shares of the items that ask for such a person. There are a hundred politicians with clear gold and thirty people of
# sports, so that these are asked for more than once, each time under another name and in other company.
SHARES = {"sportsperson": 0.25, "politician": 0.33, "neither": 0.42}
# The most that one nationality has of a kind's items: otherwise half of all people would be American, as nearly all of
# those in sports are.
MAX_NATIONALITY_SHARES = {"sportsperson": 1.0, "politician": 0.3, "neither": 0.12}

# As the gloss has it, and as the record has it. Peoples without a state of the name (Flemish, Roman, Prussian) are out.
NATIONALITIES = {
    name: name
    for name in (
        "American Argentinian Australian Austrian Belgian Bolivian Brazilian British Canadian Chinese Cuban Czech Danish "
        "Dutch Egyptian English Finnish French German Haitian Hungarian Indian Indonesian Iranian Irish Israeli Italian "
        "Jamaican Japanese Kenyan Mexican Norwegian Polish Portuguese Romanian Russian Scottish Soviet Spanish Swedish "
        "Swiss Turkish Venezuelan Vietnamese Welsh"
    ).split()
}
NATIONALITIES["United States"] = "American"
NATIONALITY = re.compile(r"(?<![\w-])(" + "|".join(sorted(NATIONALITIES, key=len, reverse=True)) + r")(?![\w'-])")
# Words of descent or place in a gloss's head that leave open whose citizen the person was.
OTHER_ORIGIN = re.compile(
    r"\b(Roman|Greek|Flemish|Norman|Prussian|Bohemian|Venetian|Sherpa|Sioux|Frankish|Saxon|[Nn]ative|Empire|[Tt]ribe|"
    r"Revolution\w*|Hawaiian|African|Palestinian|Saudi|Hebrew|Czechoslovakian|descent|born|[Cc]hief(?! justice))\b"
)
# Where a gloss's head ends: what follows tells of deeds and of others.
HEAD_END = re.compile(r"[;,:(]| who | whose | which | that | noted | known | remembered | famous | for | in | of | to | from | by ")

LIFE = re.compile(r"^(?P<text>[^\"]*?)\s*\((?P<born>1\d{3})-(?P<died>1\d{3}|200\d)\)$")
LIVED = re.compile(r"\([^()]*\d{3,4}[^()]*\)$")
DOUBTFUL_LIFE = re.compile(r"\b(circa|c\.|ca\.|BC|AD|flourished|active|died in|\?)|\(\D*\d{3,4}\??-\d")

SPORTS_ROOTS = {"athlete", "golfer", "prizefighter"}
POLITICS_ROOTS = {"politician", "head_of_state", "diplomat"}
# A monarch is a head of state by the hypernyms and no politician to most readers; a queen regnant is not even that.
RULER_ROOTS = {"sovereign", "ruler", "aristocrat", "Roman_Emperor", "queen", "chieftain"}
SPORTS_WORDS = re.compile(
    r"\b(athletes?|baseball|basketball|billiards?|boxer|boxing|contract bridge|card games|champions?|championships?|chess|"
    r"coach|cricket|cricketer|fencer|football|golf|golfer|gymnast|hockey|jockey|mountaineer|Olympics?|prizefighter|racing|"
    r"runner|skater|skating|sports?|sportsman|swimmer|tennis|wrestler)\b",
    re.IGNORECASE,
)
POLITICS_WORDS = re.compile(
    r"\b(politicians?|political (figure|leader|party)|states(man|men|woman)|prime minister|premier|senator|governor|mayor|"
    r"congress(man|woman)|legislators?|member of parliament|dictator|dictatorial|diplomats?|ambassador|heads? of state|"
    r"secretary of state|secretary of the treasury|vice president|(president|chancellor) of (the )?(republic|[A-Z]\w+ )|"
    r"communist (party|leader|theorist)|head of the USSR|secretary general|Nationalist China)\b",
    re.IGNORECASE,
)
# Of someone who is no politician by the hypernyms, these in the head leave doubt.
POWER_WORDS = re.compile(
    r"\b(king|queen|emperor|empress|tsar|czar|sultan|shah|prince|princess|duke|duchess|viceroy|regent|ruler|patriot|"
    r"nationalist|revolution\w*|insurgent|courtier|lord|nobleman|noblewoman|conspirator|rebel|"
    r"(?<!religious )(?<!Jewish )(?<!labor )(?<!rights )leader)\b",
    re.IGNORECASE,
)

# Parts of WordNet's names that are no names.
TITLES = set(
    "baron baroness count countess dame de di don du duchess duke earl el emperor first guru islam king lady la le lord "
    "marquis marquise mother pope prince princess queen saint second sir the third van von der den vi vii viii xii xiii xiv "
    "iii elder younger great junior senior black buffalo supreme bloody good wild calamity old young little big red "
    "captain general doctor jesus christ buddha mahatma".split()
)

Synset = collections.namedtuple("Synset", "lexicographer_file words hypernyms instance_of gloss")
Person = collections.namedtuple("Person", "synset text names born died nationality sportsperson politician askable")


def read_synsets(path):
    """Format: wndb(5WN). Offsets, here with the pointers, identify synsets."""
    synsets = {}
    with open(path, encoding="latin-1") as lines:
        for line in lines:
            if line.startswith("  "):
                continue
            data, gloss = line.split(" | ", 1)
            fields = data.split()
            num_words = int(fields[3], 16)
            words = fields[4 : 4 + 2 * num_words : 2]
            at = 4 + 2 * num_words
            pointers = [fields[at + 1 + 4 * i : at + 3 + 4 * i] for i in range(int(fields[at]))]
            synsets[fields[0]] = Synset(
                fields[1],
                words,
                [target for symbol, target in pointers if symbol == "@"],
                [target for symbol, target in pointers if symbol == "@i"],
                gloss.strip(),
            )
    return synsets


def hypernym_names(synsets, synset):
    """The words of everything that the person is an instance of, however far above."""
    seen, open_ = set(), list(synset.instance_of)
    while open_:
        offset = open_.pop()
        if offset not in seen:
            seen.add(offset)
            open_ += synsets[offset].hypernyms
    return {word for offset in seen for word in synsets[offset].words[:1]} | {
        "prizefighter" for offset in seen if "prizefighter" in synsets[offset].words
    }


def head_of(text):
    """What a gloss says first: what the person was."""
    plain = re.sub(r"\([^()]*\)", "", text)
    end = HEAD_END.search(plain)
    return plain[: end.start()] if end else plain


def clear_nationality(text, above):
    """The one nationality in the head of the gloss, unless anything there casts doubt."""
    head = head_of(text)
    found = {NATIONALITIES[name] for name in NATIONALITY.findall(head)}
    if "President_of_the_United_States" in above:
        found.add("American")
    return found.pop() if len(found) == 1 and not OTHER_ORIGIN.search(head) else None


def read_people(synsets):
    """Everyone with years of birth and death, in the order of the file."""
    people = []
    for offset, synset in synsets.items():
        if not synset.instance_of or synset.lexicographer_file != "18":
            continue
        match = LIFE.match(synset.gloss)
        if not match or DOUBTFUL_LIFE.search(match["text"]):
            continue
        born, died, text = int(match["born"]), int(match["died"]), " ".join(match["text"].split())
        if not 15 <= died - born <= 105 or len(text.split()) > MAX_GLOSS_WORDS:
            continue
        above = hypernym_names(synsets, synset)
        sportsperson, politician = bool(above & SPORTS_ROOTS), bool(above & POLITICS_ROOTS)
        nationality = clear_nationality(text, above)
        # The gloss must bear the hypernyms out: nothing else is shown to who answers.
        doubtful = (
            bool(above & RULER_ROOTS)
            or sportsperson != bool(SPORTS_WORDS.search(text))
            or politician != bool(POLITICS_WORDS.search(text))
            or (not politician and bool(POWER_WORDS.search(head_of(text))))
        )
        names = [word.replace("_", " ") for word in synset.words]
        askable = nationality is not None and not doubtful
        people.append(Person(offset, text, names, born, died, nationality, sportsperson, politician, askable))
    return people


def category(person):
    return "sportsperson" if person.sportsperson else "politician" if person.politician else "neither"


class Names:
    """First and last names of all of WordNet's people, put together anew; no name is given twice."""

    def __init__(self, synsets, rng):
        full = [
            [word for word in name.replace("_", " ").lower().split() if word not in TITLES]
            for synset in synsets.values()
            if synset.instance_of and synset.lexicographer_file == "18"
            and LIVED.search(synset.gloss)
            for name in synset.words
            if "_" in name
        ]
        fits = re.compile(r"[a-z]{3,}").fullmatch
        taken = {name.lower() for name in NATIONALITIES}
        pairs = [(words[0], words[-1]) for words in full if len(words) > 1 and fits(words[0]) and fits(words[-1])]
        # A word is a first name or a last name, whichever it is more often.
        firsts, lasts = (collections.Counter(pair[i] for pair in pairs) for i in (0, 1))
        self.firsts = sorted(word for word in firsts if firsts[word] > lasts[word] and word not in taken)
        self.lasts = sorted(word for word in lasts if lasts[word] >= firsts[word] and word not in taken)
        self.used = set(pairs)
        self.rng = rng

    def draw(self, count):
        """Names for one item, alike in neither part."""
        while True:
            names = list(zip(self.rng.sample(self.firsts, count), self.rng.sample(self.lasts, count)))
            if not self.used & set(names):
                self.used |= set(names)
                return names


def biography(person, name):
    """The gloss under another name, in the spaced lower-case form of the names."""
    text = person.text
    own = {person.names[0].split()[-1]} | {full.split()[-1] for full in person.names}
    for word in sorted(own, key=lambda word: (-len(word), word)):
        if len(word) > 2 and word[0].isupper():
            text = re.sub(rf"(?<![\w-]){re.escape(word)}(?!\w)", name[1], text)
    return f"{name[0]} {name[1]} ( {person.born} - {person.died} ) , {text} ."


def split(people, rng):
    """Train and test people, none in both, with every kind in both."""
    train, test = [], []
    kinds = collections.defaultdict(list)
    for person in people:
        kinds[(category(person), person.askable)].append(person)
    for _, members in sorted(kinds.items()):
        rng.shuffle(members)
        cut = round(len(members) * TEST_SHARE)
        test += members[:cut]
        train += members[cut:]
    return train, test


def schedule(people, count, rng):
    """Whom to ask for: shares of kinds kept, nationalities spread, and within that nobody more often than needed."""
    asked = []
    for kind, share in SHARES.items():
        members = [person for person in people if person.askable and category(person) == kind]
        rng.shuffle(members)
        wanted = round(count * share)
        limit = max(1, round(wanted * MAX_NATIONALITY_SHARES[kind]))
        taken, chosen = collections.Counter(), []
        while len(chosen) < wanted:
            before = len(chosen)
            for person in members:
                if taken[person.nationality] < limit and len(chosen) < wanted:
                    taken[person.nationality] += 1
                    chosen.append(person)
            if len(chosen) == before:
                sys.exit(f"there are too few people for {count} items")
        asked += chosen
    rng.shuffle(asked)
    return asked


def make_items(people, count, names, rng):
    kinds = collections.defaultdict(list)
    for person in people:
        kinds[category(person)].append(person)
    asked = schedule(people, count, rng)
    # Each place as often as the others, whoever is asked for.
    places = [i % NUM_IN_PROMPT for i in range(len(asked))]
    rng.shuffle(places)
    items = []
    for person, place in zip(asked, places):
        while True:
            # Company of the same kinds: that someone of sports stands there must not tell that they are asked for.
            company = []
            while len(company) < NUM_IN_PROMPT - 1:
                kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
                other = rng.choice(kinds[kind])
                if other is not person and other not in company:
                    company.append(other)
            chosen = company[:place] + [person] + company[place:]
            if len({(p.born, p.died) for p in chosen}) < NUM_IN_PROMPT:
                continue
            given = names.draw(NUM_IN_PROMPT)
            text = " ".join(biography(p, name) for p, name in zip(chosen, given))
            prompt = f"{text}\n\n{QUESTION.format(name=' '.join(given[place]))}"
            if len(prompt) <= MAX_PROMPT_CHARS:
                break
        record = {
            "nationality": person.nationality,
            "born": person.born,
            "died": person.died,
            "sportsperson": person.sportsperson,
            "politician": person.politician,
        }
        items.append(
            {
                "prompt": prompt,
                "completion": json.dumps(record),
                "depth": place / (NUM_IN_PROMPT - 1),
                "synset": person.synset,
                "beside": [p.synset for p in company],
            }
        )
    return items


def report(name, items, out):
    records = [json.loads(item["completion"]) for item in items]
    nationalities = collections.Counter(record["nationality"] for record in records)
    print(f"{name}: {len(items)} items, {len({item['synset'] for item in items})} people asked for", file=out)
    for field in ("sportsperson", "politician"):
        people = {item["synset"] for item, record in zip(items, records) if record[field]}
        count = sum(record[field] for record in records)
        print(f"  {field}: {count} ({count / len(records):.0%}), {len(people)} people", file=out)
    print("  " + ", ".join(f"{name} {count}" for name, count in nationalities.most_common()), file=out)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("data_noun", type=pathlib.Path, help="data.noun of WordNet 3.0")
    arguments.add_argument("--out", type=pathlib.Path, default=HERE, help="folder to write to [default: this one]")
    arguments.add_argument("--train", type=int, default=400, help="items to train on [default: 400]")
    arguments.add_argument("--test", type=int, default=200, help="held-out items [default: 200]")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing")
    arguments = arguments.parse_args()

    if hashlib.sha256(arguments.data_noun.read_bytes()).hexdigest() != KNOWN_SHA256:
        print("note: this is not the data.noun of WordNet 3.0; the items will differ", file=sys.stderr)
    synsets = read_synsets(arguments.data_noun)
    rng = random.Random(arguments.seed)
    train_people, test_people = split(read_people(synsets), rng)
    names = Names(synsets, rng)
    different = []
    for name, people, count in (
        ("train", train_people, arguments.train),
        ("test", test_people, arguments.test),
    ):
        items = make_items(people, count, names, rng)
        report(name, items, sys.stderr)
        text = "".join(json.dumps(item) + "\n" for item in items).encode()
        path = arguments.out / f"{name}.jsonl"
        if arguments.check:
            if not path.exists() or path.read_bytes() != text:
                different.append(str(path))
            continue
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(text)
        unfinished.replace(path)
    if different:
        sys.exit(f"not what this program makes: {', '.join(different)}")


if __name__ == "__main__":
    main()
