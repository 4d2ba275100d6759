# SPDX-License-Identifier: Apache-2.0
"""What the comparisons in this folder share: ours and the peers' calls take turns on one GPU, replay by replay.

`Ours` is `hearth bench ops --interactive`, a process that lives as long as the comparison and replays a graph when
asked; `TorchGraph` is a graph of as many calls over as many sets of inputs in this process. One of them runs at a
time. A turn is two replays one behind the other of which the second counts: the first finds the GPU idle and another
process's data in its caches. `Clocks` reads the GPU's clocks through NVML behind every turn. Importing this takes
nothing but Python."""

import argparse
import collections
import ctypes
import json
import os
import shlex
import subprocess
import sys

REPLAYS = 2  # of a turn; the last counts


class Trouble(Exception):
    """What ends a comparison, as a sentence."""


class Refused(Trouble):
    """What ours will not do; the rest goes on."""


class Ours:
    """Our side. `program` is the path of hearth; `device` and `dtype` as its options."""

    def __init__(self, program, device="cuda", dtype="auto"):
        command = [program, "bench", "ops", "--interactive", "-q", "--device", device, "--dtype", dtype]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise Trouble(f"{program} does not start: {error.strerror}") from error
        try:
            self.about = self._read()
        except Trouble:
            self.close()
            raise

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise Trouble(f"{self.process.args[0]} ended with status {self.process.wait()}")
        try:
            return json.loads(line)
        except ValueError as error:
            raise Trouble(f"{self.process.args[0]} answered {line.strip()[:100]!r}; wanted a line of JSON") from error

    def ask(self, request):
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Trouble(f"{self.process.args[0]} ended with status {self.process.wait()}") from error
        answer = self._read()
        if "error" in answer:
            raise Refused(f"{request}: {answer['error']}")
        return answer

    def make(self, op, **fields):
        """A case of an op; fields as bench_ops_session.h has them."""
        return Case(self, self.ask(" ".join(["make", op] + [f"{k}={v}" for k, v in fields.items()])))

    def close(self):
        """Lets it end, and waits for that."""
        try:
            self.process.stdin.close()
        except OSError:
            pass
        self.process.stdout.close()
        return self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Case:
    """One op of ours on one shape, ready to be replayed."""

    def __init__(self, ours, made):
        self.ours, self.id, self.sets, self.line = ours, made["case"], made["sets"], made["line"]
        self.calls = self.line["calls"]

    def turn(self):
        """Microseconds of a call."""
        return self.ours.ask(f"replay {self.id} {REPLAYS}")["us"][-1]

    def drop(self):
        self.ours.ask(f"drop {self.id}")


class TorchGraph:
    """`calls` calls of call(set), each behind the one before, as one CUDA graph of PyTorch. `outs`: results of that
    many calls lie side by side; 1: a call writes where the one before wrote."""

    def __init__(self, torch, call, calls, sets, outs=1):
        self.calls = calls
        self.call = call  # and with it what the graph reads
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            for i in range(3):  # loads and chooses
                call(i % sets)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.inference_mode():
            kept = collections.deque(maxlen=outs - 1)
            for i in range(calls):
                kept.append(call(i % sets))
            del kept
        torch.cuda.synchronize()
        self.marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]

    def turn(self):
        """Microseconds of a call."""
        self.marks[0].record()
        for mark in self.marks[1:]:
            self.graph.replay()
            mark.record()
        self.marks[-1].synchronize()
        return 1e3 * self.marks[-2].elapsed_time(self.marks[-1]) / self.calls


