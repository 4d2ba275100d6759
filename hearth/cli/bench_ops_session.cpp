// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/bench_ops_session.h"

#include <array>

#include "hearth/cli/options.h"
#include "hearth/eval/results.h"

namespace hearth {
namespace {

constexpr int64_t kMostSize = int64_t{1} << 20;
// Of a weight, of activations, of all contexts: what host memory is asked for before the device can refuse.
constexpr int64_t kMostElements = int64_t{1} << 31;
constexpr int64_t kMostContextTokens = int64_t{1} << 22;
constexpr int64_t kMostHeads = 1024, kMostHeadDim = 512, kMostReplays = 10'000;

// The first word, and the rest without the spaces before it.
std::string_view take_word(std::string_view& text) {
  const auto skip_spaces = [&] { text.remove_prefix(std::min(text.find_first_not_of(' '), text.size())); };
  skip_spaces();
  const std::string_view word = text.substr(0, text.find(' '));
  text.remove_prefix(word.size());
  skip_spaces();
  return word;
}

Result<int64_t> whole_number(const std::string& name, std::string_view text, int64_t most) {
  return parse_number(text, Setting<int64_t>{"", "", 1, most, "", ""}).with_context(name);
}

Status check_elements(const char* what, int64_t rows, int64_t cols) {
  if (rows > kMostElements / cols)
    return invalid_argument("{}: {} x {} elements; wanted at most {}", what, rows, cols, kMostElements);
  return {};
}

}  // namespace

Result<RequestFields> RequestFields::parse(std::string_view words) {
  RequestFields fields;
  while (!words.empty()) {
    const std::string_view word = take_word(words);
    const size_t equals = word.find('=');
    if (equals == 0 || equals == std::string_view::npos || equals + 1 == word.size())
      return invalid_argument("'{}' is no field; wanted NAME=VALUE, such as M=16", word);
    if (!fields.fields_.emplace(word.substr(0, equals), word.substr(equals + 1)).second)
      return invalid_argument("'{}' comes twice; wanted it once", word.substr(0, equals));
  }
  return fields;
}

Result<std::string> RequestFields::text(const std::string& key) {
  const auto found = fields_.find(key);
  if (found == fields_.end()) return invalid_argument("{} is missing; wanted {}=VALUE", key, key);
  std::string value = std::move(found->second);
  fields_.erase(found);
  return value;
}

std::string RequestFields::text_or(std::string_view key, std::string otherwise) {
  const auto found = fields_.find(key);
  if (found == fields_.end()) return otherwise;
  otherwise = std::move(found->second);
  fields_.erase(found);
  return otherwise;
}

Result<int64_t> RequestFields::number(const std::string& key, int64_t most) {
  HEARTH_TRY_ASSIGN(const std::string value, text(key));
  return whole_number(key, value, most);
}

Result<bool> RequestFields::flag(const std::string& key) {
  const std::string value = text_or(key, "no");
  if (value != "yes" && value != "no") return invalid_argument("{}: '{}' is unknown; wanted yes or no", key, value);
  return value == "yes";
}

Status RequestFields::done() const {
  if (fields_.empty()) return {};
  return invalid_argument("'{}' is not a field of this op", fields_.begin()->first);
}

OpSession::OpSession(const OpRig& rig, std::string device, std::string command, double bytes_per_s)
    : rig_(rig), device_(std::move(device)), command_(std::move(command)), bytes_per_s_(bytes_per_s) {}

nlohmann::json OpSession::greeting() const {
  return {{"device", device_},
          {"backend", rig_.ops().backend},
          {"dtype", dtype_name(rig_.activation())},
          {"cache_bytes", rig_.memory().cache_bytes()},
          {"bytes_per_s", bytes_per_s_}};
}

Result<nlohmann::json> OpSession::answer(std::string_view request) {
  const std::string_view verb = take_word(request);
  if (verb == "make") return make(request);
  if (verb == "replay") return replay(request);
  if (verb == "drop") return drop(request);
  return invalid_argument("request '{}' is unknown; wanted make, replay or drop", verb);
}

Result<nlohmann::json> OpSession::make(std::string_view request) {
  const std::string op(take_word(request));
  HEARTH_TRY_ASSIGN(RequestFields fields, RequestFields::parse(request).with_context(op));
  Made made;
  MaybeCase found = std::unique_ptr<OpCase>();
  if (op == "linear") {
    found = make_linear(fields, made.weights);
  } else if (op == "attention") {
    found = make_attention(fields);
  } else if (op == "rmsnorm") {
    found = make_rmsnorm(fields);
  } else {
    return invalid_argument("make: op '{}' is unknown; wanted linear, attention or rmsnorm", op);
  }
  HEARTH_TRY_ASSIGN(made.op, std::move(found).with_context(op));
  if (!made.op)
    return unsupported("{}: the {} backend has none for these fields and {}", op, rig_.ops().backend,
                       dtype_name(rig_.activation()));
  HEARTH_TRY_ASSIGN(made.replay, rig_.prepare(*made.op).with_context(op));
  nlohmann::json line = result_line(made.op->bench, device_, command_);
  line.update(op_line(*made.op, bytes_per_s_, made.replay.calls, made.replay.recording != nullptr));
  if (line.value("config", "").empty()) line.erase("config");
  nlohmann::json answer{{"case", next_id_}, {"sets", made.op->sets}, {"line", std::move(line)}};
  cases_.emplace(next_id_++, std::move(made));
  return answer;
}

MaybeCase OpSession::make_linear(RequestFields& fields, std::shared_ptr<LinearBench>& weights) {
  LinearShape shape;
  HEARTH_TRY_ASSIGN(shape.n, fields.number("N", kMostSize));
  HEARTH_TRY_ASSIGN(shape.k, fields.number("K", kMostSize));
  HEARTH_TRY_ASSIGN(const int64_t tokens, fields.number("M", kMostSize));
  HEARTH_TRY_ASSIGN(const std::string format, fields.text("format"));
  HEARTH_TRY_ASSIGN(shape.adds_residual, fields.flag("residual"));
  HEARTH_TRY_ASSIGN(shape.to_logits, fields.flag("logits"));
  const std::string x = fields.text_or("x", std::string(dtype_name(rig_.activation())));
  shape.behind_rounding = x == "e4m3";
  shape.layer = fields.text_or("layer", "linear");
  const OpSizes sizes{.config = fields.text_or("config", "")};
  HEARTH_TRY(fields.done());
  HEARTH_TRY(check_elements("weight", shape.n, shape.k));
  HEARTH_TRY(check_elements("x", tokens, shape.k));
  HEARTH_TRY(check_elements("out", tokens, shape.n));

  const std::string key = fmt::format("{} {} {} {} {} {} {} {}", shape.n, shape.k, format, shape.adds_residual,
                                      shape.to_logits, x, shape.layer, sizes.config);
  std::erase_if(weights_, [](const auto& one) { return one.second.expired(); });
  if (const auto had = weights_.find(key); had != weights_.end()) weights = had->second.lock();
  if (!weights) {
    HEARTH_TRY_ASSIGN(std::unique_ptr<LinearBench> bench, LinearBench::create(rig_, sizes, shape, format));
    if (!bench) return std::unique_ptr<OpCase>();
    weights = std::move(bench);
    weights_[key] = weights;
  }
  HEARTH_TRY_ASSIGN(std::unique_ptr<OpCase> made, weights->make(tokens));
  if (made->fields["x"] != x)
    return unsupported("x of {} for weights of {}: the {} backend would take {}", x, format, rig_.ops().backend,
                       made->fields["x"].get<std::string>());
  return made;
}

MaybeCase OpSession::make_attention(RequestFields& fields) const {
  HEARTH_TRY_ASSIGN(const std::string name, fields.text("kv"));
  const auto kv = kv_format_from_name(name);
  if (!kv) return invalid_argument("kv: '{}' is unknown; wanted f32, bf16, fp8, int4, int4-fireq, int4-saw", name);
  AttentionShape shape{.decode = fields.has("context")};
  HEARTH_TRY_ASSIGN(shape.batch, fields.number("batch", kMostSize));
  HEARTH_TRY_ASSIGN(shape.length, fields.number(shape.decode ? "context" : "length", kMostSize));
  OpSizes sizes{.config = fields.text_or("config", "")};
  HEARTH_TRY_ASSIGN(sizes.heads, fields.number("heads", kMostHeads));
  HEARTH_TRY_ASSIGN(sizes.kv_heads, fields.number("kv_heads", kMostHeads));
  HEARTH_TRY_ASSIGN(sizes.head_dim, fields.number("head_dim", kMostHeadDim));
  HEARTH_TRY(fields.done());
  if (sizes.heads % sizes.kv_heads != 0)
    return invalid_argument("heads {} is not a multiple of kv_heads {}", sizes.heads, sizes.kv_heads);
  if (sizes.head_dim % 2 != 0) return invalid_argument("head_dim {} is odd; wanted an even one", sizes.head_dim);
  if (shape.batch > kMostContextTokens / shape.length)
    return invalid_argument("{} contexts of {} tokens; wanted at most {} tokens in all", shape.batch, shape.length,
                            kMostContextTokens);
  HEARTH_TRY(check_elements("q", shape.decode ? shape.batch : shape.batch * shape.length,
                            (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim));
  return attention_case(rig_, sizes, *kv, shape);
}

MaybeCase OpSession::make_rmsnorm(RequestFields& fields) const {
  HEARTH_TRY_ASSIGN(const int64_t rows, fields.number("rows", kMostSize));
  OpSizes sizes{.config = fields.text_or("config", "")};
  HEARTH_TRY_ASSIGN(sizes.hidden, fields.number("hidden", kMostSize));
  HEARTH_TRY_ASSIGN(const bool residual, fields.flag("residual"));
  HEARTH_TRY(fields.done());
  HEARTH_TRY(check_elements("x", rows, sizes.hidden));
  return residual ? rmsnorm_residual_case(rig_, sizes, rows) : rmsnorm_case(rig_, sizes, rows, false);
}

Result<int64_t> OpSession::find_case(std::string_view id) const {
  HEARTH_TRY_ASSIGN(const int64_t number, whole_number("case", id, kNoLimit));
  if (!cases_.contains(number)) return not_found("case {} is not there; there are {} others", number, cases_.size());
  return number;
}

Result<nlohmann::json> OpSession::replay(std::string_view request) {
  HEARTH_TRY_ASSIGN(const int64_t id, find_case(take_word(request)));
  HEARTH_TRY_ASSIGN(const int64_t count, whole_number("replays", request, kMostReplays));
  HEARTH_TRY_ASSIGN(const std::vector<double> us, rig_.replay(cases_.at(id).replay, count));
  return nlohmann::json{{"us", us}};
}

Result<nlohmann::json> OpSession::drop(std::string_view request) {
  HEARTH_TRY_ASSIGN(const int64_t id, find_case(request));
  cases_.erase(id);
  return nlohmann::json::object();
}

}  // namespace hearth
