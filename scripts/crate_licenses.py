# SPDX-License-Identifier: Apache-2.0
"""Reads `cargo metadata` from stdin and copies each crate's licence texts to DIR/<crate>-<version>/.

Usage: cargo metadata ... | python3 scripts/crate_licenses.py DIR. Only crates that are linked count:
what the resolver reaches from the root by normal dependencies, not by build or dev ones. A crate that
ships no text gets a file with its licence expression and its repository. Exit 1 if a crate has neither."""

import json
import shutil
import sys
from pathlib import Path

metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
linked, todo = set(), [metadata["resolve"]["root"]]
while todo:
    crate = todo.pop()
    if crate not in linked:
        linked.add(crate)
        todo.extend(dep["pkg"] for dep in nodes[crate]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"]))
linked.discard(metadata["resolve"]["root"])

out = Path(sys.argv[1])
bare = 0
for crate in sorted(linked):
    package = packages[crate]
    folder = out / f"{package['name']}-{package['version']}"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(package["manifest_path"]).parent
    texts = [path for path in sorted(source.iterdir())
             if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"))]
    for text in texts:
        shutil.copyfile(text, folder / text.name)
    for text in sorted(source.glob("*/COPYING*")):  # of C sources that a crate carries along
        shutil.copyfile(text, folder / f"{text.name}.{text.parent.name}")
    if not texts:
        if not package["license"]:
            sys.exit(f"crate_licenses: {folder.name} has no licence text and names no licence")
        bare += 1
        (folder / "LICENSE").write_text(f"{package['license']}\n{package['repository'] or ''}\n", encoding="utf-8")
print(f"dist: licence texts of {len(linked)} crates ({bare} name their licence and ship no text)")
