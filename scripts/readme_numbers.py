#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the README's tables of numbers and the pictures from bench/results, the newest line of a key winning.

`scripts/readme_numbers.py` rewrites the part of README.md between its two markers, docs/numbers.md (every figure with
its command), docs/numbers.svg (readme_picture.py) and docs/kernels/linear-time.svg (linear_picture.py); `--check` only
compares and exits 1 where they differ.
"""
import json
import pathlib
import re
import sys

import linear_picture
import readme_picture

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCHES, PROMPTS = (1, 8, 16, 32, 64, 128), (512, 4096)
PEERS = {"cudnn": "cuDNN", "flash": "FlashAttention-2", "torch": "PyTorch eager", "torch_compile": "compiled",
         "cublas": "cuBLAS", "cublaslt": "cuBLASLt", "fp8_row": "cuBLASLt by row", "fp8_tensor": "by tensor"}
BEGIN, END = "<!-- numbers -->\n", "<!-- end of numbers -->\n"


def newest():
    lines = {}
    for file in sorted((ROOT / "bench/results").glob("*.jsonl")):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            key = tuple(line.get(k) for k in ("bench", "model", "config", "layer", "text", "format", "act", "activation",
                                              "device", "M", "rows", "hidden", "residual", "name", "baseline",
                                              "list", "batch", "context", "length", "heads", "kv_heads", "head_dim",
                                              "layout", "kv", "path", "depth", "tokens", "graphs", "x", "rival"))
            if line["bench"] in ("model.decode", "model.prefill"):
                # However many steps were timed.
                key = tuple(line.get(k) for k in ("bench", "config", "format", "act", "device", "batch", "context",
                                                  "length", "depth", "kv", "graphs"))
            if line["bench"].startswith("op.attention.") and "peers" in line:
                # Beside peers whatever layout of the cache ours had.
                key = ("peers",) + tuple(line.get(k) for k in ("bench", "device", "batch", "context", "length", "heads",
                                                               "kv_heads", "head_dim"))
            if key not in lines or lines[key]["date"] <= line["date"]:
                lines[key] = line
    return list(lines.values())


def command_of(line):
    """The command, or the stage of bench/eval/quality.sh that it is."""
    stage = re.search(r"--markdown \S+/(gates|gates-kv|tables|outliers)\.md", line["command"])
    return f"bench/eval/quality.sh {line.get('against', line['model'])} OUT {stage.group(1)}" if stage else line["command"]


def table(lines):
    rows = []
    for line in lines:
        where = f"{line['device']}, {line['date'][:10]}, `{command_of(line)}`"
        if line["bench"] == "eval.quality" and line["activation"] == "f32":
            if "baseline" in line:
                # A format's row on a whole text: of its own baseline alone, and not the baseline itself.
                own = "kv-int4" if line["name"].startswith("kv") else "rtn"
                if line["list"] == "all" and line["text"] == "heldout_books" and line["baseline"] == own \
                        and line["name"] not in (own, line["against"]):
                    rows.append((f"{line['against']}, {line['name']} as shares of {own}, {line['text']}, {line['windows']} windows",
                                 f"rise of perplexity {line['rise_share']:.3f} ± {line['rise_share_standard_error']:.3f}, "
                                 f"KL {line['kl_share']:.3f}", where))
            elif "ppl" in line:
                rows.append((f"{line['model']}, perplexity of {line['text']}", f"{line['ppl']:.4f}", where))
            else:
                rows.append((f"{line['model']}, LAMBADA accuracy", f"{line['correct']} of {line['n']}", where))
        elif line["bench"] in ("model.decode", "model.prefill") and "repetitions" in line and "H100" in line["device"]:
            # `hearth bench model`
            what = (f"prompt of {line['length']}" if line["batch"] == 1 else
                    f"{line['batch']} prompts of {line['length']}") if "length" in line else \
                f"decode at batch {line['batch']} behind {line['context']} tokens"
            rows.append((f"{line['config']}, dummy weights, {line['format']}, {what}",
                         f"{line['tokens_per_s']:.0f} tokens/s", where))
        elif line["bench"] in ("op.attention.prefill", "op.attention.decode") and {"cudnn", "flash"} <= set(line.get("peers", ())):
            size = line.get("length", line.get("context"))
            rows.append((f"attention, {line['bench'].split('.')[-1]}, {line['batch']} x {size}, "
                         f"{line['heads']}/{line['kv_heads']} heads of {line['head_dim']}, bf16",
                         f"{line['us']:.1f} us; cuDNN {line['peers']['cudnn']:.1f}, "
                         f"FlashAttention-2 {line['peers']['flash']:.1f}", where))
        elif line["bench"] == "model.decode" and "ratio_median" in line:
            rows.append((f"{line['config']}, decode at batch 1, {line['format']} weights",
                         f"{line['tokens_per_s']:.1f} tokens/s, {line['ratio_median']:.2f} of reading the weights", where))
        elif line["bench"] == "op.linear" and line.get("graph") and "H100" in line["device"] \
                and line["layer"] == "gate_up" and line["config"] == "Llama-3-8B" and line["M"] in (1, 32, 4096) \
                and line["x"] == line["act"]:
            # `hearth bench ops`, by itself or beside PyTorch
            share = f"{line['tflops']:.0f} TFLOP/s" if line["M"] == 4096 else \
                f"{100 * line['floor_us'] / line['us']:.0f} % of memory's speed"
            peers = ", ".join(f"{name} {us:.1f}" for name, us in line.get("peers", {}).items())
            peers = f"; PyTorch's {peers}" if peers else ""
            rows.append((f"linear {line['N']} x {line['K']}, {line['M']} token{'s' if line['M'] > 1 else ''}, "
                         f"{line['format']} weights", f"{line['us']:.1f} us; {share}" + peers, where))
        elif line["bench"] == "op.linear" and line["format"] == "bf16" and line["act"] == "f32" and line["M"] == 512 \
                and line["config"] == "Llama-3-8B" and "onednn-f32" in line.get("peers", {}):
            ratio = line["peers"]["onednn-f32"] / line["us"]
            rows.append((f"linear {line['N']} x {line['K']}, 512 tokens, bf16 weights", f"{ratio:.2f} of oneDNN f32", where))
        elif line["bench"] == "op.rmsnorm" and "H100" in line["device"] and line["act"] == "bf16" and line["residual"] \
                and line["hidden"] == 4096 and line["rows"] in (1, 4096) and len(line.get("peers", ())) == 2:
            rows.append((f"RMSNorm + residual, {line['rows']} x {line['hidden']}, bf16",
                         f"{line['us']:.2f} us; torch compiled {line['peers']['torch_compile']:.2f}, eager {line['peers']['torch']:.2f}",
                         where))
    head = "| what | figure | device, date, command |\n|---|---|---|\n"
    return head + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in sorted(rows))


def where(lines):
    """Devices and days of some lines."""
    days = sorted({line["date"][:10] for line in lines})
    return f"{', '.join(sorted({line['device'] for line in lines}))}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def grid(title, columns, rows):
    """A table; rows of words, the first names the row."""
    head = f"| {title} | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns) + "\n"
    return head + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def models_table(lines):
    """Llama-3-8B's shapes: decode against the batch from an empty context, and prompts."""
    lines = [x for x in lines if x["bench"] in ("model.decode", "model.prefill") and "repetitions" in x
             and x["config"].startswith("llama-3-8b") and "H100" in x["device"] and x["batch"] in BATCHES
             and x.get("context", 0) == 0 and x.get("depth", 0) == 0 and x.get("length", 512) in PROMPTS and (x["batch"] == 1 or "length" not in x)]
    formats = {}
    for line in lines:
        formats.setdefault(line["config"][10:].lstrip("-") or "bf16", {})[line.get("length", -line["batch"])] = line
    order = sorted(formats, key=lambda f: [formats[f][-1]["tokens_per_s"] if -1 in formats[f] else 0])
    keys = [-batch for batch in BATCHES] + list(PROMPTS)
    rows = [[name] + [f"{formats[name][key]['tokens_per_s']:,.0f}" if key in formats[name] else "" for key in keys]
            for name in order]
    return "Llama-3-8B's shapes with dummy weights, tokens per second: decode by sequences in a step, and whole prompts.\n" \
        f"{where(lines)}; `hearth bench model bench/configs/llama-3-8b-FORMAT.json --load-format dummy --device cuda " \
        "-p 512,4096 -n 128 -b 1,8,16,32,64,128`.\n\n" + \
        grid("weights", [f"decode {b}" for b in BATCHES] + [f"prompt {p}" for p in PROMPTS], rows)


