// SPDX-License-Identifier: Apache-2.0
// compressed-tensors (docs/formats/foreign-quantized.md): pack-quantized INT4 and float-quantized E4M3. The
// configuration says which modules are quantized and how; tensors that contradict it are an error.
#include <map>

#include "hearth/checkpoint/module_tensors.h"
#include "hearth/checkpoint/quantized_form.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

// A target or an ignored module: a name, "re:" and a pattern, or a class.
struct Target {
  std::string name;
  std::optional<NamePattern> pattern;

  // 3: the module's own name, 2: a pattern of it, 1: its class, 0: another module.
  int rank(std::string_view module) const {
    if (pattern) return pattern->matches(module) ? 2 : 0;
    if (name == module) return 3;
    return name == "Linear" ? 1 : 0;
  }
};

Result<std::vector<Target>> parse_targets(const ConfigObject& config, std::string_view key) {
  HEARTH_TRY_ASSIGN(const std::vector<std::string> names, config.strings(key));
  std::vector<Target> targets;
  for (const std::string& name : names) {
    Target target{name, std::nullopt};
    if (name.starts_with("re:")) {
      HEARTH_TRY_ASSIGN(target.pattern,
                        NamePattern::make(name.substr(3)).with_context(fmt::format("{}.{}", config.path(), key)));
    }
    targets.push_back(std::move(target));
  }
  return targets;
}

struct Scheme {
  std::vector<Target> targets;
  WeightFormat format;  // but for scale_dtype, which the tensors tell
};

Result<ActFormat> parse_activations(const ConfigObject& group) {
  if (group.find("input_activations") == nullptr) return ActFormat::kNative;
  HEARTH_TRY_ASSIGN(const ConfigObject act, group.object("input_activations"));
  HEARTH_TRY_ASSIGN(const int64_t bits, act.integer("num_bits", 8));
  HEARTH_TRY_ASSIGN(const std::string type, act.string("type", "int"));
  HEARTH_TRY_ASSIGN(const bool symmetric, act.boolean("symmetric", true));
  if (bits != 8 || type != "float" || !symmetric)
    return unsupported("{}: {} {} activations of {} bits; wanted symmetric float of 8", act.path(),
                       symmetric ? "symmetric" : "asymmetric", type, bits);
  HEARTH_TRY_ASSIGN(const std::string strategy, act.string("strategy", "tensor"));
  HEARTH_TRY_ASSIGN(const bool dynamic, act.boolean("dynamic", false));
  if (dynamic && (strategy == "token" || strategy == "tensor" || strategy == "group")) return ActFormat::kE4m3PerToken;
  if (!dynamic && strategy == "tensor") return ActFormat::kE4m3Static;
  return unsupported("{}: {} scales per {}; wanted dynamic per token, or static per tensor", act.path(),
                     dynamic ? "dynamic" : "static", quote_name(strategy));
}

// The layout of the scales. `path` is of the group's weights.
Status parse_strategy(const ConfigObject& weights, WeightFormat& format) {
  HEARTH_TRY_ASSIGN(const int64_t group_size, weights.integer("group_size", 0));
  HEARTH_TRY_ASSIGN(const std::string strategy, weights.string("strategy", group_size > 0     ? "group"
                                                                           : group_size == -1 ? "channel"
                                                                                              : "tensor"));
  if (strategy == "tensor") {
    format.scale_layout = ScaleLayout::kTensor;
  } else if (strategy == "channel") {
    format.scale_layout = ScaleLayout::kRow;
  } else if (strategy == "group") {
    HEARTH_TRY_ASSIGN(const int64_t group, checked_group(group_size).with_context(weights.path()));
    set_grouping(group, format);
  } else if (strategy == "block" && format.code == WeightCode::kE4m3) {
    HEARTH_TRY_ASSIGN(const std::vector<int64_t> block, weights.integers("block_structure"));
    const bool valid = block.size() == 2 && std::ranges::all_of(block, [](int64_t b) { return b > 0 && b <= 1 << 30; });
    if (!valid) return corrupt("{}: block_structure is not two numbers of 1 to {}", weights.path(), 1 << 30);
    format.scale_layout = ScaleLayout::kBlock;
    format.block_n = block[0];
    format.group_k = block[1];
  } else {
    return unsupported("{}: strategy {} for {}", weights.path(), quote_name(strategy),
                       format.code == WeightCode::kE4m3 ? "fp8" : "int4");
  }
  return {};
}

