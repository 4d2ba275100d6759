// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/load_file.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <span>
#include <sstream>
#include <utility>

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

namespace hearth {
namespace {

constexpr double kMost = 1e15;

// A number of the file and where it goes.
struct Field {
  const char* key;
  double least, most;
  std::optional<double> unset;  // none: it must be there
  double factor;                // file's unit -> ours
  double* real = nullptr;
  int64_t* whole = nullptr;
};

std::string place(const std::string& file, const toml::node& node) {
  return fmt::format("{}:{}", file, node.source().begin.line);
}

Status read_fields(const std::string& file, const toml::table& table, std::span<const Field> fields,
                   std::span<const char* const> others) {
  for (const auto& [key, node] : table) {
    const bool known = std::ranges::any_of(fields, [&](const Field& f) { return key.str() == f.key; }) ||
                       std::ranges::any_of(others, [&](const char* other) { return key.str() == other; });
    if (!known) return invalid_argument("{}: unknown key '{}'", place(file, node), key.str());
  }
  for (const Field& field : fields) {
    const toml::node* const node = table.get(field.key);
    if (node == nullptr && !field.unset) return invalid_argument("{}: '{}' is missing", place(file, table), field.key);
    double value = node == nullptr ? *field.unset : 0;
    if (node != nullptr) {
      const auto found = node->value<double>();
      if (!found || !(*found >= field.least && *found <= field.most))
        return invalid_argument("{}: '{}' is not a number from {} to {}", place(file, *node), field.key, field.least,
                                field.most);
      value = *found;
    }
    if (field.real != nullptr) *field.real = value * field.factor;
    if (field.whole != nullptr) *field.whole = static_cast<int64_t>(value * field.factor);
  }
  return {};
}

// A text of the file; empty where it may be missing and is.
Result<std::string> text_of(const std::string& file, const toml::table& table, const char* key) {
  const toml::node* const node = table.get(key);
  if (node == nullptr) return std::string();
  if (!node->is_string() || node->as_string()->get().empty())
    return invalid_argument("{}: '{}' is no text", place(file, *node), key);
  return node->as_string()->get();
}

// Where the model's requests come from: drawn, with a table of lengths, or a trace.
Status read_source(const std::filesystem::path& path, const toml::table& table, TraceCut cut, LoadModel& model) {
  HEARTH_TRY_ASSIGN(const std::string lengths, text_of(path.string(), table, "lengths"));
  HEARTH_TRY_ASSIGN(const std::string trace, text_of(path.string(), table, "trace"));
  HEARTH_TRY_ASSIGN(cut.model, text_of(path.string(), table, "trace_model"));
  if (lengths.empty() == trace.empty())
    return invalid_argument("{}: wanted one of 'lengths' and 'trace' in [[model]]", place(path.string(), table));
  constexpr const char* kDrawn[] = {"cv", "popularity"};
  constexpr const char* kRecorded[] = {"trace_model", "trace_offset_s", "trace_speed", "trace_limit"};
  for (const char* key : trace.empty() ? std::span<const char* const>(kRecorded) : kDrawn)
    if (const toml::node* const node = table.get(key); node != nullptr)
      return invalid_argument("{}: '{}' is of a model {} 'trace'", place(path.string(), *node), key,
                              trace.empty() ? "with a" : "without");
  if (trace.empty()) {
    HEARTH_TRY_ASSIGN(model.lengths, read_lengths(path.parent_path() / lengths));
    return {};
  }
  if (cut.model.empty()) cut.model = model.name;
  HEARTH_TRY_ASSIGN(std::vector<TraceRequest> all, read_trace(path.parent_path() / trace));
  HEARTH_TRY_ASSIGN(
      model.trace,
      cut_trace(std::move(all), cut).with_context(fmt::format("{}: '{}'", place(path.string(), table), trace)));
  return {};
}

Result<LoadModel> read_model(const std::filesystem::path& path, const toml::table& table) {
  LoadModel model;
  TraceCut cut;
  const Field fields[] = {
      {"layers", 1, 1000, {}, 1, nullptr, &model.layers},
      {"kv_token_bytes", 1, 1e9, {}, 1, nullptr, &model.kv_token_bytes},
      {"step_us", 0, 1e9, 0, 1, &model.cost.step_us},
      {"prefill_token_us", 0, 1e9, 0, 1, &model.cost.prefill_token_us},
      {"sequence_us", 0, 1e9, 0, 1, &model.cost.sequence_us},
      {"context_token_us", 0, 1e9, 0, 1, &model.cost.context_token_us},
      {"prefill_pair_us", 0, 1e9, 0, 1, &model.cost.prefill_pair_us},
      {"ttft_ms", 0, 1e9, 0, 1000, nullptr, &model.slo.ttft_us},
      {"tpot_ms", 0, 1e9, 0, 1000, nullptr, &model.slo.tpot_us},
      {"weight", 0.01, 100, 1, 1, &model.weight},
      {"cv", 0.1, 20, 1, 1, &model.cv},
      {"popularity", 0, kMost, 0, 1, &model.popularity},
      {"max_input_tokens", 1, kMost, 0, 1, nullptr, &model.max_input_tokens},
      {"max_output_tokens", 1, kMost, 0, 1, nullptr, &model.max_output_tokens},
      {"trace_offset_s", 0, 1e9, 0, 1, &cut.offset_s},
      {"trace_speed", 1e-6, 1e6, 1, 1, &cut.speed},
      {"trace_limit", 1, kMost, 0, 1, nullptr, &cut.limit},
  };
  constexpr const char* kTexts[] = {"name", "lengths", "trace", "trace_model"};
  HEARTH_TRY(read_fields(path.string(), table, fields, kTexts));
  HEARTH_TRY_ASSIGN(model.name, text_of(path.string(), table, "name"));
  if (model.name.empty()) return invalid_argument("{}: 'name' is missing", place(path.string(), table));
  HEARTH_TRY(read_source(path, table, cut, model));
  return model;
}

Result<std::string> read_text(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) return Error{ErrorCode::kNotFound, fmt::format("{}: cannot be read", path.string())};
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

}  // namespace

Result<LengthTable> read_lengths(const std::filesystem::path& path) {
  HEARTH_TRY_ASSIGN(const std::string text, read_text(path));
  std::istringstream lines(text);
  LengthTable table;
  std::string line;
  bool header = false;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    if (!std::exchange(header, true)) {
      if (line != "probability,input_tokens,output_tokens")
        return invalid_argument("{}:{}: '{}'; wanted probability,input_tokens,output_tokens", path.string(), number,
                                line);
      continue;
    }
    std::istringstream row(line);
    double p = -1, input = -1, output = -1;
    char comma = 0, comma2 = 0;
    row >> p >> comma >> input >> comma2 >> output;
    const bool grows = table.probability.empty() ? p == 0
                                                 : p > table.probability.back() && input >= table.input_tokens.back() &&
                                                       output >= table.output_tokens.back();
    if (!row || comma != ',' || comma2 != ',' || !(row >> std::ws).eof() || !grows || p > 1 || input < 0 || output < 0)
      return invalid_argument("{}:{}: '{}'; wanted three numbers that grow, from probability 0 to 1", path.string(),
                              number, line);
    table.probability.push_back(p);
    table.input_tokens.push_back(input);
    table.output_tokens.push_back(output);
  }
  if (table.probability.size() < 2 || table.probability.back() != 1)
    return invalid_argument("{}: quantiles that do not reach from 0 to 1", path.string());
  return table;
}

