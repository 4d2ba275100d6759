// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/quantized_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/hearth_form.h"
#include "hearth/checkpoint/module_tensors.h"

namespace hearth {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are written as they lie in memory");

using nlohmann::ordered_json;

// Collects a module's tensors.
class TensorList {
 public:
  explicit TensorList(std::string_view module) : module_(module) {}

  template <class T>
  void add(std::string_view suffix, DType dtype, Shape shape, const std::vector<T>& values) {
    StoredTensor tensor{{fmt::format("{}.{}", module_, suffix), dtype, shape}, {}};
    tensor.bytes.resize(values.size() * sizeof(T));
    std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    HEARTH_CHECK(std::ssize(tensor.bytes) == dtype_bytes(dtype, shape.count()), "{}: {} bytes for {}", tensor.spec.name,
                 tensor.bytes.size(), to_string(shape));
    tensors_.push_back(std::move(tensor));
  }

  // f32 values as `dtype`. InvalidArgument where one is not finite or changes.
  Status add_floats(std::string_view suffix, DType dtype, Shape shape, std::span<const float> values) {
    switch (dtype) {
      case DType::kF32: return add_as<float>(suffix, dtype, shape, values);
      case DType::kF16: return add_as<f16>(suffix, dtype, shape, values);
      case DType::kBf16: return add_as<bf16>(suffix, dtype, shape, values);
      case DType::kE4m3: return add_as<e4m3>(suffix, dtype, shape, values);
      default: return invalid_argument("{}.{}: scales of type {}", module_, suffix, dtype_name(dtype));
    }
  }

  std::vector<StoredTensor> take() { return std::move(tensors_); }

 private:
  template <class T>
  Status add_as(std::string_view suffix, DType dtype, Shape shape, std::span<const float> values) {
    std::vector<T> converted(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      converted[i] = from_float<T>(values[i]);
      if (!std::isfinite(values[i]) || to_float(converted[i]) != values[i])
        return invalid_argument("{}.{}: element {} is {}, which {} does not hold", module_, suffix, i, values[i],
                                dtype_name(dtype));
    }
    add(suffix, dtype, shape, converted);
    return {};
  }