Result<WeightFormat> parse_scheme(const ConfigObject& group, const std::string& model_format) {
  HEARTH_TRY_ASSIGN(const ConfigObject weights, group.object("weights"));
  HEARTH_TRY_ASSIGN(const int64_t bits, weights.integer("num_bits", 8));
  HEARTH_TRY_ASSIGN(const std::string type, weights.string("type", "int"));
  HEARTH_TRY_ASSIGN(const bool symmetric, weights.boolean("symmetric", true));
  HEARTH_TRY_ASSIGN(const bool dynamic, weights.boolean("dynamic", false));
  WeightFormat format;
  if (type == "int" && bits == 4) {
    format.code = WeightCode::kU4;
    format.has_zero_point = !symmetric;
  } else if (type == "float" && bits == 8 && symmetric) {
    format.code = WeightCode::kE4m3;
  } else {
    return unsupported("{}: {} {} weights of {} bits; wanted int of 4 or symmetric float of 8", weights.path(),
                       symmetric ? "symmetric" : "asymmetric", type, bits);
  }
  if (dynamic) return unsupported("{}: dynamic weights", weights.path());
  HEARTH_TRY_ASSIGN(const std::string form, group.string("format", model_format));
  const bool packed = format.code == WeightCode::kU4;
  const bool suits = packed ? form == "pack-quantized" : form == "float-quantized" || form == "naive-quantized";
  if (!suits && form != "mixed-precision" && !form.empty())
    return unsupported("{}: format {} for {}; wanted {}", group.path(), quote_name(form), packed ? "int4" : "fp8",
                       packed ? "pack-quantized" : "float-quantized");
  if (group.find("output_activations") != nullptr)
    return unsupported("{}.output_activations; wanted none", group.path());
  HEARTH_TRY(parse_strategy(weights, format));
  if (format.has_zero_point && format.scale_layout == ScaleLayout::kTensor)
    return unsupported("{}: asymmetric weights with strategy \"tensor\"", weights.path());
  HEARTH_TRY_ASSIGN(format.act, parse_activations(group));
  return format;
}

class CompressedTensorsForm final : public QuantizedForm {
 public:
  CompressedTensorsForm(std::vector<Scheme> schemes, std::vector<Target> ignore, std::optional<KvFormatId> kv)
      : schemes_(std::move(schemes)), ignore_(std::move(ignore)), kv_(kv) {}

  std::string_view method() const override { return "compressed-tensors"; }
  std::optional<KvFormatId> kv_format() const override { return kv_; }

  Result<std::optional<WeightFormat>> described(std::string_view module, int64_t, int64_t) const override {
    const Scheme* const scheme = scheme_of(module);
    if (scheme == nullptr) return std::optional<WeightFormat>();
    WeightFormat format = scheme->format;
    format.scale_dtype = DType::kBf16;  // as the model that was compressed
    return std::optional(format);
  }

