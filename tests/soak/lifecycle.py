#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Models that come and go under load. Starts `hearth serve` with one model that stays and an admin key; then loads and
unloads others, of several KV formats, while clients read, read slowly and leave at random.
Fails unless
  - every request ends with a result or a clear error: 200 and the very tokens of its single run, 404 or 503 where its
    model was not there, an error event where its model was unloaded by force;
  - loads that cannot succeed (no such folder, a cut file) fail as what they are;
  - whenever all stands still, no KV block is held, the pool's books balance and the descriptors are as many as before;
  - resident memory, taken at these moments after a warm-up, grows by less than 1 MB in 10 minutes;
  - gaps between tokens of the model that stays are no more than 50 ms longer while another one loads.
Only Python's own library. The seed is printed."""
import asyncio
import bisect
import json
import os
import random
import shutil
import statistics
import tempfile
import time

from serving import Ended, Failure, Refused, Stream, make_job, parser_of, run_soak

KEY = "soak-admin"
FORMATS = {"guest-f32": "f32", "guest-bf16": "bf16", "guest-fp8": "fp8", "guest-int4": "int4"}
STAYS = "fable-13m"
SLOPE_SECONDS = 600        # shorter runs print the slope and do not judge it
GAP_MS = 50
MB_PER_10_MIN = 1.0


class Admin:
    """The admin API of one server."""

    def __init__(self, port):
        self.port = port

    async def call(self, method, path, body=None):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode() if body is not None else b""
        writer.write(f"{method} /admin/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                     f"Authorization: Bearer {KEY}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = await reader.read()
        writer.close()
        head, _, text = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), json.loads(text)

    async def post(self, path, wanted, **body):
        status, answer = await self.call("POST", path, body)
        if status not in wanted:
            raise Failure(f"admin {path} {body}: {status} {answer}; wanted one of {wanted}")
        return status, answer

    async def status(self):
        return (await self.call("GET", "status"))[1]


class Run:
    """What the workers and the operator share."""

    def __init__(self, args, server, rng):
        self.args, self.server, self.rng = args, server, rng
        self.admin = Admin(server.port)
        self.jobs = [make_job(rng, i, i < 6) for i in range(24)]
        for body in self.jobs:
            body["max_tokens"] = min(body["max_tokens"], 100)
        self.alone = {}           # (format, job) -> key of the single run
        self.forced = {}          # model -> when it was last unloaded by force
        self.loads = []           # when each began and ended
        self.paused = asyncio.Event()
        self.counts = dict.fromkeys(["done", "left", "404", "503", "ended", "load", "unload", "force", "cancelled",
                                     "limit", "sleep", "failed load"], 0)
        self.gaps = []            # between tokens of the model that stays: begin and end

    def body(self, job, model):
        return self.jobs[job] | {"model": model}


async def single_runs(run):
    """Every job alone, in every format: what it must say under load."""
    for model, kv_format in [(STAYS, None), *FORMATS.items()]:
        if kv_format:
            await run.admin.post("load", [200], wait=True, model="models/fable-13m", name=model,
                                 kv_cache_dtype=kv_format)
        for job in range(len(run.jobs)):
            stream = Stream(run.server.port, run.body(job, model))
            await stream.run()
            run.alone[model, job] = stream.key()
        if kv_format:
            await run.admin.post("unload", [200], model=model, wait=True)


async def client(run, rng, until):
    """One request after the other, of any model and kind."""
    while time.monotonic() < until and not run.paused.is_set():
        model = rng.choice([STAYS, STAYS, *FORMATS])
        job = rng.randrange(len(run.jobs))
        kinds = ["plain", "plain", "plain", "leaving", "slow"] if job < 6 else ["plain", "leaving"]
        kind = rng.choice(kinds)
        stream = Stream(run.server.port, run.body(job, model))
        began = time.monotonic()
        try:
            await asyncio.wait_for(stream.run(pause=rng.uniform(0.002, 0.01) if kind == "slow" else 0.0,
                                              leave_after=rng.randint(0, 40) if kind == "leaving" else None), 120)
        except Refused as refused:
            if model == STAYS or (refused.status, refused.code) not in [(404, "model_not_found"), (404, "not_found"),
                                                                        (503, "loading"), (503, "asleep"),
                                                                        (503, "unavailable"), (503, "cancelled")]:
                raise
            run.counts[str(refused.status)] += 1
            await asyncio.sleep(0.05)
            continue
        except Ended:
            if run.forced.get(model, 0) < began:
                raise
            run.counts["ended"] += 1
            continue
        except TimeoutError:
            raise Failure(f"a {kind} request of {model} got no end within 120 s") from None
        if stream.finish is None or stream.usage is None:
            run.counts["left"] += 1
            continue
        run.counts["done"] += 1
        if stream.key() != run.alone[model, job]:
            raise Failure(f"job {job} of {model} differs from its single run:\n{run.alone[model, job]}\n{stream.key()}")
        if model == STAYS and kind == "plain":
            run.gaps.extend((end - gap, end) for gap, end in zip(stream.gaps, stream.gap_ends))


