// SPDX-License-Identifier: Apache-2.0
// hearth inspect: what a model folder holds, without loading the model. Of a quantized one every quantized linear is
// read, one at a time, for its scales. A model that cannot run is described as far as it can be read.
#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quantization.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/inspect_plot.h"
#include "hearth/cli/options.h"
#include "hearth/cli/quantize_report.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/model/architecture.h"
#include "hearth/model/config.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/text/tokenizer.h"

namespace hearth {
namespace {

constexpr int64_t kBlockTokens = 16;

struct InspectSettings {
  std::string model;
  bool tensors = false;
  bool json = false;
  std::string plot;                  // file
  std::vector<std::string> plotted;  // modules; none: a few
};

// A report is a list of titled lines and the same as JSON.
class Report {
 public:
  void add(const std::string& key, const std::string& title, const nlohmann::json& value, const std::string& text) {
    json_[key] = value;
    if (!text.empty()) text_ += fmt::format("{:<18}{}\n", title, text);
  }
  void add_line(const std::string& line) { text_ += line + "\n"; }
  nlohmann::json& json() { return json_; }
  Status print(bool as_json) const {
    return write_stdout(as_json ? json_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                                : escape_controls(text_));
  }

 private:
  nlohmann::json json_ = nlohmann::json::object();
  std::string text_;
};

std::string bytes_text(int64_t bytes) {
  if (bytes < 10'000) return fmt::format("{} B", bytes);
  if (bytes < 10'000'000) return fmt::format("{:.1f} kB", static_cast<double>(bytes) * 1e-3);
  if (bytes < 10'000'000'000) return fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6);
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) * 1e-9);
}

std::string count_text(int64_t count) {
  if (count < 1'000'000) return fmt::format("{}", count);
  if (count < 1'000'000'000) return fmt::format("{:.1f} M ({})", static_cast<double>(count) * 1e-6, count);
  return fmt::format("{:.2f} B ({})", static_cast<double>(count) * 1e-9, count);
}

std::string_view rope_type_name(RopeScaling::Type type) {
  switch (type) {
    case RopeScaling::Type::kNone: return "none";
    case RopeScaling::Type::kLinear: return "linear";
    case RopeScaling::Type::kLlama3: return "llama3";
    case RopeScaling::Type::kYarn: return "yarn";
  }
  return "";
}

void report_kv(const ModelConfig& c, Report& report) {
  nlohmann::json per_token = nlohmann::json::object();
  std::string text;
  for (const KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4,
                                  KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw}) {
    const auto layout = KvLayout::make(format, c.layers, c.kv_heads, c.head_dim, kBlockTokens);
    if (!layout) continue;
    const std::string name(kv_format_name(format));
    per_token[name] = layout->bytes_per_token();
    text += fmt::format("{}{} {} ({} for the whole context)", text.empty() ? "" : ", ", name,
                        bytes_text(layout->bytes_per_token()), bytes_text(layout->bytes_per_token() * c.max_positions));
  }
  report.add("kv_bytes_per_token", "KV per token", per_token, text);
}

void report_config(const ModelConfig& c, Report& report) {
  report.add("supported", "supported", true, "yes");
  report.add("layers", "layers", c.layers, fmt::format("{}", c.layers));
  report.add("hidden_size", "hidden", c.hidden_size, fmt::format("{}", c.hidden_size));
  report.add("heads", "heads", c.heads,
             fmt::format("{} of {}, {} for keys and values", c.heads, c.head_dim, c.kv_heads));
  report.add("kv_heads", "", c.kv_heads, "");
  report.add("head_dim", "", c.head_dim, "");
  report.add("intermediate_size", "feed-forward", c.intermediate_size, fmt::format("{}", c.intermediate_size));
  report.add("vocab_size", "vocabulary", c.vocab_size,
             fmt::format("{}, embedding and output {}", c.vocab_size, c.tie_word_embeddings ? "tied" : "untied"));
  report.add("tie_word_embeddings", "", c.tie_word_embeddings, "");
  report.add("context", "context", c.max_positions, fmt::format("{} tokens", c.max_positions));
  const std::string_view scaling = rope_type_name(c.rope_scaling.type);
  const bool scaled = c.rope_scaling.type != RopeScaling::Type::kNone;
  report.add("rope", "rope", {{"theta", c.rope_theta}, {"scaling", scaling}, {"factor", c.rope_scaling.factor}},
             scaled ? fmt::format("theta {:g}, {} scaling by {:g}", c.rope_theta, scaling, c.rope_scaling.factor)
                    : fmt::format("theta {:g}", c.rope_theta));
  const auto windowed = std::count_if(c.windows.begin(), c.windows.end(), [](int64_t w) { return w > 0; });
  report.add("windowed_layers", "sliding window", windowed,
             windowed ? fmt::format("{} tokens in {} of {} layers",
                                    *std::max_element(c.windows.begin(), c.windows.end()), windowed, c.layers)
                      : "");
  report_kv(c, report);
}

// A linear of the model as its configuration describes it.
struct LinearShape {
  std::string name;
  int64_t n = 0, k = 0;
};

std::vector<LinearShape> linears_of(const ModelConfig& c) {
  std::vector<LinearShape> linears;
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim, hidden = c.hidden_size;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const auto add = [&](std::string_view name, int64_t n, int64_t k) {
      linears.push_back({fmt::format("model.layers.{}.{}", layer, name), n, k});
    };
    add("self_attn.q_proj", q, hidden);
    add("self_attn.k_proj", kv, hidden);
    add("self_attn.v_proj", kv, hidden);
    add("self_attn.o_proj", hidden, q);
    add("mlp.gate_proj", c.intermediate_size, hidden);
    add("mlp.up_proj", c.intermediate_size, hidden);
    add("mlp.down_proj", hidden, c.intermediate_size);
  }
  if (!c.tie_word_embeddings) linears.push_back({"lm_head", c.vocab_size, hidden});
  return linears;
}

// The sizes that a matrix's codes are multiplied with: its scales, or those of its lines, or, where lines have none,
// the largest coefficient of each.
std::vector<float> scales_of(const QuantizedMatrix& matrix) {
  if (!matrix.scales.empty()) return matrix.scales;
  if (!matrix.line_scales.empty()) return matrix.line_scales;
  std::vector<float> sizes;
  const auto width = static_cast<size_t>(std::max(1, matrix.format.bitvectors));
  for (size_t i = 0; i + width <= matrix.lines.size(); i += width) {
    float largest = 0;
    for (size_t s = 0; s < width; ++s) largest = std::max(largest, std::abs(matrix.lines[i + s]));
    sizes.push_back(largest);
  }
  return sizes;
}

// What the quantized linears hold together.
struct QuantizedSum {
  int64_t weights = 0;            // quantized ones
  std::set<std::string> tensors;  // that hold them
};

// One line for a linear that is quantized.
Status report_quantized(const Checkpoint& checkpoint, const Quantization& quantization, const LinearShape& linear,
                        nlohmann::json& list, Report& report) {
  HEARTH_TRY_ASSIGN(const QuantizedMatrix matrix, quantization.read(checkpoint, linear.name, linear.n, linear.k));
  std::vector<float> scales = scales_of(matrix);
  nlohmann::json scale;
  std::string text;
  if (!scales.empty()) {
    std::ranges::sort(scales);
    const float median = scales[scales.size() / 2];
    scale = {{"count", scales.size()}, {"min", scales.front()}, {"median", median}, {"max", scales.back()}};
    text = fmt::format("{:.3g} {:.3g} {:.3g}", scales.front(), median, scales.back());
  }
  const double bits = matrix.format.bits_per_weight(linear.n, linear.k);
  report.add_line(fmt::format("{:<36} {:<14} {:>7.4f}  {:<28} {}{}", linear.name,
                              fmt::format("{} x {}", linear.n, linear.k), bits, text, to_string(matrix.format),
                              matrix.k_order.empty() ? "" : " column-order"));
  list.push_back({{"module", linear.name},
                  {"n", linear.n},
                  {"k", linear.k},
                  {"format", to_string(matrix.format)},
                  {"column_order", !matrix.k_order.empty()},
                  {"bits_per_weight", bits},
                  {"scale", std::move(scale)}});
  return {};
}

// Every quantized linear, and the bits per weight of all linears together, plain ones included.
Result<QuantizedSum> report_quantization(const Checkpoint& checkpoint, const Quantization& quantization,
                                         const ModelConfig& config, Report& report) {
  QuantizedSum sum;
  nlohmann::json list = nlohmann::json::array();
  report.add_line(fmt::format("\n{:<36} {:<14} {:>7}  {:<28} {}", "linear", "rows x columns", "bits",
                              "scale min median max", "format"));
  int64_t weights = 0, bytes = 0;
  for (const LinearShape& linear : linears_of(config)) {
    HEARTH_TRY_ASSIGN(const auto format, quantization.format(checkpoint, linear.name, linear.n, linear.k));
    if (format) {
      HEARTH_TRY(report_quantized(checkpoint, quantization, linear, list, report));
      sum.weights += linear.n * linear.k;
      bytes += format->stored_bytes(linear.n, linear.k);
      for (std::string& name : quantization.tensors(checkpoint, linear.name)) sum.tensors.insert(std::move(name));
    } else if (const TensorEntry* const plain = checkpoint.find(linear.name + ".weight")) {
      bytes += plain->size_bytes;
    }
    weights += linear.n * linear.k;
  }
  report.add_line("");
  const double bits = weights > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(weights) : 0;
  const auto kv = quantization.kv_format();
  report.add("quantization", "quantization",
             {{"method", quantization.method()},
              {"kv_format", kv ? nlohmann::json(kv_format_name(*kv)) : nlohmann::json()},
              {"bits_per_weight", bits},
              {"modules", std::move(list)}},
             fmt::format("{}; {:.4f} bits per weight of the linears; KV {}", quantization.method(), bits,
                         kv ? kv_format_name(*kv) : "not named"));
  return sum;
}

void report_weights(const Checkpoint& checkpoint, const QuantizedSum& quantized, Report& report) {
  int64_t parameters = quantized.weights;
  std::map<std::string, std::pair<int64_t, int64_t>> by_dtype;  // tensors, bytes
  for (const TensorEntry& tensor : checkpoint.tensors()) {
    if (!quantized.tensors.contains(tensor.name)) parameters += tensor.shape.count();
    auto& [count, bytes] = by_dtype[std::string(dtype_name(tensor.dtype))];
    ++count;
    bytes += tensor.size_bytes;
  }
  report.add("parameters", "parameters", parameters, count_text(parameters));
  report.add("bytes", "weights", checkpoint.total_bytes(),
             fmt::format("{} in {} file{}", bytes_text(checkpoint.total_bytes()), checkpoint.files().size(),
                         checkpoint.files().size() == 1 ? "" : "s"));
  report.add("files", "", checkpoint.files().size(), "");
  if (!quantized.tensors.empty() && parameters > 0) {
    const double bits = 8.0 * static_cast<double>(checkpoint.total_bytes()) / static_cast<double>(parameters);
    report.add("bits_per_parameter", "", bits, "");
    report.add_line(fmt::format("{:<18}{:.4f}", "bits each", bits));
  }
  nlohmann::json dtypes = nlohmann::json::object();
  std::string text;
  for (const auto& [name, sums] : by_dtype) {
    dtypes[name] = {{"tensors", sums.first}, {"bytes", sums.second}};
    text += fmt::format("{}{}: {} tensor{}, {}", text.empty() ? "" : "; ", name, sums.first, sums.first == 1 ? "" : "s",
                        bytes_text(sums.second));
  }
  report.add("dtypes", "types", dtypes, text);
}

void report_tokenizer(const std::filesystem::path& dir, Report& report) {
  const auto tokenizer = Tokenizer::load(dir);
  if (!tokenizer) {
    report.add("tokenizer", "tokenizer", {{"error", tokenizer.error().message}}, "none: " + tokenizer.error().message);
    return;
  }
  const auto name = [&](const std::optional<TokenId>& id) {
    return id ? fmt::format("{} {}", *id, tokenizer->id_to_piece(*id).value_or("?")) : std::string("none");
  };
  const auto json_id = [](const std::optional<TokenId>& id) { return id ? nlohmann::json(*id) : nlohmann::json(); };
  std::string ends;
  for (const TokenId id : tokenizer->eos_ids()) ends += (ends.empty() ? "" : ", ") + name(id);
  report.add("tokenizer", "tokenizer",
             {{"vocab_size", tokenizer->vocab_size()},
              {"bos_id", json_id(tokenizer->bos_id())},
              {"eos_ids", tokenizer->eos_ids()}},
             fmt::format("{} tokens; begin {}; end {}", tokenizer->vocab_size(), name(tokenizer->bos_id()),
                         ends.empty() ? "none" : ends));
  const bool chat = tokenizer->chat_templates().count("default") > 0;
  report.add("chat_template", "chat template", chat, chat ? "yes" : "no");
}

void report_tensors(const Checkpoint& checkpoint, Report& report) {
  nlohmann::json list = nlohmann::json::array();
  report.add_line("");
  for (const TensorEntry& tensor : checkpoint.tensors()) {
    nlohmann::json shape = nlohmann::json::array();
    for (int i = 0; i < tensor.shape.rank(); ++i) shape.push_back(tensor.shape[i]);
    const auto file = checkpoint.files()[static_cast<size_t>(tensor.file)].path().filename().string();
    report.add_line(fmt::format("{:<56} {:<5} {:<18} {:>12}  {}", tensor.name, dtype_name(tensor.dtype),
                                to_string(tensor.shape), tensor.size_bytes, file));
    list.push_back({{"name", tensor.name},
                    {"dtype", dtype_name(tensor.dtype)},
                    {"shape", std::move(shape)},
                    {"bytes", tensor.size_bytes},
                    {"file", file}});
  }
  report.json()["tensors"] = std::move(list);
}

// The name of the model's class as config.json gives it.
std::string class_name(const nlohmann::json& config) {
  const auto found = config.find("architectures");
  if (found == config.end() || !found->is_array() || found->empty() || !found->front().is_string()) return "not named";
  return found->front().get<std::string>();
}

Result<int> run_inspect(const InspectSettings& s) {
  HEARTH_TRY_ASSIGN(const FoundModel found, find_model(s.model));
  Report report;
  report.add("model", "model", found.name, found.name);
  report.add("folder", "folder", found.dir.string(), found.dir.string());
  auto checkpoint = Checkpoint::open(found.dir);
  // Broken weights: what the configuration says is still worth printing before the error.
  HEARTH_TRY_ASSIGN(const nlohmann::json config, checkpoint ? Result<nlohmann::json>(checkpoint->config())
                                                            : read_json_object(found.dir / "config.json"));
  report.add("architecture", "architecture", class_name(config), class_name(config));
  const auto parsed = parse_model_config(config);
  std::optional<Error> quantization_error;  // what else could be read is printed before it
  if (parsed) {
    report_config(*parsed, report);
  } else {
    report.add("supported", "supported", false, "no: " + parsed.error().message);
    report.json()["reason"] = parsed.error().message;
  }
  if (checkpoint) {
    QuantizedSum quantized;
    const auto quantization = Quantization::parse(*checkpoint);
    if (quantization && parsed && !quantization->method().empty()) {
      auto sum = report_quantization(*checkpoint, *quantization, *parsed, report);
      if (!sum) quantization_error = std::move(sum).error();
      if (sum) quantized = std::move(*sum);
    } else if (!quantization) {
      quantization_error = quantization.error();
    }
    report_weights(*checkpoint, quantized, report);
  }
  report_tokenizer(found.dir, report);
  if (checkpoint && s.tensors) report_tensors(*checkpoint, report);
  HEARTH_TRY_ASSIGN(const auto errors, read_quantize_report(found.dir));
  if (!errors.empty()) {
    report.json()["quantize_report"] = quantize_report_json(errors);
    report.add_line(quantize_report_text(errors));
  }
  HEARTH_TRY(report.print(s.json));
  if (!checkpoint) return std::move(checkpoint).error();
  if (quantization_error) return *std::move(quantization_error);
  if (s.plot.empty()) return 0;
  HEARTH_TRY_ASSIGN(const ModelConfig plotted, parsed);
  HEARTH_TRY(plot_weights(*checkpoint, plotted, s.plotted, s.plot));
  return 0;
}

}  // namespace

Command add_inspect_command(CLI::App& app) {
  const auto s = std::make_shared<InspectSettings>();
  CLI::App* command = app.add_subcommand("inspect", "Says what a model folder holds, without loading it.");
  command->fallthrough()->footer(
      "Examples:\n  hearth inspect models/fable-13m\n  hearth inspect models/fable-13m --tensors --json\n"
      "  hearth inspect out/fireq --plot weights.svg --tensor model.layers.0.mlp.down_proj\n");
  command
      ->add_option("MODEL", s->model,
                   "A folder in the Hugging Face layout, or org/name (org/name@revision) in the Hugging Face cache.")
      ->type_name("")
      ->required();
  command->add_flag("--tensors", s->tensors, "Lists every tensor: name, type, shape, bytes, file.");
  command->add_flag("--json", s->json, "One JSON object.");
  add_text(*command, "--plot", "FILE.svg",
           "Draws histograms of weights in units of their scales, with the levels of the code over them.", s->plot);
  add_texts(*command, "--tensor", "NAME",
            "A linear that --plot draws, such as model.layers.0.mlp.down_proj. May be repeated; without it, a few.",
            s->plotted)
      ->needs("--plot");
  return {command, [s] { return run_inspect(*s); }};
}

}  // namespace hearth
