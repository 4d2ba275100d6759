#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a hostile request does to a text that somebody else is reading. While one client reads a long stream, on a
server that has other streams to write too, more clients send bodies of 30 MB, schemas and chat templates made to be
expensive. Fails unless every attack is answered with the status it should get and the reader's tokens come at most a
step later than without it.
Only Python's own library."""
import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"


TRIALS = 3  # an attack is late that is late in each


class Failure(Exception):
    pass


def post(port, message):
    """(status, seconds) of a whole exchange; a refusal before the body was taken is an answer too."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
        try:
            sock.sendall(message)
        except OSError:
            pass  # the answer came first
        answer = b""
        try:
            while piece := sock.recv(65536):
                answer += piece
        except OSError:
            pass
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    if not found:
        raise Failure(f"no answer: {answer[:200]!r}")
    return int(found.group(1)), time.monotonic() - begin


def attack(port, path, body, seconds, result):
    """Sends the same request again and again; tells how the first was answered. In a process of its own, which
    gives way to all others: what is measured is the server, not who is faster to the CPU."""
    os.nice(19)
    message = (HEAD.format(path=path) + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    begin = time.monotonic()
    try:
        result.put(post(port, message))
        while time.monotonic() - begin < seconds:
            post(port, message)
    except (Failure, OSError) as failure:
        result.put(failure)


class Reader(threading.Thread):
    """Reads one stream after the other and keeps when each chunk came."""

    def __init__(self, port, keep=True):
        super().__init__(daemon=True)
        self.port, self.keep, self.times, self.stop, self.error = port, keep, [], False, None

    def run(self):
        body = json.dumps({"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True,
                           "model": "fable", "seed": 3}).encode()
        try:
            while not self.stop:
                with socket.create_connection(("127.0.0.1", self.port), timeout=60) as sock:
                    head = HEAD.format(path="/v1/completions") + f"Content-Length: {len(body)}\r\n\r\n"
                    sock.sendall(head.encode() + body)
                    while not self.stop and (piece := sock.recv(65536)):
                        if not self.keep:
                            continue
                        now = time.monotonic()
                        self.times.extend([now] * piece.count(b"data: {"))
                    self.times.append(None)  # another stream: no gap between them
        except OSError as error:
            self.error = error

    def gaps(self, begin, end):
        pairs = zip(self.times, self.times[1:])
        return [b - a for a, b in pairs if a is not None and b is not None and begin <= a and b <= end]


def crowd(port, streams):
    """Reads many streams for ever, in a process of its own: the server's usual load."""
    readers = [Reader(port, keep=False) for _ in range(streams)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def attacks():
    """(name, path, body, statuses it may get)"""
    text = "word " * (6 << 20)
    deep = {"type": "object"}
    for _ in range(400):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    wide = {"enum": [f"value {i} {'x' * 20}" for i in range(1500)]}
    long = {"type": "string", "pattern": "(a{1,200}){1,200}(b{1,200}){1,200}"}
    counted = {"type": "array", "minItems": 100000, "maxItems": 1000000, "items": {"type": "string", "minLength": 100000}}
    regex = {"type": "string", "pattern": "(.*a){25}[^b]{1000}"}

    def schema(value):
        return json.dumps({"model": "fable", "prompt": "x", "max_tokens": 8, "response_format": {
            "type": "json_schema", "json_schema": {"name": "s", "schema": value}}}).encode()

    def chat(model):
        return json.dumps({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}).encode()

    refused, either = {400, 413, 503, 504, 408}, {200, 400, 503, 504, 408}
    return [
        ("a prompt of 30 MB", "/v1/completions", json.dumps({"model": "fable", "prompt": text}).encode(), refused),
        ("30 MB of token ids", "/v1/completions",
         b'{"model": "fable", "prompt": [' + b"1," * (15 << 20) + b"1]}", refused),
        ("30 MB of brackets", "/v1/completions", b"[" * (30 << 20), refused),
        ("30 MB of unknown fields", "/v1/completions",
         b'{"model": "fable", "prompt": "x", "max_tokens": 1, "extra": [' + b"{}," * (10 << 20) + b"{}]}",
         either),
        ("30 MB to tokenize", "/tokenize", json.dumps({"model": "fable", "prompt": text}).encode(), either | {413}),
        ("a body over the limit", "/v1/completions", b" " * (40 << 20), {413}),
        ("a schema 400 deep", "/v1/completions", schema(deep), refused),
        ("a schema of 1500 strings", "/v1/completions", schema(wide), either),
        ("a schema with nested counts", "/v1/completions", schema(long), either),
        ("a schema of a million strings", "/v1/completions", schema(counted), either),
        ("a schema with a hard expression", "/v1/completions", schema(regex), either),
        ("an ambiguous grammar", "/v1/completions", json.dumps({
            "model": "fable", "prompt": "a", "max_tokens": 40, "logit_bias": {"1": -100},
            "guided_grammar": 'start: s\ns: s s | s s s | "a" |'}).encode(), either | {500}),
        ("a template that never ends", "/v1/chat/completions", chat("endless"), refused),
        ("a template that doubles a string", "/v1/chat/completions", chat("doubling"), refused),
    ]


TEMPLATES = {
    "endless": "{% for i in range(100000) %}{% for j in range(100000) %}{% set x = i * j %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
}


def hostile_model(directory, name):
    """The demo model with another chat template."""
    path = os.path.join(directory, name)
    shutil.copytree("models/fable-13m", path)
    with open(os.path.join(path, "tokenizer_config.json")) as file:
        config = json.load(file)
    config["chat_template"] = TEMPLATES[name]
    with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
        json.dump(config, file)
    return f"{name}={path}"


def start(binary, directory, threads):
    models = ["fable=models/fable-13m"] + [hostile_model(directory, name) for name in TEMPLATES]
    command = [binary, "serve", *models, "--port", "0", "--threads", str(threads), "--kv-cache-memory-bytes", "256M"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found:
            return process, int(found.group(1))
    raise Failure(f"the server ended with {process.wait()} before it was ready")


def quantile99(values):
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]


def trial(port, reader, seconds, name, path, body, statuses):
    """One attack between two quiet spells, which tell what is usual: contexts of streams grow, and steps with them.
    Says how late tokens came, or nothing where no more than a step."""
    def quiet():
        begin = time.monotonic()
        time.sleep(seconds)
        return reader.gaps(begin, time.monotonic())

    usual = quiet()
    result = multiprocessing.Queue()
    begin = time.monotonic()
    # Two at once: as many as the server has workers of each kind.
    attackers = [multiprocessing.Process(target=attack, args=(port, path, body, seconds, result)) for _ in range(2)]
    for attacker in attackers:
        attacker.start()
    first = result.get(timeout=120)
    for attacker in attackers:
        attacker.join()
    if isinstance(first, Exception):
        raise Failure(f"{name}: {first}")
    status, took = first
    gaps = reader.gaps(begin, time.monotonic())
    usual += quiet()
    if reader.error or not gaps or not usual:
        raise Failure(f"{name}: the reader got nothing more ({reader.error})")
    p99, step = quantile99(gaps), statistics.median(usual)
    limit = quantile99(usual) + step
    print(f"attacks: {name}: {status} after {1000 * took:.0f} ms; gaps in ms: median {1000 * statistics.median(gaps):.1f}, "
          f"99 % under {1000 * p99:.1f}, longest {1000 * max(gaps):.1f}; around it {1000 * step:.1f}, "
          f"{1000 * quantile99(usual):.1f}, {1000 * max(usual):.1f}", flush=True)
    if status not in statuses:
        raise Failure(f"{name}: status {status}; wanted one of {sorted(statuses)}")
    return f"{name} ({1000 * p99:.1f} ms; wanted at most {1000 * limit:.1f})" if p99 > limit else None


def run(port, seconds, streams, judge_gaps):
    others = multiprocessing.Process(target=crowd, args=(port, streams), daemon=True)
    others.start()
    reader = Reader(port)
    reader.start()
    time.sleep(1)
    late = []
    for name, path, body, statuses in attacks():
        # Whatever else the machine does comes and goes; what an attack does, it does each time.
        trials = [trial(port, reader, seconds, name, path, body, statuses)]
        while judge_gaps and trials[-1] and len(trials) < TRIALS:
            trials.append(trial(port, reader, seconds, name, path, body, statuses))
        if trials[-1]:
            late.append(trials[-1])
    reader.stop = True
    reader.join()
    others.terminate()
    others.join()
    if late and not judge_gaps:
        print("attacks: late, but not judged (--no-judge-gaps): other work shares this machine's CPUs: " + "; ".join(late))
    elif late:
        raise Failure("tokens came more than a step late under: " + "; ".join(late))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/cpu/bin/hearth")
    parser.add_argument("--seconds", type=float, default=2, help="of each attack")
    parser.add_argument("--judge-gaps", action=argparse.BooleanOptionalAction, default=True,
                        help="fail where tokens come late; needs CPUs that nothing else uses")
    parser.add_argument("--streams", type=int, default=24, help="that others read meanwhile")
    parser.add_argument("--threads", type=int, default=0, help="of the server's team; 0: its default")
    args = parser.parse_args()
    process = None
    try:
        with tempfile.TemporaryDirectory() as directory:
            process, port = start(args.binary, directory, args.threads)
            run(port, args.seconds, args.streams, args.judge_gaps)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            if code != 0:
                raise Failure(f"the server ended with {code} after SIGTERM")
        print("attacks: passed")
    except (Failure, OSError, subprocess.TimeoutExpired) as failure:
        sys.exit(f"attacks: FAILED: {failure}")
    finally:
        if process and process.poll() is None:
            process.kill()


if __name__ == "__main__":
    main()