  std::string_view module_;
  std::vector<StoredTensor> tensors_;
};

// --- compressed-tensors

Shape compressed_scale_shape(const WeightFormat& format, int64_t n, int64_t k) {
  if (format.scale_layout == ScaleLayout::kRow) return {n, 1};
  return hearth_scale_shape(format, n, k);
}

// Four-bit rows of whole bytes to rows of whole words, zeros after the last column.
std::vector<uint32_t> packed_words(const QuantizedMatrix& matrix) {
  const auto words = static_cast<size_t>(ceil_div(matrix.k, 8)), row_bytes = static_cast<size_t>(matrix.row_bytes());
  std::vector<uint32_t> packed(static_cast<size_t>(matrix.n) * words);
  for (size_t row = 0; row < static_cast<size_t>(matrix.n); ++row)
    std::memcpy(packed.data() + row * words, matrix.codes.data() + row * row_bytes, row_bytes);
  if (matrix.k % 2 != 0) {  // a canonical row's last half byte may hold anything
    for (size_t row = 0; row < static_cast<size_t>(matrix.n); ++row)
      packed[row * words + words - 1] &= (1u << matrix.k % 8 * 4) - 1;
  }
  return packed;
}

// Zero points [n, G] to words of eight rows: [ceil(n / 8), G].
std::vector<uint32_t> packed_zeros(const QuantizedMatrix& matrix) {
  const int64_t groups = std::ssize(matrix.zeros) / matrix.n;
  std::vector<uint32_t> packed(static_cast<size_t>(ceil_div(matrix.n, 8) * groups));
  for (int64_t row = 0; row < matrix.n; ++row) {
    for (int64_t g = 0; g < groups; ++g)
      packed[static_cast<size_t>(row / 8 * groups + g)] |=
          static_cast<uint32_t>(matrix.zeros[static_cast<size_t>(row * groups + g)]) << row % 8 * 4;
  }
  return packed;
}

Result<std::vector<StoredTensor>> compressed_tensors_of(const QuantizedMatrix& matrix, std::string_view module) {
  const WeightFormat& format = matrix.format;
  if (!suits_compressed_tensors(format, matrix.k))
    return unsupported("{}: {} of {} columns in compressed-tensors form", module, to_string(format), matrix.k);
  if (!matrix.k_order.empty())
    return unsupported("{}: a column order in compressed-tensors form, which its later versions do not read", module);
  TensorList list(module);
  if (format.code == WeightCode::kE4m3) {
    list.add("weight", DType::kE4m3, {matrix.n, matrix.k}, matrix.codes);
  } else {
    list.add("weight_packed", DType::kI32, {matrix.n, ceil_div(matrix.k, 8)}, packed_words(matrix));
    list.add("weight_shape", DType::kI64, {2}, std::vector<int64_t>{matrix.n, matrix.k});
  }
  HEARTH_TRY(list.add_floats("weight_scale", format.scale_dtype, compressed_scale_shape(format, matrix.n, matrix.k),
                             matrix.scales));
  if (format.has_zero_point) {
    std::vector<uint32_t> zeros = packed_zeros(matrix);
    const int64_t rows = ceil_div(matrix.n, 8);
    list.add("weight_zero_point", DType::kI32, {rows, std::ssize(zeros) / rows}, zeros);
  }
  if (format.act == ActFormat::kE4m3Static) {
    HEARTH_TRY(list.add_floats("input_scale", DType::kF32, {1}, std::array{matrix.act_scale}));
  }
  return list.take();
}

ordered_json compressed_group(const WeightFormat& format, ordered_json targets) {
  const bool packed = format.code == WeightCode::kU4;
  ordered_json weights = {{"num_bits", packed ? 4 : 8},
                          {"type", packed ? "int" : "float"},
                          {"symmetric", !format.has_zero_point},
                          {"dynamic", false}};
  switch (format.scale_layout) {
    case ScaleLayout::kTensor: weights["strategy"] = "tensor"; break;
    case ScaleLayout::kRow: weights["strategy"] = "channel"; break;
    case ScaleLayout::kGroup:
      weights["strategy"] = "group";
      weights["group_size"] = format.group_k;
      break;
    case ScaleLayout::kBlock:
      weights["strategy"] = "block";
      weights["block_structure"] = {format.block_n, format.group_k};
      break;
    case ScaleLayout::kNone: break;
  }
  ordered_json activations;  // null
  if (format.act != ActFormat::kNative) {
    const bool dynamic = format.act == ActFormat::kE4m3PerToken;
    activations = {{"num_bits", 8},
                   {"type", "float"},
                   {"symmetric", true},
                   {"strategy", dynamic ? "token" : "tensor"},
                   {"dynamic", dynamic}};
  }
  return {{"targets", std::move(targets)},
          {"weights", std::move(weights)},
          {"input_activations", std::move(activations)},
          {"output_activations", nullptr},
          {"format", packed ? "pack-quantized" : "float-quantized"}};
}

// Scale types lie in the tensors: formats that differ in them alone are one scheme.
WeightFormat without_scale_type(WeightFormat format) {
  format.scale_dtype = DType::kF32;
  return format;
}

ordered_json compressed_config(const QuantizedModel& model) {
  std::vector<WeightFormat> schemes;
  std::vector<ordered_json> names;
  for (const QuantizedModule& module : model.quantized) {
    const auto it = std::ranges::find(schemes, without_scale_type(module.format));
    const auto at = static_cast<size_t>(it - schemes.begin());
    if (it == schemes.end()) {
      schemes.push_back(without_scale_type(module.format));
      names.push_back(ordered_json::array());
    }
    names[at].push_back(module.name);
  }
  ordered_json groups = ordered_json::object();
  bool packed = false, floats = false;
  for (size_t i = 0; i < schemes.size(); ++i) {
    // One scheme: by class, as everybody writes it. More: by name.
    ordered_json targets = schemes.size() == 1 ? ordered_json{"Linear"} : names[i];
    groups[fmt::format("group_{}", i)] = compressed_group(schemes[i], std::move(targets));
    (schemes[i].code == WeightCode::kU4 ? packed : floats) = true;
  }
  ordered_json kv;  // null
  if (model.kv == KvFormatId::kFp8) {
    kv = {{"num_bits", 8},
          {"type", "float"},
          {"symmetric", true},
          {"strategy", model.kv_scale_per_head ? "attn_head" : "tensor"},
          {"dynamic", false}};
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", packed && floats ? "mixed-precision"
                     : packed         ? "pack-quantized"
                                      : "float-quantized"},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"config_groups", std::move(groups)},
          {"ignore", model.plain},
          {"kv_cache_scheme", std::move(kv)}};
}