async def operator(run, rng, cut, until):
    """Loads, unloads, loads that are called off, loads that fail."""
    there = set()
    while time.monotonic() < until and not run.paused.is_set():
        model = rng.choice(list(FORMATS))
        load = {"model": "models/fable-13m", "name": model, "kv_cache_dtype": FORMATS[model]}
        what = rng.random()
        if what < 0.08:
            await run.admin.post("load", [404], model="/nowhere", name="bad", wait=True)
            await run.admin.post("load", [422], model=cut, name="bad", wait=True)
            await run.admin.post("unload", [200], model="bad", wait=True)
            run.counts["failed load"] += 2
        elif what < 0.16 and there:
            # 400: it is pinned.
            sleeper = rng.choice(sorted(there))
            await run.admin.post("sleep", [200, 400], model=sleeper, wait=True)
            await run.admin.post("wake", [200], model=sleeper, wait=True)
            run.counts["sleep"] += 1
        elif what < 0.3:
            limits = {"kv_guarantee_bytes": rng.choice([0, 0, 1 << 20]),
                      "kv_cap_bytes": rng.choice([0, 8 << 20, 16 << 20])}
            # 409: what runs needs more than that.
            await run.admin.post("limit", [200, 409], model=rng.choice([STAYS, *sorted(there)]), **limits)
            await run.admin.post("pin", [200], model=rng.choice([STAYS, *sorted(there)]), pinned=rng.random() < 0.5)
            run.counts["limit"] += 1
        elif model in there:
            force = rng.random() < 0.4
            if force:
                run.forced[model] = time.monotonic()
            await run.admin.post("unload", [200], model=model, force=force, wait=True)
            run.forced[model] = time.monotonic() if force else run.forced.get(model, 0)
            there.discard(model)
            run.counts["force" if force else "unload"] += 1
        elif what < 0.42:
            await run.admin.post("load", [200, 202], **load)
            await run.admin.post("unload", [200, 202], model=model, wait=True)
            run.forced[model] = time.monotonic()
            run.counts["cancelled"] += 1
        else:
            began = time.monotonic()
            await run.admin.post("load", [200], wait=True, **load)
            run.loads.append((began, time.monotonic()))
            there.add(model)
            run.counts["load"] += 1
        await asyncio.sleep(rng.uniform(0.05, 1.0))
    return there


def check_books(status):
    for pool in status["kv_pools"]:
        slabs = pool["slabs"]
        if slabs["empty"] + sum(f["slabs"] for f in slabs["formats"]) != slabs["all"]:
            raise Failure(f"slabs do not add up: {pool}")
        if pool["live_bytes"] + pool["cached_bytes"] + pool["waste_bytes"] > pool["bytes"]:
            raise Failure(f"more bytes than the pool has: {pool}")
    names = [name for m in status["models"] for name in [m["model"], *m["aliases"]]]
    if len(set(names)) != len(names):
        raise Failure(f"two models share a name: {names}")


async def stand_still(run, there):
    """Nothing runs and only the model that stays is there: the moment to look. Returns resident MiB, descriptors."""
    for model in there:
        await run.admin.post("unload", [200], model=model, wait=True)
    await run.admin.post("limit", [200], model=STAYS)
    for _ in range(100):
        status = await run.admin.status()
        if all(m["running"] + m["waiting"] + m["kv"]["held_bytes"] == 0 for m in status["models"]) and all(
                pool["live_bytes"] == 0 for pool in status["kv_pools"]):
            break
        await asyncio.sleep(0.1)
    else:
        raise Failure(f"requests or KV blocks are left: {status}")
    check_books(status)
    if [m["model"] for m in status["models"]] != [STAYS]:
        raise Failure(f"models are left: {status}")
    await asyncio.sleep(0.5)
    return run.server.resident_mib(), run.server.descriptors()


