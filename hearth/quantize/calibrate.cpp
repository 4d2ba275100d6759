// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/calibrate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "hearth/base/random.h"
#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/model/rope_frequencies.h"

namespace hearth {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{2} << 30;
constexpr std::string_view kSeparator{"\n\0\n", 3};
constexpr int64_t kBlockTokens = 16;

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == text.npos; }
bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// What the tokenizer puts before and after a text.
struct Frame {
  std::optional<TokenId> bos, eos;
};

Result<Frame> frame_of(const Tokenizer& tokenizer) {
  HEARTH_TRY_ASSIGN(const std::vector<TokenId> empty, tokenizer.encode(""));
  Frame frame{.bos = std::nullopt, .eos = tokenizer.eos_id()};
  if (!empty.empty() && tokenizer.bos_id() && empty.front() == *tokenizer.bos_id()) frame.bos = empty.front();
  return frame;
}

// A place in the texts: byte `at` of text `text`.
struct Place {
  size_t text = 0;
  size_t at = 0;
};

// The place of byte `offset` of all texts, moved on to where a word begins; the next text where none does.
Place place_of(const std::vector<std::string>& texts, int64_t offset) {
  size_t text = 0;
  while (offset >= std::ssize(texts[text])) offset -= std::ssize(texts[text++]);
  auto at = static_cast<size_t>(offset);
  if (at == 0) return {text, 0};
  const std::string& whole = texts[text];
  while (at < whole.size() && !is_space(whole[at])) ++at;
  if (at < whole.size()) return {text, at};
  return {(text + 1) % texts.size(), 0};
}

// `length` ids from `place` on, over the ends of texts and from the last text to the first; fewer where that meets
// `place` again. `bytes_read`: bytes of text that went into them.
Result<std::vector<int32_t>> window_from(const std::vector<std::string>& texts, const Tokenizer& tokenizer,
                                         const Frame& frame, Place place, int64_t length, int64_t& bytes_read) {
  std::vector<int32_t> ids;
  bytes_read = 0;
  const auto wanted = static_cast<size_t>(length);
  for (size_t visited = 0; visited <= texts.size() && ids.size() < wanted; ++visited) {
    const std::string& whole = texts[place.text];
    const size_t end = visited == texts.size() ? 0 : whole.size();  // back at the first text: all was read
    if (frame.bos && end > place.at) ids.push_back(*frame.bos);
    // Text is tokenized in pieces of more than enough bytes; a token rarely has more than 16.
    bool cut = false;
    while (place.at < end && ids.size() < wanted) {
      size_t stop = std::min(end, place.at + (wanted - ids.size()) * 16 + 256);
      cut = stop < end;
      while (cut && stop > place.at + 1 && !is_space(whole[stop])) --stop;
      if (cut && stop == place.at + 1) stop = end;
      auto piece = tokenizer.encode(std::string_view(whole).substr(place.at, stop - place.at),
                                    {.add_special_tokens = false, .parse_special = false});
      HEARTH_TRY_ASSIGN(const std::vector<TokenId> encoded,
                        std::move(piece).with_context(fmt::format("text {}", place.text)));
      const size_t take = std::min(wanted - ids.size(), encoded.size());
      ids.insert(ids.end(), encoded.begin(), encoded.begin() + static_cast<std::ptrdiff_t>(take));
      if (!encoded.empty()) bytes_read += static_cast<int64_t>((stop - place.at) * take / encoded.size());
      place.at = stop;
    }
    if (frame.eos && end > 0 && ids.size() < wanted) ids.push_back(*frame.eos);
    place = {(place.text + 1) % texts.size(), 0};
  }
  return ids;
}

}  // namespace

