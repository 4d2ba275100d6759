// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/pipeline.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/fingerprint.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/quantize/choose.h"
#include "hearth/quantize/output.h"
#include "hearth/quantize/prepare.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t kUsualWindow = 2048;  // what papers calibrate with, where the model can take it
constexpr const char* kLmHead = "lm_head";
constexpr const char* kEmbedding = "model.embed_tokens.weight";

// The linears that share an input, in the order in which a block computes them.
struct Stage {
  BlockPoint input;
  std::vector<size_t> linears;  // of LayerTensors::linears()
};
const std::vector<Stage>& stages() {
  static const std::vector<Stage> kStages = {{BlockPoint::kQkvInput, {0, 1, 2}},
                                             {BlockPoint::kOInput, {3}},
                                             {BlockPoint::kGateUpInput, {4, 5}},
                                             {BlockPoint::kDownInput, {6}}};
  return kStages;
}

std::string layer_prefix(int64_t layer) { return fmt::format("model.layers.{}.", layer); }

class Pipeline {
 public:
  Pipeline(const QuantizeOptions& options, ThreadPool& pool, const QuantizeControl& control)
      : options_(options), pool_(pool), control_(control), compute_(make_cpu_compute(pool)) {}

  Result<QuantizeSummary> run(const fs::path& source, const fs::path& out) {
    HEARTH_TRY(check_options(options_));
    HEARTH_TRY(open_source(source));
    HEARTH_TRY(check_rules());
    if (options_.to != kAutoFormat) HEARTH_TRY(plan_modules());
    HEARTH_TRY(plan_calibration());
    HEARTH_TRY_ASSIGN(ordered_json fingerprint, make_fingerprint());
    HEARTH_TRY_ASSIGN(OutputFolder folder, OutputFolder::open(out, fingerprint, config_.layers + 2));
    out_.emplace(std::move(folder));
    if (options_.to == kAutoFormat) {
      HEARTH_TRY(choose());
      HEARTH_TRY(plan_modules());
    }
    HEARTH_TRY(start_stream(out));
    HEARTH_TRY(write_all().with_context(source.string()));
    HEARTH_TRY(out_->finish(source, final_config_));
    return summary();
  }

 private:
  // --- before the first weight

  Status open_source(const fs::path& source) {
    HEARTH_TRY_ASSIGN(Checkpoint checkpoint, Checkpoint::open(source));
    source_.emplace(std::move(checkpoint));
    HEARTH_TRY_ASSIGN(const Quantization quantization, Quantization::parse(*source_).with_context(source.string()));
    if (!quantization.method().empty())
      return unsupported("{} is quantized already ({}); wanted a checkpoint of f32, f16 or bf16 weights",
                         source.string(), quantization.method());
    HEARTH_TRY_ASSIGN(config_, parse_model_config(source_->config()).with_context(source.string()));
    HEARTH_TRY_ASSIGN(const std::string text, read_text_file(source / "config.json", kMaxJsonFileBytes));
    final_config_ = ordered_json::parse(text, nullptr, false);
    return check_tensors();
  }