async def soak(args, server, rng, cut):
    run = Run(args, server, rng)
    await single_runs(run)
    print(f"lifecycle: {len(run.alone)} requests ran alone", flush=True)
    samples = []
    begin = time.monotonic()
    end = begin + args.seconds
    beat = min(30.0, args.seconds / 3)
    while time.monotonic() < end:
        run.paused.clear()
        until = min(time.monotonic() + beat, end)
        work = [asyncio.create_task(client(run, random.Random(rng.random()), until)) for _ in range(args.clients)]
        boss = asyncio.create_task(operator(run, random.Random(rng.random()), cut, until))
        try:
            await asyncio.gather(boss, *work)
        finally:
            for task in [boss, *work]:
                task.cancel()
        resident, descriptors = await stand_still(run, boss.result())
        samples.append((time.monotonic() - begin, resident, descriptors))
        if args.verbose:
            print(f"lifecycle: {samples[-1][0]:6.0f} s {resident:.2f} MiB {descriptors} descriptors {run.counts}",
                  flush=True)
    print(f"lifecycle: in {args.seconds:.0f} s {run.counts}", flush=True)
    for what in ["done", "left", "load"]:
        if run.counts[what] == 0:
            raise Failure(f"nothing was proved: no '{what}'")
    check_gaps(run.gaps, run.loads, args)
    check_memory(samples, args)


def check_gaps(all_gaps, loads, args):
    gaps = {"calm": [], "loading": []}
    begins = [begin for begin, _ in loads]
    for begin, end in all_gaps:
        before = bisect.bisect_left(begins, end) - 1  # the last load that began before the gap's end
        beside = before >= 0 and loads[before][1] > begin
        gaps["loading" if beside else "calm"].append(end - begin)
    if min(len(gaps["calm"]), len(gaps["loading"])) < 100:
        print(f"lifecycle: {len(gaps['calm'])} calm gaps and {len(gaps['loading'])} beside a load: too few to judge")
        return
    worst = {kind: sorted(values)[-max(len(values) // 1000, 1)] * 1000 for kind, values in gaps.items()}
    print(f"lifecycle: gaps between tokens of {STAYS}, median and 99.9 %: {statistics.median(gaps['calm']) * 1000:.1f} "
          f"and {worst['calm']:.1f} ms, beside a load {statistics.median(gaps['loading']) * 1000:.1f} and "
          f"{worst['loading']:.1f} ms; longest {max(gaps['calm']) * 1000:.1f} and {max(gaps['loading']) * 1000:.1f} ms",
          flush=True)
    if not args.judge_gaps:
        print("lifecycle: gaps are not judged (--no-judge-gaps): other work shares this machine's CPUs", flush=True)
    elif worst["loading"] > worst["calm"] + GAP_MS:
        raise Failure(f"a load makes gaps more than {GAP_MS} ms longer")


def check_memory(samples, args):
    descriptors = {d for _, _, d in samples}
    warm = [s for s in samples if s[0] > args.seconds / 3]
    slope = 0.0
    if len(warm) > 2:
        times, sizes = [s[0] for s in warm], [s[1] for s in warm]
        slope = statistics.linear_regression(times, sizes).slope * 600 * 1.048576
    print(f"lifecycle: resident memory {samples[0][1]:.1f} MiB at first, {samples[-1][1]:.1f} MiB at last, "
          f"{slope:+.2f} MB in 10 minutes after the warm-up; descriptors {sorted(descriptors)}", flush=True)
    if len(descriptors) > 1:
        raise Failure("descriptors are not constant")
    if args.seconds < SLOPE_SECONDS:
        print(f"lifecycle: the slope is not judged: that takes {SLOPE_SECONDS} s", flush=True)
    elif slope > MB_PER_10_MIN:
        raise Failure("resident memory grows")


def main():
    parser = parser_of(__doc__, 1800, "a load delays others")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--verbose", action="store_true", help="a line for every time that all stands still")
    args = parser.parse_args()
    print(f"lifecycle: seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cut = os.path.join(folder, "cut")
        shutil.copytree("models/fable-13m", cut)
        weights = os.path.join(cut, "model.safetensors")
        os.truncate(weights, os.path.getsize(weights) // 2)
        run_soak("lifecycle", args, lambda server: soak(args, server, random.Random(args.seed), cut),
                 HEARTH_ADMIN_KEY=KEY, HEARTH_LOG_LEVEL="off")


if __name__ == "__main__":
    main()
