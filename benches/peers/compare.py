"""Runs Wardrobe and llama.cpp in turns on several files of the same weights, and prints medians and ratios."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CASES = ["prefill_512", "decode_1", "decode_32"]
HERE = Path(__file__).parent


def wardrobe(binary, gguf, threads):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [binary, "bench", gguf, "--parts", "steps,limits", "--adapters", "0", "--repeat", "3"]
        command += ["--threads", str(threads), "--json", out.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        report = json.load(open(out.name))
    return {s["name"]: s["tokens_per_second"] for s in report["steps"] if s["name"] in CASES}, report


def llama_cpp(gguf, threads):
    command = [sys.executable, HERE / "llama_cpp_bench.py", gguf, "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cpu_name():
    try:
        lines = open("/proc/cpuinfo").read().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", metavar="LABEL=FILE")
    parser.add_argument("--wardrobe", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json")
    args = parser.parse_args()
    files = [given.split("=", 1) for given in args.files]

    ours, theirs, settings = defaultdict(list), defaultdict(list), {}
    limits, versions = [], {}
    loads = []
    for round_idx in range(args.rounds):
        for label, path in files:
            print(f"round {round_idx + 1} of {args.rounds}: {label}", file=sys.stderr)
            loads.append(os.getloadavg()[0])
            rates, report = wardrobe(args.wardrobe, path, args.threads)
            limits.append(report["limits"])
            versions["wardrobe"] = report["version"]
            for case, rate in rates.items():
                ours[label, case].append(rate)
            report = llama_cpp(path, args.threads)
            versions["llama-cpp-python"] = report["version"]
            for case, by_setting in report["results"].items():
                for setting, rate in by_setting.items():
                    theirs[label, case, setting].append(rate)
    labels = [label for label, _ in files]
    best = {}
    for (label, case, setting), rates in theirs.items():
        rate = statistics.median(rates)
        if rate > best.get((label, case), 0):
            best[label, case], settings[label, case] = rate, setting
    mine = {key: statistics.median(rates) for key, rates in ours.items()}

    print(f"{datetime.date.today()}, {cpu_name()}, {args.threads} threads, {args.rounds} rounds in turns, medians; "
          f"wardrobe {versions['wardrobe']}, llama-cpp-python {versions['llama-cpp-python']}; "
          f"load average while measuring {min(loads):.1f} to {max(loads):.1f}")
    read = [max(l["read"][i]["bytes_per_second"] for l in limits) / 1e9 for i in range(len(limits[0]["read"]))]
    sizes = [r["buffer_bytes"] >> 20 for r in limits[0]["read"]]
    print("limits of the machine: " + ", ".join(f"read {rate:.1f} GB/s ({size} MiB)" for rate, size in zip(read, sizes))
          + f", int8 {max(l['int8_ops_per_second'] for l in limits) / 1e9:.0f} GOP/s"
          + f", f32 {max(l['f32_ops_per_second'] for l in limits) / 1e9:.0f} GFLOP/s\n")
    print("| | file | Wardrobe tok/s | llama.cpp tok/s | its best settings | same file | its best format |")
    print("|---|---|---:|---:|---|---:|---:|")
    worst = {}
    for case in CASES:
        top = max(best[label, case] for label in labels)
        for label in labels:
            same, against_top = mine[label, case] / best[label, case], mine[label, case] / top
            worst[case] = (min(worst.get(case, (same,))[0], same), min(worst.get(case, (0, against_top))[1], against_top))
            print(f"| {case.replace('_', ' ')} | {label} | {mine[label, case]:.0f} | {best[label, case]:.0f} "
                  f"| {settings[label, case]} | {same:.1f} x | {against_top:.1f} x |")
    print()
    for case, (same, top) in worst.items():
        print(f"worst ratio of {case.replace('_', ' ')}: {same:.1f} x on the same file, "
              f"{top:.1f} x against llama.cpp's best format")
    if args.json:
        raw = {
            "wardrobe": {f"{label}/{case}": rates for (label, case), rates in ours.items()},
            "llama.cpp": {f"{label}/{case}/{setting}": rates for (label, case, setting), rates in theirs.items()},
            "limits": limits,
            "versions": versions,
        }
        Path(args.json).write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