class Clocks:
    """A GPU's clocks and what holds them down, through NVML. `uuid`: of the GPU, "GPU-..."; None: the only one."""

    SM, MEMORY = 1, 2  # nvmlClockType_t
    # Bits of nvmlClocksEventReasons.
    REASONS = {0x1: "idle", 0x2: "application_clocks", 0x4: "power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost",
               0x20: "thermal", 0x40: "hw_thermal", 0x80: "hw_power_brake", 0x100: "display_clocks"}

    def __init__(self, uuid=None, library="libnvidia-ml.so.1"):
        try:
            self.nvml = ctypes.CDLL(library)
        except OSError as error:
            raise Trouble(f"no NVML: {error}") from error
        self._call("nvmlInit_v2")
        self.device = ctypes.c_void_p()
        if uuid is not None:
            self._call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(self.device))
            return
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        if count.value != 1:
            raise Trouble(f"NVML sees {count.value} GPUs, and PyTorch does not say which is which")
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), ctypes.byref(self.device))

    def _call(self, name, *args):
        try:
            code = getattr(self.nvml, name)(*args)
        except AttributeError as error:
            raise Trouble(f"this NVML has no {name}") from error
        if code != 0:
            self.nvml.nvmlErrorString.restype = ctypes.c_char_p
            raise Trouble(f"{name}: {self.nvml.nvmlErrorString(code).decode(errors='replace')}")

    def _number(self, name, *args):
        """None where this GPU does not tell."""
        value = ctypes.c_uint()
        try:
            self._call(name, self.device, *args, ctypes.byref(value))
        except Trouble:
            return None
        return value.value

    def sm_mhz(self):
        return self._number("nvmlDeviceGetClockInfo", ctypes.c_int(self.SM))

    def reasons(self):
        """Names of what holds the clocks down now."""
        bits = ctypes.c_ulonglong()
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            try:
                self._call(name, self.device, ctypes.byref(bits))
            except Trouble:
                continue
            return [word for bit, word in self.REASONS.items() if bits.value & bit]
        return None

    def rest(self):
        """Memory's clock, power (of the last second or so) and temperature."""
        milliwatts = self._number("nvmlDeviceGetPowerUsage")
        return {"memory_mhz": self._number("nvmlDeviceGetClockInfo", ctypes.c_int(self.MEMORY)),
                "power_w": None if milliwatts is None else round(milliwatts / 1000),
                "temperature_c": self._number("nvmlDeviceGetTemperature", ctypes.c_int(0))}


def take_turns(rivals, rounds, clocks):
    """Every rival of {name: with turn()} once a round, every other round from the last to the first. Returns {name:
    microseconds of each round} and the clocks: of each rival for each round the SM clock behind its turn, for each
    round the rest, and how often each reason stood; None without `clocks`. A round before is not counted."""
    us = {name: [] for name in rivals}
    seen = {"sm_mhz": {name: [] for name in rivals}, "memory_mhz": [], "power_w": [], "temperature_c": [],
            "reasons": {}}
    for round_ in range(-1, rounds):
        for name in list(rivals) if round_ % 2 else reversed(list(rivals)):
            value = rivals[name].turn()
            if round_ < 0:
                continue
            us[name].append(value)
            if clocks is not None:
                seen["sm_mhz"][name].append(clocks.sm_mhz())
                for word in clocks.reasons() or []:
                    seen["reasons"][word] = seen["reasons"].get(word, 0) + 1
        if clocks is not None and round_ >= 0:
            for key, value in clocks.rest().items():
                seen[key].append(value)
    return us, seen if clocks is not None else None


def quantile(values, q):
    """As bench_common.h has it."""
    return sorted(values)[int(q * (len(values) - 1) + 0.5)]


def result_line(case, name, us, seen, peers):
    """Our line with its times, those of `peers` (names among `us`), `ratio` (our time by the best peer's; medians) and
    the clocks behind our turns and theirs. `name`: ours among `us`."""
    line = dict(case.line, rounds=len(us[name]), peers={}, peers_p10={}, peers_p90={})
    line["us"], line["us_p10"], line["us_p90"] = (round(quantile(us[name], q), 3) for q in (0.5, 0.1, 0.9))
    line["gbps"] = round(line["bytes"] / line["us"] * 1e-3, 1)
    if "flops" in line:
        line["tflops"] = round(line["flops"] / line["us"] * 1e-6, 2)
    for peer in peers:
        line["peers"][peer], line["peers_p10"][peer], line["peers_p90"][peer] = \
            (round(quantile(us[peer], q), 3) for q in (0.5, 0.1, 0.9))
    if peers:
        line["ratio"] = round(line["us"] / min(line["peers"].values()), 3)
    if seen is not None:
        sm = {"ours": seen["sm_mhz"][name], **{peer: seen["sm_mhz"][peer] for peer in peers}}
        line["clocks"] = dict(seen, sm_mhz=sm)
    return line


