// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

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
// What a window is looked at for: the points of a block, and its output.
constexpr size_t kPlaces = 6;
constexpr size_t kOutputPlace = kPlaces - 1;

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

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

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
                                                  const CalibrationSet& set, ThreadPool& pool, const OpTable& ops) {
  ActivationStream stream(config, pool, ops);
  stream.windows_ = std::ssize(set.windows);
  stream.length_ = set.length;
  if (set.length > config.max_positions)
    return invalid_argument("calibration: windows of {} tokens; the model was made for {}", set.length,
                            config.max_positions);
  if (ops.prepare != nullptr) HEARTH_TRY(ops.prepare());
  HEARTH_TRY_ASSIGN(stream.queue_, ops.memory().create_queue());
  const int64_t bytes = set.tokens() * config.hidden_size * static_cast<int64_t>(sizeof(float));
  HEARTH_TRY_ASSIGN(stream.hidden_, ops.memory().allocate(bytes).with_context(fmt::format(
                                        "activations of {} windows of {} tokens", set.windows.size(), set.length)));
  HEARTH_TRY(stream.plan());
  HEARTH_TRY(stream.plan_step());
  HEARTH_TRY(stream.embed(checkpoint, set));
  return stream;
}

Status ActivationStream::plan() {
  const ModelConfig& c = config_;
  HEARTH_TRY_ASSIGN(kv_.layout, KvLayout::make(KvFormatId::kF32, 1, c.kv_heads, c.head_dim, kBlockTokens));
  const int64_t kv_blocks = (length_ + kBlockTokens - 1) / kBlockTokens;
  const int64_t threads = pool_->size();
  // The linears' scratch: that of plain f32 weights of the layer's shapes.
  const LinearOp* linear = ops_->find_linear(WeightFormat::plain(DType::kF32), DType::kF32);
  if (linear == nullptr) return unsupported("the {} backend has no linear op for f32 weights", ops_->backend);
  int64_t scratch = ops_->attention_workspace_bytes(length_, c.heads, c.head_dim, length_, static_cast<int>(threads));
  for (const LayerTensors::Named& named : LayerTensors::linears())
    scratch = std::max(scratch, linear->workspace_bytes(length_, linear_rows(c, named.linear),
                                                        linear_columns(c, named.linear), static_cast<int>(threads)));
  std::byte* workspace = nullptr;
  const auto lay_out = [&](std::byte* base) {
    int64_t used = 0;
    const auto take = [&](int64_t bytes) {
      std::byte* at = base != nullptr ? base + used : nullptr;
      used += align256(bytes);
      return at;
    };
    const auto take_rows = [&](int64_t cols) { return take(length_ * cols * static_cast<int64_t>(sizeof(float))); };
    block_.hidden = take_rows(c.hidden_size);
    block_.normed = take_rows(c.hidden_size);
    block_.qkv = take_rows((c.heads + 2 * c.kv_heads) * c.head_dim);
    block_.attention = take_rows(c.heads * c.head_dim);
    block_.gate_up = take_rows(2 * c.intermediate_size);
    block_.ffn = take_rows(c.intermediate_size);
    block_.cos_sin = take_rows(c.head_dim);
    bad_ = static_cast<uint64_t*>(static_cast<void*>(take(kPlaces * sizeof(uint64_t))));
    kv_.base = take(kv_blocks * kv_.layout.block_bytes());
    workspace = take(scratch);
    return used;
  };
  HEARTH_TRY_ASSIGN(buffers_, ops_->memory().allocate(lay_out(nullptr)).with_context("buffers of a block"));
  lay_out(buffers_.data());
  exec_ = {.pool = pool_, .stream = queue_->stream(), .workspace = {workspace, static_cast<size_t>(scratch)}};
  for (int64_t b = 0; b < kv_blocks; ++b) blocks_.push_back(b * kv_.layout.block_bytes());
  return {};
}

