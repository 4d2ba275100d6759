#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plants one violation at a time into a small correct tree and asks check_layers to find exactly it.

Run: python3 tools/check_layers_test.py   (ctest label unit). No network, no compiler except in Headers."""

import shutil
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import check_layers  # noqa: E402

SPDX = "// SPDX-License-Identifier: Apache-2.0\n"
LAYERS = """
[base]
level = 0
deps = []
[tensor]
level = 1
deps = ["base"]
[text]
level = 1
deps = ["base"]
[memory]
level = 2
deps = ["base", "tensor"]
[kernels]
level = 3
deps = ["memory"]
"""
TREE = {
    "layers.toml": LAYERS,
    "hearth/base/CMakeLists.txt": "hearth_library(base SOURCES a.cpp)\n",
    "hearth/base/a.h": SPDX + "#pragma once\n#include <vector>\n",
    "hearth/base/a.cpp": SPDX + '#include "hearth/base/a.h"\n',
    "hearth/tensor/CMakeLists.txt": "hearth_library(tensor\n  SOURCES t.cpp\n  DEPS base)\n",
    "hearth/tensor/t.h": SPDX + '#pragma once\n#include "hearth/base/a.h"\n',
    "hearth/text/CMakeLists.txt": "hearth_library(text SOURCES x.cpp DEPS base PRIVATE_LIBS bridge)\n",
    "hearth/text/x.cpp": SPDX + '#include <hearth_text_bridge.h>\n',
    "text-bridge/include/hearth_text_bridge.h": SPDX + "#pragma once\n",
    "hearth/memory/CMakeLists.txt": "hearth_library(memory SOURCES m.cpp DEPS base tensor)\n",
    "hearth/memory/cuda/m.cpp": SPDX + "#include <cuda_runtime.h>\n",
    "hearth/kernels/CMakeLists.txt":
        "hearth_library(kernels SOURCES k.cpp DEPS memory)\nhearth_library(kernels_cpu SOURCES c.cpp DEPS kernels)\n",
    "hearth/kernels/k.cpp": SPDX + '#include "hearth/tensor/t.h"\n#include "hwy/highway.h"\n',
    "hearth/kernels/k.cu": SPDX + '#include <cuda_fp8.h>\n#include "hearth/kernels/sm90/p.cuh"\n',
    "hearth/kernels/sm90/p.cuh": SPDX + '__device__ void f() { asm volatile("bar.sync 0;"); }\n',
    "README.md": "Unpack it under /opt/work/x or /tmp/hearth.\n",
}


class Tree(unittest.TestCase):
    """The correct tree in a folder of its own."""

    def setUp(self):
        self.root = Path(tempfile.mkdtemp(prefix="check_layers_"))
        self.addCleanup(shutil.rmtree, self.root)
        for name, text in TREE.items():
            self.write(name, text)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def failures(self):
        return check_layers.check_tree(self.root)[0].failures

    def expect(self, name, text, *words):
        """With `text` in `name`, exactly one failure, and it has all `words`."""
        self.write(name, text)
        failures = self.failures()
        self.assertEqual(len(failures), 1, failures)
        for word in words:
            self.assertIn(word, failures[0])


class Planted(Tree):
    def test_correct_tree_passes(self):
        self.assertEqual(self.failures(), [])

    def test_upward_include(self):
        self.expect("hearth/base/b.cpp", SPDX + '\n#include "hearth/tensor/t.h"\n',
                    "hearth/base/b.cpp:3", "base includes hearth/tensor/t.h")

    def test_sideways_include_in_a_test(self):
        self.expect("hearth/tensor/t_test.cpp", SPDX + '#include "hearth/text/x.cpp"\n', "tensor includes")

    def test_commented_include_is_none(self):
        self.write("hearth/base/b.cpp", SPDX + '// #include "hearth/tensor/t.h"\n/*\n#include <cuda.h>\n*/\n')
        self.assertEqual(self.failures(), [])

    def test_include_that_cmake_does_not_name(self):
        self.write("hearth/memory/CMakeLists.txt", "hearth_library(memory SOURCES m.cpp DEPS base)\n")
        self.write("hearth/kernels/k.cpp", SPDX)
        self.expect("hearth/memory/m.cpp", SPDX + '#include "hearth/tensor/t.h"\n', "do not reach tensor")

    def test_dependency_that_layers_do_not_give(self):
        self.expect("hearth/text/CMakeLists.txt", "hearth_library(text SOURCES x.cpp DEPS base tensor)\n",
                    "DEPS of text name tensor")

    def test_dependency_on_nothing(self):
        self.expect("hearth/text/CMakeLists.txt", "hearth_library(text SOURCES x.cpp DEPS bsae)\n", "bsae")

    def test_library_that_cmake_does_not_build(self):
        (self.root / "hearth/memory/CMakeLists.txt").write_text("# nothing\n", encoding="utf-8")
        self.write("hearth/kernels/CMakeLists.txt", "hearth_library(kernels SOURCES k.cpp)\n")
        self.write("hearth/kernels/k.cpp", SPDX)
        self.expect("hearth/memory/m.cpp", SPDX, "hearth/memory: has code")

    def test_library_that_is_not_listed(self):
        self.expect("hearth/new/n.cpp", SPDX, "new in hearth/")

    def test_layers_that_point_up(self):
        self.expect("layers.toml", LAYERS.replace("deps = []", 'deps = ["text"]'), "[base] of level 0 depends on text")

    def test_layers_that_are_no_toml(self):
        self.write("layers.toml", "[base\n")
        self.assertTrue(any(failure.startswith("layers.toml") for failure in self.failures()))

    def test_cuda_header_in_host_code(self):
        self.expect("hearth/kernels/h.cpp", SPDX + "#include <cuda_bf16.h>\n", "h.cpp:2", "cuda_bf16.h")

    def test_cuda_header_in_a_header_even_in_memory_cuda(self):
        self.expect("hearth/memory/cuda/d.h", SPDX + "#include <cuda_runtime_api.h>\n", "d.h:2")

    def test_cuh_from_host_code(self):
        self.expect("hearth/kernels/h.cpp", SPDX + '#include "hearth/kernels/sm90/p.cuh"\n', "p.cuh")

    def test_ptx_outside_sm90(self):
        self.expect("hearth/kernels/op.cuh", SPDX + '\nvoid f() { asm volatile("exit;"); }\n', "op.cuh:3", "PTX")

    def test_bridge_from_elsewhere(self):
        self.expect("hearth/memory/m.cpp", SPDX + '#include <hearth_text_bridge.h>\n', "only hearth/text")

    def test_relative_include(self):
        self.expect("hearth/base/b.cpp", SPDX + '#include "a.h"\n', "include root")

    def test_angle_include_of_ours(self):
        self.expect("hearth/base/b.cpp", SPDX + "#include <hearth/base/a.h>\n", "in quotes")

    def test_include_of_a_missing_file(self):
        self.expect("hearth/base/b.cpp", SPDX + '#include "hearth/base/gone.h"\n', "does not exist")

    def test_no_licence_line(self):
        self.expect("bench/b.cpp", "int x;\n", "SPDX")

    def test_foreign_names(self):
        for text in ("see /wo" "rk/main", "cd '/fa" "rm/x'", "in /tmp" "/h/y", "in ../sha" "red/data",
                     "https://py" "pi.org/simple", "http://deb.debian" ".org/debian", "https://index.crates" ".io/"):
            with self.subTest(text):
                self.expect("docs/page.md", "one\n" + text + "\n", "docs/page.md:2")

    def test_long_file_is_a_warning(self):
        self.write("hearth/base/long.h", SPDX + "\n" * 400)
        findings, _ = check_layers.check_tree(self.root)
        self.assertEqual(findings.failures, [])
        self.assertEqual(len(findings.warnings), 1)
        self.assertIn("401 lines", findings.warnings[0])


@unittest.skipUnless(shutil.which("g++"), "no g++")
class Headers(Tree):
    def test_headers_compile_alone(self):
        findings, count = check_layers.compile_headers(self.root, "g++")
        self.assertEqual((findings.failures, count), ([], 3))

    def test_bridge_is_found_from_text_only(self):
        self.write("hearth/text/x.h", SPDX + "#pragma once\n#include <hearth_text_bridge.h>\n")
        self.assertEqual(check_layers.compile_headers(self.root, "g++")[0].failures, [])
        self.write("hearth/base/x.h", SPDX + "#pragma once\n#include <hearth_text_bridge.h>\n")
        self.assertEqual(len(check_layers.compile_headers(self.root, "g++")[0].failures), 1)

    def test_header_that_needs_another(self):
        self.write("hearth/base/needy.h", SPDX + "#pragma once\nstd::vector<int> numbers();\n")
        findings, _ = check_layers.compile_headers(self.root, "g++")
        self.assertEqual(len(findings.failures), 1)
        self.assertIn("hearth/base/needy.h", findings.failures[0])


if __name__ == "__main__":
    unittest.main()