  Result<std::optional<WeightFormat>> format(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                             int64_t k) const override {
    const ModuleTensors tensors(checkpoint, module);
    const Scheme* const scheme = scheme_of(module);
    if (scheme == nullptr) {
      for (const std::string_view suffix : {"weight_packed", "weight_scale"}) {
        if (tensors.has(suffix))
          return corrupt("has {}, and no config group targets it", quote_name(tensors.name(suffix)));
      }
      return std::optional<WeightFormat>();
    }
    WeightFormat format = scheme->format;
    if (format.code == WeightCode::kE4m3) {
      HEARTH_TRY(tensors.want("weight", {DType::kE4m3}, {{n, k}}));
    } else {
      HEARTH_TRY(tensors.want("weight_packed", {DType::kI32}, {{n, ceil_div(k, 8)}}));
      HEARTH_TRY(tensors.want("weight_shape", {DType::kI64, DType::kI32}, {{2}}));
    }
    HEARTH_TRY_ASSIGN(const std::vector<Shape> shapes, scale_shapes(format, n, k));
    constexpr std::array kScaleTypes = {DType::kF32, DType::kF16, DType::kBf16};
    HEARTH_TRY_ASSIGN(const TensorEntry* scales, tensors.want("weight_scale", kScaleTypes, shapes));
    format.scale_dtype = scales->dtype;
    if (format.has_zero_point) {
      HEARTH_TRY(tensors.want("weight_zero_point", {DType::kI32}, {{ceil_div(n, 8), groups_of(format, k)}}));
    }
    if (tensors.has("weight_g_idx") && format.scale_layout == ScaleLayout::kGroup) {
      HEARTH_TRY(tensors.want("weight_g_idx", {DType::kI32}, {{k}}));
    }
    if (format.act == ActFormat::kE4m3Static) {
      HEARTH_TRY(tensors.want("input_scale", kScaleTypes, std::array{Shape(), Shape{1}}));
    }
    return std::optional(format);
  }

  // Rows of whole words hold what rows of whole bytes do.
  const TensorEntry* canonical_codes(const Checkpoint& checkpoint, std::string_view module, int64_t k) const override {
    const ModuleTensors tensors(checkpoint, module);
    const WeightFormat& format = scheme_of(module)->format;
    if (format.code == WeightCode::kE4m3) return tensors.find("weight");
    const bool may_be_reordered = tensors.has("weight_g_idx") && format.scale_layout == ScaleLayout::kGroup;
    return k % 8 != 0 || may_be_reordered ? nullptr : tensors.find("weight_packed");
  }

  Status read(const Checkpoint& checkpoint, std::string_view module, bool with_codes,
              QuantizedMatrix& matrix) const override {
    const ModuleTensors tensors(checkpoint, module);
    const WeightFormat& format = matrix.format;
    HEARTH_TRY_ASSIGN(matrix.scales, tensors.read_floats(*tensors.find("weight_scale")));
    if (format.act == ActFormat::kE4m3Static) {
      HEARTH_TRY_ASSIGN(const std::vector<float> scale, tensors.read_floats(*tensors.find("input_scale")));
      if (!(scale[0] > 0))
        return corrupt("{} is {}; wanted above 0", quote_name(tensors.name("input_scale")), scale[0]);
      matrix.act_scale = scale[0];
    }
    if (format.code == WeightCode::kE4m3) {
      if (!with_codes) return {};
      HEARTH_TRY_ASSIGN(matrix.codes, tensors.read_e4m3(*tensors.find("weight")));
      return {};
    }
    HEARTH_TRY(check_shape(tensors, matrix));
    if (format.has_zero_point) {
      HEARTH_TRY(read_zeros(tensors, groups_of(format, matrix.k), matrix));
    }
    if (!with_codes) return {};
    HEARTH_TRY(read_packed(tensors, matrix));
    const TensorEntry* const g_idx = tensors.find("weight_g_idx");
    if (g_idx == nullptr || format.scale_layout != ScaleLayout::kGroup) return {};
    HEARTH_TRY_ASSIGN(const std::vector<int32_t> groups, tensors.read<int32_t>(*g_idx));
    // The package's mark of a map that was made and never used.
    if (std::ranges::all_of(groups, [](int32_t group) { return group == -1; })) return {};
    return order_columns(groups, format.group_k, matrix).with_context(quote_name(g_idx->name));
  }

