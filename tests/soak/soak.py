#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Many streaming clients against one server, for a while. Starts `hearth serve`, lets every request run alone
first, then all at once and again and again: plain readers, slow readers and clients that go away at random.
Fails unless
  - each stream that ended is its single run: the same token ids, text and finish reason;
  - slow readers delay nobody: gaps between the chunks of plain readers are those of the same load without them;
  - resident memory is flat and the number of descriptors constant;
  - at the end no request runs, no KV block is in use, and SIGTERM ends the server with 0.
Only Python's own library. The seed is printed."""
import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time

WORDS = ("the sea a ship old captain morning night wind letter house garden brother silent golden of and to "
         "with upon beneath before after never always went came said asked looked").split()


MEMORY_SECONDS = 300  # before that, buffers are still growing to the size they need


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
    def __init__(self, binary, args, **environment):
        command = [binary, "serve", "models/fable-13m", "--port", "0", *args]
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


async def worker(kind, jobs, alone, server, rng, until, stats):
    """One client after the other of one kind, each with one of its jobs."""
    while time.monotonic() < until:
        index = rng.choice(jobs[kind])
        stream = Stream(server.port, jobs["bodies"][index])
        leave = rng.randint(0, 40) if kind == "leaving" else None
        await stream.run(pause=rng.uniform(0.01, 0.05) if kind == "slow" else 0.0, leave_after=leave)
        if kind == "leaving" and stream.finish is None:
            stats["left"] += 1
            continue
        if stream.usage is None:
            continue  # it left between the last token and the usage
        stats[kind] += 1
        stats["gaps"].extend(stream.gaps if kind == "plain" else [])
        if stream.key() != alone[index].key():
            raise Failure(f"request {index} under load differs from its single run:\n{alone[index].key()}\n{stream.key()}")


async def load(counts, jobs, alone, server, rng, seconds, samples):
    """Runs counts[kind] workers of each kind for a while; returns their numbers."""
    stats = {"plain": 0, "slow": 0, "leaving": 0, "left": 0, "gaps": []}
    until = time.monotonic() + seconds

    async def watch():
        while time.monotonic() < until:
            samples.append((server.resident_mib(), server.descriptors()))
            await asyncio.sleep(min(5.0, seconds / 8))

    tasks = [asyncio.create_task(worker(kind, jobs, alone, server, random.Random(rng.random()), until, stats))
             for kind, count in counts.items() for _ in range(count)]
    tasks.append(asyncio.create_task(watch()))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return stats


def quantile(values, q):
    return statistics.quantiles(values, n=1000)[int(q * 1000) - 1]


async def soak(args, server, rng):
    jobs = {"bodies": [make_job(rng, i, i < 8) for i in range(64)],
            "slow": range(0, 8), "leaving": range(8, 24), "plain": range(24, 64)}
    before = server.descriptors()
    alone = []
    for body in jobs["bodies"]:
        alone.append(Stream(server.port, body))
        await alone[-1].run()
    print(f"soak: {len(alone)} requests ran alone", flush=True)

    # The same load with the slow readers' requests read at once, to compare gaps with.
    control = await load({"plain": 40, "leaving": 16}, jobs | {"plain": range(0, 64)}, alone, server, rng,
                         max(args.seconds / 10, 5), [])
    samples = []
    stats = await load({"plain": 40, "slow": 8, "leaving": 16}, jobs, alone, server, rng, args.seconds, samples)
    print(f"soak: in {args.seconds} s {stats['plain']} plain, {stats['slow']} slow streams equal to their single "
          f"runs, {stats['left']} clients left early; preemptions "
          f"{await server.metric('vllm:num_preemptions_total'):.0f}", flush=True)
    if min(stats["plain"], stats["left"]) == 0:
        raise Failure("not every kind of client came to its end: nothing was proved")

    for _ in range(100):
        if await server.metric("vllm:num_requests_running") == 0 and await server.metric("vllm:kv_cache_usage_perc") == 0:
            break
        await asyncio.sleep(0.1)
    else:
        raise Failure(f"requests running {await server.metric('vllm:num_requests_running')}, "
                      f"KV in use {await server.metric('vllm:kv_cache_usage_perc')} after all clients left")
    await asyncio.sleep(0.5)
    check_gaps(control["gaps"], stats["gaps"], args)
    check_memory(samples, before, server, args)


def check_gaps(control, loaded, args):
    a, b = quantile(control, 0.99), quantile(loaded, 0.99)
    print(f"soak: 99 % of the gaps between a plain reader's chunks under {1000 * b:.1f} ms; without slow readers "
          f"{1000 * a:.1f} ms; longest {1000 * max(loaded):.0f} and {1000 * max(control):.0f} ms", flush=True)
    if not args.judge_gaps:
        print("soak: gaps are not judged (--no-judge-gaps): other work shares this machine's CPUs", flush=True)
    elif b > 2 * a:
        raise Failure("slow readers delay the others")


def check_memory(samples, descriptors_before, server, args):
    warm = samples[len(samples) // 4:]
    first = statistics.mean(r for r, _ in warm[:max(len(warm) // 5, 1)])
    last = statistics.mean(r for r, _ in warm[-max(len(warm) // 5, 1):])
    after = server.descriptors()
    print(f"soak: resident memory {first:.1f} MiB early, {last:.1f} MiB late; descriptors {descriptors_before} before, "
          f"at most {max(d for _, d in samples)}, {after} after", flush=True)
    if args.seconds < MEMORY_SECONDS:
        print(f"soak: memory is not judged: that takes {MEMORY_SECONDS} s", flush=True)
    elif last > first * 1.03 + 4:
        raise Failure("resident memory grows")
    if after > descriptors_before:
        raise Failure("descriptors are left open")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/cpu/bin/hearth")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--judge-gaps", action=argparse.BooleanOptionalAction, default=True,
                        help="fail where slow readers delay others; needs CPUs that nothing else uses")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("serve_args", nargs="*", help="more words for `hearth serve`, after --")
    args = parser.parse_args()
    print(f"soak: seed {args.seed}", flush=True)
    server = None
    try:
        server = Server(args.binary, args.serve_args)
        asyncio.run(soak(args, server, random.Random(args.seed)))
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(timeout=60)
        if code != 0:
            raise Failure(f"the server ended with {code} after SIGTERM")
        print("soak: passed")
    except (Failure, OSError, asyncio.IncompleteReadError) as failure:
        sys.exit(f"soak: FAILED: {failure}")
    finally:
        if server and server.process.poll() is None:
            server.process.kill()


if __name__ == "__main__":
    main()
