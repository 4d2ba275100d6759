# SPDX-License-Identifier: Apache-2.0
"""docs/kernels/linear-time.svg, drawn from lines of bench/results: what a linear of Llama-3-8B takes on an H100 against
the tokens of a step, from activations in bf16, for each format of its weights, above what memory and arithmetic allow
for 4 bits. readme_numbers.py calls draw()."""
import math

from readme_picture import STYLE, number, rule, text

LAYERS = {"gate_up": "gate and up, 28672 x 4096", "down": "down, 4096 x 14336", "qkv": "Q, K, V, 6144 x 4096",
          "o": "O, 4096 x 4096"}
TILES = {"128x32", "128x64", "64x64", "128x128", "192x128"}  # of linear_nibble_wide_tile.h
SERIES = (("W4A8 (fireq)", "c1"), ("W4A16 (int4)", "c2"), ("SBVR", "c3"), ("FP8", "c0"), ("BF16", "c4"))


def series_of(line):
    """Which line of the picture it belongs to; None: none."""
    if line["bench"] == "op.linear.lines":
        return None if line.get("rival") == "fp8" else "SBVR"
    rival, _, tile = line.get("rival", "").rpartition(" ")
    if line["bench"] == "op.linear.units":
        return {"fireq": "W4A8 (fireq)", "int4-zero": "W4A16 (int4)"}.get(line["rival"])
    if line["bench"] == "op.linear.wide":
        plain = {"fp8": "FP8", "bf16 cublaslt": "BF16"}.get(line["rival"])
        return plain or {"fireq": "W4A8 (fireq)", "int4 bf16": "W4A16 (int4)"}.get(rival if tile in TILES else "")
    if line["bench"] == "op.linear" and line.get("graph") and line["config"] == "Llama-3-8B" and line["x"] == "bf16":
        return {"fp8": "FP8", "bf16": "BF16"}.get(line["format"])
    return None


def collect(lines):
    """{layer: {series: {tokens: us}}} and {layer: {tokens: floor of W4A8}}: the fastest tile of the newest run."""
    times, floors = {}, {}
    for line in lines:
        series = series_of(line) if "H100" in line["device"] and line.get("layer") in LAYERS else None
        if series is None:
            continue
        points = times.setdefault(line["layer"], {}).setdefault(series, {})
        run = (line["date"][:13], -line["us"])  # by the hour, the rivals of one run
        if line["M"] not in points or points[line["M"]] < run:
            points[line["M"]] = run
        if series == SERIES[0][0]:
            floors.setdefault(line["layer"], {})[line["M"]] = line["floor_us"]
    return {layer: {s: {m: -run[1] for m, run in points.items()} for s, points in of.items()}
            for layer, of in times.items()}, floors


def draw_layer(times, floors, name, x0, y0, width, height):
    out = text(x0, y0 - 14, name + ", us", css="title")
    tokens = sorted({m for points in times.values() for m in points})
    values = [us for points in (*times.values(), floors) for us in points.values()]
    low, high = math.log2(min(values)), math.log2(max(values))
    last = math.log2(tokens[-1])

    def at(m, us):
        return x0 + width * math.log2(m) / last, y0 + height * (1 - (math.log2(us) - low) / (high - low))

    for power in range(math.ceil(low), math.floor(high) + 1):
        y = at(1, 2**power)[1]
        out += rule(x0, y, x0 + width, y, "grid") + text(x0 - 6, y + 4, str(2**power), "end")
    out += rule(x0, y0 + height, x0 + width, y0 + height, "axis")
    for m in tokens:
        if m & (m - 1) == 0 and (int(math.log2(m)) % 2 == 0 or last <= 7):
            out += text(at(m, 1)[0], y0 + height + 17, str(m), "middle")
    out += text(x0 + width / 2, y0 + height + 33, "tokens", "middle")
    path = " ".join(",".join(map(number, at(m, us))) for m, us in sorted(floors.items()))
    out += f'<polyline points="{path}" class="least line floor"/>\n'
    for series, colour in SERIES:
        points = sorted(times.get(series, {}).items())
        path = " ".join(",".join(map(number, at(m, us))) for m, us in points)
        out += f'<polyline points="{path}" class="{colour} line"/>\n'
        for m, us in points:
            x, y = at(m, us)
            out += f'<circle cx="{number(x)}" cy="{number(y)}" r="3" class="{colour} dot"/>\n'
    return out


def draw(lines):
    width, height, left, top = 400, 250, 60, 70
    times, floors = collect(lines)
    out, x = "", left
    for series, colour in SERIES:
        out += f'<rect x="{number(x)}" y="16" width="10" height="10" class="{colour} key"/>\n' + text(x + 15, 25, series)
        x += 34 + 7.5 * len(series)
    out += f'<polyline points="{x},21 {x + 26},21" class="least line floor"/>\n' + text(x + 32, 25, "what 4 bits allow")
    for place, (layer, name) in enumerate(LAYERS.items()):
        if layer in times:
            out += draw_layer(times[layer], floors[layer], name, left + place % 2 * (width + 70),
                              top + place // 2 * (height + 80), width, height)
    label = "Microseconds of Llama-3-8B's linears on an H100 against the tokens of a step, by the format of the weights"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width + left + 90} {2 * height + top + 130}" '
            f'role="img" aria-label="{label}">\n<style>{STYLE}</style>\n{out}</svg>\n')
