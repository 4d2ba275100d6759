#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch's RMSNorm (and the residual sum before it), as it is and compiled, beside ours. All take turns on one
GPU, replay by replay (turns.py): CUDA graphs of as many calls over as many sets of inputs.

  bench/peers/rmsnorm_torch.py --bench HEARTH [--out FILE] [--rounds N]

Writes our lines with the peers' figures (`peers`: torch, torch_compile, in microseconds) and `ratio`, our time by the
best peer's, to --out. Needs torch with a GPU, and takes about 3 minutes, most of them PyTorch's compiler's."""

import turns

WIDTHS = {"fable-13m": 384, "Llama-3-1B": 2048, "Llama-3-8B": 4096, "Llama-3-70B": 8192, "16k": 16384}
ROWS = [1, 8, 64, 512, 4096]


def eager_of(torch):
    def eager(x, residual, weight):
        if residual is None:
            return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5)
        residual.add_(x)
        return torch.nn.functional.rms_norm(residual, weight.shape, weight, 1e-5)

    return eager


def make_peers(torch, ops, case, dtype):
    """{name: graph}"""
    rows, hidden = case.line["rows"], case.line["hidden"]
    x = torch.randn(case.sets, rows, hidden, device="cuda", dtype=dtype)
    residual = torch.zeros_like(x) if case.line["residual"] else None
    weight = torch.ones(hidden, device="cuda", dtype=dtype)
    graphs = {}
    for name, op in ops.items():
        def call(i, op=op):
            return op(x[i], None if residual is None else residual[i], weight)

        graph = turns.try_graph(torch, name, call, case.calls, case.sets, outs=case.sets)
        if graph:
            graphs[name] = graph
    return graphs


def compare(torch, ours, context, ops, dtype):
    for config, hidden in WIDTHS.items():
        for rows in ROWS:
            for residual in ("yes", "no"):
                case = ours.make("rmsnorm", rows=rows, hidden=hidden, residual=residual, config=config)
                context.compare(case, make_peers(torch, ops, case, dtype), ops,
                                f"{rows:6} {hidden:6} {ours.about['dtype']:>5} {residual:>8}")


def main():
    args = turns.parser_of(__doc__).parse_args()
    torch = turns.need_torch()
    context = turns.Context(torch, args, {"torch": torch.__version__})
    eager = eager_of(torch)
    torch._dynamo.config.cache_size_limit = 1000
    ops = {"torch": eager, "torch_compile": torch.compile(eager, dynamic=False)}
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    print(f"{'rows':>6} {'hidden':>6} {'act':>5} {'residual':>8} {'torch us':>9} {'compiled':>9} {'ours':>9} "
          f"{'ratio':>6}")
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        with turns.Ours(args.bench, dtype=name) as ours:
            turns.check_same_gpu(torch, ours)
            compare(torch, ours, context, ops, dtype)


if __name__ == "__main__":
    turns.run_as_script(main)
