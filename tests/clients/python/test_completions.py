# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions without streaming."""
import json
import re
import unittest

import openai
from support import COMPACT, EOS, GOLDEN, KEY, MODEL, VOCAB, Test, client, http, tokens_of

PROMPTS = [prompt["text"] for prompt in GOLDEN["prompts"]]
IDS = [prompt["ids"] for prompt in GOLDEN["prompts"]]
GREEDY = {"model": MODEL, "temperature": 0}
BOS_TEXT = "<|begin_of_text|>"


class Prompts(Test):
    def setUp(self):
        self.completions = client().completions

    def test_text_gives_the_reference_text(self):
        for golden in GOLDEN["prompts"]:
            with self.subTest(prompt=golden["text"]):
                reply = self.completions.create(**GREEDY, prompt=golden["text"], max_tokens=48)
                self.assertEqual(reply.object, "text_completion")
                self.assertEqual(reply.model, MODEL)
                self.assertTrue(reply.id.startswith("cmpl-"), reply.id)
                self.assertTrue(reply.system_fingerprint)
                self.assertGreater(reply.created, 1_600_000_000)
                self.assertEqual(len(reply.choices), 1)
                choice = reply.choices[0]
                self.assertEqual(choice.index, 0)
                self.assertEqual(choice.text, golden["greedy48_text"])
                self.assertIsNone(choice.logprobs)
                stopped = golden["greedy48_ids"][-1] == EOS
                self.assertEqual(choice.finish_reason, "stop" if stopped else "length")
                self.assertEqual(reply.usage.prompt_tokens, len(golden["ids"]))
                self.assertEqual(reply.usage.completion_tokens, len(golden["greedy48_ids"]))
                self.assertEqual(reply.usage.total_tokens, len(golden["ids"]) + len(golden["greedy48_ids"]))

    def test_ids_give_the_reference_ids(self):
        for golden in GOLDEN["prompts"]:
            with self.subTest(prompt=golden["text"]):
                reply = self.completions.create(
                    **GREEDY, prompt=golden["ids"], max_tokens=48, extra_body={"return_token_ids": True}
                )
                self.assertEqual(reply.choices[0].token_ids, golden["greedy48_ids"])
                self.assertEqual(reply.choices[0].prompt_token_ids, golden["ids"])
                self.assertEqual(reply.choices[0].text, golden["greedy48_text"])

    def test_lists_of_texts_and_of_ids_keep_their_order(self):
        for prompts in (PROMPTS, IDS):
            reply = self.completions.create(**GREEDY, prompt=prompts, max_tokens=48)
            self.assertEqual([choice.index for choice in reply.choices], list(range(len(prompts))))
            self.assertEqual(
                [choice.text for choice in reply.choices], [golden["greedy48_text"] for golden in GOLDEN["prompts"]]
            )
            self.assertEqual(reply.usage.prompt_tokens, sum(len(ids) for ids in IDS))

    def test_sixteen_tokens_unless_asked(self):
        reply = self.completions.create(model=MODEL, prompt="Once", seed=1, extra_body={"ignore_eos": True})
        self.assertEqual(reply.usage.completion_tokens, 16)
        self.assertEqual(reply.choices[0].finish_reason, "length")

    def test_special_tokens_of_text_can_be_left_out(self):
        plain = tokens_of("It was", add_special_tokens=False)
        reply = self.completions.create(
            **GREEDY, prompt="It was", max_tokens=1, extra_body={"add_special_tokens": False, "return_token_ids": True}
        )
        self.assertEqual(reply.choices[0].prompt_token_ids, plain)