Result<std::vector<std::string>> read_calibration_texts(const std::filesystem::path& file) {
  HEARTH_TRY_ASSIGN(const std::string content, read_text_file(file, kMaxTextBytes).with_context("--calibration"));
  std::vector<std::string> texts;
  const bool lines = file.extension() == ".jsonl" || file.extension() == ".json";
  const std::string_view separator = lines ? std::string_view("\n") : kSeparator;
  std::string_view rest = content;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t at = rest.find(separator);
    const std::string_view part = rest.substr(0, at);
    rest.remove_prefix(at == rest.npos ? rest.size() : at + separator.size());
    if (is_blank(part)) continue;
    if (!lines) {
      texts.emplace_back(part);
      continue;
    }
    HEARTH_TRY_ASSIGN(const nlohmann::json object,
                      parse_json(part).with_context(fmt::format("{} line {}", file.string(), number)));
    const auto text = object.is_object() ? object.find("text") : object.end();
    if (!object.is_object() || text == object.end() || !text->is_string())
      return corrupt("{} line {}: no string \"text\"; wanted JSON lines such as {{\"text\": \"...\"}}", file.string(),
                     number);
    if (const auto& value = text->get_ref<const std::string&>(); !is_blank(value)) texts.push_back(value);
  }
  if (texts.empty()) return invalid_argument("{}: no text to calibrate with", file.string());
  return texts;
}

Result<CalibrationSet> make_windows(const std::vector<std::string>& texts, const Tokenizer& tokenizer, int64_t samples,
                                    int64_t length, uint64_t seed) {
  if (samples < 1 || length < 1)
    return invalid_argument("calibration: {} samples of {} tokens; wanted at least 1", samples, length);
  if (texts.empty()) return invalid_argument("calibration: no texts");
  HEARTH_TRY_ASSIGN(const Frame frame, frame_of(tokenizer));
  int64_t total = 0;
  for (const std::string& text : texts) total += std::ssize(text);

  CalibrationSet set{.length = length, .windows = {}};
  // The first window says how many bytes one takes.
  int64_t bytes = 0;
  HEARTH_TRY_ASSIGN(const std::vector<int32_t> first, window_from(texts, tokenizer, frame, {}, length, bytes));
  if (std::ssize(first) < length)
    return invalid_argument("calibration: the texts have {} tokens; a window needs {}", first.size(), length);
  const int64_t count = std::clamp<int64_t>(total / std::max<int64_t>(1, bytes), 1, samples);
  Random random(seed, 0xca11b7a7e);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = total / count * i, end = i + 1 == count ? total : total / count * (i + 1);
    const Place place = count == 1 ? Place{} : place_of(texts, begin + random.below(std::max<int64_t>(1, end - begin)));
    HEARTH_TRY_ASSIGN(std::vector<int32_t> ids, window_from(texts, tokenizer, frame, place, length, bytes));
    if (std::ssize(ids) == length) set.windows.push_back(std::move(ids));
  }
  if (set.windows.empty()) set.windows.push_back(first);
  return set;
}

std::string_view block_point_name(BlockPoint point) {
  switch (point) {
    case BlockPoint::kQkvInput: return "input of q_proj, k_proj and v_proj";
    case BlockPoint::kQkv: return "output of q_proj, k_proj and v_proj";
    case BlockPoint::kOInput: return "input of o_proj";
    case BlockPoint::kGateUpInput: return "input of gate_proj and up_proj";
    case BlockPoint::kDownInput: return "input of down_proj";
  }
  return "values";
}

Result<ActivationStream> ActivationStream::create(const Checkpoint& checkpoint, const ModelConfig& config,
                                                  const CalibrationSet& set, ThreadPool& pool) {
  ActivationStream stream(config, pool);
  stream.windows_ = std::ssize(set.windows);
  stream.length_ = set.length;
  if (set.length > config.max_positions)
    return invalid_argument("calibration: windows of {} tokens; the model was made for {}", set.length,
                            config.max_positions);
  const int64_t bytes = set.tokens() * config.hidden_size * static_cast<int64_t>(sizeof(float));
  HEARTH_TRY_ASSIGN(stream.hidden_, HostBuffer::allocate(bytes).with_context(fmt::format(
                                        "activations of {} windows of {} tokens", set.windows.size(), set.length)));
  HEARTH_TRY(stream.plan());
  HEARTH_TRY(stream.embed(checkpoint, set));
  return stream;
}

