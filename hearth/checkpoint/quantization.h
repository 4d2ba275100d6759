// SPDX-License-Identifier: Apache-2.0
// Quantization: what a checkpoint's config.json says about how its linears are stored, and the way from each on-disk
// form (AWQ gemm, GPTQ v1 and v2, compressed-tensors, block FP8, hearth's own) to the canonical one.
// docs/formats has a page for each. Immutable after parse(): any number of threads may read.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

class Quantization {
 public:
  // `checkpoint`'s configuration: quantization_config of config.json, or an older quantize_config.json or
  // quant_config.json beside it. One that quantizes nothing where there is none. Unsupported names the method, version
  // or field that hearth does not read; Corrupt one that contradicts itself.
  static Result<Quantization> parse(const Checkpoint& checkpoint);
  // The same of the file config.json alone, for a model without tensors.
  static Result<Quantization> parse_file(const std::filesystem::path& config);
  ~Quantization();
  Quantization(Quantization&&) noexcept;
  Quantization& operator=(Quantization&&) noexcept;

  // "awq", "gptq", "compressed-tensors", "fp8", "hearth"; empty: nothing is quantized.
  std::string_view method() const;

  // The format of linear `module` ("model.layers.0.self_attn.q_proj", "lm_head") of n x k; nullopt: it is plain and
  // lies in `<module>.weight`. Looks at tensors' names and shapes, reads none. NotFound names a missing tensor,
  // InvalidArgument a wrong shape.
  Result<std::optional<WeightFormat>> format(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                             int64_t k) const;
  // The format that the configuration alone tells; where it leaves something to the tensors (the type of the scales,
  // the number of SBVR's lines), what is usual. Whether AWQ and GPTQ quantize lm_head only tensors tell: here it is
  // plain.
  Result<std::optional<WeightFormat>> described_format(std::string_view module, int64_t n, int64_t k) const;
  // The tensor whose bytes are the codes in canonical form already, as [n, bytes of a row] of u8 or e4m3, to be read
  // straight to where they are wanted; nullopt: they must be made by read(). REQUIRES: format() gave one.
  std::optional<TensorEntry> canonical_codes(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                             int64_t k) const;
  // The matrix itself. REQUIRES: format() gave one; `with_codes` is true where canonical_codes() has none. Corrupt for
  // a scale that is not finite or a code outside its table.
  Result<QuantizedMatrix> read(const Checkpoint& checkpoint, std::string_view module, int64_t n, int64_t k,
                               bool with_codes = true) const;
  // Names of the tensors that read() takes, for who checks that a checkpoint holds nothing else.
  std::vector<std::string> tensors(const Checkpoint& checkpoint, std::string_view module) const;

  // The KV format that the checkpoint was made for; nullopt: it names none.
  std::optional<KvFormatId> kv_format() const;

 private:
  struct State;
  explicit Quantization(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

}  // namespace hearth
