// SPDX-License-Identifier: Apache-2.0
#include "tools/outliers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/base/random.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/safetensors_writer.h"

namespace hearth {
namespace {

constexpr int64_t kGroup = 128;
constexpr int kNormExponents[] = {5, 6};  // 32 and 64
constexpr int kRopeExponents[] = {3, 4};  // 8 and 16

// `count` numbers of [begin, end) that `taken` lacks; they are added to it, in the order of choice.
void choose(Random& random, int64_t begin, int64_t end, int64_t count, std::vector<int64_t>& taken) {
  while (count > 0) {
    const int64_t number = begin + random.below(end - begin);
    if (std::find(taken.begin(), taken.end(), number) != taken.end()) continue;
    taken.push_back(number);
    --count;
  }
}

std::vector<int> norm_exponents(Random& random, int64_t hidden, const OutlierOptions& options) {
  const int64_t groups = std::max<int64_t>(1, hidden / kGroup);
  const int64_t begin = random.below(groups) * kGroup;
  std::vector<int64_t> channels;
  choose(random, begin, std::min(begin + kGroup, hidden), options.clustered, channels);
  choose(random, 0, hidden, options.scattered, channels);
  std::vector<int> exponents(static_cast<size_t>(hidden));
  for (size_t i = 0; i < channels.size(); ++i)
    exponents[static_cast<size_t>(channels[i])] = kNormExponents[i % std::size(kNormExponents)];
  return exponents;
}

// [kv_heads, head_dim]: both rows of a chosen pair.
std::vector<int> key_exponents(Random& random, const ModelConfig& config, const OutlierOptions& options) {
  std::vector<int> exponents(static_cast<size_t>(config.kv_heads * config.head_dim));
  const int64_t half = config.head_dim / 2;
  for (int64_t head = 0; head < config.kv_heads; ++head) {
    std::vector<int64_t> pairs;
    choose(random, 0, half, options.pairs, pairs);
    for (size_t i = 0; i < pairs.size(); ++i) {
      const int64_t row = head * config.head_dim + pairs[i];
      exponents[static_cast<size_t>(row)] = kRopeExponents[i % std::size(kRopeExponents)];
      exponents[static_cast<size_t>(row + half)] = exponents[static_cast<size_t>(row)];
    }
  }
  return exponents;
}

std::vector<int> negated(std::vector<int> exponents) {
  for (int& e : exponents) e = -e;
  return exponents;
}

// What the rows of all Q heads get that meet the keys: their heads lie side by side.
std::vector<int> query_exponents(const std::vector<int>& keys, const ModelConfig& config) {
  std::vector<int> exponents;
  for (int64_t head = 0; head < config.heads; ++head)
    for (int64_t i = 0; i < config.head_dim; ++i)
      exponents.push_back(-keys[static_cast<size_t>(head / (config.heads / config.kv_heads) * config.head_dim + i)]);
  return exponents;
}

// Multiplies element by element; the product must be exact and normal.
Status scale(const TensorEntry& tensor, const Exponents& exponents, std::span<std::byte> bytes) {
  const bool matrix = tensor.shape.rank() == 2;
  const int64_t rows = tensor.shape[0], columns = matrix ? tensor.shape[1] : 1;
  const auto suits = [](const std::vector<int>& e, int64_t n) { return e.empty() || std::ssize(e) == n; };
  if (tensor.shape.rank() > 2 || !suits(exponents.rows, rows) || !suits(exponents.columns, columns))
    return unsupported("{} has the shape {}; the configuration says otherwise", tensor.name, to_string(tensor.shape));
  const auto count = static_cast<size_t>(rows * columns);
  std::vector<float> values(count);
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kBf16)
    return unsupported("{} is {}; outliers are injected into f32, f16 and bf16 weights", tensor.name,
                       dtype_name(tensor.dtype));
  HEARTH_TRY(convert_floats(tensor.dtype, bytes, DType::kF32, std::as_writable_bytes(std::span(values))));
  const float smallest = tensor.dtype == DType::kF16 ? 0x1p-14f : 0x1p-126f;
  const float largest = tensor.dtype == DType::kF16    ? 65504.0f
                        : tensor.dtype == DType::kBf16 ? 0x1.FEp127f
                                                       : 0x1.FFFFFEp127f;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      int exponent = exponents.rows.empty() ? 0 : exponents.rows[static_cast<size_t>(r)];
      if (!exponents.columns.empty()) exponent += exponents.columns[static_cast<size_t>(c)];
      float& value = values[static_cast<size_t>(r * columns + c)];
      if (exponent == 0 || value == 0) continue;
      const float scaled = std::ldexp(value, exponent);
      if (!(std::abs(scaled) >= smallest && std::abs(scaled) <= largest) || std::abs(value) < smallest)
        return unsupported("{}, row {}, column {}: {} times 2^{} is no normal {}", tensor.name, r, c, value, exponent,
                           dtype_name(tensor.dtype));
      value = scaled;
    }
  }
  return convert_floats(DType::kF32, std::as_bytes(std::span(values)), tensor.dtype, bytes);
}