class Choices(Test):
    def setUp(self):
        self.completions = client().completions

    def test_n_gives_different_texts_that_a_seed_repeats(self):
        ask = {"model": MODEL, "prompt": "It was a", "max_tokens": 24, "temperature": 1.0, "seed": 11, "n": 4}
        one, two = (self.completions.create(**ask) for _ in range(2))
        texts = [choice.text for choice in one.choices]
        self.assertEqual([choice.index for choice in one.choices], [0, 1, 2, 3])
        self.assertEqual(len(set(texts)), 4, texts)
        self.assertEqual(texts, [choice.text for choice in two.choices])
        other = self.completions.create(**{**ask, "seed": 12})
        self.assertNotEqual(texts, [choice.text for choice in other.choices])
        # The prompt is billed once, however many choices continue it.
        self.assertEqual(one.usage.prompt_tokens, len(tokens_of("It was a")))

    def test_the_first_of_n_is_the_only_one_of_one(self):
        ask = {"model": MODEL, "prompt": "It was a", "max_tokens": 24, "temperature": 1.0, "seed": 5}
        alone = self.completions.create(**ask).choices[0].text
        self.assertEqual(self.completions.create(**ask, n=3).choices[0].text, alone)

    def test_choices_of_several_prompts(self):
        ask = {"model": MODEL, "max_tokens": 8, "temperature": 1.0, "seed": 3, "n": 2}
        together = self.completions.create(**ask, prompt=PROMPTS[:3])
        self.assertEqual([choice.index for choice in together.choices], [0, 1, 2, 3, 4, 5])
        for p in range(3):
            alone = self.completions.create(**ask, prompt=PROMPTS[p])
            self.assertEqual(
                [choice.text for choice in alone.choices],
                [choice.text for choice in together.choices[2 * p : 2 * p + 2]],
            )

    def test_without_a_seed_texts_differ(self):
        ask = {"model": MODEL, "prompt": "It was a", "max_tokens": 24, "temperature": 1.0}
        self.assertNotEqual(*(self.completions.create(**ask).choices[0].text for _ in range(2)))


class Logprobs(Test):
    def setUp(self):
        self.completions = client().completions

    def test_shape_and_order(self):
        reply = self.completions.create(
            **GREEDY, prompt=PROMPTS[0], max_tokens=12, logprobs=5, extra_body={"return_token_ids": True}
        )
        choice = reply.choices[0]
        found = choice.logprobs
        self.assertEqual("".join(found.tokens), choice.text)
        self.assertEqual(len(found.tokens), 12)
        offset = 0
        for token, logprob, top, at in zip(
            found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, strict=True
        ):
            self.assertEqual(at, offset)
            offset += len(token)
            self.assertEqual(len(top), 5)
            self.assertEqual(top[token], logprob)
            # Greedy: the token drawn is the likeliest one, and the first of the dictionary.
            self.assertEqual(logprob, max(top.values()))
            self.assertEqual(list(top.values()), sorted(top.values(), reverse=True))
            self.assertTrue(all(value <= 0 for value in top.values()))

    def test_the_token_drawn_is_there_beside_the_likeliest(self):
        reply = self.completions.create(
            model=MODEL, prompt=PROMPTS[0], max_tokens=40, logprobs=1, temperature=1.5, seed=1
        )
        found = reply.choices[0].logprobs
        sizes = set()
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
            self.assertEqual(top[token], logprob)
            sizes.add(len(top))
        self.assertEqual(sizes, {1, 2}, "some tokens are the likeliest, some are not")

    def test_zero_alternatives(self):
        found = self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=3, logprobs=0).choices[0].logprobs
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
            self.assertEqual(top, {token: logprob})

    def test_echo_gives_the_reference_logprobs_of_the_prompt(self):
        for golden in GOLDEN["prompts"]:
            for ask in ({"max_tokens": 0}, {"max_tokens": 1}):
                with self.subTest(prompt=golden["text"], **ask):
                    reply = self.completions.create(**GREEDY, prompt=golden["ids"], echo=True, logprobs=1, **ask)
                    found = reply.choices[0].logprobs
                    prompt = len(golden["ids"])
                    self.assertEqual(reply.usage.completion_tokens, ask["max_tokens"])
                    self.assertEqual(len(found.token_logprobs), prompt + ask["max_tokens"])
                    self.assertIsNone(found.token_logprobs[0])
                    self.assertIsNone(found.top_logprobs[0])
                    # golden.json: of each token of the text given those before it, from the second on.
                    for i, wanted in enumerate(golden["token_logprobs"]):
                        if wanted is None:
                            continue
                        at = i + prompt - len(golden["token_logprobs"])
                        self.assertAlmostEqual(found.token_logprobs[at], wanted, delta=2e-4)
                        self.assertLessEqual(found.token_logprobs[at], max(found.top_logprobs[at].values()))

    def test_echo_repeats_the_text(self):
        for prompt in (PROMPTS[1], IDS[1]):
            reply = self.completions.create(**GREEDY, prompt=prompt, max_tokens=8, echo=True)
            plain = self.completions.create(**GREEDY, prompt=prompt, max_tokens=8)
            text = reply.choices[0].text.removeprefix(BOS_TEXT)
            self.assertEqual(text, PROMPTS[1] + plain.choices[0].text)

    def test_offsets_of_an_echoed_text(self):
        prompt = "Déjà vu, naïve ☃ café"
        reply = self.completions.create(**GREEDY, prompt=prompt, max_tokens=4, echo=True, logprobs=0)
        choice = reply.choices[0]
        self.assertEqual(choice.text[: len(prompt)], prompt)
        for token, at in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            if token != BOS_TEXT and not token.startswith("bytes:"):
                self.assertTrue(choice.text[at:].startswith(token), (token, at))

    def test_prompt_logprobs(self):
        reply = self.completions.create(**GREEDY, prompt=IDS[0], max_tokens=1, extra_body={"prompt_logprobs": 2})
        found = reply.choices[0].prompt_logprobs
        self.assertEqual(len(found), len(IDS[0]))
        self.assertIsNone(found[0])
        echo = self.completions.create(**GREEDY, prompt=IDS[0], max_tokens=0, echo=True, logprobs=2)
        for entry, token, logprob in zip(found[1:], IDS[0][1:], echo.choices[0].logprobs.token_logprobs[1:]):
            self.assertEqual(entry[str(token)]["logprob"], logprob)

    def test_tokens_as_ids(self):
        reply = self.completions.create(
            **GREEDY,
            prompt=IDS[0],
            max_tokens=4,
            logprobs=0,
            extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
        )
        choice = reply.choices[0]
        self.assertEqual(choice.logprobs.tokens, [f"token_id:{i}" for i in choice.token_ids])


