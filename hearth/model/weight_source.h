// SPDX-License-Identifier: Apache-2.0
// Where weights come from: a checkpoint, or a seeded random generator that gives any architecture
// weights of plausible scale, so that it can be measured without its files.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "hearth/base/result.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/quantization.h"
#include "hearth/model/config.h"

namespace hearth {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The tensor of that name, or null. `wanted` is the shape that the caller will insist on.
  virtual const TensorEntry* find(const std::string& name, const Shape& wanted) = 0;
  // Bytes [begin, begin + dst.size()) of a tensor that find() returned. Thread-safe.
  virtual Status read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const = 0;
  // As find(), for a tensor that a model may have or not, of whatever shape.
  virtual const TensorEntry* find_optional(const std::string& name) {
    (void)name;
    return nullptr;
  }
  // The format of linear `module` ("model.layers.0.self_attn.q_proj") of n x k; nullopt: plain, in `<module>.weight`.
  virtual Result<std::optional<WeightFormat>> quantized_format(const std::string& module, int64_t n, int64_t k) {
    (void)module, (void)n, (void)k;
    return std::optional<WeightFormat>();
  }
  // The tensor whose bytes are the codes of `module` as the canonical form has them, [n, bytes of a row] of u8 or e4m3,
  // for read_part(); nullopt: read_quantized() brings them. REQUIRES: quantized_format() gave a format.
  virtual std::optional<TensorEntry> canonical_codes(const std::string& module, int64_t n, int64_t k) const {
    (void)module, (void)n, (void)k;
    return std::nullopt;
  }
  // The matrix, without the codes where canonical_codes() has them. REQUIRES: as there.
  virtual Result<QuantizedMatrix> read_quantized(const std::string& module, int64_t n, int64_t k) const {
    (void)n, (void)k;
    return internal_error("{} has no quantized {}", name(), module);
  }
  // For messages.
  virtual std::string name() const = 0;
};

class CheckpointSource final : public WeightSource {
 public:
  // REQUIRES: both outlive this.
  CheckpointSource(const Checkpoint& checkpoint, const Quantization& quantization)
      : checkpoint_(checkpoint), quantization_(quantization) {}
  const TensorEntry* find(const std::string& name, const Shape&) override {
    asked_.insert(name);
    return checkpoint_.find(name);
  }
  const TensorEntry* find_optional(const std::string& name) override { return find(name, {}); }
  Status read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const override {
    return checkpoint_.read_part(entry, begin, dst);
  }
  Result<std::optional<WeightFormat>> quantized_format(const std::string& module, int64_t n, int64_t k) override;
  std::optional<TensorEntry> canonical_codes(const std::string& module, int64_t n, int64_t k) const override {
    return quantization_.canonical_codes(checkpoint_, module, n, k);
  }
  Result<QuantizedMatrix> read_quantized(const std::string& module, int64_t n, int64_t k) const override {
    return quantization_.read(checkpoint_, module, n, k, !canonical_codes(module, n, k));
  }
  std::string name() const override { return checkpoint_.dir().string(); }

  // After binding: Unsupported if the checkpoint holds a tensor that the model did not ask for, because
  // what it was trained with is then not what would run. Rotary frequencies of old files are recomputed.
  Status check_all_used() const;

 private:
  const Checkpoint& checkpoint_;
  const Quantization& quantization_;
  std::set<std::string, std::less<>> asked_;
};

// Linear weights uniform with a standard deviation of 0.02, as transformers are initialised; norm weights 1. A module
// that the quantization describes has random codes and scales of the same deviation.
// An element depends on (seed, tensor name, index) alone.
class DummySource final : public WeightSource {
 public:
  // dtype is f32, f16 or bf16: the type of linear weights that are not quantized. REQUIRES: `quantization`, where there
  // is one, outlives this.
  DummySource(const ModelConfig& config, DType dtype, uint64_t seed, const Quantization* quantization = nullptr)
      : tied_(config.tie_word_embeddings), dtype_(dtype), seed_(seed), quantization_(quantization) {}
  const TensorEntry* find(const std::string& name, const Shape& wanted) override;
  // REQUIRES: begin and dst are whole elements.
  Status read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const override;
  Result<std::optional<WeightFormat>> quantized_format(const std::string& module, int64_t n, int64_t k) override;
  std::optional<TensorEntry> canonical_codes(const std::string& module, int64_t n, int64_t k) const override;
  Result<QuantizedMatrix> read_quantized(const std::string& module, int64_t n, int64_t k) const override;
  std::string name() const override { return "dummy weights"; }

 private:
  struct Codes {
    WeightFormat format;
    bool odd = false;  // the last nibble of a row is none
  };
  const bool tied_;
  const DType dtype_;
  const uint64_t seed_;
  const Quantization* const quantization_;
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, Codes> codes_;  // of quantized modules
};

}  // namespace hearth
