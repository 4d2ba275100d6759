#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo's client: a streamed text and a streamed chat over the OpenAI API with nothing but Python's own
library. Also finds a free port and asks whether a server is ready."""
import argparse
import json
import socket
import sys
import time
import urllib.error
import urllib.request


def free_port(wanted):
    """`wanted` if it can be bound, else one that can."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    sys.exit("demo: no port can be bound")


def open_url(url, body=None, timeout=120):
    # No proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    return opener.open(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=timeout)


def ready(url):
    try:
        with open_url(url + "/health/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def events(answer):
    """The JSON objects of a stream of server-sent events."""
    for line in answer:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            event = json.loads(line[6:])
            if "error" in event:
                sys.exit("demo: the server says: " + event["error"]["message"])
            yield event


def stream(url, body, text_of):
    """Prints a streamed answer as it comes, then how fast it came."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    begin = time.monotonic()
    first = None
    usage = {}
    try:
        with open_url(url, body) as answer:
            for event in events(answer):
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    first = first or time.monotonic()
                    print(text_of(choice) or "", end="", flush=True)
    except urllib.error.HTTPError as error:
        sys.exit(f"demo: {url} answered {error.code}: {error.read().decode()}")
    end = time.monotonic()
    tokens = usage.get("completion_tokens", 0)
    first = first or end
    rate = (tokens - 1) / (end - first) if tokens > 1 and end > first else 0.0
    print(f"\n\ndemo: {tokens} tokens, the first after {1000 * (first - begin):.0f} ms, then {rate:.1f} tokens/s\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--free-port", type=int, metavar="PORT", help="print PORT if it is free, else another")
    parser.add_argument("--ready", metavar="URL", help="exit with 0 if the server is ready")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    if args.free_port is not None:
        print(free_port(args.free_port))
        return
    if args.ready:
        sys.exit(0 if ready(args.ready) else 1)
    sampling = {"max_tokens": args.tokens, "temperature": 0.8, "seed": 7}
    print(f"demo: POST {args.url}/v1/completions\n\n{args.prompt}", end="", flush=True)
    stream(args.url + "/v1/completions", {"prompt": args.prompt, **sampling}, lambda choice: choice["text"])
    question = "Tell me of the sea."
    print(f"demo: POST {args.url}/v1/chat/completions\n\nuser: {question}\nassistant: ", end="", flush=True)
    messages = [{"role": "user", "content": question}]
    stream(args.url + "/v1/chat/completions", {"messages": messages, **sampling},
           lambda choice: choice["delta"].get("content"))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        sys.exit(f"demo: {error}")
