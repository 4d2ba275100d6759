#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes hearth/kernels/sm90/wgmma_shapes.cuh: one wrapper for each operand type and source of A, a branch for each N.

  tools/wgmma_wrappers.py > hearth/kernels/sm90/wgmma_shapes.cuh

The instruction names every accumulator register, up to 128 of them; a list that is generated has no slips.
"""

WIDTHS = (8, 16, 32, 64, 128, 256)
KINDS = (  # name, accumulator, constraint, type, K, columns of A and B of other orders than K may be given
    ("bf16", "float", "f", "f32.bf16.bf16", 16, True),
    ("f16", "float", "f", "f32.f16.f16", 16, True),
    ("e4m3", "float", "f", "f32.e4m3.e4m3", 32, False),
    ("s8", "int32_t", "r", "s32.s8.s8", 32, False),
)

HEAD = """// SPDX-License-Identifier: Apache-2.0
// wgmma.mma_async for the shapes and types that hearth uses (PTX ISA 9.0, section "wgmma.mma_async"). Written by
// tools/wgmma_wrappers.py. D [64, N] (+)= A [64, K] B [K, N], by the 128 threads of a warpgroup; wgmma.cuh says how
// fragments, descriptors and waits go.
#pragma once

#include <cstdint>

namespace hearth::sm90 {
"""


def statement(kind, accumulator, constraint, types, k, transposes, n, registers_a):
    count = n // 2
    operands = 4 if registers_a else 1
    a = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}" if registers_a else f"%{count}"
    b, flag = count + operands, count + operands + 1
    immediates = ", 1, 1" if constraint == "f" else ""
    if transposes:
        immediates += f", %{flag + 1}" if registers_a else f", 0, %{flag + 1}"
    registers = [f"%{i}" for i in range(count)]
    lines = [f'    asm volatile(', '        "{\\n"', '        ".reg .pred p;\\n"',
             f'        "setp.ne.b32 p, %{flag}, 0;\\n"',
             f'        "wgmma.mma_async.sync.aligned.m64n{n}k{k}.{types} {{"']
    for i in range(0, count, 16):
        tail = ", " if i + 16 < count else "}, "
        lines.append('        "' + ", ".join(registers[i:i + 16]) + tail + '"')
    lines.append(f'        "{a}, %{b}, p{immediates};\\n"')
    lines.append('        "}\\n"')
    outputs = [f'"+{constraint}"(d[{i}])' for i in range(count)]
    for i in range(0, count, 6):
        lines.append("        " + (": " if i == 0 else "  ") + ", ".join(outputs[i:i + 6]) + ("," if i + 6 < count else ""))
    inputs = [f'"r"(a[{i}])' for i in range(4)] if registers_a else ['"l"(a)']
    inputs += ['"l"(b)', '"r"(static_cast<int>(accumulate))'] + (['"n"(kBMajor)'] if transposes else [])
    lines.append("        : " + ", ".join(inputs) + ");")
    return lines


def main():
    print(HEAD)
    for kind, accumulator, constraint, types, k, transposes in KINDS:
        for registers_a in (False, True):
            source = "registers" if registers_a else "shared memory"
            print(f"// A from {source}, K = {k}." + (" kBMajor 0: B lies along K, 1: along N." if transposes else ""))
            print(f"template <int kN{', int kBMajor = 0' if transposes else ''}>")
            parameter = "const uint32_t (&a)[4]" if registers_a else "uint64_t a"
            print(f"__device__ __forceinline__ void wgmma_{kind}({accumulator} (&d)[kN / 2], {parameter}, uint64_t b, "
                  "bool accumulate) {")
            print("  // clang-format off")
            for i, n in enumerate(WIDTHS):
                print(f"  {'if' if i == 0 else '} else if'} constexpr (kN == {n}) {{")
                print("\n".join(statement(kind, accumulator, constraint, types, k, transposes, n, registers_a)))
            print("  } else {")
            print('    static_assert(kN == 8, "no wrapper for this N");')
            print("  }")
            print("  // clang-format on")
            print("}\n")
    print("}  // namespace hearth::sm90")


main()
