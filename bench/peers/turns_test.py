#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the comparisons share, against our program on the CPU and peers that are made up. No GPU, no PyTorch.

Run: python3 bench/peers/turns_test.py HEARTH   (ctest label unit)."""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import turns

HERE = Path(__file__).resolve().parent
HEARTH = "hearth"


class Rival:
    """Takes `us` in every turn, and notes its turns."""

    def __init__(self, name, us, order):
        self.name, self.us, self.order = name, us, order

    def turn(self):
        self.order.append(self.name)
        return self.us


class MadeUpClocks:
    def __init__(self):
        self.mhz = 1000

    def sm_mhz(self):
        self.mhz += 1
        return self.mhz

    def reasons(self):
        return ["power_cap"] if self.mhz % 2 else None

    def rest(self):
        return {"memory_mhz": 2619, "power_w": None, "temperature_c": 40}


class Child(unittest.TestCase):
    """hearth bench ops --interactive."""

    def setUp(self):
        self.ours = turns.Ours(HEARTH, device="cpu", dtype="f32")
        self.addCleanup(self.ours.close)

    def test_cases_of_every_op(self):
        self.assertEqual(self.ours.about["backend"], "cpu")
        made = [self.ours.make("linear", N=64, K=64, M=2, format="bf16", config="small", layer="o"),
                self.ours.make("rmsnorm", rows=2, hidden=64, residual="yes"),
                self.ours.make("attention", kv="f32", batch=1, context=20, heads=2, kv_heads=1, head_dim=16)]
        self.assertEqual([case.line["bench"] for case in made], ["op.linear", "op.rmsnorm", "op.attention.decode"])
        for case in made:
            self.assertGreater(case.turn(), 0)
            self.assertGreaterEqual(case.calls, 1)
            case.drop()
            with self.assertRaisesRegex(turns.Refused, "is not there"):
                case.turn()
        self.assertEqual(self.ours.close(), 0)

    def test_a_refusal_is_no_end(self):
        with self.assertRaisesRegex(turns.Refused, "make linear N=0 .*N: 0 is out of range; wanted 1 to"):
            self.ours.make("linear", N=0, K=64, M=1, format="bf16")
        with self.assertRaisesRegex(turns.Refused, "wanted make, replay or drop"):
            self.ours.ask("dance \x01")
        self.assertGreater(self.ours.make("rmsnorm", rows=1, hidden=64).turn(), 0)

    def test_lines(self):
        case = self.ours.make("linear", N=64, K=64, M=2, format="bf16", config="small", layer="o")
        us, seen = turns.take_turns({"ours": case, "peer": Rival("peer", 2.0, [])}, 3, None)
        line = turns.result_line(case, "ours", us, seen, ["peer"])
        self.assertEqual((line["peers"], line["rounds"], line["config"]), ({"peer": 2.0}, 3, "small"))
        self.assertAlmostEqual(line["ratio"], line["us"] / 2, delta=0.00051)  # of rounding
        self.assertLessEqual(line["us_p10"], line["us"])
        self.assertNotIn("clocks", line)
        self.assertEqual(case.line.get("peers"), None)


class Program(unittest.TestCase):
    """Programs that are not what they should be."""

    def test_missing(self):
        with self.assertRaisesRegex(turns.Trouble, "/no/hearth does not start: No such file"):
            turns.Ours("/no/hearth")

    def test_ends_at_once(self):
        with self.assertRaisesRegex(turns.Trouble, "false ended with status 1"):
            turns.Ours("false")

    def test_says_something_else(self):
        with self.assertRaisesRegex(turns.Trouble, "answered 'bench ops --interactive"):
            turns.Ours("echo")

    def test_ends_between_requests(self):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program"
            program.write_text("#!/bin/sh\necho '{}'\nexit 7\n")
            program.chmod(0o755)
            ours = turns.Ours(str(program))
            with self.assertRaisesRegex(turns.Trouble, "program ended with status 7"):
                ours.ask("replay 1 1")
            ours.close()


class Turns(unittest.TestCase):
    def test_order_and_clocks(self):
        order = []
        rivals = {name: Rival(name, us, order) for name, us in (("ours", 3.0), ("a", 2.0), ("b", 4.0))}
        us, seen = turns.take_turns(rivals, 3, MadeUpClocks())
        # A round that does not count, then there and back.
        self.assertEqual("".join(name[0] for name in order), "oab" + "bao" + "oab" + "bao")
        self.assertEqual(us, {"ours": [3.0] * 3, "a": [2.0] * 3, "b": [4.0] * 3})
        self.assertEqual(seen["sm_mhz"], {"b": [1001, 1006, 1007], "a": [1002, 1005, 1008], "ours": [1003, 1004, 1009]})
        self.assertEqual(seen["memory_mhz"], [2619] * 3)
        self.assertEqual(seen["reasons"], {"power_cap": 5})
        case = type("Made", (), {"line": {"bytes": 6e3, "flops": 6e6}})()
        line = turns.result_line(case, "ours", us, seen, ["a"])
        self.assertEqual((line["ratio"], line["gbps"], line["tflops"]), (1.5, 2.0, 2.0))
        self.assertEqual(set(line["clocks"]["sm_mhz"]), {"ours", "a"})
        self.assertEqual(line["clocks"]["power_w"], [None] * 3)
        self.assertEqual(turns.clocks_words(line), "1002-1009 MHz power_cap")
        json.dumps(line)

    def test_a_case_is_a_row_and_a_line(self):
        class Case(Rival):
            line = {"bytes": 6e3, "config": "small"}
            dropped = False

            def drop(self):
                self.dropped = True

        cuda = unittest.mock.Mock()
        cuda.get_device_properties.return_value.uuid = "none such"  # no clocks, with and without NVML
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "lines"
            args = turns.parser_of("").parse_args(["--bench", "x", "--out", str(out), "--rounds", "2"])
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
                context = turns.Context(unittest.mock.Mock(cuda=cuda), args, {"torch": "9"})
                for peers in ({"a": Rival("a", 2.0, [])}, {}):
                    case = Case("ours", 3.0, [])
                    context.compare(case, peers, ["a", "b"], "words")
                    self.assertEqual((case.dropped, peers), (True, {}))
            context.report.file.close()
            line, = map(json.loads, out.read_text().splitlines())  # without a peer none
        self.assertEqual((line["us"], line["peers"], line["ratio"]), (3, {"a": 2}, 1.5))
        self.assertEqual((line["config"], line["versions"]), ("small", {"torch": "9"}))
        self.assertEqual([row.split() for row in said.getvalue().splitlines()],
                         [["words", "2.00", "nan", "3.00", "1.50"], ["words", "nan", "nan", "3.00", "nan"]])

    def test_quantiles(self):
        self.assertEqual([turns.quantile([5, 1, 4, 2, 3], q) for q in (0, 0.1, 0.5, 0.9, 1)], [1, 1, 3, 5, 5])

    def test_no_nvml(self):
        with self.assertRaisesRegex(turns.Trouble, "no NVML: libno-such-nvml"):
            turns.Clocks(library="libno-such-nvml.so")


class Scripts(unittest.TestCase):
    """The comparisons end with a sentence where PyTorch or its GPU is missing."""

    def run_script(self, name, *args):
        with tempfile.TemporaryDirectory() as folder:
            # Whether PyTorch is installed or not.
            (Path(folder) / "torch.py").write_text("raise ImportError('made up')\n")
            done = subprocess.run([sys.executable, str(HERE / name), "--bench", HEARTH, *args], capture_output=True,
                                  text=True, env={"PYTHONPATH": folder}, check=False)
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode, done.stderr.strip()

    def test_no_torch(self):
        for name in ("linear_torch.py", "attention_torch.py", "rmsnorm_torch.py"):
            self.assertEqual(self.run_script(name), (1, f"{name}: no PyTorch here (made up): this compares with it"))

    def test_bad_lists(self):
        for args, wanted in ((("--models", "Llama"), "--models: 'Llama' is unknown; wanted some of Llama-3-8B,"),
                             (("--layers", ","), "--layers: nothing; wanted some of qkv,"),
                             (("--tokens", "1,x"), "--tokens: '1,x' is no list of whole numbers"),
                             (("--tokens", "0"), "--tokens: '0'; wanted 1 to 65536 each")):
            code, said = self.run_script("linear_torch.py", *args)
            self.assertEqual(code, 1)
            self.assertIn(wanted, said)
        code, said = self.run_script("linear_torch.py", "--rounds", "0")
        self.assertEqual(code, 2)
        self.assertIn("--rounds: invalid count value: '0'", said)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: turns_test.py HEARTH [unittest's arguments]")
    HEARTH = str(Path(sys.argv.pop(1)).resolve())
    unittest.main()
