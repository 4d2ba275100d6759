#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the code against layers.toml and the rules of the house that a machine can check.

  tools/check_layers.py [--root DIR]             includes, CMake, CUDA headers, PTX, SPDX, foreign names
  tools/check_layers.py --headers [--cxx g++]    every .h of hearth/ and text-bridge/ compiles alone

Invariants: (I1) a library includes only itself and libraries of a lower level that layers.toml gives
it; (I2) what it includes its CMakeLists.txt names; (I3) CUDA headers appear only in memory/cuda/, *.cu
and *.cuh, and never in a .h; (I4) inline PTX only in kernels/sm90/; (I5) no tracked file names a path of
one machine or a host that serves packages. Long files are warnings. Standard library only; exit 1 on a
failure. One thread, but --headers runs a few compilers at once.
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:
    sys.exit("check_layers: needs Python 3.11 or newer (Debian 12's python3)")

CODE = {".h", ".cpp", ".cu", ".cuh", ".inc"}
USUAL_LINES = {".h": 400, ".cpp": 600, ".cu": 500, ".cuh": 500}
# Includes in quotes that are not of this repository: Highway's own idiom names its headers so.
QUOTED_ELSEWHERE = ("hwy/",)
# The C ABI of the Rust crate; its folder is an include root of hearth/text alone.
BRIDGE = ("hearth_text_bridge.h", "text-bridge/include/hearth_text_bridge.h")

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', re.MULTILINE)
CUDA_HEADER = re.compile(
    r"^(cuda|cublas|cudnn|nccl|curand|cusparse|cufft|nvrtc|nvtx|cooperative_groups|mma\.h$|cub/|thrust/|nv/|"
    r"device_launch_parameters|crt/|driver_types|vector_types)")
PTX = re.compile(r"(?<!\w)(__asm__|asm)\b[ \t]*(volatile|__volatile__)?[ \t]*\(")
LIBRARY = re.compile(r"\bhearth_library\(\s*([A-Za-z0-9_]+)([^)]*)\)")
KEYWORDS = {"SOURCES", "CUDA_SOURCES", "DEPS", "PUBLIC_LIBS", "PRIVATE_LIBS"}

# Spelled in pieces so that this file passes its own check.
FOREIGN = [
    (re.compile(r"(?<![\w.\-/])/" + r"(work|farm)/"), "a path of one machine"),
    (re.compile(r"(?<![\w.\-/])/tmp" + r"/h/"), "a path of one machine"),
    (re.compile(r"\.\./" + r"shared\b"), "a path outside the repository"),
    (re.compile(r"\b(" + "|".join(host.replace("_", r"\.") for host in (
        "pypi_org", "files_pythonhosted_org", "(index|static)_crates_io", "registry_npmjs_org",
        "(deb|security|snapshot|ftp)_debian_org", "(archive|security|ports)_ubuntu_com",
        "proxy_golang_org", "conda_anaconda_org")) + r")\b"), "a host that serves packages"),
]


class Findings:
    """Failures and warnings, each `path:line: what`."""

    def __init__(self):
        self.failures, self.warnings = [], []

    def fail(self, where, what):
        self.failures.append(f"{where}: {what}")

    def warn(self, where, what):
        self.warnings.append(f"{where}: {what}")


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def without_comments(text):
    """Blanks // and /* */ comments, keeping offsets of lines. Good enough for include and asm lines."""
    text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL)
    return re.sub(r'^((?:[^"\n]|"(?:\\.|[^"\\\n])*")*?)//[^\n]*', r"\1", text, flags=re.MULTILINE)


def tracked_files(root):
    """Paths that git tracks or would track; all files where there is no git."""
    run = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                         capture_output=True)
    if run.returncode == 0:
        paths = [root / name for name in run.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in root.rglob("*") if ".git" not in path.parts]
    return sorted(path for path in set(paths) if path.is_file() and not path.is_symlink())