class Ends(Test):
    def setUp(self):
        self.completions = client().completions
        self.whole = self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=48).choices[0].text

    def test_stop_string(self):
        # One that lies across tokens.
        stop = self.whole[13:21]
        at = self.whole.index(stop)
        for given in (stop, ["not there", stop]):
            choice = self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=48, stop=given).choices[0]
            self.assertEqual(choice.text, self.whole[:at])
            self.assertEqual(choice.finish_reason, "stop")
            self.assertEqual(choice.stop_reason, stop)
        with_it = self.completions.create(
            **GREEDY, prompt=PROMPTS[0], max_tokens=48, stop=stop, extra_body={"include_stop_str_in_output": True}
        )
        self.assertEqual(with_it.choices[0].text, self.whole[: at + len(stop)])

    def test_tokens_after_a_stop_are_not_billed(self):
        golden = GOLDEN["prompts"][0]
        first = self.completions.create(**GREEDY, prompt=golden["ids"], max_tokens=1).choices[0].text
        reply = self.completions.create(**GREEDY, prompt=golden["ids"], max_tokens=48, stop=first)
        self.assertEqual(reply.choices[0].text, "")
        self.assertEqual(reply.usage.completion_tokens, 1)

    def test_stop_token_ids(self):
        golden = GOLDEN["prompts"][0]
        stop = golden["greedy48_ids"][10]
        at = golden["greedy48_ids"].index(stop)
        reply = self.completions.create(
            **GREEDY,
            prompt=golden["ids"],
            max_tokens=48,
            extra_body={"stop_token_ids": [stop], "return_token_ids": True},
        )
        choice = reply.choices[0]
        self.assertEqual(choice.token_ids, golden["greedy48_ids"][: at + 1])
        self.assertEqual((choice.finish_reason, choice.stop_reason), ("stop", stop))

    def test_the_model_ends_a_text_unless_told_otherwise(self):
        bias = {str(EOS): 100}
        ended = self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=20, logit_bias=bias)
        self.assertEqual((ended.choices[0].text, ended.choices[0].finish_reason), ("", "stop"))
        self.assertIsNone(ended.choices[0].stop_reason)
        self.assertEqual(ended.usage.completion_tokens, 1)
        late = self.completions.create(
            **GREEDY, prompt=PROMPTS[0], max_tokens=20, logit_bias=bias, extra_body={"min_tokens": 7}
        )
        # Seven tokens of text, then the end.
        self.assertEqual((late.usage.completion_tokens, late.choices[0].finish_reason), (8, "stop"))
        never = self.completions.create(
            **GREEDY, prompt=PROMPTS[0], max_tokens=20, logit_bias=bias, extra_body={"ignore_eos": True}
        )
        self.assertEqual((never.usage.completion_tokens, never.choices[0].finish_reason), (20, "length"))