Status ActivationStream::plan() {
  const ModelConfig& c = config_;
  const OpTable& ops = cpu_ops();
  HEARTH_TRY_ASSIGN(kv_.layout, KvLayout::make(KvFormatId::kF32, 1, c.kv_heads, c.head_dim, kBlockTokens));
  const int64_t kv_blocks = (length_ + kBlockTokens - 1) / kBlockTokens;
  const int64_t threads = pool_->size();
  // The linears' scratch: that of plain f32 weights of the layer's shapes.
  const LinearOp* linear = ops.find_linear(WeightFormat::plain(DType::kF32), DType::kF32);
  if (linear == nullptr) return unsupported("the {} backend has no linear op for f32 weights", ops.backend);
  int64_t scratch = ops.attention_workspace_bytes(length_, c.heads, c.head_dim, length_, static_cast<int>(threads));
  for (const LayerTensors::Named& named : LayerTensors::linears())
    scratch = std::max(scratch, linear->workspace_bytes(length_, linear_rows(c, named.linear),
                                                        linear_columns(c, named.linear), static_cast<int>(threads)));
  std::byte* workspace = nullptr;
  const auto lay_out = [&](std::byte* base) {
    int64_t used = 0;
    const auto take = [&](int64_t bytes) {
      std::byte* at = base != nullptr ? base + used : nullptr;
      used += (bytes + 63) / 64 * 64;
      return at;
    };
    const auto rows = [&](int64_t cols) { return take(length_ * cols * static_cast<int64_t>(sizeof(float))); };
    block_.hidden = rows(c.hidden_size);
    block_.normed = rows(c.hidden_size);
    block_.qkv = rows((c.heads + 2 * c.kv_heads) * c.head_dim);
    block_.attention = rows(c.heads * c.head_dim);
    block_.gate_up = rows(2 * c.intermediate_size);
    block_.ffn = rows(c.intermediate_size);
    block_.cos_sin = rows(c.head_dim);
    kv_.base = take(kv_blocks * kv_.layout.block_bytes());
    workspace = take(scratch);
    return used;
  };
  HEARTH_TRY_ASSIGN(buffers_, HostBuffer::allocate(lay_out(nullptr)).with_context("buffers of a block"));
  lay_out(buffers_.data());
  workspace_ = {workspace, static_cast<size_t>(scratch)};

  ids_.assign(static_cast<size_t>(length_), 0);  // a block looks at their number only
  positions_.resize(ids_.size());
  for (size_t i = 0; i < positions_.size(); ++i) positions_[i] = static_cast<int32_t>(i);
  query_start_ = {0, static_cast<int32_t>(length_)};
  context_ = {static_cast<int32_t>(length_)};
  for (int64_t b = 0; b < kv_blocks; ++b) blocks_.push_back(b * kv_.layout.block_bytes());

  const std::vector<float> frequencies = rope_inv_freq(c);
  ExecContext exec{.pool = pool_, .workspace = workspace_};
  return ops.rope_table(
      {.positions = positions_,
       .inv_freq = ConstTensorView(frequencies.data(), DType::kF32, Shape{static_cast<int64_t>(frequencies.size())}),
       .scale = static_cast<float>(c.rope_scaling.attention_factor),
       .cos_sin = TensorView(block_.cos_sin, DType::kF32, {length_, c.head_dim})},
      exec);
}

float* ActivationStream::window(int64_t index) {
  return static_cast<float*>(static_cast<void*>(hidden_.data())) + index * length_ * config_.hidden_size;
}

Status ActivationStream::embed(const Checkpoint& checkpoint, const CalibrationSet& set) {
  // A tied file may hold either of the two.
  const TensorEntry* table = checkpoint.find("model.embed_tokens.weight");
  if (table == nullptr && config_.tie_word_embeddings) table = checkpoint.find("lm_head.weight");
  const Shape wanted{config_.vocab_size, config_.hidden_size};
  if (table == nullptr)
    return not_found("tensor 'model.embed_tokens.weight' {} is missing from {}", to_string(wanted),
                     checkpoint.dir().string());
  if (table->shape != wanted)
    return invalid_argument("tensor '{}' is {}; config.json wants {}", table->name, to_string(table->shape),
                            to_string(wanted));
  const int64_t row_bytes = dtype_bytes(table->dtype, config_.hidden_size);
  std::vector<std::byte> row(static_cast<size_t>(row_bytes));
  for (int64_t w = 0; w < windows_; ++w) {
    for (int64_t t = 0; t < length_; ++t) {
      const int64_t id = set.windows[static_cast<size_t>(w)][static_cast<size_t>(t)];
      if (id < 0 || id >= config_.vocab_size)
        return invalid_argument("calibration: token {} of the tokenizer; the model's vocabulary has {}", id,
                                config_.vocab_size);
      HEARTH_TRY(checkpoint.read_part(*table, id * row_bytes, row));
      HEARTH_TRY(convert_floats(table->dtype, row, DType::kF32,
                                std::as_writable_bytes(std::span(window(w) + t * config_.hidden_size,
                                                                 static_cast<size_t>(config_.hidden_size)))));
    }
    HEARTH_TRY(
        check_finite(ConstTensorView(window(w), DType::kF32, {length_, config_.hidden_size}), -1, w, "embedding"));
  }
  return {};
}

