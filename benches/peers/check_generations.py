"""Checks texts of `random_generations` by Python's `jsonschema` (pip install "jsonschema[format-nongpl]"): each has to be JSON
that its schema allows, formats included where the package has a checker that the standard agrees with.

python check_generations.py FOLDER TEXTS.jsonl
"""

import json
import re
import sys
from decimal import Decimal
from pathlib import Path

from jsonschema import FormatChecker
from jsonschema.validators import Draft202012Validator, validator_for

# Formats that a constraint holds a text to. Others are notes, or refused. Without `relative-json-pointer`: the package does
# not take a number alone for one.
FORMATS = [
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "json-pointer", "time", "uri", "uri-reference", "uuid",
]


def no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def parsed(text: str) -> object:
    """Numbers stay decimal: 4.77 is a multiple of 0.01."""
    return json.loads(text, parse_float=Decimal, parse_constant=no_number)


def main() -> None:
    folder, texts = Path(sys.argv[1]), Path(sys.argv[2])
    known = Draft202012Validator.FORMAT_CHECKER.checkers
    checked = [name for name in FORMATS if name in known]
    print("formats checked:", ", ".join(checked), "; not:", ", ".join(sorted(set(FORMATS) - set(checked))) or "none")
    checker = FormatChecker(formats=[])
    checker.checkers = {name: known[name] for name in checked}
    validators, faults = {}, {"failed": 0, "not JSON": 0, "invalid": 0}
    total = unchecked = 0
    for line in texts.open(encoding="utf-8"):
        total += 1
        text = json.loads(line)
        fault = show = None
        try:
            value = parsed(text["text"])
        except ValueError as error:
            fault, show = "not JSON", error
        if text["fault"]:
            fault, show = "failed", text["fault"]
        if fault is None:
            validator = validators.get(text["file"])
            if validator is None:
                schema = parsed((folder / text["file"]).read_text(encoding="utf-8"))["schema"]
                kind = validator_for(schema, default=Draft202012Validator)
                validator = validators[text["file"]] = kind(schema, format_checker=checker)
            try:
                error = next(iter(validator.iter_errors(value)), None)
            except re.error:
                # A pattern in the standard's dialect that is none in Python's.
                unchecked += 1
                continue
            if error is not None:
                fault, show = "invalid", f"{error.json_path}: {error.message[:300]} ({error.validator})"
        if fault:
            faults[fault] += 1
            print(f"{text['file']}: {fault}: {show}\n    {text['text'][:300]!r}")
    print(f"{total} texts of {len(validators)} schemas:", ", ".join(f"{n} {what}" for what, n in faults.items()))
    print(f"{unchecked} could not be checked: their patterns are not Python's")
    sys.exit(1 if any(faults.values()) else 0)


if __name__ == "__main__":
    main()
