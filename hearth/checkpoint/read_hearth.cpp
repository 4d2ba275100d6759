// SPDX-License-Identifier: Apache-2.0
// hearth's own form (docs/formats/hearth-quantized.md): formats by name, and a map of modules to them. Unknown members
// are refused, so that a later version's files are not misread.
#include <map>

#include "hearth/checkpoint/hearth_form.h"
#include "hearth/checkpoint/module_tensors.h"
#include "hearth/checkpoint/quantized_form.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

using namespace hearth_form;

class HearthForm final : public QuantizedForm {
 public:
  HearthForm(std::map<std::string, WeightFormat, std::less<>> modules, std::optional<KvFormatId> kv)
      : modules_(std::move(modules)), kv_(kv) {}

  std::string_view method() const override { return "hearth"; }
  std::optional<KvFormatId> kv_format() const override { return kv_; }

  Result<std::optional<WeightFormat>> described(std::string_view module, int64_t n, int64_t k) const override {
    const auto it = modules_.find(module);
    if (it == modules_.end()) return std::optional<WeightFormat>();
    WeightFormat format = it->second;
    // As many lines as the quantizer makes at most, where there are groups for them.
    if (format.code == WeightCode::kBitvectors)
      format.lines = std::clamp<int64_t>(n * ceil_div(k, std::max<int64_t>(1, format.group_k)), 1, 4096);
    return std::optional(format);
  }

  Result<std::optional<WeightFormat>> format(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                             int64_t k) const override {
    const auto it = modules_.find(module);
    const ModuleTensors tensors(checkpoint, module);
    if (it == modules_.end()) {
      for (const std::string_view suffix : {kCodes, kBits, kScale}) {
        if (tensors.has(suffix))
          return corrupt("has {}, and the configuration does not name the module", quote_name(tensors.name(suffix)));
      }
      return std::optional<WeightFormat>();
    }
    WeightFormat format = it->second;
    HEARTH_TRY(format.validate(n, k));
    if (format.code == WeightCode::kBitvectors) {
      HEARTH_TRY(check_bitvectors(tensors, n, k, format));
    } else if (format.code == WeightCode::kE4m3) {
      HEARTH_TRY(tensors.want(kWeight, {DType::kE4m3}, {{n, k}}));
    } else {
      HEARTH_TRY(tensors.want(kCodes, {DType::kU8}, {{n, ceil_div(k, 2)}}));
    }
    if (format.scale_layout != ScaleLayout::kNone) {
      HEARTH_TRY(tensors.want(kScale, {format.scale_dtype}, {hearth_scale_shape(format, n, k)}));
    }
    if (format.has_zero_point) {
      HEARTH_TRY(tensors.want(kZero, {DType::kU8}, {{ceil_div(format.scale_count(n, k), 2)}}));
    }
    if (tensors.has(kOrder)) {
      HEARTH_TRY(tensors.want(kOrder, {DType::kI32}, {{k}}));
    }
    if (format.act == ActFormat::kE4m3Static) {
      HEARTH_TRY(tensors.want(kInputScale, {DType::kF32}, {{1}}));
    }
    return std::optional(format);
  }

  const TensorEntry* canonical_codes(const Checkpoint& checkpoint, std::string_view module, int64_t) const override {
    const WeightCode code = modules_.find(module)->second.code;
    if (code == WeightCode::kBitvectors) return nullptr;
    return ModuleTensors(checkpoint, module).find(code == WeightCode::kE4m3 ? kWeight : kCodes);
  }

  Status read(const Checkpoint& checkpoint, std::string_view module, bool with_codes,
              QuantizedMatrix& matrix) const override {
    const ModuleTensors tensors(checkpoint, module);
    const WeightFormat& format = matrix.format;
    if (format.code == WeightCode::kBitvectors) {
      HEARTH_TRY(read_bitvectors(tensors, matrix));
    } else if (format.code == WeightCode::kE4m3 && with_codes) {
      HEARTH_TRY_ASSIGN(matrix.codes, tensors.read_e4m3(*tensors.find(kWeight)));
    } else if (with_codes) {
      HEARTH_TRY_ASSIGN(matrix.codes, tensors.read<uint8_t>(*tensors.find(kCodes)));
    }
    if (format.scale_layout != ScaleLayout::kNone) {
      HEARTH_TRY_ASSIGN(matrix.scales, tensors.read_floats(*tensors.find(kScale)));
    }
    if (format.has_zero_point) {
      HEARTH_TRY_ASSIGN(const std::vector<uint8_t> packed, tensors.read<uint8_t>(*tensors.find(kZero)));
      matrix.zeros.resize(static_cast<size_t>(format.scale_count(matrix.n, matrix.k)));
      for (size_t i = 0; i < matrix.zeros.size(); ++i) matrix.zeros[i] = nibble_at(packed, static_cast<int64_t>(i));
    }
    if (tensors.has(kOrder)) {
      HEARTH_TRY_ASSIGN(matrix.k_order, tensors.read<int32_t>(*tensors.find(kOrder)));
    }
    if (format.act == ActFormat::kE4m3Static) {
      HEARTH_TRY_ASSIGN(const std::vector<float> scale, tensors.read_floats(*tensors.find(kInputScale)));
      if (!(scale[0] > 0)) return corrupt("{} is {}; wanted above 0", quote_name(tensors.name(kInputScale)), scale[0]);
      matrix.act_scale = scale[0];
    }
    return {};
  }