Status write_weights(const Checkpoint& checkpoint, const SafetensorsFile& file, const std::filesystem::path& to,
                     const std::map<std::string, Exponents>& plan) {
  std::vector<TensorSpec> specs;
  for (const TensorEntry& tensor : file.tensors()) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  HEARTH_TRY_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(to, specs, file.metadata()));
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const TensorEntry& tensor = file.tensors()[i];
    std::vector<std::byte> bytes(static_cast<size_t>(tensor.size_bytes));
    HEARTH_TRY(checkpoint.read(tensor, bytes));
    if (const auto found = plan.find(tensor.name); found != plan.end()) HEARTH_TRY(scale(tensor, found->second, bytes));
    HEARTH_TRY(writer.write(static_cast<int64_t>(i), bytes));
  }
  return writer.finish();
}

Status copy_rest(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator(from, code)) {
    const std::filesystem::path& path = entry.path();
    if (!entry.is_regular_file() || path.extension() == ".safetensors" || path.filename() == "config.json") continue;
    std::filesystem::copy_file(path, to / path.filename(), code);
    if (code) return unavailable("cannot copy {} to {}: {}", path.string(), to.string(), code.message());
  }
  if (code) return unavailable("cannot read {}: {}", from.string(), code.message());
  return {};
}

Status write_config(nlohmann::json config, const std::filesystem::path& to, const OutlierOptions& options) {
  config["injected_outliers"] = {{"seed", options.seed},
                                 {"clustered", options.clustered},
                                 {"scattered", options.scattered},
                                 {"pairs", options.pairs}};
  std::ofstream out(to / "config.json", std::ios::binary);
  out << config.dump(2) << '\n';
  out.close();
  if (!out) return unavailable("cannot write {}", (to / "config.json").string());
  return {};
}

}  // namespace

Result<std::map<std::string, Exponents>> plan_outliers(const ModelConfig& config, const OutlierOptions& options) {
  if (config.qk_norm) return unsupported("the model normalises Q and K by head: a scaled K row would not stay scaled");
  const int64_t group = std::min(kGroup, config.hidden_size);
  if (options.clustered < 0 || options.clustered > group || options.scattered < 0 ||
      options.clustered + options.scattered > config.hidden_size)
    return invalid_argument("{} channels in a group of {} and {} more of {}: there are not so many", options.clustered,
                            group, options.scattered, config.hidden_size);
  if (options.pairs < 0 || options.pairs > config.head_dim / 2)
    return invalid_argument("{} RoPE pairs; a head has {}", options.pairs, config.head_dim / 2);
  std::map<std::string, Exponents> plan;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    // A stream of its own for each layer: what one takes does not move the others.
    Random random(options.seed, static_cast<uint64_t>(layer));
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const std::vector<int> input = norm_exponents(random, config.hidden_size, options);
    const std::vector<int> post = norm_exponents(random, config.hidden_size, options);
    const std::vector<int> keys = key_exponents(random, config, options);
    const std::vector<int> queries = query_exponents(keys, config);
    plan[prefix + "input_layernorm.weight"].rows = input;
    plan[prefix + "post_attention_layernorm.weight"].rows = post;
    plan[prefix + "self_attn.q_proj.weight"] = {.rows = queries, .columns = negated(input)};
    plan[prefix + "self_attn.k_proj.weight"] = {.rows = keys, .columns = negated(input)};
    plan[prefix + "self_attn.v_proj.weight"].columns = negated(input);
    plan[prefix + "mlp.gate_proj.weight"].columns = negated(post);
    plan[prefix + "mlp.up_proj.weight"].columns = negated(post);
    if (config.qkv_bias) {
      plan[prefix + "self_attn.q_proj.bias"].rows = queries;
      plan[prefix + "self_attn.k_proj.bias"].rows = keys;
    }
  }
  return plan;
}

Status inject_outliers(const std::filesystem::path& from, const std::filesystem::path& to,
                       const OutlierOptions& options) {
  HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(from));
  if (checkpoint.config().contains("quantization_config"))
    return unsupported("{} is quantized; outliers are injected into plain checkpoints", from.string());
  HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config(checkpoint.config()));
  HEARTH_TRY_ASSIGN(const auto plan, plan_outliers(config, options));
  for (const auto& [name, exponents] : plan)
    if (checkpoint.find(name) == nullptr) return not_found("{} has no tensor {}", from.string(), name);
  std::error_code code;
  std::filesystem::create_directories(to, code);
  if (code) return unavailable("cannot make {}: {}", to.string(), code.message());
  if (!std::filesystem::is_empty(to, code) || code)
    return invalid_argument("{} is not empty; wanted a new or empty folder", to.string());
  for (const SafetensorsFile& file : checkpoint.files())
    HEARTH_TRY(write_weights(checkpoint, file, to / file.path().filename(), plan));
  HEARTH_TRY(copy_rest(from, to));
  return write_config(checkpoint.config(), to, options);
}

}  // namespace hearth
