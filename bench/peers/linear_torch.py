#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch's linear layers in BF16 and FP8 beside ours on the shapes of Llama-3-8B, Llama-2-7B and Qwen2.5-7B.
All take turns on one GPU, replay by replay (turns.py): CUDA graphs of as many calls, each behind the one before, over
as many copies of the weights, more than L2 together. Out is BF16, nothing is added to it.

  bench/peers/linear_torch.py --bench HEARTH [--out FILE] [--tokens LIST] [--models LIST] [--layers LIST]
      [--formats bf16,fp8] [--rounds N] [--quick]

Peers of BF16:  cublas       torch.nn.functional.linear
                cublaslt     the same with PyTorch's preferred library cuBLASLt
Peers of FP8:   fp8_row      torch._scaled_mm, a scale for each row of x and of the weight, as ours
                fp8_tensor   torch._scaled_mm, one scale for each matrix: less work than ours
Both FP8 peers are cuBLASLt's (from 12.9 on; CUTLASS's for rows before), accumulate fast and find x in E4M3. Ours comes
twice: `x` e4m3 is the same work, the op in front having
rounded it (as norms and silu_mul do in our models); `x` bf16 has the rounding of x to E4M3 in its time, as in front of
o, which theirs has not. Field `x_rounding` of a line says which ("before", "included").

`ratio` is our time by the best peer's. Needs torch with a GPU, and takes about 3 minutes; --quick (Llama-3-8B with 1,
16, 64 and 4096 tokens) half of one."""

import turns

# Name: hidden, query heads x dim, kv heads x dim, ffn, vocabulary.
MODELS = {"Llama-3-8B": (4096, 4096, 1024, 14336, 128256), "Llama-2-7B": (4096, 4096, 4096, 11008, 32000),
          "Qwen2.5-7B": (3584, 3584, 512, 18944, 152064)}
LAYERS = ("qkv", "o", "gate_up", "down", "lm_head")
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
FORMATS = ("bf16", "fp8")
QUICK = {"models": "Llama-3-8B", "tokens": "1,16,64,4096"}
# Logits are wanted of one row a sequence.
MOST_LOGIT_ROWS = 512


def shapes(models, layers):
    """(model, layer, N, K), each size once."""
    done = set()
    for model in models:
        hidden, q, kv, ffn, vocab = MODELS[model]
        sizes = {"qkv": (q + 2 * kv, hidden), "o": (hidden, q), "gate_up": (2 * ffn, hidden), "down": (hidden, ffn),
                 "lm_head": (vocab, hidden)}
        for layer in layers:
            if sizes[layer] not in done:
                done.add(sizes[layer])
                yield model, layer, *sizes[layer]


def listed(flag, text, known):
    """The words of a list, each among `known`."""
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in known:
            raise turns.Trouble(f"{flag}: '{word}' is unknown; wanted some of {','.join(known)}")
    if not words:
        raise turns.Trouble(f"{flag}: nothing; wanted some of {','.join(known)}")
    return words


def token_counts(text):
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise turns.Trouble(f"--tokens: '{text}' is no list of whole numbers") from error
    if min(counts) < 1 or max(counts) > 1 << 16:
        raise turns.Trouble(f"--tokens: '{text}'; wanted 1 to 65536 each")
    return counts


class Weights:
    """The peers' weights of one shape: as many copies as ours has, made when they are asked for."""

    def __init__(self, torch, n, k):
        self.torch, self.n, self.k = torch, n, k
        self.made = {}

    def copies(self, dtype, sets):
        """[sets, N, K], random."""
        if self.made.get(dtype) is None or len(self.made[dtype]) < sets:
            self.made[dtype] = self.torch.empty(sets, self.n, self.k, device="cuda", dtype=dtype)
            for one in self.made[dtype]:
                one.copy_(self.torch.randn(self.n, self.k, device="cuda", dtype=self.torch.bfloat16))
        return self.made[dtype]


def bf16_peers(torch, weights, tokens, calls, sets):
    """{name: graph}"""
    x = torch.randn(tokens, weights.k, device="cuda", dtype=torch.bfloat16)
    w = weights.copies(torch.bfloat16, sets)

    def call(i):
        return torch.nn.functional.linear(x, w[i])

    peers = {"cublas": turns.try_graph(torch, "cublas", call, calls, sets)}
    usual = torch.backends.cuda.preferred_blas_library()
    try:
        torch.backends.cuda.preferred_blas_library("cublaslt")
        peers["cublaslt"] = turns.try_graph(torch, "cublaslt", call, calls, sets)
    finally:
        torch.backends.cuda.preferred_blas_library(usual)
    return peers