// The arrays of every window's step, and cos_sin.
Status ActivationStream::plan_step() {
  ids_.resize(static_cast<size_t>(length_));  // a block looks at their number only; as rows they are all of a window's
  std::iota(ids_.begin(), ids_.end(), 0);
  positions_ = ids_;
  query_start_ = {0, static_cast<int32_t>(length_)};
  context_ = {static_cast<int32_t>(length_)};
  batch_ = {.tokens = ids_,
            .positions = positions_,
            .query_start = query_start_,
            .context_len = context_,
            .block_table = blocks_,
            .block_table_stride = std::ssize(blocks_)};

  const std::vector<float> frequencies = rope_inv_freq(config_);
  cos_sin_.resize(static_cast<size_t>(length_ * config_.head_dim));
  ExecContext host{.pool = pool_};
  HEARTH_TRY(cpu_ops().rope_table(
      {.positions = positions_,
       .inv_freq = ConstTensorView(frequencies.data(), DType::kF32, Shape{static_cast<int64_t>(frequencies.size())}),
       .scale = static_cast<float>(config_.rope_scaling.attention_factor),
       .cos_sin = rows(cos_sin_.data(), config_.head_dim)},
      host));
  HEARTH_TRY(queue_->copy_in(static_cast<std::byte*>(block_.cos_sin), std::as_bytes(std::span(cos_sin_))));
  if (!ops_->memory().is_host()) {
    HEARTH_TRY_ASSIGN(staging_,
                      StepStaging::create(
                          ops_->memory(),
                          {.tokens = length_, .sequences = 1, .logit_rows = 0, .block_entries = std::ssize(blocks_)}));
    HEARTH_TRY_ASSIGN(batch_, staging_.stage(batch_, *queue_));
    exec_.staged = staging_.memory();
  }
  return queue_->synchronize();
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
  std::vector<float> values(static_cast<size_t>(length_ * config_.hidden_size));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
  const size_t f32_row_bytes = bytes.size() / static_cast<size_t>(length_);
  for (int64_t w = 0; w < windows_; ++w) {
    for (int64_t t = 0; t < length_; ++t) {
      const int64_t id = set.windows[static_cast<size_t>(w)][static_cast<size_t>(t)];
      if (id < 0 || id >= config_.vocab_size)
        return invalid_argument("calibration: token {} of the tokenizer; the model's vocabulary has {}", id,
                                config_.vocab_size);
      HEARTH_TRY(checkpoint.read_part(*table, id * row_bytes, row));
      HEARTH_TRY(convert_floats(table->dtype, row, DType::kF32,
                                bytes.subspan(static_cast<size_t>(t) * f32_row_bytes, f32_row_bytes)));
    }
    if (const std::optional<int64_t> bad = find_non_finite(DType::kF32, bytes))
      return invalid_argument("embedding is {} at token {} of calibration window {}, channel {}; wanted finite numbers",
                              values[static_cast<size_t>(*bad)], *bad / config_.hidden_size, w,
                              *bad % config_.hidden_size);
    HEARTH_TRY(queue_->copy_in(window(hidden_, w, config_.hidden_size), bytes));
    HEARTH_TRY(queue_->synchronize());
  }
  return {};
}

int64_t ActivationStream::columns_at(BlockPoint point) const {
  switch (point) {
    case BlockPoint::kQkv: return (config_.heads + 2 * config_.kv_heads) * config_.head_dim;
    case BlockPoint::kOInput: return config_.heads * config_.head_dim;
    case BlockPoint::kDownInput: return config_.intermediate_size;
    case BlockPoint::kQkvInput:
    case BlockPoint::kGateUpInput: break;
  }
  return config_.hidden_size;
}

bool ActivationStream::can_keep(BlockPoint point) {
  if (point == BlockPoint::kGateUpInput) return true;
  if (point != BlockPoint::kOInput && point != BlockPoint::kDownInput) return false;
  if (place_ == BlockPoint::kOInput) return false;  // its values are still read while the others would be written
  const auto bytes_at = [&](BlockPoint p) { return tokens() * columns_at(p) * static_cast<int64_t>(sizeof(float)); };
  const int64_t wanted = bytes_at(point);
  if (kept_.size_bytes() >= wanted) return true;
  // What is kept first is dead when the next is: one buffer for both, where both fit.
  for (const int64_t bytes : {std::max(wanted, bytes_at(BlockPoint::kDownInput)), wanted}) {
    if (bytes > kMostKeptBytes) continue;
    kept_ = Buffer();
    auto buffer = ops_->memory().allocate(bytes);
    if (!buffer) continue;
    kept_ = *std::move(buffer);
    return true;
  }
  return false;
}