def peers_table(lines):
    """Ops beside other libraries in the same run."""
    chosen = [x for x in lines if "H100" in x["device"] and x.get("peers") and x["bench"].startswith("op.")
              and "sample" not in x["bench"]]
    rows = []
    for x in chosen:
        if x["bench"] == "op.linear" and x.get("graph") and x["layer"] == "gate_up" and x["M"] in (1, 4096) and x["x"] == x["act"]:
            name = f"linear {x['N']} x {x['K']}, {x['format']}, {x['M']} token{'s' if x['M'] > 1 else ''}"
        elif x["bench"].startswith("op.attention.") and {"cudnn", "flash"} <= set(x["peers"]) and x["head_dim"] == 128:
            name = f"attention, {x['bench'][13:]}, {x['batch']} x {x.get('length', x.get('context'))}, bf16"
        elif x["bench"] == "op.rmsnorm" and x["act"] == "bf16" and x["residual"] and x["hidden"] == 4096 \
                and x["rows"] in (1, 4096) and len(x["peers"]) == 2:
            name = f"RMSNorm + residual, {x['rows']} x {x['hidden']}, bf16"
        else:
            continue
        rows.append((name, x["us"], x["peers"], x))
    rows.sort(key=lambda row: (row[0].split(",")[0].split(" ")[0], row[1]))
    cells = [[name, f"{us:.4g}", ", ".join(f"{PEERS.get(peer, peer)} {value:.4g}" for peer, value in sorted(peers.items()))]
             for name, us, peers, _ in rows]
    return "Beside other libraries, microseconds of a call, alternating in the same run.\n" \
        f"{where([row[3] for row in rows])}; `bench/peers/linear_torch.py`, `attention_torch.py`, `rmsnorm_torch.py`.\n\n" + \
        grid("op", ["hearth", "others"], cells)