  // Everything that the checkpoint holds has a place in what is written.
  Status check_tensors() const {
    std::set<std::string, std::less<>> known = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"};
    for (int64_t i = 0; i < config_.layers; ++i) {
      const std::string prefix = layer_prefix(i);
      for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) known.insert(prefix + norm + ".weight");
      if (config_.qk_norm)
        for (const char* norm : {"q_norm", "k_norm"}) known.insert(prefix + "self_attn." + norm + ".weight");
      for (const LayerTensors::Named& named : LayerTensors::linears()) {
        known.insert(prefix + named.name + ".weight");
        if (linear_has_bias(config_, named.linear)) known.insert(prefix + named.name + ".bias");
      }
    }
    for (const TensorEntry& entry : source_->tensors()) {
      if (known.contains(entry.name) || entry.name.ends_with(".rotary_emb.inv_freq")) continue;
      return unsupported("{}: tensor {} has no place in a {}", source_->dir().string(), quote_name(entry.name),
                         source_->config().value("model_type", "model of this kind"));
    }
    return {};
  }

  // A rule that names no linear is a slip of the keyboard.
  Status check_rules() const {
    for (const FormatRule& rule : options_.rules) {
      bool found = matches_module(rule.pattern, kLmHead);
      for (int64_t i = 0; i < config_.layers && !found; ++i)
        found = std::ranges::any_of(LayerTensors::linears(), [&](const LayerTensors::Named& named) {
          return matches_module(rule.pattern, layer_prefix(i) + named.name);
        });
      if (!found)
        return invalid_argument(
            "rule {}={} names no linear of {}; wanted whole components of lm_head or of names such as "
            "{}self_attn.q_proj and {}mlp.down_proj",
            escape_controls(rule.pattern), rule.format, source_->dir().string(), layer_prefix(0),
            layer_prefix(config_.layers - 1));
    }
    return {};
  }

  Result<DType> stored_type(const std::string& name) const {
    const TensorEntry* entry = source_->find(name);
    if (entry == nullptr) return not_found("tensor '{}' is missing from {}", name, source_->dir().string());
    return entry->dtype;
  }

  Status plan_modules() {
    QuantizedModel model;
    model.kv = options_.kv;
    model.kv_scale_per_head = options_.kv_scale_per_head;
    for (int64_t i = 0; i < config_.layers; ++i) {
      std::vector<ModuleRecipe>& recipes = recipes_.emplace_back();
      for (const LayerTensors::Named& named : LayerTensors::linears()) {
        const std::string module = layer_prefix(i) + named.name;
        const int64_t n = linear_rows(config_, named.linear), k = linear_columns(config_, named.linear);
        HEARTH_TRY_ASSIGN(const DType type, stored_type(module + ".weight"));
        recipes.push_back(recipe_for(options_, module, n, k, type));
        HEARTH_TRY(add_module(model, module, recipes.back(), n, k));
      }
    }
    HEARTH_TRY(plan_head(model));
    form_ = choose_form(model);
    HEARTH_TRY_ASSIGN(ordered_json quantization, quantization_config(model, form_));
    final_config_["quantization_config"] = std::move(quantization);
    return {};
  }

  // A head that shares the embedding's weights gets weights of its own where a rule quantizes it: the embedding stays
  // as it is.
  Status plan_head(QuantizedModel& model) {
    HEARTH_TRY_ASSIGN(const DType type, stored_type(head_source()));
    ModuleRecipe recipe = recipe_for(options_, kLmHead, config_.vocab_size, config_.hidden_size, type);
    const bool unties = config_.tie_word_embeddings && !recipe.plain();
    if (unties) final_config_["tie_word_embeddings"] = false;
    if (!unties && head_source() == embedding_source()) {
      if (!recipe.note.empty()) note(fmt::format("{}: {}", kLmHead, recipe.note));
      return {};
    }
    lm_head_ = std::move(recipe);
    return add_module(model, kLmHead, *lm_head_, config_.vocab_size, config_.hidden_size);
  }

  // The tensors that the head and the embedding are made of; a tied model's file may hold either or both.
  std::string head_source() const { return source_of("lm_head.weight", kEmbedding); }
  std::string embedding_source() const { return source_of(kEmbedding, "lm_head.weight"); }
  std::string source_of(const char* name, const char* tied_to) const {
    return config_.tie_word_embeddings && source_->find(name) == nullptr ? tied_to : name;
  }

  Status add_module(QuantizedModel& model, const std::string& module, const ModuleRecipe& recipe, int64_t n,
                    int64_t k) {
    if (!recipe.note.empty()) note(fmt::format("{}: {}", module, recipe.note));
    if (recipe.plain()) {
      model.plain.push_back(module);
      return {};
    }
    needs_moments_ |= recipe.needs_moments();
    if (recipe.encode.format.code != WeightCode::kBitvectors || recipe.encode.format.lines > 0)
      HEARTH_TRY(recipe.encode.format.validate(n, k).with_context(module));
    model.quantized.push_back({module, recipe.encode.format, n, k});
    return {};
  }

  Status plan_calibration() {
    if (!options_.calibration) {
      if (needs_moments_)
        return invalid_argument(
            "method gptq looks at what goes through the model: give --calibration FILE, or --method clip or rtn");
      if (prepare_needs_calibration(options_))
        return invalid_argument("{} looks at what goes through the model: give --calibration FILE",
                                options_.awq.value_or(false) ? "--awq" : "the KV format");
      return {};
    }
    CalibrationOptions wanted = *options_.calibration;
    if (wanted.length == 0) wanted.length = std::min(kUsualWindow, config_.max_positions);
    if (wanted.length > config_.max_positions)
      return invalid_argument("--length {} is more than the {} tokens of context that the model was made for",
                              wanted.length, config_.max_positions);
    HEARTH_TRY_ASSIGN(const std::vector<std::string> texts, read_calibration_texts(wanted.file));
    HEARTH_TRY_ASSIGN(const Tokenizer tokenizer, Tokenizer::load(source_->dir()));
    HEARTH_TRY_ASSIGN(set_, make_windows(texts, tokenizer, wanted.samples, wanted.length, options_.seed)
                                .with_context(wanted.file.string()));
    const auto windows = static_cast<int64_t>(set_.windows.size());
    if (windows < wanted.samples)
      note(fmt::format("{} has {} windows of {} tokens that do not overlap; {} were asked for", wanted.file.string(),
                       windows, wanted.length, wanted.samples));
    return {};
  }

  Result<ordered_json> make_fingerprint() const {
    HEARTH_TRY_ASSIGN(const std::string source, checkpoint_fingerprint(*source_, pool_));
    Fingerprint calibration;
    for (const std::vector<int32_t>& window : set_.windows) calibration.add(std::as_bytes(std::span(window)));
    ordered_json json = options_json(options_);
    json["model"] = source;
    json["calibration windows"] = set_.windows.empty() ? ordered_json() : ordered_json(set_.windows.size());
    json["calibration tokens"] = calibration.text();
    return json;
  }

  // Rules for all linears in the place of the format "auto", by measurement or as an earlier run found them.
  Status choose() {
    if (out_->settled().is_null()) {
      note(fmt::format("measuring {} in each linear", fmt::join(options_.candidates, ", ")));
      HEARTH_TRY_ASSIGN(const std::vector<LinearCosts> costs,
                        measure_formats({.checkpoint = &*source_,
                                         .config = &config_,
                                         .options = &options_,
                                         .set = &set_,
                                         .pool = &pool_,
                                         .ops = options_.ops,
                                         .compute = compute_.get(),
                                         .next = [&](int64_t) { return check_stop(); }}));
      HEARTH_TRY_ASSIGN(const std::vector<FormatRule> chosen, fit_formats(costs, options_.bits));
      ordered_json settled = ordered_json::object();
      for (const FormatRule& rule : chosen) settled[rule.pattern] = rule.format;
      HEARTH_TRY(out_->settle(std::move(settled)));
    }
    HEARTH_TRY_ASSIGN(std::vector<FormatRule> rules,
                      settled_formats(out_->settled(), config_.layers).with_context(kQuantizeStateFile));
    std::map<std::string, int64_t> counts;
    for (const FormatRule& rule : rules) ++counts[rule.format];
    std::string text;
    for (const auto& [format, linears] : counts)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", linears, format);
    note(fmt::format("chosen for the linears: {}", text));
    // Rules of the user come after, and count.
    rules.insert(rules.end(), options_.rules.begin(), options_.rules.end());
    options_.rules = std::move(rules);
    return {};
  }

  // Those of an earlier run, which anyone may have changed since.
  Status check_lines() const {
    const auto is_number = [](const ordered_json& line, const char* key) {
      return line.contains(key) && line[key].is_number();
    };
    for (const ordered_json& line : out_->lines()) {
      bool whole = line.is_object() && line.contains("module") && line.contains("method") && line.contains("shape") &&
                   is_number(line, "bits_per_weight") && line["shape"].is_array() && line["shape"].size() == 2 &&
                   line["shape"][0].is_number_integer() && line["shape"][1].is_number_integer();
      whole = whole && (line["method"] == "none" || is_number(line, "rel_error"));
      if (!whole)
        return corrupt("{}: {} is no linear's line; remove the folder to begin anew", kQuantizeStateFile,
                       quote_name(line.dump()));
    }
    return {};
  }

  // The stream at the first layer that is not written yet.
  Status start_stream(const fs::path& out) {
    done_shards_ = out_->shards_done();
    HEARTH_TRY(check_lines());
    for (const auto& line : out_->lines()) count(line);
    total_weights_ = remaining_weights();
    const int64_t layers_done = std::clamp<int64_t>(done_shards_ - 1, 0, config_.layers);
    if (done_shards_ > 0) note(fmt::format("{} goes on at layer {} of {}", out.string(), layers_done, config_.layers));
    if (set_.windows.empty() || done_shards_ == config_.layers + 2) return {};
    HEARTH_TRY_ASSIGN(ActivationStream stream, ActivationStream::create(*source_, config_, set_, pool_, *options_.ops));
    stream_.emplace(std::move(stream));
    if (layers_done == 0) return {};
    std::vector<fs::path> files;
    for (int64_t i = 0; i < done_shards_; ++i) files.push_back(out_->shard_path(i));
    const nlohmann::json config = nlohmann::json::parse(final_config_.dump(), nullptr, false);
    HEARTH_TRY_ASSIGN(const Checkpoint written, Checkpoint::open_files(out, config, files));
    HEARTH_TRY_ASSIGN(const Quantization quantization, Quantization::parse(written));
    for (int64_t i = 0; i < layers_done; ++i) {
      HEARTH_TRY(check_stop());
      HEARTH_TRY_ASSIGN(const LayerTensors layer, read_layer(written, config_, i, &quantization));
      HEARTH_TRY(stream_->run({.layer = &layer, .index = i}));
    }
    return {};
  }

  int64_t remaining_weights() const {
    int64_t weights = 0;
    for (int64_t i = std::max<int64_t>(0, done_shards_ - 1); i < config_.layers; ++i)
      for (size_t m = 0; m < LayerTensors::linears().size(); ++m) {
        const auto linear = LayerTensors::linears()[m].linear;
        if (!recipes_[static_cast<size_t>(i)][m].plain())
          weights += linear_rows(config_, linear) * linear_columns(config_, linear);
      }
    if (lm_head_ && !lm_head_->plain() && done_shards_ < config_.layers + 2)
      weights += config_.vocab_size * config_.hidden_size;
    return weights;
  }

  // --- the weights

  Status write_all() {
    if (out_->shards_done() == 0) HEARTH_TRY(write_embedding());
    while (out_->shards_done() <= config_.layers) HEARTH_TRY(write_layer(out_->shards_done() - 1));
    if (out_->shards_done() == config_.layers + 1) HEARTH_TRY(write_head());
    return {};
  }

  Status write_embedding() {
    std::vector<StoredTensor> tensors;
    HEARTH_TRY(copy(embedding_source(), tensors));
    tensors.back().spec.name = kEmbedding;
    return out_->write_shard(tensors, ordered_json::array());
  }

  Status write_layer(int64_t index) {
    HEARTH_TRY_ASSIGN(LayerTensors layer, read_layer(*source_, config_, index));
    const std::vector<ModuleRecipe>& recipes = recipes_[static_cast<size_t>(index)];
    const std::string prefix = layer_prefix(index);
    std::vector<StoredTensor> tensors;
    // What nothing that is encoded comes before: all of them, or the first.
    std::set<BlockPoint> plain;
    for (const Stage& stage : stages())
      if (stream_ && wants_moments(stage, recipes) && (!options_.sequential || &stage == &stages().front()))
        plain.insert(stage.input);
    HEARTH_TRY_ASSIGN(InputMoments moments, prepare(layer, index, std::move(plain), tensors));
    HEARTH_TRY(store_norms(layer, prefix, tensors));
    ordered_json lines = ordered_json::array();
    for (const Stage& stage : stages()) {
      auto found = moments.find(stage.input);
      if (found == moments.end() && stream_ && wants_moments(stage, recipes)) {
        HEARTH_TRY_ASSIGN(SecondMoments gathered, gather(layer, index, stage));
        found = moments.emplace(stage.input, std::move(gathered)).first;
      }
      const SecondMoments* input = found == moments.end() ? nullptr : &found->second;
      for (const size_t m : stage.linears) {
        const LayerTensors::Named& named = LayerTensors::linears()[m];
        HEARTH_TRY(store_linear(layer.*named.linear, prefix + named.name, recipes[m], input, tensors, lines));
      }
      moments.erase(stage.input);
    }
    // The stream moves on before the shard counts: an activation that is no number is found while the layer can be
    // done again.
    if (stream_) HEARTH_TRY(stream_->run({.layer = &layer, .index = index}));
    return out_->write_shard(tensors, lines);
  }

  Status write_head() {
    std::vector<StoredTensor> tensors;
    ordered_json lines = ordered_json::array();
    HEARTH_TRY(copy("model.norm.weight", tensors));
    if (lm_head_ && lm_head_->plain()) HEARTH_TRY(copy("lm_head.weight", tensors));
    if (lm_head_ && !lm_head_->plain()) {
      const Shape shape{config_.vocab_size, config_.hidden_size};
      LayerLinear head{.n = config_.vocab_size, .k = config_.hidden_size, .w = {}, .bias = {}};
      HEARTH_TRY_ASSIGN(head.w, read_float_tensor(*source_, head_source(), shape));
      HEARTH_TRY_ASSIGN(const std::vector<float> norm,
                        read_float_tensor(*source_, "model.norm.weight", Shape{config_.hidden_size}));
      SecondMoments moments;
      if (stream_) {
        HEARTH_TRY_ASSIGN(moments, stream_->final_norm(norm));
      }
      HEARTH_TRY(store_linear(head, kLmHead, *lm_head_, stream_ ? &moments : nullptr, tensors, lines));
    }
    return out_->write_shard(tensors, lines);
  }

  // What changes the layer's weights and not what it computes; its scales for the KV cache go to the tensors. Returns
  // the moments at `points`.
  Result<InputMoments> prepare(LayerTensors& layer, int64_t index, std::set<BlockPoint> points,
                               std::vector<StoredTensor>& tensors) {
    const std::string prefix = layer_prefix(index);
    HEARTH_TRY(check_stop());
    HEARTH_TRY_ASSIGN(const DType stored, stored_type(prefix + "input_layernorm.weight"));
    HEARTH_TRY_ASSIGN(PreparedLayer prepared, prepare_layer(layer, {.config = &config_,
                                                                    .options = &options_,
                                                                    .recipes = &recipes_[static_cast<size_t>(index)],
                                                                    .index = index,
                                                                    .stored = stored,
                                                                    .stream = stream_ ? &*stream_ : nullptr,
                                                                    .compute = compute_.get(),
                                                                    .moments = std::move(points)}));
    const auto store = [&](const char* name, const Shape& shape, std::span<const float> values) {
      StoredTensor tensor;
      tensor.spec = {.name = prefix + "self_attn." + name, .dtype = DType::kF32, .shape = shape};
      const auto bytes = std::as_bytes(values);
      tensor.bytes.assign(bytes.begin(), bytes.end());
      tensors.push_back(std::move(tensor));
    };
    if (!prepared.kv.key.empty()) store("k_scale", head_scale_shape(), prepared.kv.key);
    if (!prepared.kv.value.empty()) store("v_scale", head_scale_shape(), prepared.kv.value);
    if (!layer.k_channel_scale.empty())
      store("k_channel_scale", Shape{config_.kv_heads, config_.head_dim}, layer.k_channel_scale);
    if (!layer.k_channel_offset.empty())
      store("k_channel_offset", Shape{config_.kv_heads, config_.head_dim}, layer.k_channel_offset);
    return std::move(prepared.moments);
  }

  // compressed-tensors broadcasts scales of heads over [heads, tokens, channels].
  Shape head_scale_shape() const {
    if (!options_.kv_scale_per_head) return Shape{1};
    return form_ == CheckpointForm::kCompressedTensors ? Shape{config_.kv_heads, 1, 1} : Shape{config_.kv_heads};
  }

  static bool wants_moments(const Stage& stage, const std::vector<ModuleRecipe>& recipes) {
    return std::ranges::any_of(stage.linears, [&](size_t m) { return !recipes[m].plain(); });
  }

  // Of the stage's input, from the block whose earlier linears are what their codes stand for; the stream stays there.
  Result<SecondMoments> gather(const LayerTensors& layer, int64_t index, const Stage& stage) {
    HEARTH_TRY(check_stop());
    InputMoments moments;
    moments[stage.input] = SecondMoments();
    HEARTH_TRY(
        stream_->run({.layer = &layer, .index = index, .moments = &moments, .until = stage.input, .keep = true}));
    return std::move(moments[stage.input]);
  }

  // Encodes the linear and makes it what its codes stand for.
  Status store_linear(LayerLinear& linear, const std::string& module, const ModuleRecipe& recipe,
                      const SecondMoments* moments, std::vector<StoredTensor>& tensors, ordered_json& lines) {
    HEARTH_TRY(check_stop());
    if (!linear.bias.empty()) HEARTH_TRY(store_floats(module + ".bias", Shape{linear.n}, linear.bias, tensors));
    if (recipe.plain()) {
      HEARTH_TRY_ASSIGN(const DType type, stored_type(module + ".weight"));
      HEARTH_TRY(store_floats(module + ".weight", Shape{linear.n, linear.k}, linear.w, tensors));
      ordered_json line = {{"module", module},
                           {"format", dtype_name(type)},
                           {"method", "none"},
                           {"shape", {linear.n, linear.k}},
                           {"bits_per_weight", dtype_bits(type)}};
      if (!recipe.note.empty()) line["note"] = recipe.note;
      return add_line(std::move(line), lines);
    }
    EncodeReport report;
    HEARTH_TRY_ASSIGN(
        const QuantizedMatrix matrix,
        encode(linear.w, linear.n, linear.k, moments, recipe.encode, *compute_, &report).with_context(module));
    pool_.parallel_for(linear.n, 1, [&](int64_t first, int64_t end, int) {
      for (int64_t row = first; row < end; ++row) matrix.dequantize_row(row, linear.row(row));
    });
    HEARTH_TRY_ASSIGN(std::vector<StoredTensor> stored, tensors_of(matrix, module, form_));
    for (StoredTensor& tensor : stored) tensors.push_back(std::move(tensor));
    ordered_json line = {{"module", module},
                         {"format", recipe.format},
                         {"method", encode_method_name(recipe.encode.method)},
                         {"shape", {linear.n, linear.k}},
                         {"bits_per_weight", matrix.format.bits_per_weight(linear.n, linear.k)},
                         {"rel_error", ratio(report.squared_error, report.squared_norm)}};
    if (moments != nullptr) line["proxy"] = ratio(report.proxy_loss, report.proxy_norm);
    if (!recipe.note.empty()) line["note"] = recipe.note;
    done_weights_ += linear.n * linear.k;
    if (control_.progress) control_.progress(done_weights_, total_weights_);
    return add_line(std::move(line), lines);
  }

  static double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

  Status add_line(ordered_json line, ordered_json& lines) {
    count(line);
    lines.push_back(std::move(line));
    return {};
  }

  // A tensor as it lies in the source.
  Status copy(const std::string& name, std::vector<StoredTensor>& tensors) const {
    const TensorEntry* entry = source_->find(name);
    if (entry == nullptr) return not_found("tensor '{}' is missing from {}", name, source_->dir().string());
    StoredTensor tensor{{name, entry->dtype, entry->shape},
                        std::vector<std::byte>(static_cast<size_t>(entry->size_bytes))};
    HEARTH_TRY(source_->read(*entry, tensor.bytes));
    if (const auto bad = find_non_finite(entry->dtype, tensor.bytes))
      return corrupt("tensor {}: element {} is infinite or not a number; wanted finite numbers", quote_name(name),
                     *bad);
    tensors.push_back(std::move(tensor));
    return {};
  }

  // Values in the type that the source has for them; they become what is stored.
  Status store_floats(const std::string& name, const Shape& shape, std::vector<float>& values,
                      std::vector<StoredTensor>& tensors) const {
    HEARTH_TRY_ASSIGN(const DType type, stored_type(name));
    StoredTensor tensor{{name, type, shape},
                        std::vector<std::byte>(static_cast<size_t>(dtype_bytes(type, shape.count())))};
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
    HEARTH_TRY(convert_floats(DType::kF32, bytes, type, tensor.bytes));
    HEARTH_TRY(convert_floats(type, tensor.bytes, DType::kF32, bytes));
    tensors.push_back(std::move(tensor));
    return {};
  }

  Status store_norms(LayerTensors& layer, const std::string& prefix, std::vector<StoredTensor>& tensors) const {
    const Shape hidden{config_.hidden_size}, head{config_.head_dim};
    HEARTH_TRY(store_floats(prefix + "input_layernorm.weight", hidden, layer.input_norm, tensors));
    HEARTH_TRY(store_floats(prefix + "post_attention_layernorm.weight", hidden, layer.post_attention_norm, tensors));
    if (!config_.qk_norm) return {};
    HEARTH_TRY(store_floats(prefix + "self_attn.q_norm.weight", head, layer.q_norm, tensors));
    return store_floats(prefix + "self_attn.k_norm.weight", head, layer.k_norm, tensors);
  }

  // --- what is said about it

  void note(const std::string& text) const {
    if (control_.note) control_.note(text);
  }

  Status check_stop() const {
    if (control_.stop != nullptr && control_.stop->load(std::memory_order_relaxed))
      return cancelled("interrupted; the same command goes on at layer {}",
                       std::max<int64_t>(0, out_->shards_done() - 1));
    return {};
  }

  void count(const ordered_json& line) {
    if (line["module"] == kLmHead) {
      summary_.lm_head_bits = line["bits_per_weight"].get<double>();
      return;
    }
    const bool plain = line["method"] == "none";
    ++(plain ? summary_.kept : summary_.modules);
    if (!plain) summary_.rel_error += line["rel_error"].get<double>();
    const int64_t weights = line["shape"][0].get<int64_t>() * line["shape"][1].get<int64_t>();
    summary_.weights += weights;
    summary_.bits_per_weight += line["bits_per_weight"].get<double>() * static_cast<double>(weights);
  }

  Result<QuantizeSummary> summary() {
    summary_.bits_per_weight /= static_cast<double>(std::max<int64_t>(1, summary_.weights));
    summary_.rel_error /= static_cast<double>(std::max<int64_t>(1, summary_.modules));
    summary_.calibration_tokens = set_.tokens();
    summary_.activation_bytes = stream_ ? stream_->size_bytes() : 0;
    summary_.resumed_shards = done_shards_;
    for (int64_t i = 0; i < out_->shards_done(); ++i)
      summary_.output_bytes += static_cast<int64_t>(fs::file_size(out_->shard_path(i)));
    return summary_;
  }

  QuantizeOptions options_;
  ThreadPool& pool_;
  const QuantizeControl& control_;
  std::unique_ptr<Compute> compute_;
  std::optional<Checkpoint> source_;
  ModelConfig config_;
  ordered_json final_config_;
  CheckpointForm form_ = CheckpointForm::kHearth;
  std::vector<std::vector<ModuleRecipe>> recipes_;  // [layers][linears]
  std::optional<ModuleRecipe> lm_head_;             // where the checkpoint has one
  bool needs_moments_ = false;
  CalibrationSet set_;
  std::optional<ActivationStream> stream_;
  std::optional<OutputFolder> out_;
  int64_t done_shards_ = 0;  // by an earlier run
  int64_t done_weights_ = 0, total_weights_ = 0;
  QuantizeSummary summary_;
};

}  // namespace

Result<QuantizeSummary> quantize_model(const fs::path& source, const fs::path& out, const QuantizeOptions& options,
                                       ThreadPool& pool, const QuantizeControl& control) {
  return Pipeline(options, pool, control).run(source, out);
}

}  // namespace hearth
