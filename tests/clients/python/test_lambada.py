# SPDX-License-Identifier: Apache-2.0
"""lambada.py on a few items that need no data: words that the model itself would say, and words that it would not."""
import asyncio
import json
import re
import tempfile
import unittest
from pathlib import Path

import lambada
from support import GOLDEN, Test


def lines():
    """Passages cut before a word: the model's own greedy texts, and what people wrote."""
    for golden in GOLDEN["prompts"]:
        own = golden["text"] + golden["greedy48_text"]
        words = [at for at in re.finditer(r" \w+", own) if at.start() >= len(golden["text"])]
        for at in words[:: max(1, len(words) // 5)]:
            yield own[: at.start()], at.group()[1:]
        theirs = golden["text"]
        words = list(re.finditer(r" \w+", theirs))
        for at in words[2:: max(1, len(words) // 4)]:
            yield theirs[: at.start()], at.group()[1:]


class Lambada(Test):
    def test_the_api_scores_as_the_evaluation_does(self):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.jsonl"
            texts = list(lines())
            data.write_text(
                "".join(json.dumps({"context": before, "continuation": word}) + "\n" for before, word in texts)
            )
            items = lambada.evaluate(data, Path(folder) / "items.jsonl")
        self.assertEqual(len(items), len(texts))
        self.assertGreaterEqual(len(items), 40)
        hits = sum(item["hit"] for item in items)
        self.assertGreaterEqual(hits, 10)
        self.assertLessEqual(hits, len(items) - 10)
        self.assertTrue(any(len(item["continuation"]) > 1 for item in items), "words of several tokens")
        for max_tokens in (1, 0):
            found = lambada.compare(items, asyncio.run(lambada.ask(items, max_tokens)))
            self.assertEqual(found.other_hits, [], f"max_tokens {max_tokens}")
            self.assertEqual(found.hits, hits)
            self.assertLessEqual(found.worst, lambada.LOGPROB_TOLERANCE)

    def test_a_difference_is_found(self):
        items = [{"hit": True, "logprob": -1.0}, {"hit": False, "logprob": -2.0}]
        same = [lambada.Score(True, -1.00005), lambada.Score(False, -2.0)]
        self.assertTrue(lambada.compare(items, same).equal())
        self.assertFalse(lambada.compare(items, [lambada.Score(False, -1.0), same[1]]).equal())
        self.assertFalse(lambada.compare(items, [same[0], lambada.Score(False, -2.0002)]).equal())


if __name__ == "__main__":
    unittest.main()
