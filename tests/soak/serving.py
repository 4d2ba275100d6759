# SPDX-License-Identifier: Apache-2.0
"""What the soaks of `hearth serve` share: the server, a streaming request, their arguments and how they end."""
import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

WORDS = ("the sea a ship old captain morning night wind letter house garden brother silent golden of and to "
         "with upon beneath before after never always went came said asked looked").split()


class Failure(Exception):
    pass


class Refused(Failure):
    """An answer that is no 200, with OpenAI's error object."""

    def __init__(self, status, body):
        super().__init__(f"answer {status} {body!r}")
        self.status = status
        self.code = json.loads(body)["error"]["code"]


class Ended(Failure):
    """An error as the last event of a stream."""


def make_job(rng, index, slow):
    """A request that nobody else makes; a slow reader's is large, so that it fills every buffer on its way."""
    body = {
        "model": "fable-13m",
        "prompt": f"Chapter {index}. " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 120))),
        "max_tokens": 400 if slow else rng.randint(8, 64),
        "temperature": rng.choice([0.0, 0.7, 1.0]),
        "seed": rng.randint(0, 2**31),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if slow:
        body.update(logprobs=20, ignore_eos=True)
    elif rng.random() < 0.3:
        body["stop"] = ["the", ","]
    return body


class Stream:
    """One request and what came of it."""

    def __init__(self, port, body):
        self.port, self.body = port, body
        self.text, self.ids, self.finish, self.usage = "", [], None, None
        self.gaps, self.chunks = [], 0
        self.gap_ends = []

    def key(self):
        return self.text, self.ids, self.finish, self.usage["completion_tokens"]

    async def run(self, pause=0.0, leave_after=None):
        """Reads to the end; `pause` seconds between small reads; closes the connection after leave_after chunks."""
        sock = socket.socket()
        sock.setblocking(False)
        if pause:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096 if pause else 1 << 20)
        try:
            data = json.dumps(self.body).encode()
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         b"Connection: close\r\nContent-Length: " + str(len(data)).encode() + b"\r\n\r\n" + data)
            await writer.drain()
            await self._read(reader, pause, leave_after)
        finally:
            writer.close()

    async def _read(self, reader, pause, leave_after):
        buffer, last = b"", None
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise Refused(int(head.split(b" ")[1]), await reader.read())
        while True:
            piece = await reader.read(512 if pause else 65536)
            if not piece:
                raise Failure(f"the stream broke off after {self.chunks} chunks")
            buffer += piece
            # Chunk sizes of the transfer encoding are lines of their own between the events.
            while b"\n\n" in buffer:
                event, buffer = buffer.split(b"\n\n", 1)
                data = event[event.find(b"data: ") + 6:]
                if data.startswith(b"[DONE]"):
                    return
                now = time.monotonic()
                if last is not None:
                    self.gaps.append(now - last)
                    self.gap_ends.append(now)
                last = now
                self._take(json.loads(data))
                if leave_after is not None and self.chunks >= leave_after:
                    return
            if pause:
                await asyncio.sleep(pause)

    def _take(self, event):
        if "error" in event:
            raise Ended(f"error in the stream: {event['error']}")
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            self.chunks += 1
            self.text += choice["text"]
            self.ids += choice.get("token_ids") or []
            self.finish = choice["finish_reason"] or self.finish


class Server:
    def __init__(self, binary, args, models=("models/fable-13m",), **environment):
        command = [binary, "serve", *models, "--port", "0", *args]
        print("soak:", " ".join(command), flush=True)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
        for line in self.process.stdout:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                return
        raise Failure(f"the server ended with {self.process.wait()} before it was ready")

    def resident_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1)) / 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def metric(self, name):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        found = re.search(rf"^{re.escape(name)}{{[^}}]*}} ([0-9.e+-]+)", text, re.M)
        if not found:
            raise Failure(f"/metrics has no {name}")
        return float(found.group(1))


def parser_of(description, seconds, gaps):
    """The arguments of every soak; `gaps` says what --judge-gaps fails on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/cpu/bin/hearth")
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--judge-gaps", action=argparse.BooleanOptionalAction, default=True,
                        help=f"fail where {gaps}; needs CPUs that nothing else uses")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("serve_args", nargs="*", help="more words for `hearth serve`, after --")
    return parser


def run_soak(name, args, soak, models=("models/fable-13m",), **environment):
    """Starts a server, runs soak(server), a coroutine, and ends the server with SIGTERM. Whatever does not hold ends
    the program with 1 and the reason."""
    server = None
    try:
        server = Server(args.binary, args.serve_args, models, **environment)
        asyncio.run(soak(server))
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(timeout=60)
        if code != 0:
            raise Failure(f"the server ended with {code} after SIGTERM")
        print(f"{name}: passed")
    except (Failure, OSError, asyncio.IncompleteReadError) as failure:
        sys.exit(f"{name}: FAILED: {failure}")
    finally:
        if server and server.process.poll() is None:
            server.process.kill()
