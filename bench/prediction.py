#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `hearth simulate` foretells beside what `hearth serve` does with the same requests.

1. A server gets another load of the same models (another seed): all of it at once, which gives the rate that it can
   serve (saturation), then at half of that rate. The steps of both (--step-log) are the simulator's machine.
2. The load of LOADFILE at 0.7, 1.0 and 1.2 of saturation, on the server and in the simulator: the very same requests.
   Attainment and throughput of both are printed, and by how much they differ. "afterwards" is the simulator on the
   machine that the run itself was: what differs there is the simulator's own doing, the rest the machine's change.

Lengths, targets, KV memory and the limits of steps are the load file's (docs/guides/simulating.md). `hearth bench serve
--load` sends and judges: prompts are random ids, times are taken where it reads. Words after -- are more
options of `hearth serve`. Only Python's own library (3.11)."""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.request

BOUNDS = {"attainment": 0.05, "throughput": 0.10}  # a difference, and a part of what was measured
KEY = "prediction-admin"
FIT_SEED = 1_000_003
KINDS = ("measured", "simulated", "afterwards")


class Server:
    """`hearth serve` with the models and limits of a load."""

    def __init__(self, args, load, step_log=None):
        command = [args.binary, "serve", "--port", "0", "--no-enable-prefix-caching", "--max-waiting", "100000",
                   "--limits-requests", "100000", "--http-connections", "20000", "--waiting-requests", "10000",
                   "--kv-cache-memory-bytes", f"{int(load['pool_mib'] * 2**20)}",
                   "--max-num-batched-tokens", f"{load.get('step_tokens', 2048)}",
                   "--max-num-seqs", f"{load.get('max_sequences', 256)}",
                   "--block-size", f"{load.get('block_tokens', 16)}"]
        paths = dict(word.split("=", 1) for word in args.model)
        for model in load["model"]:
            name = model["name"]
            ttft, tpot = (model.get(key, 0) / 1000 for key in ("ttft_ms", "tpot_ms"))
            command += ["--model", f"{name}={paths.get(name, args.default_model)}", "--model-options",
                        f"{name}: ttft-slo={ttft}, tpot-slo={tpot}, weight={model.get('weight', 1)}"]
        command += ["--step-log", step_log] if step_log else []
        command += args.serve_args
        environment = os.environ | {"HEARTH_ADMIN_KEY": KEY, "HEARTH_LOG_LEVEL": "warn"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found.group(1))
                return
        sys.exit(f"prediction: the server ended with {self.process.wait()} before it was ready")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if (code := self.process.wait(timeout=60)) != 0:
            sys.exit(f"prediction: the server ended with {code}")


def play(args, server, file, rate, seed, *words):
    """`hearth bench serve` with the load of the file: the run as JSON, and a line for each request."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as lines:
        ran = subprocess.run([args.binary, "bench", "serve", "-q", "--base-url", f"http://127.0.0.1:{server.port}",
                              "--load", file, "--request-rate", str(rate), "--seed", str(seed), "--json",
                              "--save-requests", lines.name, *words], check=True, text=True, stdout=subprocess.PIPE)
        return json.loads(ran.stdout), [json.loads(line) for line in lines]


def measured(run):
    """As `hearth simulate --json` counts."""
    models = []
    for name, m in run["models"].items():
        slo = m["slo"]
        models.append({"model": name, "requests": slo["answers"], "attained": slo["attained"],
                       "first_on_time": slo["answers"] - slo["first_late"],
                       "pace_kept": slo["answers"] - slo["pace_missed"],
                       "ttft_p50_s": m.get("p50_ttft_ms", m.get("median_ttft_ms", 0)) / 1000,
                       "ttft_p99_s": m.get("p99_ttft_ms", 0) / 1000,
                       "tokens_per_s": m["arrivals_output_throughput"]})
    return {"attainment": run["slo"]["attainment"], "tokens_per_s": run["arrivals_output_throughput"],
            "sent_late_ms": run.get("max_delay_ms"), "models": models}


def write_load(path, load):
    with open(path, "w") as file:
        file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in load.items() if key != "model")
        for model in load["model"]:
            file.write("[[model]]\n")
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in model.items())


def simulate(args, folder, rate, seed, steps):
    out = os.path.join(folder, "outcome.json")
    subprocess.run([args.binary, "simulate", os.path.join(folder, "load.toml"), "--rate", str(rate),
                    "--seed", str(seed), "--fit", steps, "--json", out, "--policy", args.policy],
                   check=True, stdout=subprocess.DEVNULL)
    with open(out) as file:
        return json.load(file)


def absolute(load, path):
    """Files beside the load, wherever it is written to."""
    for model in load["model"]:
        for key in ("lengths", "trace"):
            if key in model:
                model[key] = os.path.join(os.path.dirname(os.path.abspath(path)), model[key])


def take_memory(server, load):
    """The server's own KV memory into the load: what a token takes, how large slabs are, what it keeps free."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/admin/status",
                                     headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        status = json.load(answer)
    pool = status["kv_pools"][0]
    load["pool_mib"] = pool["bytes"] / 2**20
    load["growth_blocks"] = 1
    load["slab_mib"] = pool["bytes"] / pool["slabs"]["all"] / 2**20
    for model in load["model"]:
        kv = next(m["kv"] for m in status["models"] if m["model"] == model["name"])
        model["kv_token_bytes"] = kv["block_bytes"] // kv["block_tokens"]


def calibrate(args, server, load, folder):
    """The rate that the server can serve; its steps are in the log."""
    places = 2 * load.get("max_sequences", 256) * len(load["model"])
    at_once = os.path.join(folder, "at-once.toml")
    write_load(at_once, load | {"seconds": 1, "warmup_seconds": 0})
    _, requests = play(args, server, at_once, max(3 * places, 200), FIT_SEED, "--max-concurrency", str(places))
    ends = sorted(r["end_s"] for r in requests if r["status"] == "done")
    if len(ends) < len(requests):
        sys.exit(f"prediction: {len(requests) - len(ends)} of {len(requests)} requests failed")
    # While all places are taken: from when the first answers have ended to when nobody waits any more.
    low, high = len(ends) // 10, max(len(ends) - places, len(ends) // 2)
    saturation = (high - low) / (ends[high] - ends[low])
    print(f"saturation: {saturation:.2f} requests/s ({len(requests)} requests in {ends[-1]:.1f} s)", flush=True)
    play(args, server, os.path.join(folder, "load.toml"), 0.5 * saturation, FIT_SEED + 1)
    return saturation


def compare(args, load, folder):
    steps = os.path.join(folder, "steps.jsonl")
    server = Server(args, load, steps)
    try:
        take_memory(server, load)
        write_load(os.path.join(folder, "load.toml"), load)
        saturation = calibrate(args, server, load, folder)
    finally:
        server.stop()
    print(subprocess.run([args.binary, "simulate", "--fit", steps], check=True, text=True,
                         stdout=subprocess.PIPE).stdout, flush=True)
    rows = []
    for part in args.parts:
        rate, seed, own = part * saturation, load.get("seed", 1), os.path.join(folder, f"steps-{part:g}.jsonl")
        server = Server(args, load, own)
        try:
            run, _ = play(args, server, os.path.join(folder, "load.toml"), rate, seed, "--drain", "120")
        finally:
            server.stop()
        rows.append({"part": part, "rate": rate, "measured": measured(run),
                     "simulated": simulate(args, folder, rate, seed, steps),
                     "afterwards": simulate(args, folder, rate, seed, own)})
        print(f"{part:g} of saturation: "
              + ", ".join(f"{kind} {rows[-1][kind]['attainment']:.3f}" for kind in KINDS), flush=True)
    return rows


def report(rows):
    """A table; whether all is within the bounds."""
    holds = True
    print("\n| of saturation | requests/s | | attained | difference | tokens/s | difference |\n"
          "|---:|---:|---|---:|---:|---:|---:|")
    for row in rows:
        real = row["measured"]
        print(f"| {row['part']:g} | {row['rate']:.2f} | measured | {real['attainment']:.3f} | "
              f"| {real['tokens_per_s']:.1f} | |")
        for kind in KINDS[1:]:
            points = row[kind]["attainment"] - real["attainment"]
            part = row[kind]["tokens_per_s"] / max(real["tokens_per_s"], 1e-9) - 1
            if kind == "simulated":
                holds &= abs(points) <= BOUNDS["attainment"] and abs(part) <= BOUNDS["throughput"]
            print(f"| {row['part']:g} | {row['rate']:.2f} | {kind} | {row[kind]['attainment']:.3f} "
                  f"| {100 * points:+.1f} points | {row[kind]['tokens_per_s']:.1f} | {100 * part:+.1f} % |")
    print("\n| of saturation | model | | requests | first on time | pace kept | TTFT p50 s | p99 s | tokens/s |\n"
          "|---:|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        for name in [m["model"] for m in row["measured"]["models"]]:
            for kind in KINDS:
                m = next(m for m in row[kind]["models"] if m["model"] == name)
                count = max(1, m["requests"])
                print(f"| {row['part']:g} | {name} | {kind} | {m['requests']} | {m['first_on_time'] / count:.3f} "
                      f"| {m['pace_kept'] / count:.3f} | {m['ttft_p50_s']:.3f} | {m['ttft_p99_s']:.3f} "
                      f"| {m['tokens_per_s']:.1f} |")
    print(f"\nbounds: {100 * BOUNDS['attainment']:g} points, {100 * BOUNDS['throughput']:g} %: "
          f"{'kept' if holds else 'NOT kept'}")
    return holds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", default="bench/loads/two-small-models.toml", metavar="LOADFILE")
    parser.add_argument("--binary", default="build/cpu/bin/hearth")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH", help="a model of the load; repeat")
    parser.add_argument("--default-model", default="models/fable-13m", metavar="PATH", help="of those not named")
    parser.add_argument("--policy", default="slo", help="the simulator's, as --schedule is the server's")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.7, 1.0, 1.2], help="of saturation")
    parser.add_argument("--seconds", type=float, help="of each run; instead of the load file's")
    parser.add_argument("--out", metavar="FILE", help="all numbers, as JSON")
    parser.add_argument("--keep", metavar="FOLDER", help="where the load, the requests and the steps stay")
    parser.add_argument("serve_args", nargs="*", help="after --: more options of `hearth serve`")
    args = parser.parse_args()
    with open(args.load, "rb") as file:
        load = tomllib.load(file)
    absolute(load, args.load)
    if args.seconds:
        load["seconds"] = args.seconds
    with tempfile.TemporaryDirectory() as folder:
        if args.keep:
            os.makedirs(args.keep, exist_ok=True)
        rows = compare(args, load, args.keep or folder)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(rows, file, indent=1)
    sys.exit(0 if report(rows) else 1)


if __name__ == "__main__":
    main()