def read_layers(root, findings):
    """layers.toml as {library: {"level", "deps"}}, with its own mistakes reported."""
    try:
        layers = tomllib.loads((root / "layers.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        findings.fail("layers.toml", str(error))
        return {}
    for name, library in layers.items():
        if not isinstance(library.get("level"), int) or not isinstance(library.get("deps"), list):
            findings.fail("layers.toml", f"[{name}] needs an integer `level` and a list `deps`")
            return {}
    for name, library in layers.items():
        for dep in library["deps"]:
            if dep not in layers:
                findings.fail("layers.toml", f"[{name}] depends on {dep}, which is not listed")
            elif layers[dep]["level"] >= library["level"]:
                findings.fail("layers.toml", f"[{name}] of level {library['level']} depends on {dep} of level "
                                             f"{layers[dep]['level']}; a dependency has a lower level")
    return layers


def closure(names, deps_of):
    """`names` and everything that they reach through `deps_of`."""
    reached, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo.extend(deps_of.get(name, ()))
    return reached


def read_cmake(root, files, findings):
    """{library folder: set of folders in its DEPS} from hearth_library() calls.

    A folder may hold several targets; a DEPS entry names a target and counts as its folder."""
    folder_of, deps = {}, {}
    for path in files:
        if path.name != "CMakeLists.txt" or path.relative_to(root).parts[0] != "hearth":
            continue
        parts = path.relative_to(root).parts
        text = re.sub(r"#[^\n]*", "", path.read_text(encoding="utf-8"))
        for match in LIBRARY.finditer(text):
            folder = parts[1] if len(parts) > 2 else match.group(1)
            folder_of[match.group(1)] = folder
            inside = False
            for word in match.group(2).split():
                if word in KEYWORDS:
                    inside = word == "DEPS"
                elif inside:
                    deps.setdefault(folder, {}).setdefault(word, path.relative_to(root))
            deps.setdefault(folder, {})
    result = {}
    for folder, names in deps.items():
        result[folder] = {}
        for name, where in names.items():
            if name not in folder_of:
                findings.fail(where, f"DEPS names {name}, and no hearth_library() has that name")
            elif folder_of[name] != folder:
                result[folder][folder_of[name]] = where
    return result


def check_cmake(layers, cmake, findings):
    for library, deps in cmake.items():
        if library not in layers:
            findings.fail(f"hearth/{library}/CMakeLists.txt", f"library {library} is not in layers.toml")
            continue
        for dep, where in deps.items():
            if dep not in layers[library]["deps"]:
                findings.fail(where, f"DEPS of {library} name {dep}; layers.toml gives it {layers[library]['deps']}")


def check_includes(root, path, text, layers, cmake, findings):
    """One file of hearth/: I1, I2, I3 and the spelling of includes."""
    relative = path.relative_to(root)
    library = relative.parts[1] if len(relative.parts) > 2 else None
    if library not in layers:
        findings.fail(relative, f"{library or 'a file'} in hearth/ is no library of layers.toml")
        return
    is_test = path.stem.endswith(("_test", "_bench"))
    allowed = closure([library], {name: entry["deps"] for name, entry in layers.items()})
    named = closure([library], {name: list(deps) for name, deps in cmake.items()})
    may_hold_cuda = path.suffix in (".cu", ".cuh") or (
        relative.parts[1:3] == ("memory", "cuda") and path.suffix != ".h")
    for match in INCLUDE.finditer(text):
        where = f"{relative}:{line_of(text, match.start())}"
        quote, target = match.groups()
        if CUDA_HEADER.match(target) or target.endswith(".cuh"):
            if not may_hold_cuda:
                findings.fail(where, f"includes {target}; CUDA headers belong in memory/cuda/*.cpp, *.cu and *.cuh")
            if CUDA_HEADER.match(target):
                continue
        if target in BRIDGE:
            if library != "text":
                findings.fail(where, f"{library} includes {target}; only hearth/text may use the bridge")
            continue
        if quote == "<":
            if target.startswith("hearth/"):
                findings.fail(where, f'includes <{target}>; headers of this repository are in quotes')
            continue
        if target.startswith(QUOTED_ELSEWHERE):
            continue
        if not target.startswith("hearth/"):
            findings.fail(where, f'includes "{target}"; the include root is the repository root')
            continue
        if not (root / target).is_file():
            findings.fail(where, f"includes {target}, which does not exist")
            continue
        other = target.split("/")[1]
        if other not in allowed:
            findings.fail(where, f"{library} includes {target}; layers.toml gives it {layers[library]['deps']}")
        elif library in cmake and other not in named and not is_test:
            findings.fail(where, f"{library} includes {target}, and its DEPS in CMake do not reach {other}")


def check_code(root, path, layers, cmake, findings):
    """One source file anywhere: SPDX, length, PTX; and includes if it lies in hearth/."""
    relative = path.relative_to(root)
    raw = path.read_text(encoding="utf-8", errors="replace")
    text = without_comments(raw)
    if "SPDX-License-Identifier: Apache-2.0" not in "\n".join(raw.split("\n")[:2]):
        findings.fail(f"{relative}:1", "no SPDX-License-Identifier: Apache-2.0 in the first two lines")
    lines = raw.count("\n")
    usual = USUAL_LINES.get(path.suffix)
    if usual and lines > usual:
        findings.warn(relative, f"{lines} lines; a {path.suffix} usually has under {usual}")
    if relative.parts[:3] != ("hearth", "kernels", "sm90"):
        if path.suffix in (".cu", ".cuh"):
            for match in PTX.finditer(text):
                findings.fail(f"{relative}:{line_of(text, match.start())}", "inline PTX outside hearth/kernels/sm90/")
    if relative.parts[0] == "hearth":
        check_includes(root, path, text, layers, cmake, findings)


def check_foreign(root, path, findings):
    """I5 on one tracked text file."""
    data = path.read_bytes()
    if b"\0" in data[:8192] or len(data) > 4 << 20:
        return
    text = data.decode("utf-8", errors="replace")
    for pattern, what in FOREIGN:
        for match in pattern.finditer(text):
            findings.fail(f"{path.relative_to(root)}:{line_of(text, match.start())}", f"names {what}: {match.group()}")


def check_tree(root):
    findings = Findings()
    files = tracked_files(root)
    layers = read_layers(root, findings)
    cmake = read_cmake(root, files, findings)
    check_cmake(layers, cmake, findings)
    folders = {path.relative_to(root).parts[1] for path in files
               if path.suffix in (".cpp", ".cu") and path.relative_to(root).parts[0] == "hearth"}
    for folder in sorted(folders & set(layers) - set(cmake)):
        findings.fail(f"hearth/{folder}", "has code, and no hearth_library() in a CMakeLists.txt builds it")
    for path in files:
        check_foreign(root, path, findings)
        if path.suffix in CODE:
            check_code(root, path, layers, cmake, findings)
    return findings, len(files)


def compile_headers(root, cxx):
    """Each header as the only include of a translation unit, by a host compiler without CUDA paths."""
    findings = Findings()
    headers = [path for path in tracked_files(root)
               if path.suffix == ".h" and path.relative_to(root).parts[0] in ("hearth", "text-bridge")]
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror",
             "-DSPDLOG_FMT_EXTERNAL=1", "-I", str(root), "-x", "c++", "-"]
    bridge = ["-I", str(root / "text-bridge" / "include")]

    def one(path):
        extra = bridge if path.relative_to(root).parts[:2] == ("hearth", "text") else []
        run = subprocess.run([cxx, *extra, *flags], input=f'#include "{path.relative_to(root)}"\n', text=True,
                             capture_output=True)
        return path, run.returncode, run.stderr

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for path, code, message in pool.map(one, headers):
            if code != 0:
                findings.fail(path.relative_to(root), "does not compile alone:\n" + message)
    return findings, len(headers)


def main():
    parser = argparse.ArgumentParser(description="Checks the code against layers.toml and the house rules.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--headers", action="store_true", help="compile every header alone instead")
    parser.add_argument("--cxx", default=os.environ.get("CXX", "g++"))
    args = parser.parse_args()
    root = args.root.resolve()

    findings, count = compile_headers(root, args.cxx) if args.headers else check_tree(root)
    if count == 0:
        findings.fail(str(root), "nothing to check")
    for warning in findings.warnings:
        print(f"warning: {warning}")
    for failure in findings.failures:
        print(f"error: {failure}")
    what = "headers" if args.headers else "files"
    print(f"check_layers: {count} {what}, {len(findings.failures)} failed, {len(findings.warnings)} warnings")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
