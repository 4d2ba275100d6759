#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decodes a checkpoint in compressed-tensors form with the compressed-tensors package.

    HEARTH_KEEP_WRITTEN=DIR checkpoint_test --gtest_filter=QuantizedWriter.CompressedTensors*
    python3 tests/quant/check_compressed_tensors.py DIR --expected DIR/expected/model.safetensors

Every module that a config group targets is decompressed; with --expected (f32 [n, k] under each module's name, what
hearth computes with) every value must be equal. Scales are widened to f32 first: the package multiplies in the type of
the scales. Without --expected it only checks that every module can be decoded and is finite.
"""

import argparse
import json
import pathlib
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import is_match, match_name
from safetensors import safe_open

PARTS = ("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "input_scale")


def read_tensors(folder):
    index = folder / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [
        "model.safetensors"]
    tensors = {}
    for name in names:
        with safe_open(folder / name, "pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--expected", type=pathlib.Path)
    args = parser.parse_args()
    config = QuantizationConfig.model_validate(
        json.loads((args.folder / "config.json").read_text())["quantization_config"])
    tensors = read_tensors(args.folder)
    expected = {}
    if args.expected:
        with safe_open(args.expected, "pt") as file:
            expected = {key: file.get_tensor(key) for key in file.keys()}
    linear = torch.nn.Linear(1, 1)
    modules = sorted({name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] == "weight_scale"})
    for module in modules:
        schemes = [scheme for scheme in config.config_groups.values()
                   if is_match(module, linear, scheme.targets, config.ignore)]
        if len(schemes) > 1:  # a name or a pattern goes before the class
            schemes = [scheme for scheme in schemes if any(match_name(module, target) for target in scheme.targets)]
        assert len(schemes) == 1, f"{module}: {len(schemes)} config groups"
        state = {part: tensors[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in tensors}
        state["weight_scale"] = state["weight_scale"].float()
        compressor = BaseCompressor.get_value_from_registry(schemes[0].format or config.format)
        values = compressor.decompress(state, schemes[0])["weight"].float()
        assert values.isfinite().all(), module
        if args.expected:
            assert torch.equal(values, expected.pop(module)), f"{module}: values differ"
    assert not expected, f"not decoded: {sorted(expected)}"
    print(f"{len(modules)} modules decoded{' and equal' if args.expected else ''}")
    return 0 if modules else 1


if __name__ == "__main__":
    sys.exit(main())
