// SPDX-License-Identifier: Apache-2.0
// Writing quantized linears: the tensors of one module, and quantization_config for a whole model, in
// compressed-tensors form or in hearth's own (docs/formats). What is written here, Quantization reads back equal.
// Stateless: any thread.
//
// A row length K that is no multiple of the group: compressed-tensors has no way to say it, so choose_form() and
// tensors_of() refuse it there; hearth's own form stores ceil(K / group) scales, the last of them for fewer columns.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/safetensors_writer.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

enum class CheckpointForm : uint8_t { kCompressedTensors, kHearth };

// A quantized linear of the model.
struct QuantizedModule {
  std::string name;
  WeightFormat format;
  int64_t n = 0;
  int64_t k = 0;
};

// A model as its configuration describes it.
struct QuantizedModel {
  std::vector<QuantizedModule> quantized;
  std::vector<std::string> plain;  // names of linears that stay plain, lm_head included where it is one
  std::optional<KvFormatId> kv;    // nullopt, kF32 and kBf16: not stored
  bool kv_scale_per_head = false;  // kFp8: k_scale and v_scale [kv_heads], else [1]
};

// Whether compressed-tensors can say this: u4 (f16 or bf16 scales per row or group of a divisor of k) and e4m3.
bool suits_compressed_tensors(const WeightFormat& format, int64_t k);
// kCompressedTensors where every module and the KV format suit it.
CheckpointForm choose_form(const QuantizedModel& model);

struct StoredTensor {
  TensorSpec spec;
  std::vector<std::byte> bytes;
};

// The tensors of `module`, bias excluded. InvalidArgument where the matrix is not valid, a scale is not finite or not a
// value of its type; Unsupported where the form has no place for it (compressed-tensors: other codes, a column order).
Result<std::vector<StoredTensor>> tensors_of(const QuantizedMatrix& matrix, std::string_view module,
                                             CheckpointForm form);

// quantization_config of config.json. Unsupported where the form cannot say it. Deterministic: modules are listed in
// the order given. (Include <nlohmann/json.hpp> to use it.)
Result<nlohmann::ordered_json> quantization_config(const QuantizedModel& model, CheckpointForm form);

}  // namespace hearth