Status ActivationStream::place(std::span<ConstTensorView* const> views) {
  if (ops_->memory().is_host()) return {};
  int64_t bytes = 0;
  for (const ConstTensorView* view : views) bytes += align256(view->size_bytes());
  if (weights_.size_bytes() < bytes) {
    weights_ = Buffer();
    HEARTH_TRY_ASSIGN(weights_, ops_->memory().allocate(bytes).with_context("weights of a layer"));
  }
  std::byte* at = weights_.data();
  for (ConstTensorView* view : views) {
    if (!*view) continue;
    const auto count = static_cast<size_t>(view->size_bytes());
    HEARTH_TRY(queue_->copy_in(at, {static_cast<const std::byte*>(view->data), count}));
    view->data = at;
    at += align256(static_cast<int64_t>(count));
  }
  return {};
}

Result<LayerWeights> ActivationStream::place(const LayerTensors& layer) {
  LayerWeights weights = layer_weights(layer);
  DenseFfn& ffn = std::get<DenseFfn>(weights.ffn);
  std::vector<ConstTensorView*> views = {&weights.input_norm, &weights.post_attention_norm, &weights.q_norm,
                                         &weights.k_norm};
  for (Linear* linear : {&weights.qkv, &weights.o, &ffn.gate_up, &ffn.down})
    for (LinearWeight& part : linear->parts) views.insert(views.end(), {&part.codes, &part.bias});
  HEARTH_TRY(place(views));
  return weights;
}

// One run: gathers, and looks for values that are no numbers. These are known when the queue's work of a window is
// done, and before anybody sees the window's values in host memory.
class ActivationStream::Pass {
 public:
  Pass(ActivationStream& stream, int64_t layer, InputMoments* moments)
      : stream_(stream), layer_(layer), moments_(moments) {
    none_.fill(NonFinite::kNone);
  }

  Status begin() {
    if (moments_ == nullptr) return {};
    for (const auto& [point, ignored] : *moments_) {
      HEARTH_TRY_ASSIGN(MomentSums sums, MomentSums::create(*stream_.ops_, stream_.columns_at(point)));
      sums_.emplace(point, std::move(sums));
    }
    return {};
  }

  Status begin_window(int64_t window) {
    window_ = window;
    return stream_.queue_->copy_in(bytes_of(stream_.bad_), std::as_bytes(std::span(none_)));
  }

  Status look(size_t place, const ConstTensorView& values) {
    columns_[place] = values.cols();
    return stream_.ops_->non_finite({.x = values, .first = stream_.bad_ + place}, stream_.exec_);
  }

  Status see(BlockPoint point, const ConstTensorView& values) {
    HEARTH_TRY(look(static_cast<size_t>(point), values));
    const auto found = sums_.find(point);
    return found == sums_.end() ? Status() : found->second.add(values, stream_.exec_);
  }

  // All of the window's work so far is done. InvalidArgument for what is no number.
  Status synchronize() {
    std::array<uint64_t, kPlaces> bad{};
    HEARTH_TRY(stream_.queue_->copy_out(std::as_writable_bytes(std::span(bad)), bytes_of(stream_.bad_)));
    HEARTH_TRY(stream_.queue_->synchronize());
    for (size_t place = 0; place < kPlaces; ++place) {
      if (bad[place] == NonFinite::kNone) continue;
      const int64_t index = NonFinite::index(bad[place]);
      return invalid_argument("{}{} is {} at token {} of calibration window {}, channel {}; wanted finite numbers",
                              layer_ < 0 ? std::string() : fmt::format("layer {}: ", layer_),
                              place == kOutputPlace ? "output" : block_point_name(static_cast<BlockPoint>(place)),
                              NonFinite::value(bad[place]), index / columns_[place], window_, index % columns_[place]);
    }
    return {};
  }

  // Calls the observer with the values in host memory.
  Status show(const WindowObserver& observer, const ConstTensorView& values) {
    HEARTH_TRY(synchronize());
    if (stream_.ops_->memory().is_host()) return observer(window_, values);
    copy_.resize(static_cast<size_t>(values.shape.count()));
    HEARTH_TRY(stream_.queue_->copy_out(std::as_writable_bytes(std::span(copy_)), bytes_of(values.data)));
    HEARTH_TRY(stream_.queue_->synchronize());
    return observer(window_, ConstTensorView(copy_.data(), DType::kF32, values.shape));
  }

  Status end() {
    for (auto& [point, sums] : sums_) {
      HEARTH_TRY_ASSIGN((*moments_)[point], sums.read(*stream_.queue_));
    }
    return {};
  }

 private:
  static std::byte* bytes_of(uint64_t* at) { return static_cast<std::byte*>(static_cast<void*>(at)); }
  static const std::byte* bytes_of(const void* at) { return static_cast<const std::byte*>(at); }