  std::vector<std::string> tensors(const Checkpoint& checkpoint, std::string_view module) const override {
    if (!modules_.contains(module)) return {};
    return ModuleTensors(checkpoint, module)
        .present({kWeight, kCodes, kScale, kZero, kBits, kIndex, kLines, kLineScale, kOrder, kInputScale});
  }

 private:
  // Completes the format by the number of lines.
  static Status check_bitvectors(const ModuleTensors& tensors, int64_t n, int64_t k, WeightFormat& format) {
    const int64_t sums = format.bitvectors;
    const TensorEntry* const lines = tensors.find(kLines);
    const int64_t count = lines != nullptr && lines->shape.rank() == 2 ? lines->shape[0] : 1;
    HEARTH_TRY(tensors.want(kLines, {format.integer_lines ? DType::kI8 : DType::kF16}, {{count, sums}}));
    format.lines = count;
    HEARTH_TRY(format.validate(n, k));
    HEARTH_TRY(tensors.want(kBits, {DType::kU32}, {{ceil_div(k, 32), n, sums}}));
    HEARTH_TRY(tensors.want(kIndex, {count <= 256 ? DType::kU8 : DType::kU16}, {{ceil_div(k, format.group_k), n}}));
    if (format.integer_lines) {
      HEARTH_TRY(tensors.want(kLineScale, {DType::kF16}, {{count}}));
    }
    return {};
  }

  static Status read_bitvectors(const ModuleTensors& tensors, QuantizedMatrix& matrix) {
    const WeightFormat& format = matrix.format;
    {
      HEARTH_TRY_ASSIGN(const std::vector<uint32_t> words, tensors.read<uint32_t>(*tensors.find(kBits)));
      matrix.codes = codes_from_words(words, matrix.n, matrix.k, format.bitvectors);
    }
    const int64_t groups = ceil_div(matrix.k, format.group_k);
    const TensorEntry& index = *tensors.find(kIndex);
    if (index.dtype == DType::kU8) {
      HEARTH_TRY_ASSIGN(const std::vector<uint8_t> narrow, tensors.read<uint8_t>(index));
      matrix.line_index = transposed<uint16_t>(std::vector<uint16_t>(narrow.begin(), narrow.end()), groups, matrix.n);
    } else {
      HEARTH_TRY_ASSIGN(const std::vector<uint16_t> wide, tensors.read<uint16_t>(index));
      matrix.line_index = transposed<uint16_t>(wide, groups, matrix.n);
    }
    const TensorEntry& lines = *tensors.find(kLines);
    if (!format.integer_lines) {
      HEARTH_TRY_ASSIGN(matrix.lines, tensors.read_floats(lines));
      return {};
    }
    HEARTH_TRY_ASSIGN(const std::vector<int8_t> coefficients, tensors.read<int8_t>(lines));
    if (const auto bad = std::ranges::find(coefficients, int8_t{-128}); bad != coefficients.end())
      return corrupt("tensor {}: element {} is -128; wanted -127 to 127", quote_name(lines.name),
                     bad - coefficients.begin());
    matrix.lines.assign(coefficients.begin(), coefficients.end());
    HEARTH_TRY_ASSIGN(matrix.line_scales, tensors.read_floats(*tensors.find(kLineScale)));
    return {};
  }

  const std::map<std::string, WeightFormat, std::less<>> modules_;
  const std::optional<KvFormatId> kv_;
};

}  // namespace

Result<FormPointer> parse_hearth(const ConfigObject& config) {
  HEARTH_TRY_ASSIGN(const int64_t version, config.integer("version"));
  if (version != kHearthFormVersion)
    return unsupported("{}: version {}; wanted {}", config.path(), version, kHearthFormVersion);
  HEARTH_TRY(config.only({"quant_method", "version", "formats", "modules", "kv_format"}));
  std::map<std::string, WeightFormat, std::less<>> formats, modules;
  HEARTH_TRY_ASSIGN(const ConfigObject format_objects, config.object("formats"));
  for (const auto& [name, value] : format_objects.json().items()) {
    HEARTH_TRY_ASSIGN(const ConfigObject object,
                      ConfigObject::make(value, fmt::format("{}.{}", format_objects.path(), quote_name(name))));
    HEARTH_TRY_ASSIGN(formats[name], format_from_json(object));
  }
  HEARTH_TRY_ASSIGN(const ConfigObject module_objects, config.object("modules"));
  for (const auto& [module, value] : module_objects.json().items()) {
    const auto format = value.is_string() ? formats.find(value.get<std::string>()) : formats.end();
    if (format == formats.end())
      return corrupt("{}.{} is {}; wanted one of the {} formats", module_objects.path(), quote_name(module),
                     shown(value), formats.size());
    modules.emplace(module, format->second);
  }
  HEARTH_TRY_ASSIGN(const std::string kv_name, config.string("kv_format", ""));
  const std::optional<KvFormatId> kv = kv_format_from_name(kv_name);
  if (!kv_name.empty() && !kv) return unsupported("{}: kv_format {}", config.path(), quote_name(kv_name));
  return FormPointer(std::make_unique<HearthForm>(std::move(modules), kv));
}

}  // namespace hearth