def fp8_peers(torch, weights, tokens, calls, sets):
    """{name: graph}"""
    x = torch.randn(tokens, weights.k, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    w = weights.copies(torch.float8_e4m3fn, sets)

    def scales(*shape):
        return torch.rand(*shape, device="cuda", dtype=torch.float32) * 0.01 + 0.001

    def with_scales(x_scale, w_scale):
        def call(i):
            return torch._scaled_mm(x, w[i].t(), scale_a=x_scale, scale_b=w_scale, out_dtype=torch.bfloat16,
                                    use_fast_accum=True)
        return call

    row = with_scales(scales(tokens, 1), scales(1, weights.n))
    tensor = with_scales(scales(1).squeeze(), scales(1).squeeze())
    return {"fp8_row": turns.try_graph(torch, "fp8_row", row, calls, sets),
            "fp8_tensor": turns.try_graph(torch, "fp8_tensor", tensor, calls, sets)}


def make_ours(ours, formats, tokens, shape):
    """{(format, type of x, tokens): case} of what ours does."""
    model, layer, n, k = shape
    cases = {}
    for m in tokens:
        for form in formats:
            for x in ("bf16",) if form == "bf16" else ("e4m3", "bf16"):
                try:
                    cases[form, x, m] = ours.make("linear", N=n, K=k, M=m, format=form, x=x, config=model, layer=layer)
                except turns.Refused as refused:
                    print(f"left out: {refused}", flush=True)
    return cases


def compare_format(torch, context, form, mine, weights):
    """Ours `mine` ({type of x: case}) and their peers, of one shape and number of tokens."""
    first = next(iter(mine.values()))
    tokens = first.line["M"]
    make_peers = bf16_peers if form == "bf16" else fp8_peers
    graphs = make_peers(torch, weights, tokens, first.calls, first.sets)
    peers = {name: graph for name, graph in graphs.items() if graph}
    rivals = {**{f"x {x}": case for x, case in mine.items()}, **peers}
    us, seen = turns.take_turns(rivals, context.args.rounds, context.clocks)
    for x, case in mine.items():
        line = turns.result_line(case, f"x {x}", us, seen, list(peers))
        if form == "fp8":
            line["x_rounding"] = "included" if x == "bf16" else "before"
        theirs = " ".join(f"{name} {value:9.2f}" for name, value in line["peers"].items())
        print(f"{line['config']:10} {line['layer']:8} {line['N']:6} {line['K']:6} {tokens:5} {form:5} x {x:5} "
              f"{line['us']:9.2f} {line.get('ratio', float('nan')):6.3f}  {theirs}  {turns.clocks_words(line)}",
              flush=True)
        if peers:
            context.report.write(line)


def compare(torch, ours, context, lists):
    models, layers, formats, tokens = lists
    print(f"{'model':10} {'layer':8} {'N':>6} {'K':>6} {'M':>5} {'ours':13} {'us':>9} {'ratio':>6}  peers, us")
    for shape in shapes(models, layers):
        wanted = [m for m in tokens if shape[1] != "lm_head" or m <= MOST_LOGIT_ROWS]
        weights = Weights(torch, *shape[2:])
        cases = make_ours(ours, formats, wanted, shape)
        for m in wanted:
            for form in formats:
                mine = {x: case for (f, x, of), case in cases.items() if (f, of) == (form, m)}
                if mine:
                    compare_format(torch, context, form, mine, weights)
        for case in cases.values():
            case.drop()
        del weights
        torch.cuda.empty_cache()


def main():
    parser = turns.parser_of(__doc__)
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), metavar="LIST", help="(default: %(default)s)")
    parser.add_argument("--models", default=",".join(MODELS), metavar="LIST", help="(default: %(default)s)")
    parser.add_argument("--layers", default=",".join(LAYERS), metavar="LIST", help="(default: %(default)s)")
    parser.add_argument("--formats", default=",".join(FORMATS), metavar="LIST", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=" ".join(f"--{k} {v}" for k, v in QUICK.items()))
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    lists = (listed("--models", args.models, MODELS), listed("--layers", args.layers, LAYERS),
             listed("--formats", args.formats, FORMATS), token_counts(args.tokens))
    torch = turns.need_torch()
    context = turns.Context(torch, args, {"torch": torch.__version__})
    with turns.Ours(args.bench) as ours:
        turns.check_same_gpu(torch, ours)
        print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, rounds {args.rounds}", flush=True)
        compare(torch, ours, context, lists)


if __name__ == "__main__":
    turns.run_as_script(main)
