# SPDX-License-Identifier: Apache-2.0
"""LAMBADA over the API, compared item by item with `hearth eval lambada --items`.

The requests are those of lm-evaluation-harness' local-completions: ids of context and continuation as the prompt,
echo, logprobs 1, temperature 0, max_tokens 1, several prompts in a request; and a second time with max_tokens 0.
An item is a hit by its rule too: each token's logprob is exactly the largest of top_logprobs.
"""
import argparse
import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from support import BINARY, MODEL, MODEL_DIR, REQUESTS_PER_KEY, async_client

PROMPTS_PER_REQUEST = 16
# The evaluation and the sampler sum a row's exponentials in different orders: 2e-6 a token (hearth/eval/score.h).
LOGPROB_TOLERANCE = 1e-4


@dataclass
class Score:
    hit: bool
    logprob: float


def evaluate(data: Path, items: Path, limit: int = 0) -> list[dict]:
    """What `hearth eval lambada` says of each item."""
    command = [BINARY, "eval", "lambada", str(MODEL_DIR), "--data", str(data), "--items", str(items), "--quiet"]
    subprocess.run([*command, "--limit", str(limit)], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in items.read_text().splitlines()]


def score(choice, context: int, length: int, written: int) -> Score:
    """As lm-evaluation-harness reads a choice, whose logprobs are those of the prompt and of `written` tokens."""
    logprobs = choice.logprobs.token_logprobs
    if len(logprobs) != length + written:
        raise AssertionError(f"{len(logprobs)} logprobs for {length} tokens of prompt and {written} written")
    end = len(logprobs) - written
    hit = all(
        token == max(top.values()) for token, top in zip(logprobs[context:end], choice.logprobs.top_logprobs[context:end])
    )
    return Score(hit, sum(logprobs[context:end]))


async def ask(items: list[dict], max_tokens: int, requests: int = REQUESTS_PER_KEY) -> list[Score]:
    """Scores of all items over the API, at most `requests` requests at once."""
    room = asyncio.Semaphore(requests)

    async def request(client, group):
        prompts = [item["context"] + item["continuation"] for item in group]
        async with room:
            reply = await client.completions.create(
                model=MODEL, prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1234
            )
        if [choice.index for choice in reply.choices] != list(range(len(group))):
            raise AssertionError("choices are not in the order of the prompts")
        return [
            score(choice, len(item["context"]), len(prompt), max_tokens)
            for choice, item, prompt in zip(reply.choices, group, prompts)
        ]

    async with async_client() as client:
        groups = [items[i : i + PROMPTS_PER_REQUEST] for i in range(0, len(items), PROMPTS_PER_REQUEST)]
        scores = await asyncio.gather(*(request(client, group) for group in groups))
    return [one for group in scores for one in group]


@dataclass
class Comparison:
    items: int
    hits: int
    other_hits: list[int]  # items that are a hit in one of the two only
    worst: float  # largest difference of an item's log probability

    def equal(self):
        return not self.other_hits and self.worst <= LOGPROB_TOLERANCE


def compare(items: list[dict], scores: list[Score]) -> Comparison:
    assert len(items) == len(scores)
    return Comparison(
        items=len(items),
        hits=sum(one.hit for one in scores),
        other_hits=[i for i, (item, one) in enumerate(zip(items, scores)) if item["hit"] != one.hit],
        worst=max(abs(item["logprob"] - one.logprob) for item, one in zip(items, scores)),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="items, JSON lines")
    parser.add_argument("--items", type=Path, required=True, help="where the evaluation's items go")
    parser.add_argument("--limit", type=int, default=300, help="only the first N items; 0 for all")
    arguments = parser.parse_args()
    begin = time.monotonic()
    items = evaluate(arguments.data, arguments.items, arguments.limit)
    print(f"hearth eval lambada: {sum(item['hit'] for item in items)} of {len(items)} hits,"
          f" {time.monotonic() - begin:.1f} s", flush=True)
    equal = True
    for max_tokens in (1, 0):
        begin = time.monotonic()
        found = compare(items, asyncio.run(ask(items, max_tokens)))
        equal = equal and found.equal()
        print(f"/v1/completions, max_tokens {max_tokens}: {found.hits} of {found.items} hits,"
              f" {len(found.other_hits)} items differ {found.other_hits[:10]},"
              f" log probabilities within {found.worst:.2g}, {time.monotonic() - begin:.1f} s", flush=True)
    print("equal item by item" if equal else "NOT equal")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