// --- hearth's own

Status add_bitvectors(const QuantizedMatrix& matrix, TensorList& list) {
  using namespace hearth_form;
  const WeightFormat& format = matrix.format;
  const int64_t groups = ceil_div(matrix.k, format.group_k), sums = format.bitvectors;
  list.add(kBits, DType::kU32, {ceil_div(matrix.k, 32), matrix.n, sums}, words_from_codes(matrix));
  const std::vector<uint16_t> index = transposed<uint16_t>(matrix.line_index, matrix.n, groups);
  if (format.lines <= 256) {
    list.add(kIndex, DType::kU8, {groups, matrix.n}, std::vector<uint8_t>(index.begin(), index.end()));
  } else {
    list.add(kIndex, DType::kU16, {groups, matrix.n}, index);
  }
  if (!format.integer_lines) return list.add_floats(kLines, DType::kF16, {format.lines, sums}, matrix.lines);
  std::vector<int8_t> lines(matrix.lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    lines[i] = static_cast<int8_t>(std::clamp(matrix.lines[i], -127.0f, 127.0f));
    if (static_cast<float>(lines[i]) != matrix.lines[i])
      return invalid_argument("coefficient {} is {}; wanted a whole number from -127 to 127", i, matrix.lines[i]);
  }
  list.add(kLines, DType::kI8, {format.lines, sums}, lines);
  return list.add_floats(kLineScale, DType::kF16, {format.lines}, matrix.line_scales);
}

Result<std::vector<StoredTensor>> hearth_tensors_of(const QuantizedMatrix& matrix, std::string_view module) {
  using namespace hearth_form;
  const WeightFormat& format = matrix.format;
  if (format.code == WeightCode::kF32 || format.code == WeightCode::kF16 || format.code == WeightCode::kBf16)
    return unsupported("{}: {} is stored plain, not as a quantized module", module, to_string(format));
  TensorList list(module);
  if (format.code == WeightCode::kBitvectors) {
    HEARTH_TRY(add_bitvectors(matrix, list).with_context(module));
  } else if (format.code == WeightCode::kE4m3) {
    list.add(kWeight, DType::kE4m3, {matrix.n, matrix.k}, matrix.codes);
  } else {
    list.add(kCodes, DType::kU8, {matrix.n, ceil_div(matrix.k, 2)}, matrix.codes);
  }
  if (format.scale_layout != ScaleLayout::kNone) {
    HEARTH_TRY(
        list.add_floats(kScale, format.scale_dtype, hearth_scale_shape(format, matrix.n, matrix.k), matrix.scales));
  }
  if (format.has_zero_point) {
    std::vector<uint8_t> packed((matrix.zeros.size() + 1) / 2);
    for (size_t i = 0; i < matrix.zeros.size(); ++i) put_nibble(packed, static_cast<int64_t>(i), matrix.zeros[i]);
    const int64_t bytes = std::ssize(packed);
    list.add(kZero, DType::kU8, {bytes}, packed);
  }
  if (!matrix.k_order.empty()) list.add(kOrder, DType::kI32, {matrix.k}, matrix.k_order);
  if (format.act == ActFormat::kE4m3Static) {
    HEARTH_TRY(list.add_floats(kInputScale, DType::kF32, {1}, std::array{matrix.act_scale}));
  }
  return list.take();
}

