// SPDX-License-Identifier: Apache-2.0
// quant_method "fp8" (docs/formats/foreign-quantized.md): E4M3 weights with a scale per block (weight_scale_inv, which
// despite its name multiplies) or per tensor (weight_scale). A module whose weight is no E4M3 is plain.
#include "hearth/checkpoint/module_tensors.h"
#include "hearth/checkpoint/quantized_form.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

class Fp8Form final : public QuantizedForm {
 public:
  Fp8Form(int64_t block_n, int64_t block_k, bool static_activations, std::vector<std::string> plain)
      : block_n_(block_n), block_k_(block_k), static_activations_(static_activations), plain_(std::move(plain)) {}

  std::string_view method() const override { return "fp8"; }

  Result<std::optional<WeightFormat>> described(std::string_view module, int64_t, int64_t) const override {
    if (is_excluded(module) || module == "lm_head") return std::optional<WeightFormat>();
    WeightFormat format;
    format.code = WeightCode::kE4m3;
    format.scale_layout = block_n_ > 0 ? ScaleLayout::kBlock : ScaleLayout::kTensor;
    format.block_n = block_n_;
    format.group_k = block_k_;
    format.act = static_activations_ ? ActFormat::kE4m3Static : ActFormat::kE4m3PerToken;
    return std::optional(format);
  }

  Result<std::optional<WeightFormat>> format(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                             int64_t k) const override {
    const ModuleTensors tensors(checkpoint, module);
    const TensorEntry* const weight = tensors.find("weight");
    const bool excluded = is_excluded(module);
    const bool scaled = tensors.has("weight_scale_inv") || tensors.has("weight_scale");
    if (weight == nullptr && !excluded && module != "lm_head")
      return not_found("no tensor {}", quote_name(tensors.name("weight")));
    if (weight == nullptr || (weight->dtype != DType::kE4m3 && (excluded || !scaled)))
      return std::optional<WeightFormat>();
    if (excluded) return corrupt("{} is e4m3, and modules_to_not_convert excludes it", quote_name(weight->name));
    HEARTH_TRY(tensors.want("weight", {DType::kE4m3}, {{n, k}}));
    WeightFormat format;
    format.code = WeightCode::kE4m3;
    if (block_n_ > 0) {
      HEARTH_TRY_ASSIGN(const TensorEntry* scales, tensors.want("weight_scale_inv", {DType::kF32, DType::kBf16},
                                                                {{ceil_div(n, block_n_), ceil_div(k, block_k_)}}));
      format.scale_layout = ScaleLayout::kBlock;
      format.scale_dtype = scales->dtype;
      format.block_n = block_n_;
      format.group_k = block_k_;
    } else {
      HEARTH_TRY_ASSIGN(
          const TensorEntry* scales,
          tensors.want("weight_scale", {DType::kF32, DType::kBf16, DType::kF16}, {Shape(), {1}, {n}, {n, 1}}));
      format.scale_layout = scales->shape.count() == 1 && n != 1 ? ScaleLayout::kTensor : ScaleLayout::kRow;
      format.scale_dtype = scales->dtype;
    }
    format.act = ActFormat::kE4m3PerToken;
    if (static_activations_) {
      HEARTH_TRY(tensors.want("input_scale", {DType::kF32, DType::kBf16, DType::kF16}, {Shape(), {1}}));
      format.act = ActFormat::kE4m3Static;
    }
    return std::optional(format);
  }

  const TensorEntry* canonical_codes(const Checkpoint& checkpoint, std::string_view module, int64_t) const override {
    return ModuleTensors(checkpoint, module).find("weight");
  }

  Status read(const Checkpoint& checkpoint, std::string_view module, bool with_codes,
              QuantizedMatrix& matrix) const override {
    const ModuleTensors tensors(checkpoint, module);
    if (with_codes) {
      HEARTH_TRY_ASSIGN(matrix.codes, tensors.read_e4m3(*tensors.find("weight")));
    }
    HEARTH_TRY_ASSIGN(matrix.scales,
                      tensors.read_floats(*tensors.find(block_n_ > 0 ? "weight_scale_inv" : "weight_scale")));
    if (static_activations_) {
      HEARTH_TRY_ASSIGN(const std::vector<float> scale, tensors.read_floats(*tensors.find("input_scale")));
      if (!(scale[0] > 0))
        return corrupt("{} is {}; wanted above 0", quote_name(tensors.name("input_scale")), scale[0]);
      matrix.act_scale = scale[0];
    }
    return {};
  }

  std::vector<std::string> tensors(const Checkpoint& checkpoint, std::string_view module) const override {
    return ModuleTensors(checkpoint, module).present({"weight", "weight_scale_inv", "weight_scale", "input_scale"});
  }

 private:
  bool is_excluded(std::string_view module) const {
    return std::ranges::any_of(plain_, [&](const std::string& name) {
      return module == name || (module.starts_with(name) && module.substr(name.size()).starts_with('.'));
    });
  }

  const int64_t block_n_, block_k_;  // 0: one scale per tensor or row
  const bool static_activations_;
  const std::vector<std::string> plain_;  // modules, or what they lie in
};

}  // namespace

Result<FormPointer> parse_fp8(const ConfigObject& config) {
  HEARTH_TRY_ASSIGN(const std::string fmt_name, config.string("fmt", "e4m3"));
  if (fmt_name != "e4m3") return unsupported("{}: fmt {}; wanted e4m3", config.path(), quote_name(fmt_name));
  HEARTH_TRY_ASSIGN(const std::string scheme, config.string("activation_scheme", "dynamic"));
  if (scheme != "dynamic" && scheme != "static")
    return unsupported("{}: activation_scheme {}; wanted dynamic or static", config.path(), quote_name(scheme));
  HEARTH_TRY_ASSIGN(const std::string scale_fmt, config.string("scale_fmt", ""));
  if (!scale_fmt.empty() && scale_fmt != "float")
    return unsupported("{}: scale_fmt {}; wanted float", config.path(), quote_name(scale_fmt));
  HEARTH_TRY_ASSIGN(const std::vector<int64_t> block, config.integers("weight_block_size"));
  if (!block.empty()) {
    const bool valid = block.size() == 2 && std::ranges::all_of(block, [](int64_t b) { return b > 0 && b <= 1 << 30; });
    if (!valid) return corrupt("{}: weight_block_size is not two numbers of 1 to {}", config.path(), 1 << 30);
    if (scheme == "static") return unsupported("{}: block scales with static activations", config.path());
  }
  HEARTH_TRY_ASSIGN(std::vector<std::string> plain, config.strings("modules_to_not_convert"));
  HEARTH_TRY_ASSIGN(const std::vector<std::string> older, config.strings("ignored_layers"));
  plain.insert(plain.end(), older.begin(), older.end());
  return FormPointer(std::make_unique<Fp8Form>(block.empty() ? 0 : block[0], block.empty() ? 0 : block[1],
                                               scheme == "static", std::move(plain)));
}

}  // namespace hearth
