# SPDX-License-Identifier: Apache-2.0
"""What the tests share: where the server is, clients without retries, plain HTTP, and the model's own files.

scripts/clients.sh sets the environment. Nothing here skips: a test that lacks what it needs fails.
"""
import asyncio
import json
import os
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import openai


def setting(name):
    value = os.environ.get(name, "")
    if not value:
        raise RuntimeError(f"{name} is not set; scripts/clients.sh runs these tests")
    return value


URL = setting("HEARTH_CLIENTS_URL")  # http://127.0.0.1:PORT
KEY = setting("HEARTH_CLIENTS_KEY")
OTHER_KEY = setting("HEARTH_CLIENTS_OTHER_KEY")  # of another client, whose requests are counted by themselves
REQUESTS_PER_KEY = int(setting("HEARTH_CLIENTS_REQUESTS_PER_KEY"))
MODEL_DIR = Path(setting("HEARTH_CLIENTS_MODEL_DIR"))
BINARY = setting("HEARTH_CLIENTS_BINARY")
MODEL = MODEL_DIR.name
# Long enough for a loaded machine and for sanitizers; a test that hangs still ends.
TIMEOUT_S = 300

GOLDEN = json.loads((MODEL_DIR / "golden.json").read_text())
TOKENIZER = json.loads((MODEL_DIR / "tokenizer.json").read_text())
VOCAB = TOKENIZER["model"]["vocab"]
EOS = json.loads((MODEL_DIR / "generation_config.json").read_text())["eos_token_id"]
# Tokens of nothing but white space, banned: a small model likes to fill JSON with it, as far as the grammar lets it.
COMPACT = {str(token): -100 for text, token in VOCAB.items() if set(text) <= set("ĠĊčĉ")}
CONTEXT = json.loads((MODEL_DIR / "config.json").read_text())["max_position_embeddings"]


def client(key=KEY, **more):
    more.setdefault("timeout", TIMEOUT_S)
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0, **more)


def async_client(key=KEY, **more):
    more.setdefault("timeout", TIMEOUT_S)
    return openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0, **more)


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


def http(path, body=None, key=KEY, method=None, headers=None):
    """One plain HTTP exchange; any status is an answer."""
    data = None
    all_headers = dict(headers or {})
    if key is not None:
        all_headers["Authorization"] = f"Bearer {key}"
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(URL + path, data=data, headers=all_headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return Answer(reply.status, reply.headers, reply.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read().decode())


def tokens_of(text, **more):
    return http("/tokenize", {"model": MODEL, "prompt": text, **more}).json()["tokens"]


def metrics():
    """{'name{labels}': value} of /metrics."""
    values = {}
    for line in http("/metrics").body.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    return values


def metric(name, **labels):
    """The sum of the metric's samples that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = [
        value
        for sample, value in metrics().items()
        if sample.split("{")[0] == name and all(one in sample for one in wanted)
    ]
    if not found:
        raise AssertionError(f"/metrics has no {name} with {labels}")
    return sum(found)


def finished():
    """Choices that have ended, by reason."""
    reasons = ("stop", "length", "abort", "error")
    return {reason: metric("vllm:request_success_total", finished_reason=reason) for reason in reasons}


class Test(unittest.TestCase):
    maxDiff = None

    def wait_until(self, condition, what, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                self.fail(f"after {seconds} s still not: {what}")
            time.sleep(0.02)

    def wait_until_idle(self):
        """Nothing runs, nothing waits and all KV memory is free."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        self.wait_until(lambda: all(metric(name) == 0 for name in names), "no request in the engine, KV memory free")

    def assert_error(self, error, status, code=None, param=None):
        """`error` is an openai.APIStatusError in OpenAI's form."""
        self.assertEqual(error.status_code, status, error)
        self.assertIsInstance(error.body, dict)
        self.assertEqual(set(error.body), {"message", "type", "param", "code"})
        self.assertTrue(error.body["message"])
        self.assertEqual(error.code, code, error)
        self.assertEqual(error.param, param, error)
        self.assertTrue(error.request_id, "the answer names the request")


def run_all(coroutines):
    """Runs them at once and returns their results in order."""

    async def gather():
        return await asyncio.gather(*coroutines)

    return asyncio.run(gather())