  ActivationStream& stream_;
  const int64_t layer_;
  InputMoments* const moments_;
  std::map<BlockPoint, MomentSums> sums_;
  std::array<uint64_t, kPlaces> none_{};
  std::array<int64_t, kPlaces> columns_{};
  std::vector<float> copy_;
  int64_t window_ = 0;
};

Status ActivationStream::run(const Run& run) {
  const ModelConfig& c = config_;
  HEARTH_TRY_ASSIGN(const LayerWeights weights, place(*run.layer));
  HEARTH_TRY_ASSIGN(const BlockOps linears, BlockOps::find(*ops_, weights, DType::kF32, run.index));
  Pass pass(*this, run.index, run.moments);
  HEARTH_TRY(pass.begin());
  const bool keeps = run.until && run.keep && can_keep(*run.until);
  const bool ends = !run.until && run.output == nullptr;
  // Whether the block's additions are the stream's.
  const bool moves = ends || keeps || (run.until && *run.until <= BlockPoint::kOInput);
  HEARTH_CHECK(run.windows == 0 || (run.until && !run.keep), "part of the windows would go on");
  const int64_t windows = run.windows > 0 ? std::min(run.windows, windows_) : windows_;
  for (int64_t w = 0; w < windows; ++w) {
    BlockBuffers buffers = block_;
    std::byte* const hidden = window(hidden_, w, c.hidden_size);
    if (moves) buffers.hidden = hidden;
    // What is kept lies where the block writes and reads it.
    const auto is = [&](BlockPoint point) { return place_ == point || (keeps && *run.until == point); };
    if (is(BlockPoint::kOInput)) buffers.attention = window(kept_, w, columns_at(BlockPoint::kOInput));
    if (is(BlockPoint::kDownInput)) buffers.ffn = window(kept_, w, columns_at(BlockPoint::kDownInput));

    HEARTH_TRY(pass.begin_window(w));
    // The embedding op is a copy of rows.
    if (!moves)
      HEARTH_TRY(ops_->embedding(
          {.tokens = batch_.tokens, .table = rows(hidden, c.hidden_size), .out = rows(buffers.hidden, c.hidden_size)},
          exec_));
    const auto observe = [&](BlockPoint point, ConstTensorView values) -> Status {
      HEARTH_TRY(pass.see(point, values));
      return run.qkv != nullptr && point == BlockPoint::kQkv ? pass.show(*run.qkv, values) : Status();
    };
    const BlockObserver observer(observe);
    HEARTH_TRY(forward_block({.config = &c,
                              .ops = ops_,
                              .weights = &weights,
                              .linears = &linears,
                              .activation = DType::kF32,
                              .layer = 0,
                              .window = c.windows[static_cast<size_t>(run.index)],
                              .batch = &batch_,
                              .kv = kv_,
                              .buffers = buffers,
                              .observer = &observer,
                              .from = place_,
                              .until = run.until},
                             comm_, exec_));
    const TensorView output = rows(buffers.hidden, c.hidden_size);
    if (!run.until) HEARTH_TRY(pass.look(kOutputPlace, output));
    HEARTH_TRY(run.output != nullptr ? pass.show(*run.output, output) : pass.synchronize());
  }
  if (keeps) place_ = *run.until;
  if (ends) place_ = BlockPoint::kQkvInput;
  return pass.end();
}

Result<SecondMoments> ActivationStream::final_norm(const std::vector<float>& weight) {
  ConstTensorView placed(weight.data(), DType::kF32, Shape{config_.hidden_size});
  ConstTensorView* const views[] = {&placed};
  HEARTH_TRY(place(views));
  HEARTH_TRY_ASSIGN(MomentSums sums, MomentSums::create(*ops_, config_.hidden_size));
  Pass pass(*this, -1, nullptr);
  const TensorView normed = rows(block_.normed, config_.hidden_size);
  for (int64_t w = 0; w < windows_; ++w) {
    HEARTH_TRY(pass.begin_window(w));
    HEARTH_TRY(ops_->rmsnorm({.x = rows(window(hidden_, w, config_.hidden_size), config_.hidden_size),
                              .weight = placed,
                              .out = normed,
                              .eps = static_cast<float>(config_.rms_norm_eps)},
                             exec_));
    HEARTH_TRY(pass.look(kOutputPlace, normed));
    HEARTH_TRY(sums.add(normed, exec_));
    HEARTH_TRY(pass.synchronize());
  }
  return sums.read(*queue_);
}

}  // namespace hearth
