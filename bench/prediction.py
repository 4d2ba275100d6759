#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `hearth simulate` foretells beside what `hearth serve` does with the same requests.

1. A server gets another load of the same models (another seed): all of it at once, which gives the rate that it can
   serve (saturation), then at half of that rate. The steps of both (--step-log) are the simulator's machine.
2. The load of LOADFILE at 0.7, 1.0 and 1.2 of saturation, on the server and in the simulator: the very same requests.
   Attainment and throughput of both are printed, and by how much they differ. "afterwards" is the simulator on the
   machine that the run itself was: what differs there is the simulator's own doing, the rest the machine's change.

Lengths, targets, KV memory and the limits of steps are the load file's (docs/guides/simulating.md); prompts are random
ids, answers have their length whatever the model says. Times are taken where the client reads. Words after -- are more
options of `hearth serve`. Only Python's own library (3.11)."""
import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib

BOUNDS = {"attainment": 0.05, "throughput": 0.10}  # a difference, and a part of what was measured
KEY = "prediction-admin"
FIT_SEED = 1_000_003
KINDS = ("measured", "simulated", "afterwards")


class Server:
    """`hearth serve` with the models and limits of a load."""

    def __init__(self, args, load, step_log=None):
        command = [args.binary, "serve", "--port", "0", "--no-enable-prefix-caching", "--max-waiting", "100000",
                   "--limits-requests", "100000", "--http-connections", "20000", "--waiting-requests", "10000",
                   "--kv-cache-memory-bytes", f"{int(load['pool_mib'] * 2**20)}",
                   "--max-num-batched-tokens", f"{load.get('step_tokens', 2048)}",
                   "--max-num-seqs", f"{load.get('max_sequences', 256)}", "--block-size", f"{load.get('block_tokens', 16)}"]
        paths = dict(word.split("=", 1) for word in args.model)
        for model in load["model"]:
            name = model["name"]
            command += ["--model", f"{name}={paths.get(name, args.default_model)}", "--model-options",
                        f"{name}: ttft-slo={model.get('ttft_ms', 0) / 1000}, tpot-slo={model.get('tpot_ms', 0) / 1000}, "
                        f"weight={model.get('weight', 1)}"]
        command += ["--step-log", step_log] if step_log else []
        command += args.serve_args
        environment = os.environ | {"HEARTH_ADMIN_KEY": KEY, "HEARTH_LOG_LEVEL": "warn"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found.group(1))
                return
        sys.exit(f"prediction: the server ended with {self.process.wait()} before it was ready")

    async def status(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET /admin/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                     f"Authorization: Bearer {KEY}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if (code := self.process.wait(timeout=60)) != 0:
            sys.exit(f"prediction: the server ended with {code}")


class Request:
    """One of a trace, and what came of it."""

    def __init__(self, row):
        arrival, self.model, inputs, outputs = row.split(",")
        self.arrival, self.inputs, self.outputs = float(arrival), int(inputs), int(outputs)
        self.times = []  # (when, tokens so far)
        self.status = 0

    async def send(self, port, rng, vocabulary):
        ids = [rng.randrange(16, vocabulary) for _ in range(self.inputs)]
        body = json.dumps({"model": self.model, "prompt": ids, "max_tokens": self.outputs, "ignore_eos": True,
                           "temperature": 0, "stream": True, "return_token_ids": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         b"Connection: close\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
            head = await reader.readuntil(b"\r\n\r\n")
            self.status = int(head.split(b" ")[1])
            tokens = 0
            while self.status == 200 and (line := await reader.readline()):
                if not line.startswith(b"data: {"):
                    continue
                now = time.monotonic()
                event = json.loads(line[6:])
                if "error" in event:
                    self.status = 500
                    break
                tokens += sum(len(choice.get("token_ids") or []) for choice in event["choices"])
                if not self.times or tokens > self.times[-1][1]:
                    self.times.append((now, tokens))
        finally:
            writer.close()


async def play(port, requests, vocabulary, seed, at_once=0):
    """Sends each at its time; or all, at_once of them in flight. Returns when that began."""
    rng = random.Random(seed)
    begin = time.monotonic() + 0.2
    places = asyncio.Semaphore(at_once or 10**6)

    async def one(request):
        async with places:
            if not at_once:
                await asyncio.sleep(begin + request.arrival - time.monotonic())
            await request.send(port, rng, vocabulary)

    await asyncio.gather(*(one(request) for request in requests))
    return begin


def measured(load, requests, begin):
    """As `hearth simulate --json` counts them."""
    models = {m["name"]: {"requests": 0, "attained": 0, "first_on_time": 0, "pace_kept": 0, "ttft": [], "tokens": 0}
              for m in load["model"]}
    slos = {m["name"]: (m.get("ttft_ms", 0) / 1000, m.get("tpot_ms", 0) / 1000) for m in load["model"]}
    for r in requests:
        m, (ttft, tpot) = models[r.model], slos[r.model]
        before = [count for at, count in r.times if at < begin + load["seconds"]]
        m["tokens"] += before[-1] if before else 0
        if r.arrival < load.get("warmup_seconds", 0):
            continue
        m["requests"] += 1
        if r.status != 200 or not r.times or r.times[-1][1] != r.outputs:
            continue
        first, last = r.times[0][0] - begin - r.arrival, r.times[-1][0] - r.times[0][0]
        on_time, pace = not ttft or first <= ttft, not tpot or last <= (r.outputs - r.times[0][1]) * tpot
        m["first_on_time"] += on_time
        m["pace_kept"] += pace
        m["attained"] += on_time and pace
        m["ttft"].append(first)
    for m in models.values():
        ttft = sorted(m.pop("ttft"))
        m["ttft_p50_s"], m["ttft_p99_s"] = (ttft[int(q * (len(ttft) - 1))] if ttft else 0 for q in (0.5, 0.99))
        m["tokens_per_s"] = m.pop("tokens") / load["seconds"]
    requests = sum(m["requests"] for m in models.values())
    return {"attainment": sum(m["attained"] for m in models.values()) / max(1, requests),
            "tokens_per_s": sum(m["tokens_per_s"] for m in models.values()),
            "models": [{"model": name} | m for name, m in models.items()]}


class Simulator:
    """`hearth simulate` over a load file that the server's memory was written into."""

    def __init__(self, args, folder, load):
        self.args, self.folder, self.load = args, folder, load
        self.file = os.path.join(folder, "load.toml")
        with open(self.file, "w") as file:
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in load.items() if key != "model")
            for model in load["model"]:
                file.write("[[model]]\n")
                file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in model.items())

    def call(self, *words):
        return subprocess.run([self.args.binary, "simulate", self.file, *words], check=True, text=True,
                              stdout=subprocess.PIPE).stdout

    def requests(self, rate, seed):
        path = os.path.join(self.folder, "requests.csv")
        self.call("--rate", str(rate), "--seed", str(seed), "--requests", path)
        with open(path) as file:
            return [Request(line.strip()) for line in list(file)[1:]]

    def outcome(self, rate, seed, steps):
        path = os.path.join(self.folder, "outcome.json")
        self.call("--rate", str(rate), "--seed", str(seed), "--fit", steps, "--json", path, "--policy",
                  self.args.policy)
        with open(path) as file:
            return json.load(file)


def absolute(load, path):
    """Files beside the load, wherever it is written to."""
    for model in load["model"]:
        for key in ("lengths", "trace"):
            if key in model:
                model[key] = os.path.join(os.path.dirname(os.path.abspath(path)), model[key])


async def take_memory(server, load):
    """The server's own KV memory into the load: what a token takes, how large slabs are."""
    status = await server.status()
    pool = status["kv_pools"][0]
    load["pool_mib"] = pool["bytes"] / 2**20
    load["slab_mib"] = pool["bytes"] / pool["slabs"]["all"] / 2**20
    for model in load["model"]:
        kv = next(m["kv"] for m in status["models"] if m["model"] == model["name"])
        model["kv_token_bytes"] = kv["block_bytes"] // kv["block_tokens"]


async def calibrate(server, simulator, args):
    """The rate that the server can serve; its steps are in the log."""
    load = simulator.load
    rate = load.get("rate", 1)
    requests = simulator.requests(rate, FIT_SEED)
    places = 2 * load.get("max_sequences", 256) * len(load["model"])
    enough = max(3 * places, 200)
    requests = simulator.requests(rate * max(1, enough / max(1, len(requests))), FIT_SEED)
    begin = await play(server.port, requests, args.vocabulary, FIT_SEED, places) - 0.2
    ends = sorted(r.times[-1][0] for r in requests if r.times)
    # While all places are taken: from when the first answers have ended to when nobody waits any more.
    low, high = len(ends) // 10, max(len(ends) - places, len(ends) // 2)
    saturation = (high - low) / (ends[high] - ends[low])
    print(f"saturation: {saturation:.2f} requests/s ({len(requests)} requests in {ends[-1] - begin:.1f} s)", flush=True)
    await play(server.port, simulator.requests(0.5 * saturation, FIT_SEED + 1), args.vocabulary, FIT_SEED)
    return saturation


async def compare(args, load, folder):
    steps = os.path.join(folder, "steps.jsonl")
    server = Server(args, load, steps)
    try:
        await take_memory(server, load)
        simulator = Simulator(args, folder, load)
        saturation = args.saturation or await calibrate(server, simulator, args)
    finally:
        server.stop()
    print(subprocess.run([args.binary, "simulate", "--fit", steps], check=True, text=True,
                         stdout=subprocess.PIPE).stdout, flush=True)
    rows = []
    for part in args.parts:
        rate, seed, own = part * saturation, load.get("seed", 1), os.path.join(folder, f"steps-{part:g}.jsonl")
        requests = simulator.requests(rate, seed)
        server = Server(args, load, own)
        try:
            await play(server.port, simulator.requests(0.5 * saturation, FIT_SEED + 2)[:50], args.vocabulary, 1)  # warm
            begin = await play(server.port, requests, args.vocabulary, 2)
        finally:
            server.stop()
        rows.append({"part": part, "rate": rate, "measured": measured(load, requests, begin),
                     "simulated": simulator.outcome(rate, seed, steps), "afterwards": simulator.outcome(rate, seed, own)})
        print(f"{part:g} of saturation: "
              + ", ".join(f"{kind} {rows[-1][kind]['attainment']:.3f}" for kind in KINDS), flush=True)
    return rows


def report(rows):
    """A table; whether all is within the bounds."""
    holds = True
    print("\n| of saturation | requests/s | | attained | difference | tokens/s | difference |\n"
          "|---:|---:|---|---:|---:|---:|---:|")
    for row in rows:
        real = row["measured"]
        print(f"| {row['part']:g} | {row['rate']:.2f} | measured | {real['attainment']:.3f} | "
              f"| {real['tokens_per_s']:.1f} | |")
        for kind in KINDS[1:]:
            points = row[kind]["attainment"] - real["attainment"]
            part = row[kind]["tokens_per_s"] / max(real["tokens_per_s"], 1e-9) - 1
            if kind == "simulated":
                holds &= abs(points) <= BOUNDS["attainment"] and abs(part) <= BOUNDS["throughput"]
            print(f"| {row['part']:g} | {row['rate']:.2f} | {kind} | {row[kind]['attainment']:.3f} "
                  f"| {100 * points:+.1f} points | {row[kind]['tokens_per_s']:.1f} | {100 * part:+.1f} % |")
    print("\n| of saturation | model | | requests | first on time | pace kept | TTFT p50 s | p99 s | tokens/s |\n"
          "|---:|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        for name in [m["model"] for m in row["measured"]["models"]]:
            for kind in KINDS:
                m = next(m for m in row[kind]["models"] if m["model"] == name)
                count = max(1, m["requests"])
                print(f"| {row['part']:g} | {name} | {kind} | {m['requests']} | {m['first_on_time'] / count:.3f} "
                      f"| {m['pace_kept'] / count:.3f} | {m['ttft_p50_s']:.3f} | {m['ttft_p99_s']:.3f} "
                      f"| {m['tokens_per_s']:.1f} |")
    print(f"\nbounds: {100 * BOUNDS['attainment']:g} points, {100 * BOUNDS['throughput']:g} %: "
          f"{'kept' if holds else 'NOT kept'}")
    return holds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", default="bench/loads/two-small-models.toml", metavar="LOADFILE")
    parser.add_argument("--binary", default="build/cpu/bin/hearth")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH", help="a model of the load; repeat")
    parser.add_argument("--default-model", default="models/fable-13m", metavar="PATH", help="of those not named")
    parser.add_argument("--vocabulary", type=int, default=8192, help="prompts are ids below it")
    parser.add_argument("--policy", default="slo", help="the simulator's, as --schedule is the server's")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.7, 1.0, 1.2], help="of saturation")
    parser.add_argument("--saturation", type=float, help="requests/s, instead of measuring it")
    parser.add_argument("--seconds", type=float, help="of each run; instead of the load file's")
    parser.add_argument("--out", metavar="FILE", help="all numbers, as JSON")
    parser.add_argument("--keep", metavar="FOLDER", help="where the load, the requests and the steps stay")
    parser.add_argument("serve_args", nargs="*", help="after --: more options of `hearth serve`")
    args = parser.parse_args()
    with open(args.load, "rb") as file:
        load = tomllib.load(file)
    absolute(load, args.load)
    if args.seconds:
        load["seconds"] = args.seconds
    with tempfile.TemporaryDirectory() as folder:
        if args.keep:
            os.makedirs(args.keep, exist_ok=True)
        rows = asyncio.run(compare(args, load, args.keep or folder))
    if args.out:
        with open(args.out, "w") as file:
            json.dump(rows, file, indent=1)
    sys.exit(0 if report(rows) else 1)


if __name__ == "__main__":
    main()