  std::vector<std::string> tensors(const Checkpoint& checkpoint, std::string_view module) const override {
    if (scheme_of(module) == nullptr) return {};
    return ModuleTensors(checkpoint, module)
        .present({"weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx",
                  "input_scale"});
  }

 private:
  // The scheme whose target names the module best; null where none does or it is ignored.
  const Scheme* scheme_of(std::string_view module) const {
    if (std::ranges::any_of(ignore_, [&](const Target& target) { return target.rank(module) > 0; })) return nullptr;
    const Scheme* best = nullptr;
    int best_rank = 0;
    for (const Scheme& scheme : schemes_) {
      for (const Target& target : scheme.targets) {
        if (const int rank = target.rank(module); rank > best_rank) {
          best = &scheme;
          best_rank = rank;
        }
      }
    }
    return best;
  }

  static int64_t groups_of(const WeightFormat& format, int64_t k) {
    return format.scale_layout == ScaleLayout::kGroup ? ceil_div(k, format.group_k) : 1;
  }

  static Result<std::vector<Shape>> scale_shapes(const WeightFormat& format, int64_t n, int64_t k) {
    switch (format.scale_layout) {
      case ScaleLayout::kTensor: return std::vector<Shape>{{1}, Shape()};
      case ScaleLayout::kRow: return std::vector<Shape>{{n, 1}, {n}};
      case ScaleLayout::kGroup: return std::vector<Shape>{{n, ceil_div(k, format.group_k)}};
      case ScaleLayout::kBlock: return std::vector<Shape>{{ceil_div(n, format.block_n), ceil_div(k, format.group_k)}};
      case ScaleLayout::kNone: break;
    }
    return internal_error("a scheme without scales");
  }

  // The module's own word for its shape.
  static Status check_shape(const ModuleTensors& tensors, const QuantizedMatrix& matrix) {
    const TensorEntry& shape = *tensors.find("weight_shape");
    std::vector<int64_t> dims;
    if (shape.dtype == DType::kI64) {
      HEARTH_TRY_ASSIGN(dims, tensors.read<int64_t>(shape));
    } else {
      HEARTH_TRY_ASSIGN(const std::vector<int32_t> narrow, tensors.read<int32_t>(shape));
      dims.assign(narrow.begin(), narrow.end());
    }
    if (dims[0] != matrix.n || dims[1] != matrix.k)
      return corrupt("{} is [{}, {}]; wanted [{}, {}]", quote_name(shape.name), dims[0], dims[1], matrix.n, matrix.k);
    return {};
  }

  // Rows of whole words to rows of whole bytes; in both the even column has the low nibble.
  static Status read_packed(const ModuleTensors& tensors, QuantizedMatrix& matrix) {
    HEARTH_TRY_ASSIGN(const std::vector<uint32_t> words, tensors.read<uint32_t>(*tensors.find("weight_packed")));
    const auto bytes = std::as_bytes(std::span(words));
    const auto row_bytes = static_cast<size_t>(matrix.row_bytes()),
               stored_bytes = static_cast<size_t>(ceil_div(matrix.k, 8)) * 4;
    matrix.codes.resize(static_cast<size_t>(matrix.n) * row_bytes);
    for (size_t row = 0; row < static_cast<size_t>(matrix.n); ++row) {
      uint8_t* const out = matrix.codes.data() + row * row_bytes;
      std::ranges::transform(bytes.subspan(row * stored_bytes, row_bytes), out,
                             [](std::byte byte) { return static_cast<uint8_t>(byte); });
      if (matrix.k % 2 != 0) out[row_bytes - 1] &= 15;
    }
    return {};
  }

