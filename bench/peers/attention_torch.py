#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch's attention in BF16 (cuDNN and FlashAttention-2, by scaled_dot_product_attention) beside ours. All take
turns on one GPU, replay by replay (turns.py): CUDA graphs of as many calls over as many sets of keys and values.

  bench/peers/attention_torch.py --bench HEARTH [--out FILE] [--rounds N]

Prompts are causal; decode is one query a sequence over a whole, contiguous cache, where ours reads pages whose layers
lie side by side. Writes our lines with the peers' figures (`peers`: cudnn, flash, in microseconds) and `ratio`, our
time by the best peer's, to --out. Needs torch with a GPU, and takes half a minute."""

import turns

# Prompts and decode steps: batch, length, heads, kv heads, head dim.
PREFILL = [(1, 1024, 32, 32, 128), (4, 1024, 32, 32, 128), (16, 1024, 32, 32, 128), (1, 4096, 32, 32, 128),
           (1, 16384, 32, 32, 128)]
DECODE = [(32, 1024, 32, 8, 128), (32, 4096, 32, 8, 128)]
PEERS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION"}


def make_peers(torch, decode, shape, case):
    """{name: graph}"""
    batch, length, heads, kv_heads, dim = shape
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pylint: disable=import-outside-toplevel

    def random(n, tokens):
        return torch.randn(batch, tokens, n, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    q = random(heads, 1 if decode else length)
    cache = [(random(kv_heads, length), random(kv_heads, length)) for _ in range(case.sets)]

    def call(i):
        k, v = cache[i]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=not decode,
                                                                enable_gqa=heads != kv_heads)

    graphs = {}
    for name, backend in PEERS.items():
        with sdpa_kernel(getattr(SDPBackend, backend)):
            graph = turns.try_graph(torch, name, call, case.calls, case.sets)
        if graph:
            graphs[name] = graph
    return graphs


def compare(torch, ours, context):
    print(f"{'':8} {'batch':>5} {'length':>6} {'heads':>6} {'cudnn us':>9} {'flash us':>9} {'ours us':>9} {'ratio':>6}")
    for name, shapes in (("prefill", PREFILL), ("decode", DECODE)):
        for shape in shapes:
            batch, length, heads, kv_heads, dim = shape
            case = ours.make("attention", kv="bf16", batch=batch, heads=heads, kv_heads=kv_heads, head_dim=dim,
                             **{"context" if name == "decode" else "length": length})
            context.compare(case, make_peers(torch, name == "decode", shape, case), PEERS,
                            f"{name:8} {batch:5} {length:6} {heads:3}/{kv_heads:<2}")


def main():
    args = turns.parser_of(__doc__).parse_args()
    torch = turns.need_torch()
    versions = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    context = turns.Context(torch, args, versions)
    with turns.Ours(args.bench) as ours:
        turns.check_same_gpu(torch, ours)
        print(f"{torch.cuda.get_device_name(0)}, torch {versions['torch']}, cuDNN {versions['cudnn']}")
        compare(torch, ours, context)


if __name__ == "__main__":
    turns.run_as_script(main)
