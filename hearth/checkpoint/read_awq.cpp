// SPDX-License-Identifier: Apache-2.0
// AWQ "gemm" (docs/formats/foreign-quantized.md): codes transposed, eight columns of the output in a word, in an order
// of their own; true zero points. What a module's tensors are says whether it is quantized.
#include <array>

#include "hearth/checkpoint/module_tensors.h"
#include "hearth/checkpoint/quantized_form.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

// Nibble i of a word is column kColumn[i] of its eight.
constexpr std::array<int64_t, 8> kColumn = {0, 2, 4, 6, 1, 3, 5, 7};

class AwqForm final : public QuantizedForm {
 public:
  AwqForm(int64_t group, bool zero_point, std::vector<std::string> plain)
      : group_(group), zero_point_(zero_point), plain_(std::move(plain)) {}

  std::string_view method() const override { return "awq"; }

  Result<std::optional<WeightFormat>> described(std::string_view module, int64_t n, int64_t) const override {
    if (is_excluded(module) || module == "lm_head") return std::optional<WeightFormat>();
    if (n % 8 != 0) return unsupported("{} outputs; wanted a multiple of 8", n);
    return std::optional(stored_as(DType::kF16));
  }

  Result<std::optional<WeightFormat>> format(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                             int64_t k) const override {
    const ModuleTensors tensors(checkpoint, module);
    const bool excluded = is_excluded(module);
    if (!tensors.has("qweight") && (excluded || tensors.has("weight") || module == "lm_head"))
      return std::optional<WeightFormat>();
    if (excluded) return corrupt("has {}, and modules_to_not_convert excludes it", quote_name(tensors.name("qweight")));
    if (n % 8 != 0) return unsupported("{} outputs; wanted a multiple of 8", n);
    const int64_t groups = group_ == 0 ? 1 : ceil_div(k, group_);
    HEARTH_TRY(tensors.want("qweight", {DType::kI32}, {{k, n / 8}}));
    HEARTH_TRY_ASSIGN(const TensorEntry* scales,
                      tensors.want("scales", {DType::kF16, DType::kBf16, DType::kF32}, {{groups, n}}));
    if (zero_point_ || tensors.has("qzeros")) {
      HEARTH_TRY(tensors.want("qzeros", {DType::kI32}, {{groups, n / 8}}));
    }
    return std::optional(stored_as(scales->dtype));
  }

  Status read(const Checkpoint& checkpoint, std::string_view module, bool, QuantizedMatrix& matrix) const override {
    const ModuleTensors tensors(checkpoint, module);
    const WeightFormat& format = matrix.format;
    const int64_t n = matrix.n, k = matrix.k;
    const int64_t words = n / 8, groups = group_ == 0 ? 1 : ceil_div(k, group_);
    HEARTH_TRY_ASSIGN(const std::vector<uint32_t> packed, tensors.read<uint32_t>(*tensors.find("qweight")));
    matrix.codes.resize(static_cast<size_t>(n * matrix.row_bytes()));
    // A few words of every k at a time: the rows that they go to stay in the cache.
    constexpr int64_t kWords = 16;
    for (int64_t first = 0; first < words; first += kWords) {
      for (int64_t j = 0; j < k; ++j) {
        for (int64_t c = first; c < std::min(words, first + kWords); ++c) {
          const uint32_t word = packed[static_cast<size_t>(j * words + c)];
          for (size_t i = 0; i < 8; ++i) {
            const auto code = static_cast<uint8_t>(word >> 4 * i & 15);
            const int64_t row = 8 * c + kColumn[i];
            matrix.codes[static_cast<size_t>(row * matrix.row_bytes() + j / 2)] |=
                static_cast<uint8_t>(code << (j % 2 * 4));
          }
        }
      }
    }
    HEARTH_TRY_ASSIGN(const std::vector<float> scales, tensors.read_floats(*tensors.find("scales")));
    matrix.scales = transposed<float>(scales, groups, n);
    const TensorEntry* const qzeros = tensors.find("qzeros");
    if (qzeros == nullptr) return {};
    HEARTH_TRY_ASSIGN(const std::vector<uint32_t> packed_zeros, tensors.read<uint32_t>(*qzeros));
    std::vector<uint8_t> zeros(static_cast<size_t>(n * groups));
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t c = 0; c < words; ++c) {
        const uint32_t word = packed_zeros[static_cast<size_t>(g * words + c)];
        for (size_t i = 0; i < 8; ++i)
          zeros[static_cast<size_t>((8 * c + kColumn[i]) * groups + g)] = static_cast<uint8_t>(word >> 4 * i & 15);
      }
    }
    if (format.has_zero_point) {
      matrix.zeros = std::move(zeros);
    } else if (std::ranges::any_of(zeros, [](uint8_t zero) { return zero != 8; })) {
      return corrupt("zero_point is false, and {} has a zero point other than 8", quote_name(qzeros->name));
    }
    return {};
  }

  std::vector<std::string> tensors(const Checkpoint& checkpoint, std::string_view module) const override {
    return ModuleTensors(checkpoint, module).present({"qweight", "qzeros", "scales"});
  }

 private:
  bool is_excluded(std::string_view module) const {
    return std::ranges::any_of(plain_, [&](const std::string& part) { return module.find(part) != module.npos; });
  }
  WeightFormat stored_as(DType scale_dtype) const {
    WeightFormat format;
    format.code = WeightCode::kU4;
    format.scale_dtype = scale_dtype;
    set_grouping(group_, format);
    // Without zero points in the configuration a file may hold a table of eights or none: see read().
    format.has_zero_point = zero_point_;
    return format;
  }

  const int64_t group_;  // 0: a whole row
  const bool zero_point_;
  const std::vector<std::string> plain_;  // parts of the names of modules that are not quantized
};

}  // namespace

Result<FormPointer> parse_awq(const ConfigObject& config) {
  HEARTH_TRY_ASSIGN(const int64_t old_bits, config.integer("w_bit", 4));
  HEARTH_TRY_ASSIGN(const int64_t bits, config.integer("bits", old_bits));
  if (bits != 4) return unsupported("{}: AWQ with {} bits; wanted 4", config.path(), bits);
  HEARTH_TRY_ASSIGN(std::string version, config.string("version", "gemm"));
  std::ranges::transform(version, version.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
  if (version != "gemm")
    return unsupported("{}: AWQ version {}; wanted gemm, which other versions can be converted to", config.path(),
                       quote_name(version));
  HEARTH_TRY_ASSIGN(const int64_t old_group, config.integer("q_group_size", 128));
  HEARTH_TRY_ASSIGN(const int64_t group_size, config.integer("group_size", old_group));
  HEARTH_TRY_ASSIGN(const int64_t group, checked_group(group_size).with_context(config.path()));
  HEARTH_TRY_ASSIGN(const bool zero_point, config.boolean("zero_point", true));
  HEARTH_TRY_ASSIGN(std::vector<std::string> plain, config.strings("modules_to_not_convert"));
  return FormPointer(std::make_unique<AwqForm>(group, zero_point, std::move(plain)));
}

}  // namespace hearth
