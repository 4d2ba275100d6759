#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What models that come and go cost the tokens of one that serves. Starts `hearth serve` with --model, lets --streams
clients read from it, alone first; then again while --guest is loaded, put to sleep, woken and unloaded, over and over.
Fails unless
  - every stream has the tokens that it had alone, with --exact all of them, else up to the first where alone the two
    likeliest were closer than 0.05;
  - the longest gap between two tokens is no more than 50 ms longer beside any of these than it was alone.
Streams begin one after the other with a few token ids, so that steps are much alike: on a GPU a row's bits may depend
on how many rows a step has.
Models may be configurations alone, with `-- --load-format dummy`. Only Python's own library."""
import argparse
import asyncio
import random
import statistics
import time

from lifecycle import GAP_MS, KEY, Admin
from serving import Failure, Stream, parser_of, run_soak

ACTIONS = ["load", "sleep", "wake", "unload"]
MARGIN = 0.05


class Watched(Stream):
    """A stream that knows by how much each token was the likeliest (log probabilities)."""

    def __init__(self, port, body):
        super().__init__(port, body)
        self.margins = []

    def _take(self, event):
        super()._take(event)
        for choice in event["choices"]:
            for likeliest in choice["logprobs"]["top_logprobs"] if choice["logprobs"] else []:
                # Two tokens of the same text are one entry.
                first, *rest = sorted(likeliest.values(), reverse=True)
                self.margins.append(first - rest[0] if rest else 0.0)


def certain(alone):
    """How many of a stream's first tokens were no near tie."""
    return next((at for at, margin in enumerate(alone.margins) if margin < MARGIN), len(alone.ids))


async def read(run, record):
    """All streams at once, each begun when the one before has its first token."""
    streams, tasks = [Watched(run.port, body) for body in run.bodies], []
    for stream in streams:
        tasks.append(asyncio.create_task(stream.run()))
        while not stream.ids and not tasks[-1].done():
            await asyncio.sleep(0.0005)
    await asyncio.gather(*tasks)
    for stream in streams:
        record.extend((end - gap, end) for gap, end in zip(stream.gaps, stream.gap_ends))
    return streams


async def come_and_go(run, times):
    """Until it is called off; `times` gets when each action began and ended."""
    while True:
        for action in ACTIONS:
            began = time.monotonic()
            if action == "load":
                await run.admin.post("load", [200], wait=True, model=run.guest, name="guest")
            else:
                await run.admin.post(action, [200], wait=True, model="guest")
            times.append((action, began, time.monotonic()))
            await asyncio.sleep(run.pause)


def longest(gaps, begin, end):
    """Of the gaps that lie in [begin, end] at least in part; 0 without any."""
    return max((till - since for since, till in gaps if till > begin and since < end), default=0.0)


async def measure(server, args):
    rng = random.Random(args.seed)
    bodies = [{"model": "stays", "prompt": [rng.randrange(256) for _ in range(4)], "max_tokens": args.tokens,
               "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
               "return_token_ids": True, "logprobs": 2} for _ in range(args.streams)]
    run = argparse.Namespace(port=server.port, admin=Admin(server.port), bodies=bodies, guest=args.guest,
                             pause=args.pause)
    await read(run, [])  # warms up
    calm, beside, times = [], [], []
    alone = await read(run, calm)
    begin = time.monotonic()
    rounds = other = wrong = 0
    operator = asyncio.create_task(come_and_go(run, times))
    while time.monotonic() < begin + args.seconds and not operator.done():
        for now, before in zip(await read(run, beside), alone):
            other += now.ids != before.ids
            wrong += now.ids[:certain(before)] != before.ids[:certain(before)]
        rounds += 1
    operator.cancel()
    try:
        await operator
    except asyncio.CancelledError:
        pass
    worst_calm = max(till - since for since, till in calm)
    print(f"neighbours: alone a token came every {1000 * statistics.median(t - s for s, t in calm):.1f} ms, the "
          f"longest gap was {1000 * worst_calm:.1f} ms; beside others the longest was "
          f"{1000 * max(till - since for since, till in beside):.1f} ms", flush=True)
    late = []
    for action in ACTIONS:
        spans = [(began, ended) for what, began, ended in times if what == action]
        if not spans:
            raise Failure(f"nothing was proved: no {action} in {args.seconds:.0f} s")
        worst = max(longest(beside, *span) for span in spans)
        print(f"neighbours: {len(spans)} times {action}, {statistics.median(e - b for b, e in spans):.2f} s each: "
              f"longest gap {1000 * worst:.1f} ms", flush=True)
        if worst > worst_calm + GAP_MS / 1000:
            late.append(action)
    print(f"neighbours: {rounds * args.streams} streams of {args.tokens} tokens, {other} other than alone, {wrong} of "
          f"them before a near tie; first near ties alone: {[certain(stream) for stream in alone]}", flush=True)
    if wrong or other and args.exact:
        raise Failure(f"{other if args.exact else wrong} streams had other tokens than alone")
    if late and args.judge_gaps:
        raise Failure(f"gaps more than {GAP_MS} ms longer beside: {', '.join(late)}")


def main():
    parser = parser_of(__doc__, 60, "another model's coming or going delays tokens")
    parser.add_argument("--model", default="models/fable-13m", help="that serves")
    parser.add_argument("--guest", default="models/fable-13m", help="that comes and goes")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400, help="of a stream")
    parser.add_argument("--exact", action="store_true",
                        help="near ties are no excuse; on a CPU a row's bits are its own")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two actions")
    args = parser.parse_args()
    print(f"neighbours: seed {args.seed}", flush=True)
    run_soak("neighbours", args, lambda server: measure(server, args), models=[f"stays={args.model}"],
             HEARTH_ADMIN_KEY=KEY, HEARTH_LOG_LEVEL="off")


if __name__ == "__main__":
    main()
