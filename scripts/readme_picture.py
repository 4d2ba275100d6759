# SPDX-License-Identifier: Apache-2.0
"""The README's picture, drawn from lines of bench/results: decode of Llama-3-8B's shapes against the batch, with what
memory allows, and prefill attention beside cuDNN and FlashAttention-2. One SVG without a background whose colours suit
light and dark pages; where a viewer tells which it is, they follow it. readme_numbers.py calls draw()."""
import math

WIDTH, HEIGHT = 900, 372
# The first colours are legible on both; a viewer that tells the page's scheme gets its own.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #768390 }
.title { font-size: 14px; font-weight: 600 }
.grid { stroke: #8c959f; stroke-opacity: .3 }
.axis { stroke: #8c959f }
.c0 { color: #2f81f7 } .c1 { color: #d9730d } .c2 { color: #2da44e } .c3 { color: #986ee2 } .c4 { color: #c64a8a }
.other { color: #a3abb4 } .least { color: #6e7781 }
.line { stroke: currentColor; fill: none; stroke-width: 2.5 } .floor { stroke-dasharray: 4 4; stroke-width: 1.5 }
.dot, .bar, .key { fill: currentColor }
@media (prefers-color-scheme: light) { text { fill: #57606a } .title { fill: #24292f } .least { color: #57606a } }
@media (prefers-color-scheme: dark) { text { fill: #9198a1 } .title { fill: #f0f6fc } }
"""


def number(value):
    """Coordinates with one digit, so that the file does not depend on the machine's last bits."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def text(x, y, words, anchor="start", css=""):
    css = f' class="{css}"' if css else ""
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"{css}>{words}</text>\n'


def rule(x1, y1, x2, y2, css):
    return f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" class="{css}"/>\n'


def thousands(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def decode_lines(lines):
    """Of the dummy model on a GPU behind the shortest context: {format: {batch: line}}. Not of c4, which is as fast as
    fireq."""
    found = {}
    for line in lines:
        if line["bench"] == "model.decode" and line.get("config", "").startswith("llama-3-8b") and "H100" in line["device"] \
                and line.get("context") == 0 and "floor_tokens_per_s" in line and not line["format"].startswith("c4"):
            found.setdefault((line["format"], line["kv"]), {})[line["batch"]] = line
    return dict(sorted(found.items(), key=lambda item: -max(x["tokens_per_s"] for x in item[1].values())))


def short_format(name):
    """bf16, fp8, int4, ... of a stored format's description."""
    words = {"e4m3": "fp8", "u4": "int4", "i4-sign-magnitude": "fireq", "c4": "fireq-c4"}
    first = name.split(" ")[0]
    return words.get(first, "sbvr" if first.startswith("bitvectors") else first)


def column(labels):
    """Words one below the other: (x, y, words), none nearer to the one above than a line."""
    out, above = "", -math.inf
    for x, y, words in sorted(labels, key=lambda label: label[1]):
        above = max(y, above + 13)
        out += text(x, above, words)
    return out


def draw_decode(lines, x0, y0, width, height):
    series = decode_lines(lines)
    title = text(x0, y0 - 34, "Llama-3-8B's shapes, decode, tokens/s (H100)", css="title")
    if not series:
        return title + text(x0, y0 + 20, "not measured")
    batches = sorted({batch for points in series.values() for batch in points})
    values = [line[key] for points in series.values() for line in points.values()
              for key in ("tokens_per_s", "floor_tokens_per_s")]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def at_x(batch):
        first, last = math.log2(batches[0]), math.log2(batches[-1])
        return x0 + width * ((math.log2(batch) - first) / (last - first) if last > first else 0.5)

    def at_y(value):
        return y0 + height * (1 - (math.log10(value) - low) / (high - low))

    out = title
    for power in range(low, high + 1):
        out += rule(x0, at_y(10**power), x0 + width, at_y(10**power), "grid")
        out += text(x0 - 8, at_y(10**power) + 4, thousands(10**power), "end")
    out += rule(x0, y0 + height, x0 + width, y0 + height, "axis")
    for batch in batches:
        out += text(at_x(batch), y0 + height + 18, str(batch), "middle")
    out += text(x0 + width / 2, y0 + height + 38, "sequences in a step", "middle")
    legend = ""
    labels = {}
    x = x0
    for index, ((stored, _), points) in enumerate(series.items()):
        colour = f"c{index % 5}"
        places = sorted(points)
        for key, css in (("floor_tokens_per_s", "line floor"), ("tokens_per_s", "line")):
            path = " ".join(f"{number(at_x(b))},{number(at_y(points[b][key]))}" for b in places)
            out += f'<polyline points="{path}" class="{colour} {css}"/>\n'
        for place, batch in enumerate(places):
            value = points[batch]["tokens_per_s"]
            out += f'<circle cx="{number(at_x(batch))}" cy="{number(at_y(value))}" r="4" class="{colour} dot"/>\n'
            last = batch == batches[-1]
            if last or place == 0 or len(series) == 1:
                labels.setdefault(batch, []).append((at_x(batch) + 7, at_y(value) + (4 if last else 15), thousands(value)))
        legend += f'<rect x="{number(x)}" y="{number(y0 - 22)}" width="10" height="10" class="{colour} key"/>\n'
        legend += text(x + 15, y0 - 13, short_format(stored))
        x += 26 + 8 * len(short_format(stored))
    legend += f'<polyline points="{number(x)},{number(y0 - 17)} {number(x + 26)},{number(y0 - 17)}" class="least line floor"/>\n'
    legend += text(x + 32, y0 - 13, "what memory allows")
    return out + "".join(map(column, labels.values())) + legend


def draw_attention(lines, x0, y0, width, height):
    shapes = sorted((line for line in lines if line["bench"] == "op.attention.prefill" and "peers" in line
                     and line["head_dim"] == 128 and line["heads"] == line["kv_heads"] == 32),
                    key=lambda line: (line["batch"] * line["length"], line["length"]))
    out = text(x0, y0 - 34, "Prefill attention in BF16, TFLOP/s (H100)", css="title")
    if not shapes:
        return out + text(x0, y0 + 20, "not measured")
    rivals = (("hearth", "c0", lambda line: line["us"]), ("cuDNN", "other", lambda line: line["peers"]["cudnn"]),
              ("FlashAttention-2", "least", lambda line: line["peers"]["flash"]))

    def tflops(line, us):
        # Half of the products, as the causal mask leaves them.
        return 4 * line["batch"] * line["heads"] * line["length"]**2 * line["head_dim"] / 2 / us * 1e-6

    top = max(tflops(line, rival(line)) for line in shapes for _, _, rival in rivals)
    step = 100 if top <= 500 else 200
    most = math.ceil(top / step) * step
    for value in range(0, most + 1, step):
        y = y0 + height * (1 - value / most)
        out += rule(x0, y, x0 + width, y, "axis" if value == 0 else "grid") + text(x0 - 8, y + 4, str(value), "end")
    group = width / len(shapes)
    bar = group * 0.26
    for place, line in enumerate(shapes):
        left = x0 + group * place + group * 0.11
        for index, (_, colour, rival) in enumerate(rivals):
            value = tflops(line, rival(line))
            size = height * value / most
            out += f'<rect x="{number(left + index * bar)}" y="{number(y0 + height - size)}" width="{number(bar - 2)}" ' \
                   f'height="{number(size)}" class="{colour} bar"/>\n'
            if index == 0:
                out += text(left + bar / 2 - 1, y0 + height - size - 5, f"{value:.0f}", "middle")
        out += text(x0 + group * (place + 0.5), y0 + height + 18, f"{line['batch']} x {line['length']}", "middle")
    out += text(x0 + width / 2, y0 + height + 38, "prompts x tokens, 32 heads of 128", "middle")
    x = x0
    for name, colour, _ in rivals:
        out += f'<rect x="{number(x)}" y="{number(y0 - 22)}" width="10" height="10" class="{colour} key"/>\n'
        out += text(x + 15, y0 - 13, name)
        x += 30 + 7.5 * len(name)
    return out


def draw(lines):
    dates = [line["date"][:10] for points in decode_lines(lines).values() for line in points.values()]
    dates += [line["date"][:10] for line in lines if line["bench"] == "op.attention.prefill" and "peers" in line]
    label = "Decode speed of Llama-3-8B's shapes against the batch, and prefill attention beside cuDNN and FlashAttention-2"
    when = text(WIDTH - 16, HEIGHT - 6, f"bench/results, {max(dates)}", "end") if dates else ""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n'
            f"<style>{STYLE}</style>\n" + draw_decode(lines, 66, 62, 336, 236) +
            draw_attention(lines, 496, 62, 388, 236) + when + "</svg>\n")
