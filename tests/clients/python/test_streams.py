# SPDX-License-Identifier: Apache-2.0
"""Streams of completions: their form, errors on the way, and clients that leave."""
import asyncio
import unittest

import openai
from support import GOLDEN, MODEL, VOCAB, Test, async_client, client, finished, http, metric, tokens_of

GREEDY = {"model": MODEL, "temperature": 0}
IDS = [prompt["ids"] for prompt in GOLDEN["prompts"]]

# Six letters, then ones. With every token of ones banned until min_tokens are written (the ids that end a text are),
# no token is left after the letters: six at most, and none of them ends the text.
DEAD_END = {
    "structured_outputs": {"regex": "[a-z]{6}1{9}"},
    "stop_token_ids": [token for text, token in VOCAB.items() if set(text) == {"1"}],
    "min_tokens": 10,
}
# A text that is far from its end when the client leaves.
LONG = {**GREEDY, "max_tokens": 900, "extra_body": {"ignore_eos": True}}


class Form(Test):
    def setUp(self):
        self.completions = client().completions

    def test_says_what_the_whole_answer_says(self):
        ask = {"model": MODEL, "prompt": IDS[:2], "max_tokens": 24, "temperature": 1.0, "seed": 21, "n": 2, "logprobs": 2}
        whole = self.completions.create(**ask)
        chunks = list(self.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        self.assertEqual({chunk.object for chunk in chunks}, {"text_completion"})
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        usage = chunks.pop()
        self.assertEqual(usage.choices, [])
        self.assertEqual(usage.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(usage.usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertEqual(usage.usage.total_tokens, whole.usage.total_tokens)
        self.assertTrue(all(chunk.usage is None for chunk in chunks))
        for choice in whole.choices:
            own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
            self.assertEqual("".join(one.text for one in own), choice.text)
            self.assertEqual([one.finish_reason for one in own], [None] * (len(own) - 1) + [choice.finish_reason])
            for part in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                streamed = [value for one in own if one.logprobs for value in getattr(one.logprobs, part)]
                self.assertEqual(streamed, getattr(choice.logprobs, part))

    def test_an_event_for_each_token_even_without_text(self):
        # A byte that begins a character of three: no text until the end, where it is no character.
        byte = {str(VOCAB["â"]): 100}
        chunks = list(self.completions.create(**GREEDY, prompt=IDS[0], max_tokens=5, logit_bias=byte, stream=True))
        self.assertEqual(len(chunks), 5)
        self.assertEqual(chunks[0].choices[0].text, "")
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), "\ufffd" * 5)

    def test_a_character_of_several_tokens_comes_whole(self):
        ids = tokens_of("☃☃☃", add_special_tokens=False)
        self.assertGreater(len(ids), 3)
        extra = {"structured_outputs": {"regex": "☃☃☃"}}
        stream = self.completions.create(**GREEDY, prompt=IDS[0], max_tokens=16, extra_body=extra, stream=True)
        texts = [chunk.choices[0].text for chunk in stream]
        self.assertEqual("".join(texts), "☃☃☃")
        self.assertIn("", texts)

    def test_echo(self):
        ask = {**GREEDY, "prompt": IDS[3], "max_tokens": 6, "echo": True, "logprobs": 1}
        whole = self.completions.create(**ask).choices[0]
        chunks = [chunk.choices[0] for chunk in self.completions.create(**ask, stream=True)]
        self.assertEqual("".join(chunk.text for chunk in chunks), whole.text)
        streamed = [value for chunk in chunks if chunk.logprobs for value in chunk.logprobs.token_logprobs]
        self.assertEqual(streamed, whole.logprobs.token_logprobs)
        self.assertIsNone(streamed[0])

    def test_usage_on_the_way(self):
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = list(
            self.completions.create(
                **GREEDY, prompt=IDS[0], max_tokens=6, stream=True, stream_options=options,
                extra_body={"ignore_eos": True},
            )
        )
        self.assertEqual([chunk.usage.completion_tokens for chunk in chunks], [1, 2, 3, 4, 5, 6, 6])

    def test_no_usage_unless_asked(self):
        chunks = list(self.completions.create(**GREEDY, prompt=IDS[0], max_tokens=3, stream=True))
        self.assertEqual([chunk.usage for chunk in chunks], [None] * 3)
        self.assertTrue(all(len(chunk.choices) == 1 for chunk in chunks))

    def test_bytes_of_the_stream(self):
        reply = http("/v1/completions", {**GREEDY, "prompt": IDS[0], "max_tokens": 3, "stream": True})
        self.assertTrue(reply.headers["content-type"].startswith("text/event-stream"))
        self.assertEqual(reply.headers["cache-control"], "no-cache")
        self.assertTrue(reply.headers["x-request-id"])
        events = reply.body.split("\n\n")
        self.assertEqual(events.pop(), "")
        self.assertEqual(events.pop(), "data: [DONE]")
        self.assertEqual(len(events), 3)
        self.assertTrue(all(event.startswith("data: {") and "\n" not in event for event in events))

    def test_many_at_once_say_what_they_say_alone(self):
        asks = [
            {"model": MODEL, "prompt": IDS[i % len(IDS)], "max_tokens": 16, "temperature": 1.0, "seed": 100 + i}
            for i in range(8)
        ]
        alone = [self.completions.create(**ask).choices[0].text for ask in asks]

        async def text(shared, ask):
            stream = await shared.completions.create(**ask, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        async def all_texts():
            async with async_client() as shared:
                return await asyncio.gather(*(text(shared, ask) for ask in asks))

        self.assertEqual(asyncio.run(all_texts()), alone)


class Errors(Test):
    def test_an_error_on_the_way_is_an_exception(self):
        before = finished()
        stream = client().completions.create(
            model=MODEL, prompt=IDS[0], max_tokens=40, seed=1, stream=True, extra_body=DEAD_END
        )
        texts = []
        with self.assertRaises(openai.APIError) as caught:
            for chunk in stream:
                texts.append(chunk.choices[0].text)
        error = caught.exception
        # The stream had begun: the status was 200, so it is no APIStatusError.
        self.assertNotIsInstance(error, openai.APIStatusError)
        self.assertRegex("".join(texts), "^[a-z]{1,6}$")
        self.assertEqual(set(error.body), {"message", "type", "param", "code"})
        self.assertEqual(error.type, "invalid_request_error")
        self.assertIn("leave nothing to choose", error.body["message"])
        self.wait_until(lambda: finished()["error"] == before["error"] + 1, "one more choice ended by an error")
        self.wait_until_idle()

    def test_the_same_in_a_chat(self):
        stream = client().chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=40,
            seed=1,
            stream=True,
            extra_body=DEAD_END,
        )
        seen = 0
        with self.assertRaises(openai.APIError):
            for _ in stream:
                seen += 1
        self.assertGreater(seen, 1)

    def test_nothing_follows_the_error(self):
        reply = http("/v1/completions", {"model": MODEL, "prompt": IDS[0], "max_tokens": 40, "stream": True, **DEAD_END})
        self.assertEqual(reply.status, 200)
        events = reply.body.strip().split("\n\n")
        self.assertTrue(events[-1].startswith('data: {"error":{"message":'), events[-1])
        self.assertEqual([event for event in events[:-1] if '"error"' in event], [])

    def test_without_a_stream_the_status_says_it(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            client().completions.create(model=MODEL, prompt=IDS[0], max_tokens=40, seed=1, extra_body=DEAD_END)
        self.assert_error(caught.exception, 400)

    def test_before_the_first_event_the_status_says_it(self):
        with self.assertRaises(openai.NotFoundError):
            client().completions.create(model="nobody", prompt="x", stream=True)
        with self.assertRaises(openai.BadRequestError):
            client().completions.create(model=MODEL, prompt="x", stream=True, n=0)


class Cancellation(Test):
    def setUp(self):
        self.wait_until_idle()
        self.before = finished()

    def expect_cancelled(self, choices):
        self.wait_until_idle()
        after = finished()
        self.assertEqual(after["abort"], self.before["abort"] + choices)
        self.assertEqual(after["length"], self.before["length"], "no choice went on to its end")

    def test_closing_a_stream(self):
        stream = client().completions.create(**LONG, prompt=IDS[0], n=3, stream=True)
        for _ in range(6):
            next(stream)
        self.assertEqual(metric("vllm:num_requests_running"), 3)
        stream.close()
        self.expect_cancelled(3)

    def test_closing_a_chat(self):
        with client().chat.completions.create(
            **LONG, messages=[{"role": "user", "content": "Go on."}], stream=True
        ) as stream:
            next(stream)
        self.expect_cancelled(1)

    def test_leaving_before_the_whole_answer(self):
        """Without a stream nothing is written that could fail: the socket is watched."""
        with self.assertRaises(openai.APITimeoutError):
            client(timeout=0.5).completions.create(**LONG, prompt=IDS[0], n=16)
        self.expect_cancelled(16)

    def test_cancelling_a_task(self):
        async def leave():
            async with async_client() as shared:
                task = asyncio.create_task(shared.completions.create(**LONG, prompt=IDS[0], n=8))
                running = lambda: metric("vllm:num_requests_running") == 8
                await asyncio.to_thread(self.wait_until, running, "eight choices running")
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task

        asyncio.run(leave())
        self.expect_cancelled(8)

    def test_others_go_on(self):
        ask = {"model": MODEL, "prompt": IDS[1], "max_tokens": 60, "temperature": 1.0, "seed": 77}
        alone = client().completions.create(**ask).choices[0].text

        async def leaver(shared):
            stream = await shared.completions.create(**LONG, prompt=IDS[0], stream=True)
            async for _ in stream:
                break
            await stream.close()

        async def stayer(shared):
            return (await shared.completions.create(**ask)).choices[0].text

        async def both():
            async with async_client() as shared:
                return await asyncio.gather(*(leaver(shared) for _ in range(4)), *(stayer(shared) for _ in range(3)))

        self.assertEqual(asyncio.run(both())[4:], [alone] * 3)
        self.wait_until_idle()


if __name__ == "__main__":
    unittest.main()
