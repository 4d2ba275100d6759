# SPDX-License-Identifier: Apache-2.0
"""Refusals, as the client's exceptions."""
import http.client
import json
import threading
import unittest
from urllib.parse import urlsplit

import openai
from support import CONTEXT, KEY, MODEL, OTHER_KEY, REQUESTS_PER_KEY, URL, Test, client, http as ask_http

ASK = {"model": MODEL, "prompt": "It was", "max_tokens": 2}
NO_KEY = "another-key-of-the-same-length"


class Keys(Test):
    def test_a_wrong_key(self):
        for key in (NO_KEY, KEY[:-1], KEY + "x", "x"):
            with self.assertRaises(openai.AuthenticationError) as caught:
                client(key).completions.create(**ASK)
            self.assert_error(caught.exception, 401, code="invalid_api_key")
            self.assertNotIn(KEY, str(caught.exception))
            self.assertEqual(caught.exception.response.headers["www-authenticate"], "Bearer")

    def test_every_route_but_health_asks_for_it(self):
        for method, path in (
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", f"/v1/models/{MODEL}"),
            ("POST", "/tokenize"),
            ("POST", "/detokenize"),
            ("GET", "/metrics"),
            ("GET", "/version"),
            ("GET", "/no/such/route"),
        ):
            with self.subTest(path=path):
                reply = ask_http(path, {} if method == "POST" else None, key=None, method=method)
                self.assertEqual(reply.status, 401)
                self.assertEqual(reply.json()["error"]["code"], "invalid_api_key")

    def test_several_keys(self):
        self.assertEqual(client(OTHER_KEY).completions.create(**ASK).model, MODEL)


class Requests(Test):
    def refused(self, error, status, code, param, **ask):
        with self.subTest(**{name: str(value)[:60] for name, value in ask.items()}):
            with self.assertRaises(error) as caught:
                client().completions.create(**{**ASK, **ask})
            self.assert_error(caught.exception, status, code, param)
            return caught.exception

    def test_models(self):
        self.refused(openai.NotFoundError, 404, "model_not_found", "model", model="nobody")
        with self.assertRaises(openai.NotFoundError) as caught:
            client().chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        self.assert_error(caught.exception, 404, "model_not_found", "model")

    def test_what_does_not_fit_the_context(self):
        bad = openai.BadRequestError
        error = self.refused(bad, 400, "context_length_exceeded", "prompt", prompt=[5] * (CONTEXT + 1))
        self.assertIn("maximum context length", error.body["message"])
        self.assertIn(str(CONTEXT), error.body["message"])
        self.refused(bad, 400, "context_length_exceeded", "max_tokens", max_tokens=CONTEXT)
        # So long that it is refused by its bytes.
        self.refused(bad, 400, "context_length_exceeded", "prompt", prompt="word " * 200_000)
        with self.assertRaises(bad) as caught:
            client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 200_000}])
        self.assert_error(caught.exception, 400, "context_length_exceeded", "messages")

    def test_values_out_of_range(self):
        bad = openai.BadRequestError
        for param, value in (
            ("temperature", -0.5),
            ("temperature", "warm"),
            ("top_p", 0),
            ("top_p", 1.5),
            ("n", 0),
            ("max_tokens", -1),
            ("presence_penalty", 3),
            ("frequency_penalty", -3),
            ("logprobs", -1),
            ("stop", [""]),
            ("stop", 7),
            ("echo", "yes"),
            ("seed", 1.5),
            ("prompt", []),
            ("prompt", [[]]),
            ("prompt", [1, "two"]),
            ("prompt", [1_000_000]),
            ("prompt", {"text": "x"}),
            ("logit_bias", {"1000000": 1}),
            ("logit_bias", {"5": 101}),
            ("logit_bias", {"five": 1}),
        ):
            self.refused(bad, 400, None, param, **{param: value})
        self.refused(bad, 400, None, "stream_options", stream_options={"include_usage": True})

    def test_limits(self):
        bad = openai.BadRequestError
        self.refused(bad, 400, "limit_exceeded", "stop", stop=["x"] * 100)
        self.refused(bad, 400, "limit_exceeded", "stop", stop="x" * 5000)
        self.refused(bad, 400, "limit_exceeded", "prompt", prompt=["x"] * 1000)
        self.refused(bad, 400, "limit_exceeded", "logit_bias", logit_bias={str(i): 1 for i in range(5000)})
        self.refused(bad, 400, None, "n", n=1_000_000)
        self.refused(bad, 400, None, "logprobs", logprobs=1_000)

    def test_a_body_that_is_no_request(self):
        for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"prompt": NaN}', b"[" * 5000):
            with self.subTest(body=body[:20]):
                reply = ask_http("/v1/completions", body)
                self.assertEqual(reply.status, 400, reply.body)
                self.assertEqual(set(reply.json()["error"]), {"message", "type", "param", "code"})

    def test_a_body_that_is_too_large(self):
        """Answered from its header: the body need not be sent."""
        connection = http.client.HTTPConnection(urlsplit(URL).netloc, timeout=60)
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Authorization", f"Bearer {KEY}")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(1 << 30))
        connection.endheaders()
        reply = connection.getresponse()
        self.assertEqual(reply.status, 413)
        error = json.loads(reply.read())["error"]
        self.assertEqual(error["code"], "request_too_large")
        connection.close()

    def test_routes(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client().embeddings.create(model=MODEL, input="x")
        self.assert_error(caught.exception, 404, "not_found")
        reply = ask_http("/v1/completions", method="GET")
        self.assertEqual((reply.status, reply.headers["allow"]), (405, "POST"))
        self.assertEqual(reply.json()["error"]["code"], "method_not_allowed")


class Rates(Test):
    def test_more_requests_at_once_than_a_key_may_have(self):
        """RateLimitError with Retry-After, for this key alone; room again once one has ended."""
        long = {**ASK, "max_tokens": 900, "temperature": 0, "stream": True, "extra_body": {"ignore_eos": True}}
        other = client(OTHER_KEY)
        streams = []
        try:
            for _ in range(REQUESTS_PER_KEY):
                streams.append(other.completions.create(**long))
            with self.assertRaises(openai.RateLimitError) as caught:
                other.completions.create(**ASK)
            self.assert_error(caught.exception, 429, code="rate_limit_exceeded")
            self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
            self.assertEqual(client().completions.create(**ASK).model, MODEL)
        finally:
            for stream in streams:
                stream.close()
        self.wait_until_idle()

        def room():
            try:
                return other.completions.create(**ASK)
            except openai.RateLimitError:
                return None

        self.wait_until(room, "room for a request of the key")

    def test_the_client_tries_again(self):
        """With retries on, the client waits as Retry-After says and gets its answer."""
        long = {**ASK, "max_tokens": 900, "temperature": 0, "stream": True, "extra_body": {"ignore_eos": True}}
        other = client(OTHER_KEY)
        streams = [other.completions.create(**long) for _ in range(REQUESTS_PER_KEY)]
        closing = threading.Timer(0.5, lambda: [stream.close() for stream in streams])
        closing.start()
        try:
            reply = other.with_options(max_retries=8).completions.create(**ASK)
            self.assertEqual(reply.model, MODEL)
        finally:
            closing.join()
        self.wait_until_idle()


if __name__ == "__main__":
    unittest.main()