class Sampling(Test):
    def setUp(self):
        self.completions = client().completions
        self.ask = {"model": MODEL, "prompt": IDS[2], "max_tokens": 24}
        self.greedy = self.text(temperature=0)

    def text(self, extra=None, **ask):
        return self.completions.create(**self.ask, **ask, extra_body=extra or {}).choices[0].text

    def test_what_leaves_one_token_is_greedy(self):
        self.assertEqual(self.text({"top_k": 1}, temperature=1.5, seed=1), self.greedy)
        self.assertEqual(self.text({"min_p": 1.0}, temperature=1.5, seed=1), self.greedy)
        self.assertEqual(self.text(temperature=1.5, top_p=1e-6, seed=1), self.greedy)
        self.assertNotEqual(self.text(temperature=1.5, seed=1), self.greedy)

    def test_logit_bias(self):
        word = VOCAB["Ġsea"]
        text = self.text(temperature=0, logit_bias={str(word): 100})
        self.assertEqual(text, " sea" * 24)
        first = self.completions.create(
            **{**self.ask, "max_tokens": 1}, temperature=0, extra_body={"return_token_ids": True}
        ).choices[0]
        banned = self.completions.create(
            **{**self.ask, "max_tokens": 1},
            temperature=0,
            logit_bias={str(first.token_ids[0]): -100},
            extra_body={"return_token_ids": True},
        ).choices[0]
        self.assertNotEqual(banned.token_ids, first.token_ids)

    def test_penalties_change_a_text_that_repeats(self):
        penalised = [
            self.text({"repetition_penalty": 1.3}, temperature=0),
            self.text(temperature=0, frequency_penalty=1.5),
            self.text(temperature=0, presence_penalty=1.5),
        ]
        for text in penalised:
            self.assertNotEqual(text, self.greedy)


class Forms(Test):
    """Texts of a given form."""

    def setUp(self):
        self.completions = client().completions

    def text(self, extra, **ask):
        ask = {"prompt": "The answer is ", "max_tokens": 120, "temperature": 1.0, "seed": 4, "logit_bias": COMPACT, **ask}
        reply = self.completions.create(model=MODEL, **ask, extra_body=extra)
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        return reply.choices[0].text

    def test_json_schema(self):
        schema = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "legs": {"type": "integer", "minimum": 0, "maximum": 99},
                "kind": {"enum": ["bird", "fish"]},
            },
            "required": ["name", "legs", "kind"],
            "additionalProperties": False,
        }
        for extra in (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}},
            {"structured_outputs": {"json": schema}},
            {"guided_json": schema},
        ):
            value = json.loads(self.text(extra))
            self.assertEqual(set(value), {"name", "legs", "kind"})
            self.assertLessEqual(len(value["name"]), 12)
            self.assertIn(value["legs"], range(100))
            self.assertIn(value["kind"], ("bird", "fish"))

    def test_white_space_of_json_ends(self):
        """However much the model likes it: at most 65 bytes in a row, in at most five places."""
        schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
        value = self.text({"structured_outputs": {"json": schema}}, logit_bias={}, max_tokens=500)
        self.assertIn(json.loads(value)["a"], (1, 2))

    def test_choice_and_regex(self):
        self.assertIn(self.text({"structured_outputs": {"choice": ["yes", "no"]}}), ("yes", "no"))
        text = self.text({"structured_outputs": {"regex": "[a-z]{2,6}-[0-9]{3}"}})
        self.assertTrue(re.fullmatch("[a-z]{2,6}-[0-9]{3}", text), text)

    def test_grammar_and_any_object(self):
        text = self.text({"structured_outputs": {"grammar": 'start: ("ab" | "cd"){1,5} "."'}}, seed=1)
        self.assertTrue(re.fullmatch(r"(ab|cd){1,5}\.", text), text)
        likely = {**COMPACT, str(VOCAB["}"]): 30}
        self.assertEqual(json.loads(self.text({"structured_outputs": {"json_object": True}}, logit_bias=likely)), {})

    def test_a_bad_schema_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.text({"structured_outputs": {"regex": "([a-z"}})
        self.assertEqual(caught.exception.param, "regex")