Status ActivationStream::check_finite(ConstTensorView values, int64_t layer, int64_t window,
                                      std::string_view what) const {
  const std::span<const std::byte> bytes(static_cast<const std::byte*>(values.data),
                                         static_cast<size_t>(values.size_bytes()));
  const std::optional<int64_t> bad = find_non_finite(DType::kF32, bytes);
  if (!bad) return {};
  const std::string place = layer < 0 ? std::string() : fmt::format("layer {}: ", layer);
  return invalid_argument("{}{} is {} at token {} of calibration window {}, channel {}; wanted finite numbers", place,
                          what, static_cast<const float*>(values.data)[*bad], *bad / values.cols(), window,
                          *bad % values.cols());
}

Status ActivationStream::run(const Run& run) {
  const ModelConfig& c = config_;
  const LayerWeights weights = layer_weights(*run.layer);
  HEARTH_TRY_ASSIGN(const BlockOps linears, BlockOps::find(cpu_ops(), weights, DType::kF32, run.index));
  ExecContext exec{.pool = pool_, .workspace = workspace_};
  const StepBatch batch{.tokens = ids_,
                        .positions = positions_,
                        .query_start = query_start_,
                        .context_len = context_,
                        .block_table = blocks_,
                        .block_table_stride = std::ssize(blocks_)};
  const size_t bytes = static_cast<size_t>(length_ * c.hidden_size) * sizeof(float);
  for (int64_t w = 0; w < windows_; ++w) {
    bool stopped = false;
    const auto observe = [&](BlockPoint point, ConstTensorView values) -> Status {
      HEARTH_TRY(check_finite(values, run.index, w, block_point_name(point)));
      if (run.observer != nullptr) HEARTH_TRY((*run.observer)(point, values));
      if (point != run.until) return {};
      stopped = true;
      return cancelled("enough of the block");
    };
    const BlockObserver observer(observe);
    std::memcpy(block_.hidden, window(w), bytes);
    const Status status = forward_block({.config = &c,
                                         .ops = &cpu_ops(),
                                         .weights = &weights,
                                         .linears = &linears,
                                         .activation = DType::kF32,
                                         .layer = 0,
                                         .window = c.windows[static_cast<size_t>(run.index)],
                                         .batch = &batch,
                                         .kv = kv_,
                                         .buffers = block_,
                                         .observer = &observer},
                                        comm_, exec);
    if (!status && !stopped) return status;
    if (run.until) continue;
    HEARTH_TRY(
        check_finite(ConstTensorView(block_.hidden, DType::kF32, {length_, c.hidden_size}), run.index, w, "output"));
    if (run.output != nullptr) {
      HEARTH_TRY((*run.output)(w, ConstTensorView(block_.hidden, DType::kF32, {length_, c.hidden_size})));
    } else {
      std::memcpy(window(w), block_.hidden, bytes);
    }
  }
  return {};
}

Status ActivationStream::final_norm(const std::vector<float>& weight,
                                    FunctionRef<Status(ConstTensorView values)> observer) {
  ExecContext exec{.pool = pool_, .workspace = workspace_};
  const TensorView normed(block_.normed, DType::kF32, {length_, config_.hidden_size});
  for (int64_t w = 0; w < windows_; ++w) {
    HEARTH_TRY(cpu_ops().rmsnorm({.x = ConstTensorView(window(w), DType::kF32, {length_, config_.hidden_size}),
                                  .weight = ConstTensorView(weight.data(), DType::kF32, Shape{config_.hidden_size}),
                                  .out = normed,
                                  .eps = static_cast<float>(config_.rms_norm_eps)},
                                 exec));
    HEARTH_TRY(observer(normed));
  }
  return {};
}

}  // namespace hearth