  static Status read_zeros(const ModuleTensors& tensors, int64_t groups, QuantizedMatrix& matrix) {
    HEARTH_TRY_ASSIGN(const std::vector<uint32_t> words, tensors.read<uint32_t>(*tensors.find("weight_zero_point")));
    matrix.zeros.resize(static_cast<size_t>(matrix.n * groups));
    for (int64_t row = 0; row < matrix.n; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const uint32_t word = words[static_cast<size_t>(row / 8 * groups + g)];
        matrix.zeros[static_cast<size_t>(row * groups + g)] = static_cast<uint8_t>(word >> (row % 8 * 4) & 15);
      }
    }
    return {};
  }

  const std::vector<Scheme> schemes_;
  const std::vector<Target> ignore_;
  const std::optional<KvFormatId> kv_;
};

Result<std::optional<KvFormatId>> parse_kv(const ConfigObject& config) {
  if (config.find("kv_cache_scheme") == nullptr) return std::optional<KvFormatId>();
  HEARTH_TRY_ASSIGN(const ConfigObject kv, config.object("kv_cache_scheme"));
  HEARTH_TRY_ASSIGN(const int64_t bits, kv.integer("num_bits", 8));
  HEARTH_TRY_ASSIGN(const std::string type, kv.string("type", "int"));
  HEARTH_TRY_ASSIGN(const bool symmetric, kv.boolean("symmetric", true));
  HEARTH_TRY_ASSIGN(const bool dynamic, kv.boolean("dynamic", false));
  HEARTH_TRY_ASSIGN(const std::string strategy, kv.string("strategy", "tensor"));
  if (bits != 8 || type != "float" || !symmetric || dynamic || (strategy != "tensor" && strategy != "attn_head"))
    return unsupported("{}: {} {} {} of {} bits per {}; wanted static symmetric float of 8 per tensor or attn_head",
                       kv.path(), dynamic ? "dynamic" : "static", symmetric ? "symmetric" : "asymmetric", type, bits,
                       quote_name(strategy));
  return std::optional(KvFormatId::kFp8);
}

// Parts of a configuration that change what the tensors mean.
Status refuse_others(const ConfigObject& config) {
  if (const auto* const transforms = config.find("transform_config"); transforms && !transforms->empty())
    return unsupported("{}.transform_config is {}; wanted none", config.path(), shown(*transforms));
  if (const auto* const sparsity = config.find("sparsity_config"); sparsity && !sparsity->empty()) {
    HEARTH_TRY_ASSIGN(const ConfigObject object, config.object("sparsity_config"));
    HEARTH_TRY_ASSIGN(const std::string format, object.string("format", ""));
    if (format != "dense") return unsupported("{}: format {}; wanted dense", object.path(), quote_name(format));
  }
  return {};
}

}  // namespace

Result<FormPointer> parse_compressed_tensors(const ConfigObject& config) {
  HEARTH_TRY(refuse_others(config));
  HEARTH_TRY_ASSIGN(const std::string form, config.string("format", ""));
  if (form == "dense") return FormPointer();
  std::vector<Scheme> schemes;
  HEARTH_TRY_ASSIGN(const ConfigObject groups, config.object("config_groups"));
  for (const auto& [name, value] : groups.json().items()) {
    HEARTH_TRY_ASSIGN(const ConfigObject group, ConfigObject::make(value, fmt::format("{}.{}", groups.path(), name)));
    Scheme scheme;
    HEARTH_TRY_ASSIGN(scheme.targets, parse_targets(group, "targets"));
    HEARTH_TRY_ASSIGN(scheme.format, parse_scheme(group, form));
    schemes.push_back(std::move(scheme));
  }
  HEARTH_TRY_ASSIGN(std::vector<Target> ignore, parse_targets(config, "ignore"));
  HEARTH_TRY_ASSIGN(const std::optional<KvFormatId> kv, parse_kv(config));
  return FormPointer(std::make_unique<CompressedTensorsForm>(std::move(schemes), std::move(ignore), kv));
}

}  // namespace hearth