class Fields(Test):
    def setUp(self):
        self.completions = client().completions

    def test_unknown_fields_are_tolerated(self):
        plain = self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=8)
        more = self.completions.create(
            **GREEDY,
            prompt=PROMPTS[0],
            max_tokens=8,
            user="someone",
            extra_body={
                "no_such_field": {"deep": [1, {"x": None}]},
                "store": True,
                "metadata": {"a": "b"},
                "service_tier": "auto",
                "prompt_cache_key": "k",
                "safety_identifier": "s",
            },
            extra_headers={"X-No-Such-Header": "1"},
            extra_query={"no_such_query": "1"},
        )
        self.assertEqual(more.choices[0].text, plain.choices[0].text)

    def test_fields_without_effect_on_one_text(self):
        plain = self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=8)
        more = self.completions.create(
            **GREEDY, prompt=PROMPTS[0], max_tokens=8, extra_body={"priority": -3, "cache_salt": "s"}
        )
        self.assertEqual(more.choices[0].text, plain.choices[0].text)

    def test_special_tokens_in_the_text(self):
        ask = {**GREEDY, "prompt": PROMPTS[0], "max_tokens": 3, "logit_bias": {str(EOS): 100}}
        shown = self.completions.create(**ask, extra_body={"ignore_eos": True, "skip_special_tokens": False})
        self.assertEqual(shown.choices[0].text, "<|end_of_text|>" * 3)
        hidden = self.completions.create(**ask, extra_body={"ignore_eos": True})
        self.assertEqual(hidden.choices[0].text, "")

    def test_null_is_absent(self):
        body = dict.fromkeys(
            ("n", "echo", "logprobs", "stop", "stream", "seed", "top_p", "logit_bias", "user", "suffix", "best_of")
        )
        reply = http("/v1/completions", {**body, **GREEDY, "prompt": IDS[0], "max_tokens": 48})
        self.assertEqual(reply.status, 200, reply.body)
        self.assertEqual(reply.json()["choices"][0]["text"], GOLDEN["prompts"][0]["greedy48_text"])

    def test_best_of(self):
        self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=1, best_of=1)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=1, best_of=2)
        self.assert_error(caught.exception, 400, param="best_of")

    def test_what_would_change_the_text_is_not_passed_over(self):
        for name, value in (("suffix", "the end"), ("use_beam_search", True), ("bad_words", ["x"])):
            with self.subTest(field=name), self.assertRaises(openai.BadRequestError) as caught:
                self.completions.create(**GREEDY, prompt=PROMPTS[0], max_tokens=1, extra_body={name: value})
            self.assert_error(caught.exception, 400, code="unsupported", param=name)

    def test_the_answer_names_the_request(self):
        reply = client().completions.with_raw_response.create(
            **GREEDY, prompt=PROMPTS[0], max_tokens=1, extra_headers={"X-Request-Id": "mine-17"}
        )
        self.assertEqual(reply.headers["x-request-id"], "mine-17")
        own = client().completions.with_raw_response.create(**GREEDY, prompt=PROMPTS[0], max_tokens=1)
        self.assertTrue(own.headers["x-request-id"].startswith("req-"))
        self.assertEqual(KEY in str(own.headers), False)


if __name__ == "__main__":
    unittest.main()