def quality_table(lines):
    chosen = [x for x in lines if x["bench"] == "eval.quality" and x["activation"] == "f32" and x.get("list") == "all"
              and x.get("against") == "fable-82m" and x["text"] == "heldout_books"
              and x.get("baseline") == ("kv-int4" if x["name"].startswith("kv") else "rtn")
              and x["name"] not in ("rtn", "kv-int4", "fable-82m")]
    rows = [[f"{x['name']} of {x['baseline']}", f"{x['rise_share']:.3f} ± {x['rise_share_standard_error']:.3f}",
             f"{x['kl_share']:.3f}"] for x in sorted(chosen, key=lambda x: (x["baseline"] != "rtn", x["kl_share"]))]
    return "What a format costs fable-82m, as a share of what rounding to nearest costs in INT4 (weights: rtn, KV cache: kv-int4).\n" \
        f"{where(chosen)}; `bench/eval/quality.sh fable-82m OUT`; [docs/quality.md](docs/quality.md).\n\n" + \
        grid("format", ["rise of perplexity", "KL divergence"], rows)


def exact_table(lines):
    chosen = [x for x in lines if x["bench"] == "eval.quality" and x["activation"] == "f32" and "baseline" not in x
              and ("ppl" in x or "correct" in x)]
    names = {}
    for x in chosen:
        column = x["text"] if "ppl" in x else "LAMBADA"
        names.setdefault(x["model"], {})[column] = f"{x['ppl']:.4f}" if "ppl" in x else f"{x['correct']} of {x['n']}"
    columns = ["heldout_books", "wikitext2_test", "LAMBADA"]
    return "Perplexity and accuracy of plain models, equal to transformers' in float32.\n" \
        f"{where(chosen)}; `hearth eval ppl`, `hearth eval lambada`.\n\n" + \
        grid("model", columns, [[name] + [of.get(c, "") for c in columns] for name, of in sorted(names.items())])


def main():
    readme, numbers, picture, times = (
        ROOT / name for name in ("README.md", "docs/numbers.md", "docs/numbers.svg", "docs/kernels/linear-time.svg"))
    lines = newest()
    text = readme.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    tables = "\n".join(draw(lines) for draw in (models_table, peers_table, quality_table, exact_table))
    drawn = {readme: text[:begin] + tables + text[end:],
             numbers: "# Numbers\n\nEvery figure that the README's tables stand on, drawn from [bench/results](../bench/results) by "
                      "`scripts/readme_numbers.py`: the newest line of each.\n\n" + table(lines),
             picture: readme_picture.draw(lines),
             times: linear_picture.draw(lines)}
    for file, wanted in drawn.items():
        if "--check" not in sys.argv:
            file.write_text(wanted)
        elif not file.exists() or file.read_text() != wanted:
            sys.exit(f"readme_numbers: {file.relative_to(ROOT)} differs from bench/results; run scripts/readme_numbers.py")


main()