def clocks_words(line):
    """The clocks in a table: lowest and highest SM clock, and what held them down but for idling."""
    clocks = line.get("clocks")
    if clocks is None:
        return ""
    mhz = [value for values in clocks["sm_mhz"].values() for value in values if value is not None]
    reasons = "+".join(word for word in clocks["reasons"] if word != "idle")
    return (f"{min(mhz)}-{max(mhz)} MHz" if mhz else "? MHz") + (f" {reasons}" if reasons else "")


def count(text):
    """A number of rounds, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parser_of(text):
    """Options that every comparison has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, metavar="HEARTH", help="our program, a build with CUDA")
    parser.add_argument("--out", metavar="FILE", help="appends a line of JSON for each case")
    parser.add_argument("--rounds", type=count, default=15, metavar="N", help="that count, of every case (default: 15)")
    parser.add_argument("--note", metavar="TEXT", help="a word on the circumstances, for the lines")
    return parser


def own_command():
    """This command, without the folders that are this machine's."""
    words = [os.path.basename(word) if "/" in word else word for word in sys.argv[1:]]
    return shlex.join([f"bench/peers/{os.path.basename(sys.argv[0])}"] + words)


class Report:
    """Where the lines go. `versions`: of what the peers are, for all of them."""

    def __init__(self, args, versions):
        self.args, self.versions = args, versions
        try:
            self.file = open(args.out, "a", encoding="utf-8") if args.out else None
        except OSError as error:
            raise Trouble(f"--out {args.out}: {error.strerror}") from error

    def write(self, line):
        if self.file is None:
            return
        line = dict(line, command=own_command(), versions=self.versions)
        if self.args.note:
            line["note"] = self.args.note
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def need_torch():
    """PyTorch with a GPU."""
    try:
        import torch  # pylint: disable=import-outside-toplevel
    except ImportError as error:
        raise Trouble(f"no PyTorch here ({error}): this compares with it") from error
    if not torch.cuda.is_available():
        raise Trouble(f"PyTorch {torch.__version__} sees no GPU")
    return torch


def open_clocks(torch):
    """Clocks of PyTorch's first GPU; a word on stderr, and None, where they cannot be read."""
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    try:
        return Clocks(None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}")
    except Trouble as trouble:
        print(f"no clocks in the lines: {trouble}", file=sys.stderr)
        return None


def check_same_gpu(torch, ours):
    if ours.about["device"] != torch.cuda.get_device_name(0):
        raise Trouble(f"ours runs on {ours.about['device']}, PyTorch on {torch.cuda.get_device_name(0)}")


def try_graph(torch, name, call, calls, sets, outs=1):
    """A peer's graph, or None and a word where the peer does not do it."""
    try:
        return TorchGraph(torch, call, calls, sets, outs)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        print(f"{name}: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
              file=sys.stderr)
        torch.cuda.synchronize()
        return None


class Context:
    """What all cases of a comparison share; `versions` as Report has them."""

    def __init__(self, torch, args, versions):
        self.torch, self.args = torch, args
        self.report, self.clocks = Report(args, versions), open_clocks(torch)

    def compare(self, case, peers, names, words):
        """Turns of a case of ours and of `peers`, {name: graph}, which are all let go then. A row of the table: `words`,
        the medians of the peers called `names` and of ours, the ratio, the clocks; and a line for the report."""
        us, seen = take_turns({"ours": case, **peers}, self.args.rounds, self.clocks)
        line = result_line(case, "ours", us, seen, list(peers))
        none = float("nan")
        times = [line["peers"].get(name, none) for name in names] + [line["us"]]
        print(f"{words} {' '.join(f'{time:9.2f}' for time in times)} {line.get('ratio', none):6.2f}  "
              f"{clocks_words(line)}", flush=True)
        if peers:
            self.report.write(line)
        case.drop()
        peers.clear()
        self.torch.cuda.empty_cache()


def run_as_script(main):
    """main() with its troubles as messages: exit 1."""
    try:
        main()
    except Trouble as trouble:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {trouble}")
    except BrokenPipeError:
        sys.exit(1)
