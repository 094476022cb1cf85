#!/usr/bin/env python3
"""Checks the dependency rules: licences, no duplicate versions, no new C or C++ code, arrows between crates.

What is allowed in spite of a rule stands below with its reason; an exception that is no longer needed is an error too.
"""
import json
import re
import subprocess
import sys

LICENCES = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "MPL-2.0", "Unicode-3.0", "Unlicense", "Zlib",
}
# Other licences, and why they do not matter.
OTHER_LICENCES = {
    "tiny-keccak": "CC0-1.0; only for wasm32, by way of parquet's ahash, and so never built",
}
# Two versions at once, and who asks for the older one.
DUPLICATES = {
    "base64": "spm_precompiled, below tokenizers",
    "getrandom": "ring (0.2), rand below hf-hub and candle (0.3), tempfile (0.4)",
    "hashbrown": "two ages of indexmap",
    "num-bigint": "fraction, below jsonschema (0.4), parquet (0.5)",
    "syn": "proc macros in two ages",
}
# Crates that compile C; a bare machine has `cc`.
NATIVE = {
    "esaxx-rs": "names cc, but compiles nothing without its feature cpp",
    "libsqlite3-sys": "SQLite as one C file, for jobs that survive a restart; needs only cc",
    "ring": "TLS for downloads; C and assembly, needs only cc",
}
# A -> B: A may use B.
ARROWS = {
    "wardrobe": {
        "batch", "data", "device", "device-cuda", "engine", "eval", "formats", "generator", "grammar", "hub", "mistralrs", "models",
        "server", "text", "train",
    },
    "server": {"batch", "engine", "grammar", "text"},
    "data": {"text"},
    "eval": {"generator"},
    "engine": {"device", "formats", "grammar", "models", "text"},
    "models": {"device", "formats"},
    "batch": {"generator"},
    "train": {"data", "device", "formats", "models", "text"},
    "device": set(),
    "device-cuda": {"device"},
    "formats": set(),
    "grammar": {"text"},
    "generator": {"text"},
    "hub": set(),
    "mistralrs": {"generator"},
    "text": set(),
}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main():
    errors = []
    metadata = json.loads(run("cargo", "metadata", "--format-version", "1", "--locked"))
    native = set()
    for package in metadata["packages"]:
        name = package["name"]
        if package["source"] is None:
            short = name.removeprefix("wardrobe-")
            uses = {
                d["name"].removeprefix("wardrobe-")
                for d in package["dependencies"]
                if d["kind"] is None and d["name"].startswith("wardrobe-") and d["name"] != name
            }
            for extra in sorted(uses - ARROWS.get(short, set())):
                errors.append(f"{short} may not use {extra}")
            continue
        # One acceptable choice of an OR suffices; every part of an AND must do.
        licence = (package["license"] or "none").replace("/", " OR ")
        for part in re.split(r"\s+AND\s+", licence):
            choices = [c.strip(" ()") for c in re.split(r"\s+OR\s+", part)]
            if not any(c in LICENCES for c in choices) and name not in OTHER_LICENCES:
                errors.append(f"{name} {package['version']}: licence {licence!r}")
        builds_c = {"cc", "cmake", "bindgen"} & {d["name"] for d in package["dependencies"] if d["kind"] == "build"}
        if builds_c:
            native.add(name)
    built = set()
    versions = {}
    for line in run("cargo", "tree", "--workspace", "--locked", "-e", "normal,build", "--prefix", "none").splitlines():
        match = re.match(r"(\S+) v(\S+)", line)
        if match:
            built.add(match[1])
            versions.setdefault(match[1], set()).add(match[2])
    for name in sorted(native & built - NATIVE.keys()):
        errors.append(f"{name} links or compiles native code")
    for name, found in sorted(versions.items()):
        if len(found) > 1 and name not in DUPLICATES:
            errors.append(f"{name} in versions {', '.join(sorted(found))}")
    for name in OTHER_LICENCES:
        if name in built:
            errors.append(f"{name} is built, and its licence is {OTHER_LICENCES[name]}")
        if all(package["name"] != name for package in metadata["packages"]):
            errors.append(f"the exception for {name} is no longer needed")
    for name in DUPLICATES:
        if len(versions.get(name, ())) < 2:
            errors.append(f"the exception for {name} is no longer needed")
    for error in errors:
        print(f"dependency rules: {error}", file=sys.stderr)
    if not errors:
        print(f"dependency rules: {len(built)} packages, fine")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
