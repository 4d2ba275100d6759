// SPDX-License-Identifier: Apache-2.0
// QuantizedForm: one way to store quantized linears, as Quantization (quantization.h) asks it. Each form parses its
// own configuration; the functions' contracts are Quantization's. Immutable: any number of threads.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/config_object.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

class QuantizedForm {
 public:
  virtual ~QuantizedForm() = default;
  virtual std::string_view method() const = 0;
  // The format as far as the configuration tells it.
  virtual Result<std::optional<WeightFormat>> described(std::string_view module, int64_t n, int64_t k) const = 0;
  virtual Result<std::optional<WeightFormat>> format(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                                     int64_t k) const = 0;
  // Null where the codes must be made from what is stored. REQUIRES: format() gave a format.
  virtual const TensorEntry* canonical_codes(const Checkpoint& checkpoint, std::string_view module, int64_t k) const {
    (void)checkpoint, (void)module, (void)k;
    return nullptr;
  }
  // `matrix` has what format() gave for the same arguments, and else nothing yet. `with_codes` is false only where
  // canonical_codes() has them.
  virtual Status read(const Checkpoint& checkpoint, std::string_view module, bool with_codes,
                      QuantizedMatrix& matrix) const = 0;
  virtual std::vector<std::string> tensors(const Checkpoint& checkpoint, std::string_view module) const = 0;
  virtual std::optional<KvFormatId> kv_format() const { return std::nullopt; }
};

using FormPointer = std::unique_ptr<const QuantizedForm>;

Result<FormPointer> parse_awq(const ConfigObject& config);
Result<FormPointer> parse_gptq(const ConfigObject& config);
// Null where the configuration quantizes nothing (format "dense").
Result<FormPointer> parse_compressed_tensors(const ConfigObject& config);
Result<FormPointer> parse_fp8(const ConfigObject& config);
Result<FormPointer> parse_hearth(const ConfigObject& config);

}  // namespace hearth
