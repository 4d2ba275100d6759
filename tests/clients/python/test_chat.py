# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions, streaming and not."""
import json
import unittest
from typing import Literal

import openai
import pydantic
from support import COMPACT, MODEL, VOCAB, Test, client, http

MESSAGES = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Tell me of the sea."}]
# The chat template of the model, written out.
RENDERED = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in MESSAGES) + "<|im_start|>assistant\n"
GREEDY = {"model": MODEL, "temperature": 0}


class Animal(pydantic.BaseModel):
    kind: Literal["bird", "fish", "horse"]
    legs: Literal[0, 2, 4]
    tame: bool


class Chat(Test):
    def setUp(self):
        self.client = client()
        self.chat = self.client.chat.completions

    def test_continues_what_the_template_writes(self):
        reply = self.chat.create(**GREEDY, messages=MESSAGES, max_completion_tokens=24)
        self.assertEqual(reply.object, "chat.completion")
        self.assertTrue(reply.id.startswith("chatcmpl-"))
        self.assertEqual(reply.model, MODEL)
        choice = reply.choices[0]
        self.assertEqual((choice.index, choice.message.role), (0, "assistant"))
        self.assertIsNone(choice.logprobs)
        ids = http("/tokenize", {"prompt": RENDERED, "add_special_tokens": False}).json()["tokens"]
        self.assertEqual(reply.usage.prompt_tokens, len(ids))
        by_hand = self.client.completions.create(**GREEDY, prompt=ids, max_tokens=24)
        self.assertEqual(choice.message.content, by_hand.choices[0].text)
        self.assertEqual(choice.finish_reason, by_hand.choices[0].finish_reason)
        self.assertEqual(reply.usage.completion_tokens, by_hand.usage.completion_tokens)

    def test_parts_are_text(self):
        plain = self.chat.create(**GREEDY, messages=MESSAGES, max_tokens=8)
        parts = [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": MESSAGES[1]["content"]}]}]
        reply = self.chat.create(**GREEDY, messages=parts, max_tokens=8)
        self.assertEqual(reply.choices[0].message.content, plain.choices[0].message.content)
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat.create(**GREEDY, messages=image)
        self.assert_error(caught.exception, 400, param="messages[0].content[0]")

    def test_a_developer_is_a_system(self):
        plain = self.chat.create(**GREEDY, messages=MESSAGES, max_tokens=8)
        reply = self.chat.create(
            **GREEDY, messages=[{**MESSAGES[0], "role": "developer"}, MESSAGES[1]], max_tokens=8
        )
        self.assertEqual(reply.choices[0].message.content, plain.choices[0].message.content)

    def test_n_seed_and_stop(self):
        ask = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "temperature": 1.0, "seed": 9, "n": 3}
        one, two = (self.chat.create(**ask) for _ in range(2))
        texts = [choice.message.content for choice in one.choices]
        self.assertEqual([choice.index for choice in one.choices], [0, 1, 2])
        self.assertEqual(len(set(texts)), 3, texts)
        self.assertEqual(texts, [choice.message.content for choice in two.choices])
        stop = texts[0][4:9]
        cut = self.chat.create(**{**ask, "n": 1}, stop=[stop]).choices[0]
        self.assertEqual(cut.message.content, texts[0][: texts[0].index(stop)])
        self.assertEqual(cut.finish_reason, "stop")

    def test_logprobs(self):
        reply = self.chat.create(**GREEDY, messages=MESSAGES, max_tokens=10, logprobs=True, top_logprobs=3)
        content = reply.choices[0].logprobs.content
        self.assertEqual(len(content), 10)
        said = b"".join(bytes(token.bytes) for token in content)
        self.assertEqual(said.decode(), reply.choices[0].message.content)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.logprob, max(top.logprob for top in token.top_logprobs))
            self.assertEqual(token.top_logprobs[0].token, token.token)
        bare = self.chat.create(**GREEDY, messages=MESSAGES, max_tokens=2, logprobs=True)
        self.assertEqual([token.top_logprobs for token in bare.choices[0].logprobs.content], [[], []])

    def test_the_newer_name_of_max_tokens_counts(self):
        reply = self.chat.create(**GREEDY, messages=MESSAGES, max_tokens=9, max_completion_tokens=3)
        self.assertEqual(reply.usage.completion_tokens, 3)

    def test_tools(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat.create(**GREEDY, messages=MESSAGES, tools=[tool])
        self.assert_error(caught.exception, 400, code="unsupported", param="tools")
        self.chat.create(**GREEDY, messages=MESSAGES, tools=[tool], tool_choice="none", max_tokens=1)

    def test_unknown_fields_are_tolerated(self):
        plain = self.chat.create(**GREEDY, messages=MESSAGES, max_tokens=8)
        more = self.chat.create(
            **GREEDY,
            messages=MESSAGES,
            max_tokens=8,
            metadata={"a": "b"},
            modalities=["text"],
            parallel_tool_calls=False,
            prompt_cache_key="k",
            reasoning_effort="low",
            safety_identifier="s",
            service_tier="auto",
            store=False,
            user="someone",
            verbosity="low",
            extra_body={"no_such_field": [{"a": 1}]},
        )
        self.assertEqual(more.choices[0].message.content, plain.choices[0].message.content)


class Forms(Test):
    def setUp(self):
        self.chat = client().chat.completions
        self.ask = {"model": MODEL, "messages": MESSAGES, "max_tokens": 200, "temperature": 1.0, "seed": 2, "logit_bias": COMPACT}

    def test_parse(self):
        """The client's own way: a pydantic class becomes a strict schema, and the answer an object of it."""
        reply = self.chat.parse(**self.ask, n=3, response_format=Animal)
        for choice in reply.choices:
            self.assertEqual(choice.finish_reason, "stop")
            self.assertIsInstance(choice.message.parsed, Animal)
            self.assertEqual(json.loads(choice.message.content), choice.message.parsed.model_dump())

    def test_stream_of_a_parsed_answer(self):
        with self.chat.stream(**self.ask, response_format=Animal) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        self.assertIn("content.delta", kinds)
        self.assertIsInstance(final.choices[0].message.parsed, Animal)

    def test_json_object(self):
        # A model that knows no JSON ends an object only by chance: helped by what it is made likely to say.
        likely = {**COMPACT, str(VOCAB["}"]): 20, str(VOCAB['"']): 8}
        reply = self.chat.create(
            **{**self.ask, "logit_bias": likely}, response_format={"type": "json_object"}, presence_penalty=0.5
        )
        self.assertEqual(reply.choices[0].finish_reason, "stop", reply.choices[0].message.content)
        self.assertIsInstance(json.loads(reply.choices[0].message.content), dict)

    def test_a_schema_that_cannot_be_kept_is_refused(self):
        bad = {"type": "object", "properties": {"a": {"type": "no such type"}}}
        form = {"type": "json_schema", "json_schema": {"name": "bad", "schema": bad}}
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat.create(**self.ask, response_format=form)
        self.assert_error(caught.exception, 400, param="response_format")


class Streams(Test):
    def setUp(self):
        self.chat = client().chat.completions
        self.ask = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "temperature": 1.0, "seed": 6}

    def test_says_what_the_whole_answer_says(self):
        whole = self.chat.create(**self.ask, n=2)
        chunks = list(self.chat.create(**self.ask, n=2, stream=True, stream_options={"include_usage": True}))
        self.assertEqual({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        usage = chunks.pop()
        self.assertEqual(usage.choices, [])
        self.assertEqual(usage.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(usage.usage.prompt_tokens, whole.usage.prompt_tokens)
        for choice in whole.choices:
            own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
            self.assertEqual(own[0].delta.role, "assistant")
            self.assertTrue(all(one.delta.role is None for one in own[1:]))
            self.assertEqual("".join(one.delta.content or "" for one in own), choice.message.content)
            self.assertEqual([one.finish_reason for one in own], [None] * (len(own) - 1) + [choice.finish_reason])
        self.assertTrue(all(chunk.usage is None for chunk in chunks))

    def test_logprobs(self):
        whole = self.chat.create(**self.ask, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        chunks = self.chat.create(**self.ask, logprobs=True, top_logprobs=2, stream=True)
        streamed = [
            token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content
        ]
        self.assertEqual(streamed, whole)


if __name__ == "__main__":
    unittest.main()
