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
import asyncio
import random
import statistics
import time

from serving import Failure, Stream, make_job, parser_of, run_soak

MEMORY_SECONDS = 300  # before that, buffers are still growing to the size they need


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
    args = parser_of(__doc__, 600, "slow readers delay the others").parse_args()
    print(f"soak: seed {args.seed}", flush=True)
    run_soak("soak", args, lambda server: soak(args, server, random.Random(args.seed)))


if __name__ == "__main__":
    main()
