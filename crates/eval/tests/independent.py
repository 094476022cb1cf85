"""Reference values for independent.rs: JSON on standard input, a JSON list on standard output."""

import json
import re
import sys
from collections import Counter

import Levenshtein
import numpy
from rouge_score import rouge_scorer

FIELDS = ("nationality", "born", "died", "sportsperson", "politician")
DATES = ("born", "died")


def reject(constant):
    raise ValueError(constant)


def same(a, b):
    """Python holds True equal to 1; JSON does not."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def record(gold, answer):
    try:
        # NaN and Infinity, which Python reads, are no JSON.
        read = json.loads(answer, parse_constant=reject)
    except ValueError:
        read = None
    if not isinstance(read, dict):
        return [0.0, 0.0, 0.0]
    right = {field: field in read and same(read[field], gold[field]) for field in FIELDS}
    return [1.0, sum(right.values()) / len(FIELDS), sum(right[field] for field in DATES) / len(DATES)]


def rouge(given):
    """rouge-score's F-measures with one right answer, and with several."""
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorers = [rouge_scorer.RougeScorer(kinds, use_stemmer=stems) for stems in (False, True)]
    out = []
    for golds, answer in given:
        scores = [scorer.score_multi(golds, answer) for scorer in scorers]
        out.append([[score[kind].fmeasure for kind in kinds] for score in scores])
    return out


PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def plain(text):
    """Small letters, no punctuation, no articles, single spaces: from the description of SQuAD's evaluation."""
    text = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return " ".join(re.sub(r"\b(?:an?|the)\b", " ", text).split())


def answers(given):
    """Containment, exact match and F1 over words, the best over the right answers."""
    out = []
    for golds, answer in given:
        own, best = plain(answer), [0.0, 0.0, 0.0]
        for gold in map(plain, golds):
            a, b = Counter(gold.split()), Counter(own.split())
            same = sum((a & b).values())
            f1 = 2 * same / (sum(a.values()) + sum(b.values())) if same else 0.0
            contains = gold in own if gold else not own
            best = [max(old, new) for old, new in zip(best, (float(contains), float(gold == own), f1))]
        out.append(best)
    return out


def choices(given):
    """Choices by likelihoods that numpy compares, in lm-evaluation-harness's three ways."""
    out = []
    for texts, right, likelihoods in given:
        values = numpy.array(likelihoods)
        lengths = [[1.0] * len(texts), [float(len(t)) for t in texts], [float(len(t.encode())) for t in texts]]
        out.append([float(numpy.argmax(values / numpy.array(length)) == right) for length in lengths])
    return out


def windows(given):
    """Sums over the windows of the usual sliding evaluation: labels outside of a window's new part are masked."""
    out = []
    for length, context, stride in given:
        nats, num, before = 0.0, 0, 0
        for begin in range(0, length, stride):
            end = min(begin + context, length)
            new, labels = end - before, list(range(begin, end))
            masked = [label if at >= len(labels) - new else None for at, label in enumerate(labels)]
            # The first label of a window has nothing before it.
            for label in masked[1:]:
                if label is not None:
                    nats += likelihood(label, label - begin)
                    num += 1
            before = end
            if end == length:
                break
        out.append([nats, num])
    return out


def likelihood(at, num_before):
    """Nats of a token at a place with so many before it: made up, and the same in independent.rs."""
    return (at * 7919 % 1009) / 100 + 1 / (1 + num_before)


def main():
    given = json.load(sys.stdin)
    if sys.argv[1] == "ratio":
        print(json.dumps([Levenshtein.ratio(a, b) for a, b in given]))
    elif sys.argv[1] == "record":
        gold = json.loads(given["gold"])
        print(json.dumps([record(gold, answer) for answer in given["answers"]]))
    else:
        kinds = {"rouge": rouge, "answers": answers, "choices": choices, "windows": windows}
        print(json.dumps(kinds[sys.argv[1]](given)))


if __name__ == "__main__":
    main()
