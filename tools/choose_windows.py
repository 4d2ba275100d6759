#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Chooses the windows or items of a text that tables are made with, and writes the list that `hearth eval --report
--lists` reads (hearth/eval/chosen_list.h). The same arguments give the same file.

    tools/choose_windows.py --text heldout_books --ctx 1024 --ids 1417862 --count 128 -o bench/eval/heldout_books_128.json
    tools/choose_windows.py --text lambada_openai --items 5153 --count 1000 -o bench/eval/lambada_openai_1000.json

`hearth eval ppl --json` prints how many ids a text has. A number is chosen by the SHA-256 of seed, text and number, so
that the choice depends on no library's random numbers.
"""
import argparse
import hashlib
import json


def choose(text, seed, of, count):
    """The `count` numbers of [0, of) with the smallest hashes, ascending."""
    def rank(number):
        return hashlib.sha256(f"{seed} {text} {number}".encode()).digest()
    return sorted(sorted(range(of), key=rank)[:count])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="the text's file name without its ending")
    parser.add_argument("--ctx", type=int, help="tokens of a window")
    parser.add_argument("--ids", type=int, help="ids of the whole text")
    parser.add_argument("--items", type=int, help="items of the whole file, instead of --ctx and --ids")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("-o", "--out", required=True)
    args = parser.parse_args()
    if (args.items is None) == (args.ctx is None or args.ids is None):
        parser.error("wanted either --items or both --ctx and --ids")
    of = args.items if args.items is not None else (args.ids - 1) // args.ctx
    if not 0 < args.count <= of:
        parser.error(f"--count {args.count}; wanted 1 to {of}")
    result = {"text": args.text, "unit": "item" if args.items is not None else "window"}
    if args.items is None:
        result |= {"ctx": args.ctx, "ids": args.ids}
    result |= {"of": of, "seed": args.seed, "chosen": choose(args.text, args.seed, of, args.count)}
    with open(args.out, "w", encoding="ascii") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
