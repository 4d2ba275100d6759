#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/fixtures/sampling/golden.json: rows of logits, parameters, and the token that must be drawn.

    python3 tests/golden/make_sampling_golden.py

Needs nothing but Python. This is a second implementation of docs/formats/sampling.md, written from that page
and not from the C++: float32 is emulated by rounding after every operation, masses are Python integers. Each
kept set is also worked out a third way, in float64 with math.exp and the usual definitions of top-k, top-p and
min-p, and must be the same set; logprobs are float64. Floats are stored as the bits of their float32.
"""

import json
import math
import pathlib
import random
import struct

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "sampling" / "golden.json"
INF = float("inf")
FLT_MAX = struct.unpack("<f", struct.pack("<I", 0x7F7FFFFF))[0]


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def from_bits(value):
    return struct.unpack("<f", struct.pack("<I", value & 0xFFFFFFFF))[0]


def f32(value):
    """Rounds a float64 to float32. One +, -, *, / of float32s in float64 and then this is correctly rounded."""
    if math.isinf(value):
        return value
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(INF, value)


def clamp(value):
    return min(max(value, -FLT_MAX), FLT_MAX)


LOG2E, ROUND = from_bits(0x3FB8AA3B), 12582912.0
LN2_HEAD, LN2_TAIL = 0.693359375, f32(-2.12194440e-4)
Q = [f32(c) for c in (4.99999934e-1, 1.66665204e-1, 4.16683908e-2, 8.36874513e-3, 1.38145398e-3)]


def exp_f32(x):
    rounded = f32(f32(x * LOG2E) + ROUND)
    n = f32(rounded - ROUND)
    r = f32(f32(x - f32(n * LN2_HEAD)) - f32(n * LN2_TAIL))
    q = Q[4]
    for c in (Q[3], Q[2], Q[1], Q[0]):
        q = f32(f32(q * r) + c)
    p = f32(f32(f32(q * f32(r * r)) + r) + 1.0)
    return math.ldexp(p, int(n))


def mass(z, z_max, inverse):
    x = max(f32(f32(z - z_max) * inverse), -30.0)
    return round(exp_f32(x) * 2**40)  # Python rounds halves to even


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


# Random123's published vector.
assert philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == [
    0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def adjust(case):
    z = list(case["logits"])
    for token, bias in case["bias"]:
        z[token] = clamp(f32(z[token] + bias)) if z[token] > -INF else -INF
    counts = {t: case["output"].count(t) for t in case["output"]}
    if (case["repetition"], case["presence"], case["frequency"]) != (1.0, 0.0, 0.0):
        for token in set(case["prompt"]) | set(counts):
            v = z[token]
            if v == -INF:
                continue
            v = clamp(f32(v / case["repetition"]) if v > 0 else f32(v * case["repetition"]))
            if token in counts:
                v = f32(v - f32(case["frequency"] * counts[token]))
                v = clamp(f32(v - case["presence"]))
            z[token] = v
    for token in range(len(z)):
        if token in case["banned"] or (case["allowed"] and token not in case["allowed"]):
            z[token] = -INF
    return z


def kept_fixed(case, z):
    order = sorted(range(len(z)), key=lambda t: (-z[t], t))
    inverse = f32(1.0 / case["temperature"])
    masses = [mass(v, z[order[0]], inverse) for v in z]
    kept = [t for t in order if masses[t] >= math.ceil(case["min_p"] * 2**40)]
    if case["top_k"] > 0:
        kept = kept[: case["top_k"]]
    if case["top_p"] < 1:
        total = sum(masses[t] for t in kept)
        goal = -(-(math.ceil(case["top_p"] * 2**40) * total) // 2**40)
        reached, count = 0, 0
        while reached < goal:
            reached += masses[kept[count]]
            count += 1
        kept = kept[:count]
    return kept, masses


def kept_float64(case, z):
    order = sorted(range(len(z)), key=lambda t: (-z[t], t))
    p = {t: math.exp((z[t] - z[order[0]]) / case["temperature"]) for t in order}
    kept = [t for t in order if p[t] >= case["min_p"] * p[order[0]]]
    if case["top_k"] > 0:
        kept = kept[: case["top_k"]]
    if case["top_p"] < 1:
        total, before, result = sum(p[t] for t in kept), 0.0, []
        for t in kept:
            if before >= case["top_p"] * total:
                break
            result.append(t)
            before += p[t]
        kept = result
    return kept


def solve(case):
    logits = case["logits"]
    top = max(logits)
    log_sum = math.log(math.fsum(math.exp(v - top) for v in logits))
    logprobs = [v - top - log_sum for v in logits]
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    z = adjust(case)
    kept = []
    if case["temperature"] < 1e-5:
        token = max(range(len(z)), key=lambda t: (z[t], -t))
    else:
        kept, masses = kept_fixed(case, z)
        heavy = [t for t in kept if masses[t] > 0]
        want = [t for t in kept_float64(case, z) if masses[t] > 0]
        assert heavy == want, (case, heavy, want)
        words = philox((case["position"] & 0xFFFFFFFF, case["position"] >> 32, case["choice"], 0),
                       (case["seed"] & 0xFFFFFFFF, case["seed"] >> 32))
        total = sum(masses[t] for t in kept)
        point = (words[0] << 32 | words[1]) * total >> 64
        for token in sorted(kept):
            if point < masses[token]:
                break
            point -= masses[token]
        kept = len(heavy)
    finite = [None if p == -INF else p for p in logprobs]  # JSON has no infinity
    case |= {"token": token, "kept": kept, "logprob": finite[token], "top": [[t, finite[t]] for t in order[:5]]}


def make_case(rng, index):
    vocab = rng.choice([5, 17, 64, 131, 300])
    width = rng.choice([0.5, 2.0, 5.0])
    case = {
        "logits": [f32(rng.gauss(0, width)) for _ in range(vocab)],
        "temperature": f32(rng.choice([0.0, 0.3, 0.7, 1.0, 1.5])),
        "top_k": rng.choice([0, 0, 1, 3, 20]),
        "top_p": f32(rng.choice([1.0, 0.95, 0.8, 0.3])),
        "min_p": f32(rng.choice([0.0, 0.0, 0.02, 0.2])),
        "repetition": 1.0, "presence": 0.0, "frequency": 0.0,
        "prompt": [], "output": [], "bias": [], "banned": [], "allowed": [],
        "seed": rng.getrandbits(64), "choice": rng.choice([0, 0, 1, 7]), "position": rng.getrandbits(rng.choice([4, 12, 40])),
    }
    if index % 3 == 1:
        case |= {"repetition": f32(rng.choice([1.0, 1.2, 0.8])), "presence": f32(rng.uniform(-2, 2)),
                 "frequency": f32(rng.uniform(-2, 2)), "prompt": rng.choices(range(vocab), k=6),
                 "output": rng.choices(range(vocab), k=9)}
    if index % 4 == 1:
        case["bias"] = [[t, f32(rng.uniform(-10, 10))] for t in rng.sample(range(vocab), 3)]
    if index % 5 == 1:
        case["banned"] = rng.sample(range(vocab), 2)
    if index % 5 == 2:
        case["allowed"] = sorted(rng.sample(range(vocab), max(2, vocab // 2)))
    if index % 7 == 3:  # ties
        case["logits"] = [float(round(v)) for v in case["logits"]]
        case["top_p"] = 1.0 if index % 2 else case["top_p"]
    if index % 6 == 2:
        case["logits"][rng.randrange(vocab)] = -INF
    return case


def main():
    rng = random.Random(2026)
    cases = [make_case(rng, i) for i in range(120)]
    for case in cases:
        solve(case)
        case["logits"] = [bits(v) for v in case["logits"]]
        for field in ("temperature", "top_p", "min_p", "repetition", "presence", "frequency"):
            case[field] = bits(case[field])
        case["bias"] = [[t, bits(b)] for t, b in case["bias"]]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    OUT.write_text('{"made_by":"tests/golden/make_sampling_golden.py","cases":[\n' + lines + "\n]}\n")
    drawn = [c["kept"] for c in cases if c["kept"]]
    print(f"{len(cases)} cases, {len(drawn)} drawn, kept sets of {min(drawn)} to {max(drawn)} tokens")


if __name__ == "__main__":
    main()