Result<Load> read_load(const std::filesystem::path& path) {
  HEARTH_TRY_ASSIGN(const std::string text, read_text(path));
  const toml::parse_result parsed = toml::parse(text, path.string());
  if (!parsed)
    return Error{ErrorCode::kCorrupt, fmt::format("{}:{}: {}", path.string(), parsed.error().source().begin.line,
                                                  parsed.error().description())};
  Load load;
  int64_t seed = 1;
  const Field fields[] = {
      {"seed", 0, kMost, 1, 1, nullptr, &seed},
      {"seconds", 1, 1e7, {}, 1, &load.seconds},
      {"warmup_seconds", 0, 1e7, 0, 1, &load.warmup_seconds},
      {"rate", 1e-6, 1e6, 0, 1, &load.rate},
      {"rate_scale", 1e-6, 1e6, 1, 1, &load.rate_scale},
      {"alpha", 0, 10, 1, 1, &load.alpha},
      {"shift_seconds", 0, 1e7, 0, 1, &load.shift_seconds},
      {"noise", 0, 1, 0, 1, &load.noise},
      {"pool_mib", 1, 1e9, {}, 1 << 20, nullptr, &load.pool_bytes},
      {"slab_mib", 1, 1e6, 16, 1 << 20, nullptr, &load.slab_bytes},
      {"block_tokens", 1, 4096, 16, 1, nullptr, &load.block_tokens},
      {"step_tokens", 1, 1e6, 2048, 1, nullptr, &load.step_tokens},
      {"max_sequences", 1, 1e6, 256, 1, nullptr, &load.max_sequences},
      {"steps_ahead", 0, 1, 1, 1, nullptr, &load.steps_ahead},
      {"growth_blocks", 0, 100, 0.5, 1, &load.growth_blocks},
      {"swap_mib", 0, 1e9, 0, 1 << 20, nullptr, &load.swap_bytes},
      {"swap_us_per_mib", 0, 1e9, 40, 1, &load.swap_us_per_mib},
  };
  constexpr const char* kModel[] = {"model"};
  const toml::table& root = parsed.table();
  HEARTH_TRY(read_fields(path.string(), root, fields, kModel));
  load.seed = static_cast<uint64_t>(seed);
  const toml::array* const models = root.get_as<toml::array>("model");
  if (models == nullptr || models->empty()) return invalid_argument("{}: no [[model]]", path.string());
  for (const toml::node& node : *models) {
    if (!node.is_table()) return invalid_argument("{}: 'model' is no table", place(path.string(), node));
    HEARTH_TRY_ASSIGN(LoadModel model, read_model(path, *node.as_table()));
    load.models.push_back(std::move(model));
  }
  if (load.rate == 0 && std::ranges::any_of(load.models, [](const LoadModel& m) { return m.trace.empty(); }))
    return invalid_argument("{}: 'rate' is missing: a model has no 'trace'", path.string());
  if (load.warmup_seconds >= load.seconds)
    return invalid_argument("{}: warmup_seconds {} of seconds {}", path.string(), load.warmup_seconds, load.seconds);
  return load;
}

}  // namespace hearth
