// SPDX-License-Identifier: Apache-2.0
// The linear layer's implementations on a GPU. Builds with CUDA only; tensors in device memory, in exec.stream.
// linear_cublaslt: bf16 x and bf16 weights, on the tensor cores; sums in f32 in the order of the algorithm that the
// library chooses for the shape, so that a row's bits may differ between values of m (not from run to run).
// linear_bf16_sm90: the same, with a kernel of our own for few rows (linear_narrow_sm90.h), whose bits are theirs.
// linear_fp8_sm90: bf16 x and weights of E4M3 with a scale for each row or one for all; x is rounded to E4M3
// (act_quantize.h), where it does not come so, and both meet on the tensor cores: few rows in our kernels, more
// in cuBLASLt.
// linear_nibble_sm90: bf16 x, 4-bit codes with scales for groups of 128, 256, 512, ... columns; x rounded to E4M3 where
// the format says so. Packed weights on tensor cores: up to 16 rows by linear_units_sm90.h, more by
// linear_nibble_wide_sm90.h. What is not packed is linear_quantized_sm90's.
// linear_lines_sm90: bf16 x, rounded to INT8 for each 128 columns, and bitvectors with integer lines as a model's load
// packs them (line_units.h): on tensor cores, up to 16 rows by linear_lines_sm90.cuh, more by linear_lines_wide_sm90.h.
// What is not packed is linear_quantized_sm90's.
// linear_sm90: every other pair of plain types; a row's bits are its own.
// linear_quantized_sm90: every quantized format, with activations of f32 or bf16; a row's bits are its own.
#pragma once

#include "hearth/kernels/linear/linear.h"

namespace hearth {

// Opens cuBLASLt and makes the handle of this process, once. Unavailable where the library is missing.
Status prepare_cublaslt();

int64_t linear_cublaslt_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_cublaslt(const LinearArgs& args, ExecContext& exec);
int64_t linear_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_sm90(const LinearArgs& args, ExecContext& exec);
int64_t linear_quantized_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_quantized_sm90(const LinearArgs& args, ExecContext& exec);

Status linear_bf16_sm90(const LinearArgs& args, ExecContext& exec);
bool supports_linear_fp8_sm90(const WeightFormat& format, DType activation);
// Of a weight that the op is for; x and x_scale are then 16-byte aligned, x in rows of whole vectors.
bool linear_fp8_sm90_takes_rounded(const LinearWeight& weight);
int64_t linear_fp8_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_fp8_sm90(const LinearArgs& args, ExecContext& exec);
Status linear_fp8_sm90_parts(std::span<const LinearArgs> parts, ExecContext& exec);

bool supports_linear_nibble_sm90(const WeightFormat& format, DType activation);
bool linear_nibble_sm90_takes_rounded(const LinearWeight& weight);
// LinearOp::packed_bytes and pack: units (nibble_units.h), where the weight has them and no k_order.
int64_t linear_nibble_sm90_packed_bytes(const WeightFormat& format, int64_t n, int64_t k);
Status linear_nibble_sm90_pack(LinearWeight& weight, std::byte* to, void* stream);
int64_t linear_nibble_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_nibble_sm90(const LinearArgs& args, ExecContext& exec);
Status linear_nibble_sm90_parts(std::span<const LinearArgs> parts, ExecContext& exec);

bool supports_linear_lines_sm90(const WeightFormat& format, DType activation);
// LinearOp::packed_bytes and pack: units (line_units.h), where the weight has them and no k_order.
int64_t linear_lines_sm90_packed_bytes(const WeightFormat& format, int64_t n, int64_t k);
Status linear_lines_sm90_pack(LinearWeight& weight, std::byte* to, void* stream);
int64_t linear_lines_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_lines_sm90(const LinearArgs& args, ExecContext& exec);
Status linear_lines_sm90_parts(std::span<const LinearArgs> parts, ExecContext& exec);

// out = added + x W^T, where x and W are bf16, or E4M3 with f32 scales for the rows of both ([m] and [n], in device
// memory). `added` may be out, or nothing.
struct CublasLtProduct {
  ConstTensorView x, weight, added;
  TensorView out;
  const float* x_scale = nullptr;
  const float* weight_scale = nullptr;
};
Status multiply_cublaslt(const CublasLtProduct& product, std::span<std::byte> workspace, void* stream);

// out = bias + residual (where there is one), to which linear_cublaslt adds the product. REQUIRES: valid args, a bias.
Status linear_fill_cuda(const LinearArgs& args, ExecContext& exec);

}  // namespace hearth
