"""Reference values for independent.rs: JSON on standard input, a JSON list on standard output."""

import json
import sys

import Levenshtein

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


def main():
    given = json.load(sys.stdin)
    if sys.argv[1] == "ratio":
        print(json.dumps([Levenshtein.ratio(a, b) for a, b in given]))
    else:
        gold = json.loads(given["gold"])
        print(json.dumps([record(gold, answer) for answer in given["answers"]]))


if __name__ == "__main__":
    main()