// Short and the same for the same set of formats: the code, then a number where several share it.
std::string format_name(const ordered_json& format, const ordered_json& taken) {
  const auto base = format["code"].get<std::string>();
  std::string name = base;
  for (int i = 2; taken.contains(name); ++i) name = fmt::format("{}-{}", base, i);
  return name;
}

ordered_json hearth_config(const QuantizedModel& model) {
  ordered_json formats = ordered_json::object(), modules = ordered_json::object();
  for (const QuantizedModule& module : model.quantized) {
    ordered_json format = format_to_json(module.format);
    std::string name;
    for (const auto& [known, value] : formats.items())
      if (value == format) name = known;
    if (name.empty()) {
      name = format_name(format, formats);
      formats[name] = std::move(format);
    }
    modules[module.name] = name;
  }
  ordered_json config = {{"quant_method", "hearth"},
                         {"version", kHearthFormVersion},
                         {"formats", std::move(formats)},
                         {"modules", std::move(modules)}};
  if (model.kv) config["kv_format"] = kv_format_name(*model.kv);
  return config;
}

}  // namespace

bool suits_compressed_tensors(const WeightFormat& format, int64_t k) {
  if (format.act == ActFormat::kI8PerGroup) return false;
  if (format.code == WeightCode::kE4m3) {
    return format.scale_layout != ScaleLayout::kNone && format.scale_layout != ScaleLayout::kGroup &&
           format.scale_dtype != DType::kE4m3;
  }
  if (format.code != WeightCode::kU4) return false;
  if (format.scale_dtype != DType::kF16 && format.scale_dtype != DType::kBf16) return false;
  return format.scale_layout == ScaleLayout::kRow ||
         (format.scale_layout == ScaleLayout::kGroup && k % format.group_k == 0);
}

CheckpointForm choose_form(const QuantizedModel& model) {
  const bool modules_suit = std::ranges::all_of(
      model.quantized, [](const QuantizedModule& module) { return suits_compressed_tensors(module.format, module.k); });
  const bool kv_suits =
      !model.kv || model.kv == KvFormatId::kF32 || model.kv == KvFormatId::kBf16 || model.kv == KvFormatId::kFp8;
  const bool suits = modules_suit && kv_suits && !model.quantized.empty();
  return suits ? CheckpointForm::kCompressedTensors : CheckpointForm::kHearth;
}

Result<std::vector<StoredTensor>> tensors_of(const QuantizedMatrix& matrix, std::string_view module,
                                             CheckpointForm form) {
  HEARTH_TRY(matrix.validate().with_context(module));
  return form == CheckpointForm::kCompressedTensors ? compressed_tensors_of(matrix, module)
                                                    : hearth_tensors_of(matrix, module);
}

Result<ordered_json> quantization_config(const QuantizedModel& model, CheckpointForm form) {
  if (form == CheckpointForm::kHearth) return hearth_config(model);
  for (const QuantizedModule& module : model.quantized) {
    if (!suits_compressed_tensors(module.format, module.k))
      return unsupported("{}: {} of {} columns in compressed-tensors form", module.name, to_string(module.format),
                         module.k);
  }
  if (choose_form(model) != CheckpointForm::kCompressedTensors)
    return unsupported("compressed-tensors form: {} modules and KV format {}", model.quantized.size(),
                       model.kv ? kv_format_name(*model.kv) : "none");
  return compressed_config(model);
}

}  // namespace hearth
