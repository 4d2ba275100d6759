#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the tables of docs/quality.md from bench/results/quality.jsonl.

    python3 bench/eval/quality_tables.py [--check]

Between the lines `<!-- table NAME -->` and `<!-- end -->` a table is written anew; of lines about the same row, text,
list and baseline the last counts. --check writes nothing and exits with 1 where the page does not agree.
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/quality.md"
RESULTS = ROOT / "bench/results/quality.jsonl"

# Largest shares of the baseline's rise and KL that were asked for.
WANTED = {
    "clip": (0.60, 0.75), "int4": (0.33, 0.55), "fireq": (0.42, 0.62), "fireq-c4": (0.34, 0.52), "sbvr": (0.34, 0.55),
    "fp8": (0.15, 0.12), "w4a8kv4": (0.75, 0.85), "kv-saw": (0.27, 0.30), "kv-fireq": (0.50, 0.45),
    "kv-fp8": (0.05, 0.05),
}
ORDER = ["rtn", "clip", "awq", "int4", "int4-zero", "fireq", "fireq-c4", "sbvr", "sbvr3", "sbvr2", "auto", "fp8",
         "w4a8kv4", "w4a8kv4-c4", "kv-int4", "kv-fireq", "kv-saw", "kv-fp8"]


def read():
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    rows = {}
    for line in lines:
        if line["bench"] == "eval.quality":
            reference = line["against"]
            key = (reference, line.get("baseline"), line["text"], line["list"], line["name"])
            rows[key] = line
        elif line["bench"] in ("model.decode", "model.prefill"):
            reference = re.search(r"--reference (\S+)", line["command"]).group(1)
            rows[(reference, line["bench"], line["name"])] = line
    return lines, rows


def figure(line, key, digits, factor=1.0):
    if line.get(key) is None:
        return "-"
    text = f"{line[key] * factor:.{digits}f}"
    error = line.get(key + "_standard_error")
    return text if error is None else f"{text} ± {error * factor:.{digits}f}"


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] +
                     ["| " + " | ".join(row) + " |" for row in rows])


def share(line, key, wanted):
    """Bold where it misses what was asked for, compared as printed there: with two digits."""
    text = figure(line, key, 3)
    return f"**{text}**" if wanted is not None and round(line[key], 2) > wanted else text


def gates(rows, reference, baseline, names):
    def line(name, text):
        return rows[(reference, baseline, text, "all", name)]
    out = []
    for name in names:
        books, wiki = line(name, "heldout_books"), line(name, "wikitext2_test")
        rise, kl = WANTED.get(name, (None, None))
        out.append([name, f"{books['bits_per_weight']:.3f}", figure(books, "ppl_rise", 3), figure(books, "kl", 2, 1e3),
                    share(books, "rise_share", rise), share(books, "kl_share", kl),
                    "" if rise is None else f"{rise:.2f} / {kl:.2f}", figure(wiki, "kl_share", 3)])
    return table(["row", "bits per weight", "perplexity's rise", "KL, 1e-3 nats", "rise, share", "KL, share", "wanted",
                  "KL, share, second text"], out)


def all_rows(rows, reference):
    out = []
    for name in [reference] + ORDER:
        def line(text, listed):
            return rows.get((reference, "rtn", text, listed, name))
        books, wiki = line("heldout_books", "heldout_books_128"), line("wikitext2_test", "wikitext2_test_128")
        if books is None:
            continue
        items = line("lambada_openai", "lambada_openai_1000")
        speeds = [rows.get((reference, bench, name)) for bench in ("model.prefill", "model.decode")]
        out.append([name, books["kv"], f"{books['bits_per_weight']:.3f}", f"{books['checkpoint_bytes'] / 1e6:.1f}",
                    figure(books, "ppl", 2), figure(wiki, "ppl", 1), figure(books, "kl", 2, 1e3),
                    figure(books, "same_top", 1, 100), figure(books, "rise_share", 3), figure(books, "kl_share", 3),
                    figure(wiki, "kl_share", 3), figure(items, "lambada_acc", 1, 100) if items else "-"] +
                   [figure(s, "tokens_per_s", 0).split(" ±")[0] if s else "-" for s in speeds])
    return table(["row", "KV", "bits per weight", "MB", "perplexity, books", "second text", "KL, 1e-3 nats",
                  "same top %", "rise, share", "KL, share", "KL, share, second text", "LAMBADA %", "prefill tokens/s",
                  "decode tokens/s"], out)


def outliers(rows, reference):
    out = []
    for name in ["rtn", "awq", "int4", "fireq", "fireq-c4", "sbvr"]:
        plain = rows[(reference, "rtn", "heldout_books", "heldout_books_128", name)]
        injected = rows[("plain", "rtn", "heldout_books", "heldout_books_128", name)]
        out.append([name, figure(plain, "ppl_rise", 3), figure(injected, "ppl_rise", 3),
                    f"{injected['ppl_rise'] / plain['ppl_rise']:.2f}", figure(plain, "kl", 2, 1e3),
                    figure(injected, "kl", 2, 1e3), f"{injected['kl'] / plain['kl']:.2f}"])
    return table(["row", "rise, plain", "rise, outliers", "ratio", "KL, plain", "KL, outliers", "ratio"], out)


def times(lines, reference):
    seconds = {}
    for line in lines:
        found = re.search(r"quantize (\S+) .* -o \S*/(\S+) ", line["command"])
        if line["bench"] == "quantize" and found and found.group(1) == reference:
            seconds[found.group(2)] = line["seconds"]
    names = [name for name in ORDER if name in seconds]
    return table(["row"] + names, [["s"] + [f"{seconds[name]:.0f}" for name in names]])


def main():
    lines, rows = read()
    drawn = {
        "gates": lambda: gates(rows, "fable-82m", "rtn",
                               ["rtn", "clip", "int4", "fireq", "fireq-c4", "sbvr", "fp8", "w4a8kv4"]),
        "gates-kv": lambda: gates(rows, "fable-82m", "kv-int4", ["kv-int4", "kv-saw", "kv-fireq", "kv-fp8"]),
        "fable-82m": lambda: all_rows(rows, "fable-82m"),
        "fable-13m": lambda: all_rows(rows, "fable-13m"),
        "outliers": lambda: outliers(rows, "fable-82m"),
        "times": lambda: times(lines, "fable-82m"),
    }
    page = PAGE.read_text()
    new = re.sub(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)",
                 lambda m: m.group(1) + drawn[m.group(2)]() + "\n" + m.group(3), page, flags=re.DOTALL)
    if "--check" in sys.argv[1:]:
        if new != page:
            print(f"{PAGE.relative_to(ROOT)} does not agree with {RESULTS.relative_to(ROOT)}: run {sys.argv[0]}")
            return 1
        return 0
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
