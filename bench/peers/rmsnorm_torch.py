#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch's RMSNorm (and the residual sum before it) as rmsnorm_bench times ours: CUDA graphs of 100
calls over rotating inputs, medians of 30. Needs torch with a GPU.

  bench/peers/rmsnorm_torch.py [--ours FILE] [--out FILE]

With --ours, a jsonl file of rmsnorm_bench from the same machine and hour, prints both side by side and
writes our lines with the peer's figures (`peers`: torch, torch_compile) to --out.
"""

import argparse
import json
import statistics

import torch

WIDTHS = [384, 2048, 4096, 8192, 16384]
ROWS = [1, 8, 64, 512, 4096]
CALLS = 100
MEMORY_BYTES = 400 << 20


def eager(x, residual, weight):
    if residual is None:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5)
    residual.add_(x)
    return torch.nn.functional.rms_norm(residual, weight.shape, weight, 1e-5)


def median_us(op, rows, hidden, dtype, with_residual):
    tensor_bytes = rows * hidden * dtype.itemsize
    sets = min(CALLS, max(2, MEMORY_BYTES // (3 * tensor_bytes)))
    x = [torch.randn(rows, hidden, device="cuda", dtype=dtype) for _ in range(sets)]
    residual = [torch.zeros_like(t) if with_residual else None for t in x]
    weight = torch.ones(hidden, device="cuda", dtype=dtype)
    for i in range(3):
        op(x[i % sets], residual[i % sets], weight)
    torch.cuda.synchronize()
    graph, keep = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            keep.append(op(x[i % sets], residual[i % sets], weight))
            keep = keep[-sets:]
    times = []
    for _ in range(33):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / CALLS)
    return statistics.median(times[3:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours")
    parser.add_argument("--out")
    args = parser.parse_args()
    ours = {}
    if args.ours:
        for line in map(json.loads, open(args.ours)):
            ours[line["rows"], line["hidden"], line["act"], line["residual"]] = line
    compiled = torch.compile(eager, dynamic=False)
    torch._dynamo.config.cache_size_limit = 1000
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'rows':>6} {'hidden':>6} {'act':>5} {'residual':>8} {'torch us':>9} {'compiled':>9} {'ours':>9}")
    out = open(args.out, "a") if args.out else None
    for hidden in WIDTHS:
        for rows in ROWS:
            for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
                for with_residual in (True, False):
                    plain = median_us(eager, rows, hidden, dtype, with_residual)
                    fused = median_us(compiled, rows, hidden, dtype, with_residual)
                    line = ours.get((rows, hidden, name, with_residual))
                    print(f"{rows:6} {hidden:6} {name:>5} {with_residual!s:>8} {plain:9.2f} {fused:9.2f} "
                          f"{line['us'] if line else float('nan'):9.2f}", flush=True)
                    if out and line:
                        line["peers"] = {"torch": round(plain, 2), "torch_compile": round(fused, 2)}
                        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
