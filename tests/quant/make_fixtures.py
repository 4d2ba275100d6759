#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/fixtures/quantized: small quantized linears packed by the packages that define the formats.

    python3 tests/quant/make_fixtures.py --out tests/fixtures/quantized --packages DIR

DIR holds the unpacked autoawq-0.2.9, gptqmodel-4.2.5 (sdists), auto_gptq (wheel) and compressed_tensors 0.9.4 (wheel)
in folders autoawq, gptqmodel, auto_gptq and compressed_tensors_old. Only their packing code is loaded, file by file:
their other dependencies are replaced by empty modules. compressed-tensors 0.20 is imported as it is installed.

A fixture is a folder: config.json, model.safetensors, and expected.safetensors with the f32 value of every weight,
[n, k] under the module's name. Codes, zero points and scales are drawn first; the weight given to a packer is
(code - zero) * scale, and a packer that does not return these codes is an error here. Wherever a package can
dequantize on a CPU, its result, with scales widened to f32 so that nothing is rounded, is what is expected.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import types
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

SEED = 20261122
LAYER = "model.layers.0."


def load(name, path, **stubs):
    """One file of a package as module `name`; what else it imports from its package is a mock."""
    for key, value in stubs.items():
        sys.modules[key.replace("__", ".")] = value
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def draw(rng, n, k, group, symmetric, zeros=None):
    """Codes [n, k], zero points and f16 scales [n, groups]."""
    groups = -(-k // group)
    codes = torch.from_numpy(rng.integers(0, 16, (n, k), dtype=np.int32))
    scales = torch.from_numpy(rng.uniform(0.003, 0.06, (n, groups)).astype(np.float16))
    if zeros is None:
        zeros = np.full((n, groups), 8) if symmetric else rng.integers(1, 16, (n, groups))
    return codes, torch.from_numpy(np.asarray(zeros, dtype=np.int32)), scales


def value(codes, zeros, scales, g_idx):
    return (codes - zeros[:, g_idx]).float() * scales.float()[:, g_idx]


def linear_of(weight):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.double()  # so that rounding gives the codes back
    return linear


class Fixture:
    def __init__(self, out, name, config, **model):
        self.folder, self.config, self.model = out / name, config, model
        self.tensors, self.expected = {}, {}

    def add(self, module, tensors, expected=None):
        for suffix, tensor in tensors.items():
            self.tensors[f"{module}.{suffix}"] = tensor.clone().contiguous()
        if expected is not None:
            assert expected.dtype == torch.float32 and expected.isfinite().all()
            self.expected[module] = expected.contiguous()

    def write(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        config = {"architectures": ["LlamaForCausalLM"], "quantization_config": self.config}
        (self.folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(self.tensors, self.folder / "model.safetensors")
        save_file(self.expected, self.folder / "expected.safetensors")
        print(self.folder.name, sorted(self.expected))


# --- AWQ: AutoAWQ's WQLinear_GEMM packs, its dequantize_gemm gives the values


def make_awq(out, packages, rng):
    root = packages / "autoawq" / "awq"
    for name in ("awq", "awq.utils", "awq.modules"):
        sys.modules[name] = types.ModuleType(name)
    packing = load("awq.utils.packing_utils", root / "utils" / "packing_utils.py")
    gemm = load(
        "awq.modules.gemm", root / "modules" / "linear" / "gemm.py",
        awq__utils__module=mock.MagicMock(try_import=lambda name: (None, "")),
        awq__utils__utils=mock.MagicMock(get_best_device=lambda: "cpu"),
        awq__modules__triton=mock.MagicMock(), awq__modules__triton__gemm=mock.MagicMock())

    def add(fixture, module, n, k, group, symmetric=False):
        size = k if group == -1 else group
        codes, zeros, scales = draw(rng, n, k, size, symmetric)
        g_idx = torch.arange(k) // size
        packed = gemm.WQLinear_GEMM.from_linear(linear_of(value(codes, zeros, scales, g_idx).double()), 4, size,
                                                scales=scales.t().contiguous(), zeros=zeros.t().contiguous())
        got = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, size).t()
        assert torch.equal(got, value(codes, zeros, scales, g_idx))
        fixture.add(module, {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}, got)

    base = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    plain = {"weight": torch.from_numpy(rng.standard_normal((16, 32)).astype(np.float16))}
    fixture = Fixture(out, "awq_g32", base | {"group_size": 32, "modules_to_not_convert": ["down_proj"]})
    add(fixture, LAYER + "self_attn.q_proj", 64, 96, 32)
    fixture.add(LAYER + "mlp.down_proj", plain)
    fixture.add("lm_head", plain)
    fixture.write()
    for group in (64, 128, -1):
        fixture = Fixture(out, f"awq_g{group}" if group > 0 else "awq_row",
                          base | {"group_size": group, "version": "GEMM"})
        add(fixture, LAYER + "self_attn.q_proj", 32, 128 if group > 0 else 48, group)
        fixture.write()
    fixture = Fixture(out, "awq_no_zero_point", base | {"group_size": 32, "zero_point": False})
    add(fixture, LAYER + "self_attn.q_proj", 32, 64, 32, symmetric=True)
    fixture.write()


# --- GPTQ: AutoGPTQ's and GPTQModel's packers


def make_gptq(out, packages, rng):
    auto = load("auto_gptq_qlinear", packages / "auto_gptq" / "auto_gptq" / "nn_modules" / "qlinear" / "qlinear_cuda.py")
    names = ["gptqmodel", "gptqmodel.nn_modules", "gptqmodel.adapter", "gptqmodel.models", "gptqmodel.utils"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    qlinear = load(
        "gptqmodel.nn_modules.qlinear",
        packages / "gptqmodel" / "gptqmodel" / "nn_modules" / "qlinear" / "__init__.py",
        gptqmodel__adapter__adapter=mock.MagicMock(), gptqmodel__models___const=mock.MagicMock(),
        gptqmodel__utils__backend=mock.MagicMock(), gptqmodel__utils__logger=mock.MagicMock())

    def pack_auto(weight, scales, zeros, g_idx, group):
        module = auto.QuantLinear(4, group, weight.shape[1], weight.shape[0], False)
        module.pack(linear_of(weight.double()), scales.double(), zeros.double(), g_idx)
        return {"qweight": module.qweight, "qzeros": module.qzeros, "scales": module.scales.half(),
                "g_idx": module.g_idx}

    def pack_gptqmodel(weight, scales, zeros, g_idx, group):
        self = types.SimpleNamespace(bits=4, pack_factor=8, pack_dtype_bits=32, pack_np_dtype=np.int32,
                                     pack_np_math_dtype=np.uint32, register_buffer=lambda *a: None, g_idx=g_idx)
        qlinear.PackableQuantLinear.pack(self, linear_of(weight.double()), scales.double(), zeros, g_idx)
        # How that package turns its own form, v2, into v1 when it saves (convert_gptq_v2_to_v1_format_module).
        tensors = {"qweight": self.qweight, "qzeros": self.qzeros, "scales": self.scales, "g_idx": self.g_idx}
        return tensors, tensors | {"qzeros": self.qzeros - 0x11111111}

    def unpack(tensors, k):
        shifts = torch.arange(0, 32, 4)
        codes = (tensors["qweight"][:, None, :] >> shifts[None, :, None] & 15).reshape(k, -1).t()
        return codes

    def check(tensors, codes):
        assert torch.equal(unpack(tensors, codes.shape[1]), codes)
        return tensors

    base = {"quant_method": "gptq", "bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False,
            "static_groups": False, "sym": True, "true_sequential": True, "lm_head": False,
            "checkpoint_format": "gptq", "pack_dtype": "int32"}
    q_proj, n, k = LAYER + "self_attn.q_proj", 32, 128

    def case(name, config, symmetric, zeros=None, g_idx=None, v2=None, group=32):
        size = k if group == -1 else group
        codes, zero, scales = draw(rng, n, k, size, symmetric, zeros)
        order = torch.arange(k, dtype=torch.int32) // size if g_idx is None else g_idx
        weight = value(codes, zero, scales, order.long())
        if v2 is None:
            tensors = pack_auto(weight, scales, zero, order, group)
        else:
            tensors = pack_gptqmodel(weight, scales, zero, order, group)[0 if v2 else 1]
        fixture = Fixture(out, name, base | config)
        fixture.add(q_proj, check(tensors, codes), weight)
        fixture.add("lm_head", {"weight": torch.from_numpy(rng.standard_normal((16, 32)).astype(np.float16))})
        fixture.write()

    case("gptq_v1_sym", {}, True)
    case("gptq_v1_asym", {"sym": False}, False)
    with_zero = rng.integers(0, 16, (n, k // 32))
    with_zero[::3] = 0
    case("gptq_v1_zero_0", {"sym": False}, False, with_zero, v2=False)
    case("gptq_v2", {"sym": False, "checkpoint_format": "gptq_v2"}, False, with_zero, v2=True)
    case("gptq_v2_sym", {"format": "gptq_v2", "checkpoint_format": None}, True, v2=True)
    # desc_act: columns in order of a falling diagonal, groups of 32 in that order.
    rank = np.argsort(rng.permutation(k))
    case("gptq_act_order", {"desc_act": True}, True, g_idx=torch.from_numpy((rank // 32).astype(np.int32)))
    case("gptq_act_order_asym", {"desc_act": True, "sym": False}, False,
         g_idx=torch.from_numpy((rank // 32).astype(np.int32)), v2=False)
    case("gptq_static_groups", {"desc_act": True, "static_groups": True}, True)
    case("gptq_row", {"group_size": -1}, True, group=-1)

    # Rules: the first that matches counts.
    fixture = Fixture(out, "gptq_dynamic", base | {"dynamic": {
        "-:.*\\.1\\.mlp": {}, "+:.*\\.mlp\\.": {"group_size": 64, "sym": False}, ".*mlp.up_proj": {"bits": 8}}})
    for module, group, symmetric in ((q_proj, 32, True), (LAYER + "mlp.up_proj", 64, False)):
        codes, zero, scales = draw(rng, n, k, group, symmetric)
        weight = value(codes, zero, scales, torch.arange(k) // group)
        order = torch.arange(k, dtype=torch.int32) // group
        fixture.add(module, check(pack_auto(weight, scales, zero, order, group), codes), weight)
    fixture.add("model.layers.1.mlp.up_proj", {"weight": torch.zeros(8, 8, dtype=torch.float16)})
    fixture.write()


# --- compressed-tensors: the package compresses and decompresses


def make_compressed(out, rng):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    def pack(args, codes, zeros, scales):
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        compressor = BaseCompressor.get_value_from_registry(
            "float-quantized" if args["type"] == "float" else "pack-quantized")
        size = codes.shape[1] // scales.shape[-1] if args["strategy"] in ("group", "channel") else None
        if args["strategy"] == "block":
            rows, columns = args["block_structure"]
            spread = scales.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            weight = codes.float() * spread[: codes.shape[0], : codes.shape[1]]
        elif args["strategy"] == "tensor":
            weight = codes.float() * scales.float()
        else:
            zero = 0 if zeros is None else zeros.float().repeat_interleave(size, 1)
            weight = (codes.float() - zero) * scales.float().repeat_interleave(size, 1)
        state = {"weight": weight, "weight_scale": scales.float()}
        if zeros is not None:
            state["weight_zero_point"] = zeros.to(torch.int8)
        packed = compressor.compress(state, scheme)
        got = compressor.decompress(packed, scheme)["weight"].float()
        assert torch.equal(got, weight), args
        packed["weight_scale"] = scales
        return packed, got, {"targets": None, "weights": args}

    def scales_of(shape, dtype):
        return torch.from_numpy(rng.uniform(0.003, 0.06, shape).astype(np.float32)).to(dtype)

    def int4(n, k, group, symmetric, dtype):
        groups = 1 if group is None else k // group
        args = {"num_bits": 4, "type": "int", "symmetric": symmetric, "dynamic": False,
                "strategy": "channel" if group is None else "group"}
        if group is not None:
            args["group_size"] = group
        codes = torch.from_numpy(rng.integers(-8, 8, (n, k)))
        zeros = None if symmetric else torch.from_numpy(rng.integers(-8, 8, (n, groups)))
        return pack(args, codes, zeros, scales_of((n, groups), dtype))

    def fp8(n, k, strategy, dtype, block=None):
        args = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy}
        shape = (n, 1) if strategy == "channel" else (1,)
        if block:
            args["block_structure"] = block
            shape = (-(-n // block[0]), -(-k // block[1]))
        bits = rng.integers(0, 256, (n, k), dtype=np.uint8)
        bits[(bits & 0x7F) == 0x7F] = 0x38
        codes = torch.from_numpy(bits).view(torch.float8_e4m3fn)
        return pack(args, codes, None, scales_of(shape, dtype))

    dynamic = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    static = dynamic | {"strategy": "tensor", "dynamic": False}
    input_scale = {"input_scale": torch.tensor([0.0123], dtype=torch.float32)}
    bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
    cases = {  # module: (tensors, values, group), activations, targets, more tensors
        "self_attn.q_proj": (int4(32, 64, 32, True, bf16), None, ["re:.*self_attn\\.q_proj$"], {}),
        "self_attn.k_proj": (int4(16, 64, 32, False, f16), None, [LAYER + "self_attn.k_proj"], {}),
        "self_attn.v_proj": (int4(16, 40, None, True, bf16), None, ["re:.*v_proj"], {}),
        "self_attn.o_proj": (int4(20, 44, None, False, bf16), None, ["re:.*o_proj"], {}),
        "mlp.gate_proj": (fp8(24, 48, "channel", f32), dynamic, ["Linear"], {}),
        "mlp.up_proj": (fp8(24, 48, "tensor", bf16), static, [LAYER + "mlp.up_proj"], input_scale),
        "mlp.down_proj": (fp8(40, 56, "block", f32, [16, 32]), dynamic | {"strategy": "group", "group_size": 32},
                          ["re:.*down_proj"], {}),
    }
    groups = {}
    fixture = Fixture(out, "ct_mixed", {})
    for i, (module, ((packed, values, group), acts, targets, more)) in enumerate(cases.items()):
        groups[f"group_{i}"] = {
            "targets": targets, "weights": group["weights"], "input_activations": acts, "output_activations": None,
            "format": "float-quantized" if group["weights"]["type"] == "float" else "pack-quantized"}
        fixture.add(LAYER + module, packed | more, values)
    fixture.add("lm_head", {"weight": torch.zeros(8, 8, dtype=bf16)})
    fixture.add("model.layers.1.mlp.gate_proj", {"weight": torch.zeros(8, 8, dtype=bf16)})
    fixture.config = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
        "global_compression_ratio": None, "config_groups": groups, "ignore": ["lm_head", "re:model\\.layers\\.1\\."],
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}}
    QuantizationConfig.model_validate(fixture.config)  # the package understands it
    fixture.write()

    fixture = Fixture(out, "ct_w4a16", {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None, "output_activations": None,
                                      "weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32,
                                                  "strategy": "group", "dynamic": False, "actorder": "weight",
                                                  "block_structure": None, "observer": "minmax"}}},
        "ignore": ["lm_head"], "kv_cache_scheme": None})
    packed, values, _ = int4(16, 96, 32, True, f16)
    fixture.add(LAYER + "self_attn.q_proj", packed, values)
    fixture.add("lm_head", {"weight": torch.zeros(8, 8, dtype=f16)})
    fixture.write()


OLD = """
import sys, torch
from safetensors.torch import load_file, save_file
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs
state = load_file(sys.argv[1])
args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32, actorder="group")
compressor = PackedQuantizationCompressor()
packed = compressor.compress_weight(weight=state["weight"], scale=state["scale"], zero_point=None,
                                    g_idx=state["g_idx"], quantization_args=args)
packed["weight_scale"] = state["scale"]
packed["weight_g_idx"] = state["g_idx"]
values = compressor.decompress_weight(packed, args)
packed["weight_shape"] = torch.as_tensor(packed["weight_shape"])
save_file(packed | {"values": values}, sys.argv[2])
"""


def make_act_order(out, packages, rng):
    """actorder "group" by a version of compressed-tensors that has it, in a process of its own."""
    n, k = 16, 128
    codes = torch.from_numpy(rng.integers(-8, 8, (n, k)))
    scales = torch.from_numpy(rng.uniform(0.003, 0.06, (n, 4)).astype(np.float16)).float()
    g_idx = torch.from_numpy((np.argsort(rng.permutation(k)) // 32).astype(np.int32))
    weight = codes.float() * scales[:, g_idx.long()]
    folder = out / "ct_actorder"
    folder.mkdir(parents=True, exist_ok=True)
    given, made = folder / "in.tmp", folder / "out.tmp"
    save_file({"weight": weight, "scale": scales, "g_idx": g_idx}, given)
    subprocess.run([sys.executable, "-c", OLD, given, made], check=True,
                   env={"PYTHONPATH": str(packages / "compressed_tensors_old")})
    from safetensors.torch import load_file
    packed = load_file(made)
    given.unlink()
    made.unlink()
    values = packed.pop("values").float()
    assert torch.equal(values, weight)
    packed["weight_scale"] = packed["weight_scale"].half()
    fixture = Fixture(out, "ct_actorder", {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"],
                                      "weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32,
                                                  "strategy": "group", "dynamic": False, "actorder": "group"}}},
        "ignore": []})
    fixture.add(LAYER + "self_attn.q_proj", packed, values)
    fixture.write()


# --- quant_method fp8: no package packs it alone; torch's own float8 casts and products


def make_fp8(out, rng):
    def codes_of(n, k):
        bits = rng.integers(0, 256, (n, k), dtype=np.uint8)
        bits[(bits & 0x7F) == 0x7F] = 0x38
        return torch.from_numpy(bits).view(torch.float8_e4m3fn)

    for name, dtype in (("fp8_block", torch.float32), ("fp8_block_bf16", torch.bfloat16)):
        fixture = Fixture(out, name, {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                      "weight_block_size": [16, 32],
                                      "modules_to_not_convert": ["lm_head", "model.layers.1"]})
        codes = codes_of(40, 72)
        scales = torch.from_numpy(rng.uniform(1e-4, 1e-2, (3, 3)).astype(np.float32)).to(dtype)
        spread = scales.float().repeat_interleave(16, 0).repeat_interleave(32, 1)[:40, :72]
        fixture.add(LAYER + "mlp.down_proj", {"weight": codes, "weight_scale_inv": scales}, codes.float() * spread)
        plain = {"weight": torch.zeros(8, 8, dtype=torch.bfloat16)}
        for module in ("lm_head", "model.layers.1.mlp.down_proj"):
            fixture.add(module, plain)
        fixture.write()
    fixture = Fixture(out, "fp8_static", {"quant_method": "fp8", "activation_scheme": "static",
                                          "ignored_layers": ["lm_head"]})
    codes, scale = codes_of(24, 40), torch.tensor(0.0031)
    fixture.add(LAYER + "mlp.down_proj", {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.02)},
                codes.float() * scale)
    fixture.write()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--packages", type=pathlib.Path, required=True)
    args = parser.parse_args()
    for seed, make in enumerate((lambda rng: make_awq(args.out, args.packages, rng),
                                 lambda rng: make_gptq(args.out, args.packages, rng),
                                 lambda rng: make_compressed(args.out, rng),
                                 lambda rng: make_act_order(args.out, args.packages, rng),
                                 lambda rng: make_fp8(args.out, rng))):
        make(np.random.default_rng(SEED + seed))


if __name__ == "__main__":
    main()
