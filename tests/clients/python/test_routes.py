# SPDX-License-Identifier: Apache-2.0
"""The routes beside completions: models, tokens, health, metrics, version."""
import re
import unittest

import openai
from support import CONTEXT, GOLDEN, MODEL, Test, client, http, metric, metrics


class Models(Test):
    def test_list_and_one(self):
        models = client().models.list()
        self.assertEqual(models.object, "list")
        self.assertEqual([model.id for model in models], [MODEL])
        one = client().models.retrieve(MODEL)
        self.assertEqual(one, models.data[0])
        self.assertEqual((one.object, one.owned_by, one.max_model_len), ("model", "hearth", CONTEXT))
        self.assertGreater(one.created, 1_600_000_000)

    def test_an_unknown_one(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client().models.retrieve("nobody")
        self.assert_error(caught.exception, 404, code="model_not_found", param="model")


class Tokens(Test):
    def test_there_and_back(self):
        for golden in GOLDEN["prompts"]:
            reply = http("/tokenize", {"model": MODEL, "prompt": golden["text"]}).json()
            self.assertEqual(reply["tokens"], golden["ids"])
            self.assertEqual((reply["count"], reply["max_model_len"]), (len(golden["ids"]), CONTEXT))
            self.assertIsNone(reply["token_strs"])
            plain = http("/tokenize", {"prompt": golden["text"], "add_special_tokens": False}).json()["tokens"]
            self.assertEqual(plain, golden["ids"][1:])
            back = http("/detokenize", {"model": MODEL, "tokens": plain}).json()
            self.assertEqual(back, {"prompt": golden["text"]})

    def test_strings_of_tokens(self):
        reply = http("/tokenize", {"prompt": "the sea", "return_token_strs": True}).json()
        self.assertEqual(len(reply["token_strs"]), reply["count"])

    def test_messages(self):
        messages = [{"role": "user", "content": "Hello"}]
        reply = http("/tokenize", {"model": MODEL, "messages": messages}).json()
        chat = client().chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
        self.assertEqual(reply["count"], chat.usage.prompt_tokens)
        back = http("/detokenize", {"tokens": reply["tokens"]}).json()["prompt"]
        self.assertEqual(back, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")

    def test_errors(self):
        for path, body, param in (
            ("/tokenize", {}, "prompt"),
            ("/tokenize", {"prompt": 5}, "prompt"),
            ("/detokenize", {}, "tokens"),
            ("/detokenize", {"tokens": [10**6]}, "tokens"),
            ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ):
            with self.subTest(path=path, body=body):
                reply = http(path, body)
                self.assertEqual((reply.status, reply.json()["error"]["param"]), (400, param))
        self.assertEqual(http("/tokenize", {"model": "nobody", "prompt": "x"}).status, 404)


class Operations(Test):
    def test_health_needs_no_key(self):
        for path in ("/health", "/health/live", "/health/ready", "/ping"):
            reply = http(path, key=None)
            self.assertEqual(reply.status, 200, path)

    def test_version(self):
        version = http("/version").json()["version"]
        self.assertRegex(version, r"^\d+\.\d+")

    def test_metrics_count_what_was_used(self):
        self.wait_until_idle()
        names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_count")
        before = [metric(name, model_name=MODEL) for name in names]
        usage = client().completions.create(model=MODEL, prompt=["one two", "three"], max_tokens=7).usage
        self.wait_until_idle()
        after = [metric(name, model_name=MODEL) for name in names]
        used = [b - a for a, b in zip(before, after)]
        self.assertEqual(used, [usage.prompt_tokens, usage.completion_tokens, 2])

    def test_metrics_count_answers(self):
        labels = {"handler": "/v1/models/{id}", "method": "GET", "status": "404"}
        http("/v1/models/nobody")
        before = metric("http_requests_total", **labels)
        http("/v1/models/nobody")
        self.wait_until(lambda: metric("http_requests_total", **labels) == before + 1, "one more answer counted")

    def test_metrics_have_vllms_names(self):
        found = {re.sub(r"\{.*|_(bucket|sum|count)$", "", name) for name in metrics()}
        for name in (
            "num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info num_preemptions_total "
            "prompt_tokens_total generation_tokens_total request_success_total"
        ).split():
            self.assertIn(f"vllm:{name}", found)
        counts = {name.split("{")[0] for name in metrics()}
        for name in (
            "time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds "
            "e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds "
            "request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens request_generation_tokens "
            "request_max_num_generation_tokens request_params_n request_params_max_tokens iteration_tokens_total"
        ).split():
            self.assertIn(f"vllm:{name}_count", counts)
        reply = http("/metrics")
        self.assertTrue(reply.headers["content-type"].startswith("text/plain; version=0.0.4"))


if __name__ == "__main__":
    unittest.main()
