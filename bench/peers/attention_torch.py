#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch's attention in BF16 (cuDNN and FlashAttention-2, by scaled_dot_product_attention) on the shapes of
attention_sm90_bench, which it starts before and after each of them, so that both see the same clocks. Needs torch with
a GPU, and takes half a minute.

  bench/peers/attention_torch.py --bench PROGRAM [--out FILE]

Prompts are causal, a CUDA graph of calls over rotating inputs; decode is one query a sequence over a whole, contiguous
cache, where ours reads pages. Writes our lines with the peers' figures (`peers`: cudnn, flash, in microseconds) and
`ratio`, our time by the best peer's, to --out.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Prompts and decode steps: batch, length, heads, kv heads, head dim.
PREFILL = [(1, 1024, 32, 32, 128), (4, 1024, 32, 32, 128), (16, 1024, 32, 32, 128), (1, 4096, 32, 32, 128),
           (1, 16384, 32, 32, 128)]
DECODE = [(32, 1024, 32, 8, 128), (32, 4096, 32, 8, 128)]
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
MEMORY_BYTES = 400 << 20
ROUNDS = 10


def ours(program, only, shape):
    """The line of one run, of the layout with a tensor for each layer."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "lines.jsonl")
        subprocess.run([program, "--only", only, "--shape", "x".join(map(str, shape[:4])), "--out", path], check=True,
                       stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in open(path)]
    return next(x for x in lines if x["layout"] == "layers" and x["head_dim"] == shape[4])


def median_us(backend, decode, batch, length, heads, kv_heads, dim):
    layer_bytes = batch * length * kv_heads * dim * 4
    sets = max(2, min(32, MEMORY_BYTES // layer_bytes + 1))
    queries = 1 if decode else length

    def random(n, tokens):
        return torch.randn(batch, tokens, n, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    q = random(heads, queries)
    cache = [(random(kv_heads, length), random(kv_heads, length)) for _ in range(sets)]

    def call(i):
        k, v = cache[i % sets]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=not decode,
                                                                enable_gqa=heads != kv_heads)

    with sdpa_kernel(backend), torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call(0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(sets):
                call(i)
        times = []
        for _ in range(ROUNDS + 2):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(1e3 * begin.elapsed_time(end) / sets)
    return statistics.median(times[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--out")
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print(f"{'':8} {'batch':>5} {'length':>6} {'heads':>6} {'cudnn us':>9} {'flash us':>9} {'ours us':>16} {'ratio':>6}")
    out = open(args.out, "a") if args.out else None
    for only, shapes in (("prefill", PREFILL), ("decode", DECODE)):
        for shape in shapes:
            batch, length, heads, kv_heads, _ = shape
            before = ours(args.bench, only, shape)
            peers = {}
            for name, backend in BACKENDS.items():
                try:
                    peers[name] = round(median_us(backend, only == "decode", *shape), 2)
                except RuntimeError as error:
                    print(f"{name}: {str(error).splitlines()[0]}")
                torch.cuda.empty_cache()
            after = ours(args.bench, only, shape)
            us = (before["us"] + after["us"]) / 2
            ratio = us / min(peers.values()) if peers else float("nan")
            print(f"{only:8} {batch:5} {length:6} {heads:3}/{kv_heads:<2} {peers.get('cudnn', float('nan')):9.1f} "
                  f"{peers.get('flash', float('nan')):9.1f} {before['us']:8.1f}{after['us']:8.1f} {ratio:6.2f}",
                  flush=True)
            if out and peers:
                after["peers"], after["ratio"] = peers, round(ratio, 3)
                out.write(json.dumps(after) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
