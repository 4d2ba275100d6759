// SPDX-License-Identifier: Apache-2.0
// Binding is done twice over the same code: a first pass adds up the bytes, the second reads into them.
#include "hearth/model/weights.h"

#include <algorithm>
#include <deque>
#include <limits>

#include "hearth/base/log.h"
#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/model/rope_frequencies.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {
namespace {

// One checkpoint tensor's contribution to a bound weight: rows [row_begin, row_begin + rows) and columns
// [col_begin, col_begin + cols) of it, one part below the other.
struct Part {
  const TensorEntry* entry = nullptr;
  int64_t row_begin = 0, rows = 0;
  int64_t col_begin = 0, cols = 0;
};

bool is_float(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBf16; }

// The type that holds all parts exactly.
DType widest(std::span<const Part> parts) {
  const DType first = parts.front().entry->dtype;
  for (const Part& part : parts)
    if (part.entry->dtype != first) return DType::kF32;
  return first;
}

class Binder {
 public:
  Binder(WeightSource& source, const ModelConfig& config, const WeightsOptions& options, ThreadPool& pool)
      : source_(source),
        config_(config),
        activation_(options.activation),
        shard_(options.shard),
        pool_(pool),
        progress_(options.progress),
        stop_(options.stop),
        packed_bytes_(options.packed_bytes) {}

  // The first pass: where everything goes, and how much it is.
  Status plan(ModelWeights& weights) {
    sink_ = nullptr;
    return bind_all(weights);
  }
  int64_t planned_bytes() const { return used_; }
  // The second pass. REQUIRES: `sink` holds planned_bytes().
  Status read(ModelWeights& weights, WeightSink& sink) {
    total_ = source_bytes_;
    sink_ = &sink;
    used_ = source_bytes_ = 0;
    if (progress_) progress_(0, total_);  // so that a rate begins with the first byte
    return bind_all(weights);
  }

 private:
  Status bind_all(ModelWeights& w) {
    const ModelConfig& c = config_;
    HEARTH_TRY(check_shard());
    const Shape vocab_shape{c.vocab_size, c.hidden_size};
    const bool has_embedding = source_.find("model.embed_tokens.weight", vocab_shape) != nullptr;
    const TensorEntry* lm_head = source_.find("lm_head.weight", vocab_shape);
    // A tied file may hold either of the two.
    const char* embedding_name =
        !has_embedding && c.tie_word_embeddings && lm_head ? "lm_head.weight" : "model.embed_tokens.weight";
    HEARTH_TRY_ASSIGN(const Part embedding, whole(embedding_name, c.vocab_size, c.hidden_size));
    HEARTH_TRY_ASSIGN(w.embedding, matrix({&embedding, 1}));

    w.layers.resize(static_cast<size_t>(c.layers));
    for (int64_t i = 0; i < c.layers; ++i)
      HEARTH_TRY(bind_layer(fmt::format("model.layers.{}.", i), w.layers[static_cast<size_t>(i)]));

    HEARTH_TRY_ASSIGN(w.final_norm, vector("model.norm.weight", c.hidden_size));
    HEARTH_TRY(bind_lm_head(lm_head, w));
    HEARTH_TRY_ASSIGN(w.inv_freq, inverse_frequencies());
    return {};
  }

  Status bind_lm_head(const TensorEntry* entry, ModelWeights& w) {
    const ModelConfig& c = config_;
    w.lm_head.parts = {{.format = WeightFormat::plain(w.embedding.dtype),
                        .n = c.vocab_size,
                        .k = c.hidden_size,
                        .codes = w.embedding}};
    if (c.tie_word_embeddings) {
      const TensorEntry* embedding = source_.find("model.embed_tokens.weight", w.embedding.shape);
      if (!entry || !embedding) return {};
      // Some files carry both. If they differ, the head was trained apart, whatever config.json says.
      HEARTH_TRY_ASSIGN(const bool same, same_bytes(*entry, *embedding));
      if (same) return {};
      if (sink_)
        spdlog::warn(
            "tie_word_embeddings is true, but lm_head.weight differs from the embedding: using lm_head.weight");
    }
    HEARTH_TRY_ASSIGN(const bool quantized, is_quantized("lm_head", c.vocab_size, c.hidden_size));
    if (quantized) {
      HEARTH_TRY_ASSIGN(LinearWeight head, quantized_part("lm_head", c.vocab_size, c.hidden_size));
      w.lm_head.parts = {std::move(head)};
      return {};
    }
    HEARTH_TRY_ASSIGN(const Part part, whole("lm_head.weight", c.vocab_size, c.hidden_size));
    HEARTH_TRY_ASSIGN(w.lm_head, linear({&part, 1}, {}));
    return {};
  }

  Status bind_layer(const std::string& prefix, LayerWeights& layer) {
    const ModelConfig& c = config_;
    const int64_t q_rows = c.heads * c.head_dim / shard_.size, kv_rows = c.kv_heads * c.head_dim / shard_.size;
    const int64_t ffn = c.intermediate_size / shard_.size;
    HEARTH_TRY_ASSIGN(layer.input_norm, vector(prefix + "input_layernorm.weight", c.hidden_size));
    HEARTH_TRY_ASSIGN(layer.post_attention_norm, vector(prefix + "post_attention_layernorm.weight", c.hidden_size));
    if (c.qk_norm) {
      HEARTH_TRY_ASSIGN(layer.q_norm, vector(prefix + "self_attn.q_norm.weight", c.head_dim));
      HEARTH_TRY_ASSIGN(layer.k_norm, vector(prefix + "self_attn.k_norm.weight", c.head_dim));
    }
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    const Slice qkv[] = {
        {attention + "q_proj", q_rows}, {attention + "k_proj", kv_rows}, {attention + "v_proj", kv_rows}};
    HEARTH_TRY_ASSIGN(layer.qkv, column_parallel(qkv, c.qkv_bias));
    HEARTH_TRY_ASSIGN(layer.o, row_parallel(attention + "o_proj", q_rows, c.o_bias));
    const Slice gate_up[] = {{mlp + "gate_proj", ffn}, {mlp + "up_proj", ffn}};
    DenseFfn dense;
    HEARTH_TRY_ASSIGN(dense.gate_up, column_parallel(gate_up, c.mlp_bias));
    HEARTH_TRY_ASSIGN(dense.down, row_parallel(mlp + "down_proj", ffn, c.mlp_bias));
    layer.ffn = std::move(dense);
    HEARTH_TRY_ASSIGN(layer.k_channel_scale, head_values(attention + "k_channel_scale", c.head_dim, true));
    HEARTH_TRY_ASSIGN(layer.k_channel_offset, head_values(attention + "k_channel_offset", c.head_dim, false));
    HEARTH_TRY_ASSIGN(layer.k_scale, head_values(attention + "k_scale", 1, true));
    HEARTH_TRY_ASSIGN(layer.v_scale, head_values(attention + "v_scale", 1, true));
    return {};
  }

  // Numbers of this rank's kv heads, `width` for each; empty where the checkpoint has none. One for all heads stays one
  // where width is 1.
  Result<ConstTensorView> head_values(const std::string& name, int64_t width, bool positive) {
    const TensorEntry* entry = source_.find_optional(name);
    if (!entry) return ConstTensorView();
    const int64_t count = entry->shape.count();
    if (!is_float(entry->dtype) || (count != config_.kv_heads * width && !(width == 1 && count == 1)))
      return unsupported("tensor '{}' is {} {}; wanted floats for {} key-value heads of {}", name,
                         dtype_name(entry->dtype), to_string(entry->shape), config_.kv_heads, width);
    const bool shared = count == 1;
    const int64_t mine = shared ? 1 : config_.kv_heads / shard_.size * width;
    TensorEntry& row = flattened_.emplace_back(*entry);
    row.shape = {count};
    const Part part{&row, 0, 1, shared ? 0 : mine * shard_.rank, mine};
    HEARTH_TRY_ASSIGN(const ConstTensorView values,
                      place({&part, 1}, DType::kF32, width == 1 ? Shape{mine} : Shape{mine / width, width}));
    if (sink_ && positive) HEARTH_TRY(check_positive(part));
    return values;
  }

  // Values are divided by scales; the reciprocal of a denormal one is infinite. Reads them once more: what has been
  // placed may lie on a device.
  Status check_positive(const Part& part) const {
    const TensorEntry& entry = *part.entry;
    std::vector<std::byte> stored(static_cast<size_t>(dtype_bytes(entry.dtype, part.cols)));
    std::vector<float> scales(static_cast<size_t>(part.cols));
    HEARTH_TRY(source_.read_part(entry, dtype_bytes(entry.dtype, part.col_begin), stored));
    HEARTH_TRY(convert_floats(entry.dtype, stored, DType::kF32, std::as_writable_bytes(std::span(scales))));
    for (size_t i = 0; i < scales.size(); ++i)
      if (!(scales[i] >= std::numeric_limits<float>::min()))
        return corrupt("tensor '{}' is {} at {}; wanted positive scales", entry.name, scales[i], i);
    return {};
  }

  Result<bool> is_quantized(const std::string& module, int64_t n, int64_t k) {
    HEARTH_TRY_ASSIGN(const std::optional<WeightFormat> format, source_.quantized_format(module, n, k));
    return format.has_value();
  }

  // A whole quantized module; REQUIRES: is_quantized().
  Result<LinearWeight> quantized_part(const std::string& module, int64_t n, int64_t k) {
    if (shard_.size != 1) return unsupported("{}: quantized weights are not split over {} ranks", module, shard_.size);
    HEARTH_TRY_ASSIGN(const std::optional<WeightFormat> format, source_.quantized_format(module, n, k));
    const int64_t bytes = quantized_weight_bytes(*format, n, k, true);
    const int64_t at = take(packed_bytes_ ? std::max(bytes, packed_bytes_(*format, n, k)) : bytes);
    source_bytes_ += format->stored_bytes(n, k);
    const std::optional<TensorEntry> codes = source_.canonical_codes(module, n, k);
    if (!sink_) {
      if (!codes) conversions_.push_back({.module = module, .n = n, .k = k, .at = at, .bytes = bytes});
      LinearWeight out;
      out.format = *format;
      out.n = n;
      out.k = k;
      return out;
    }
    if (!codes) return converted_part(module, format->stored_bytes(n, k));
    HEARTH_TRY_ASSIGN(const QuantizedMatrix matrix, source_.read_quantized(module, n, k));
    HEARTH_TRY(matrix.validate(false).with_context(module));
    const int64_t codes_bytes = quantized_codes_bytes(matrix.format, n, k), at_parts = at + codes_bytes;
    HEARTH_TRY_ASSIGN(HostBuffer parts, HostBuffer::allocate(bytes - codes_bytes).with_context("weights"));
    LinearWeight out = place_quantized_parts(matrix, sink_->address(at), parts.data());
    HEARTH_TRY(sink_->put(at_parts, parts.bytes()));
    move_views(out, parts.data(), sink_->address(at_parts));
    done_ += format->stored_bytes(n, k) - codes->size_bytes;
    HEARTH_TRY(read_part({&*codes, 0, n, 0, codes->shape.back()}, codes->dtype, at));
    return out;
  }

  // A quantized module whose codes must be made: [at, at + bytes) of the whole, and what a thread has made of it.
  struct Conversion {
    std::string module;
    int64_t n = 0, k = 0;
    int64_t at = 0, bytes = 0;
    Status status;
    LinearWeight weight;
    HostBuffer memory;  // nothing where the sink is in place
  };

  // The next of conversions_. Each is one thread's work, so that as many are made ahead as there are threads.
  Result<LinearWeight> converted_part(const std::string& module, int64_t stored_bytes) {
    if (next_conversion_ == made_conversions_) {
      const size_t count = std::min(conversions_.size() - next_conversion_, static_cast<size_t>(pool_.size()));
      pool_.parallel_for(static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          Conversion& next = conversions_[next_conversion_ + static_cast<size_t>(i)];
          next.status = convert(next);
        }
      });
      made_conversions_ += count;
    }
    Conversion& made = conversions_[next_conversion_++];
    HEARTH_CHECK(made.module == module, "{} was planned where {} is read", made.module, module);
    HEARTH_TRY(std::move(made.status));
    if (!sink_->in_place()) {
      HEARTH_TRY(sink_->put(made.at, made.memory.bytes()));
      move_views(made.weight, made.memory.data(), sink_->address(made.at));
      made.memory = HostBuffer();
    }
    HEARTH_TRY(advance(stored_bytes));
    return made.weight;
  }

  Status advance(int64_t stored_bytes) {
    done_ += stored_bytes;
    if (progress_) progress_(done_, total_);
    if (stop_ != nullptr && stop_->load()) return cancelled("the load was cancelled at {} of {} bytes", done_, total_);
    return {};
  }

  Status convert(Conversion& next) const {
    HEARTH_TRY_ASSIGN(const QuantizedMatrix matrix, source_.read_quantized(next.module, next.n, next.k));
    HEARTH_TRY(matrix.validate().with_context(next.module));
    std::byte* memory = sink_->address(next.at);
    if (!sink_->in_place()) {
      HEARTH_TRY_ASSIGN(next.memory, HostBuffer::allocate(next.bytes).with_context("weights"));
      memory = next.memory.data();
    }
    next.weight = place_quantized(matrix, memory);
    return {};
  }

  // Views of what was placed at `from` and now lies at `to`. Codes that lie elsewhere stay.
  static void move_views(LinearWeight& weight, const std::byte* from, const std::byte* to) {
    const std::byte* const codes = static_cast<const std::byte*>(weight.codes.data);
    const bool apart = codes != from;
    for (ConstTensorView* view : {&weight.codes, &weight.scales, &weight.zeros, &weight.lines, &weight.line_scales,
                                  &weight.line_index, &weight.k_order, &weight.act_scale})
      if (*view && !(apart && view == &weight.codes))
        view->data = to + (static_cast<const std::byte*>(view->data) - from);
  }

  struct Slice {
    std::string name;  // without ".weight"
    int64_t rows;      // on this rank
  };

  // Output rows are split over the ranks.
  Result<Linear> column_parallel(std::span<const Slice> slices, bool with_bias) {
    bool quantized = false;
    for (const Slice& slice : slices) {
      HEARTH_TRY_ASSIGN(const bool found, is_quantized(slice.name, slice.rows * shard_.size, config_.hidden_size));
      quantized |= found;
    }
    if (!quantized) return plain_columns(slices, with_bias);
    Linear out;
    for (const Slice& slice : slices) {
      HEARTH_TRY_ASSIGN(const bool found, is_quantized(slice.name, slice.rows, config_.hidden_size));
      if (!found) {
        HEARTH_TRY_ASSIGN(Linear plain, plain_columns({&slice, 1}, with_bias));
        out.parts.push_back(std::move(plain.parts.front()));
        continue;
      }
      HEARTH_TRY_ASSIGN(LinearWeight part, quantized_part(slice.name, slice.rows, config_.hidden_size));
      if (with_bias) {
        HEARTH_TRY_ASSIGN(part.bias, vector(slice.name + ".bias", slice.rows));
      }
      out.parts.push_back(std::move(part));
    }
    return out;
  }

  Result<Linear> plain_columns(std::span<const Slice> slices, bool with_bias) {
    std::vector<Part> weights, biases;
    for (const Slice& slice : slices) {
      const int64_t begin = slice.rows * shard_.rank, all = slice.rows * shard_.size;
      HEARTH_TRY_ASSIGN(const TensorEntry* entry, find(slice.name + ".weight", Shape{all, config_.hidden_size}));
      weights.push_back({entry, begin, slice.rows, 0, config_.hidden_size});
      if (!with_bias) continue;
      HEARTH_TRY_ASSIGN(const TensorEntry* bias, find(slice.name + ".bias", Shape{all}));
      biases.push_back({bias, 0, 1, begin, slice.rows});
    }
    return linear(weights, biases);
  }

  // Input columns are split over the ranks; the bias is rank 0's alone, since the ranks' results add up.
  Result<Linear> row_parallel(const std::string& name, int64_t cols, bool with_bias) {
    HEARTH_TRY_ASSIGN(const bool quantized, is_quantized(name, config_.hidden_size, cols * shard_.size));
    if (quantized) {
      HEARTH_TRY_ASSIGN(LinearWeight part, quantized_part(name, config_.hidden_size, cols));
      if (with_bias) {
        HEARTH_TRY_ASSIGN(part.bias, vector(name + ".bias", config_.hidden_size));
      }
      return Linear{{part}};
    }
    HEARTH_TRY_ASSIGN(const TensorEntry* entry, find(name + ".weight", Shape{config_.hidden_size, cols * shard_.size}));
    const Part weight{entry, 0, config_.hidden_size, cols * shard_.rank, cols};
    std::vector<Part> biases;
    if (with_bias) {
      HEARTH_TRY_ASSIGN(const TensorEntry* bias, find(name + ".bias", Shape{config_.hidden_size}));
      if (shard_.rank == 0) biases.push_back({bias, 0, 1, 0, config_.hidden_size});
    }
    return linear({&weight, 1}, biases);
  }

  Result<Linear> linear(std::span<const Part> weights, std::span<const Part> biases) {
    LinearWeight out;
    HEARTH_TRY_ASSIGN(out.codes, matrix(weights));
    out.format = WeightFormat::plain(out.codes.dtype);
    out.n = out.codes.shape[0];
    out.k = out.codes.shape[1];
    if (!biases.empty()) {
      int64_t count = 0;
      for (const Part& part : biases) count += part.cols;
      HEARTH_TRY_ASSIGN(out.bias, place(biases, DType::kF32, Shape{count}));
    }
    return Linear{{out}};
  }

  // Parts below each other, in the type that linear weights have.
  Result<ConstTensorView> matrix(std::span<const Part> parts) {
    int64_t rows = 0;
    for (const Part& part : parts) rows += part.rows;
    return place(parts, activation_ == DType::kBf16 ? DType::kBf16 : widest(parts), Shape{rows, parts.front().cols});
  }

  Result<ConstTensorView> vector(const std::string& name, int64_t size) {
    HEARTH_TRY_ASSIGN(const TensorEntry* entry, find(name, Shape{size}));
    const Part part{entry, 0, 1, 0, size};
    return place({&part, 1}, DType::kF32, Shape{size});
  }

  Result<Part> whole(const std::string& name, int64_t rows, int64_t cols) {
    HEARTH_TRY_ASSIGN(const TensorEntry* entry, find(name, Shape{rows, cols}));
    return Part{entry, 0, rows, 0, cols};
  }

  Result<const TensorEntry*> find(const std::string& name, const Shape& shape) {
    const TensorEntry* entry = source_.find(name, shape);
    if (!entry) return not_found("tensor '{}' {} is missing from {}", name, to_string(shape), source_.name());
    if (entry->shape != shape)
      return invalid_argument("tensor '{}' is {}; config.json wants {}", name, to_string(entry->shape),
                              to_string(shape));
    if (!is_float(entry->dtype))
      return unsupported("tensor '{}' is {}; hearth reads f32, f16 and bf16", name, dtype_name(entry->dtype));
    return entry;
  }

  // Takes memory for the parts, and in the second pass fills it.
  Result<ConstTensorView> place(std::span<const Part> parts, DType dtype, const Shape& shape) {
    const int64_t at = take(dtype_bytes(dtype, shape.count()));
    for (const Part& part : parts) source_bytes_ += dtype_bytes(part.entry->dtype, part.rows * part.cols);
    if (!sink_) return ConstTensorView(nullptr, dtype, shape);
    int64_t offset = at;
    for (const Part& part : parts) {
      HEARTH_TRY(read_part(part, dtype, offset));
      offset += dtype_bytes(dtype, part.rows * part.cols);
    }
    return ConstTensorView(sink_->address(at), dtype, shape);
  }

  int64_t take(int64_t bytes) {
    const int64_t at = used_;
    used_ += (bytes + 63) / 64 * 64;
    return at;
  }

  Result<ConstTensorView> inverse_frequencies() {
    const std::vector<float> values = rope_inv_freq(config_);
    const int64_t at = take(static_cast<int64_t>(values.size() * sizeof(float)));
    const Shape shape{static_cast<int64_t>(values.size())};
    if (!sink_) return ConstTensorView(nullptr, DType::kF32, shape);
    HEARTH_TRY(sink_->put(at, std::as_bytes(std::span(values))));
    return ConstTensorView(sink_->address(at), DType::kF32, shape);
  }

  // Reads one part to `offset`, as many rows at once as the sink takes; a row that it does not take in pieces of its
  // own.
  Status read_part(const Part& part, DType dtype, int64_t offset) {
    const int64_t width = dtype_bytes(dtype, 1), most = sink_->piece_bytes() / width;
    const int64_t cols = std::clamp<int64_t>(part.cols, 1, most);
    const int64_t rows = cols < part.cols ? 1 : std::max<int64_t>(1, most / cols);
    for (int64_t row = 0; row < part.rows; row += rows)
      for (int64_t col = 0; col < part.cols; col += cols) {
        const Part piece{part.entry, part.row_begin + row, std::min(rows, part.rows - row), part.col_begin + col,
                         std::min(cols, part.cols - col)};
        HEARTH_TRY_ASSIGN(const std::span<std::byte> to,
                          sink_->open(offset + (row * part.cols + col) * width, piece.rows * piece.cols * width));
        HEARTH_TRY(read_rows(piece, dtype, to));
        HEARTH_TRY(sink_->close());
      }
    return {};
  }

  // The part's rows, spread over the pool's threads.
  Status read_rows(const Part& part, DType dtype, std::span<std::byte> dst) {
    const TensorEntry& entry = *part.entry;
    const bool whole_rows = part.cols == entry.shape.back();
    const int64_t row_bytes = dtype_bytes(entry.dtype, part.cols), dst_row_bytes = dtype_bytes(dtype, part.cols);
    // A call reads whole rows of about a megabyte, or one row of a column slice.
    const int64_t rows_at_once =
        whole_rows ? std::max<int64_t>(1, (int64_t{1} << 20) / std::max<int64_t>(1, row_bytes)) : 1;
    std::vector<Status> failures(static_cast<size_t>(pool_.size()));
    pool_.parallel_for(part.rows, rows_at_once, [&](int64_t begin, int64_t end, int thread) {
      std::vector<std::byte> staging;
      for (int64_t row = begin; row < end; row += rows_at_once) {
        const int64_t rows = std::min(rows_at_once, end - row);
        const int64_t from = dtype_bytes(entry.dtype, (part.row_begin + row) * entry.shape.back() + part.col_begin);
        const auto to =
            dst.subspan(static_cast<size_t>(row * dst_row_bytes), static_cast<size_t>(rows * dst_row_bytes));
        Status status;
        if (entry.dtype == dtype) {
          status = source_.read_part(entry, from, to);
        } else {
          staging.resize(static_cast<size_t>(rows * row_bytes));
          status = source_.read_part(entry, from, staging);
          if (status) status = convert_floats(entry.dtype, staging, dtype, to);
        }
        // What was stored, in the type that will be used: a large f32 may round to infinity in bf16.
        if (status) status = check_finite(part, row, dtype, to);
        if (!status) {
          failures[static_cast<size_t>(thread)] = std::move(status);
          return;
        }
      }
    });
    for (Status& failure : failures) HEARTH_TRY(std::move(failure));
    return advance(dtype_bytes(entry.dtype, part.rows * part.cols));
  }

  // Corrupt where the rows of `part` from `row` on, stored in `values`, hold a number that is none: everything
  // computed from it would be none either.
  Status check_finite(const Part& part, int64_t row, DType dtype, std::span<const std::byte> values) const {
    const std::optional<int64_t> found = find_non_finite(dtype, values);
    if (!found) return {};
    const int64_t width = dtype_bytes(dtype, 1);
    float value = std::numeric_limits<float>::quiet_NaN();  // what a code of E4M3 can be only
    if (dtype != DType::kE4m3) {
      const Status widened =
          convert_floats(dtype, values.subspan(static_cast<size_t>(*found * width), static_cast<size_t>(width)),
                         DType::kF32, std::as_writable_bytes(std::span(&value, 1)));
      HEARTH_CHECK(widened, "{}", widened.error().message);
    }
    const TensorEntry& entry = *part.entry;
    const int64_t column = part.col_begin + *found % part.cols;
    const int64_t tensor_row = part.row_begin + row + *found / part.cols;
    const std::string place =
        entry.shape.rank() == 1 ? fmt::format("{}", column) : fmt::format("{}, {}", tensor_row, column);
    return corrupt("tensor {} is {} at [{}]{}; wanted finite numbers", quote_name(entry.name), value, place,
                   entry.dtype == dtype ? "" : fmt::format(" as {}", dtype_name(dtype)));
  }

  Result<bool> same_bytes(const TensorEntry& a, const TensorEntry& b) {
    if (same_head_) return *same_head_;
    if (a.dtype != b.dtype || a.shape != b.shape) return *(same_head_ = false);
    constexpr int64_t kChunk = int64_t{4} << 20;
    std::vector<std::byte> a_bytes, b_bytes;
    for (int64_t at = 0; at < a.size_bytes; at += kChunk) {
      a_bytes.resize(static_cast<size_t>(std::min(kChunk, a.size_bytes - at)));
      b_bytes.resize(a_bytes.size());
      HEARTH_TRY(source_.read_part(a, at, a_bytes));
      HEARTH_TRY(source_.read_part(b, at, b_bytes));
      if (a_bytes != b_bytes) return *(same_head_ = false);
    }
    return *(same_head_ = true);
  }

  Status check_shard() const {
    const ModelConfig& c = config_;
    if (shard_.size < 1 || shard_.rank < 0 || shard_.rank >= shard_.size)
      return invalid_argument("shard {} of {}: wanted a rank below the size", shard_.rank, shard_.size);
    if (shard_.expert) return unsupported("expert {}: no supported architecture has experts", *shard_.expert);
    if (c.kv_heads % shard_.size != 0 || c.intermediate_size % shard_.size != 0)
      return invalid_argument("{} ranks do not divide {} key-value heads and {} ffn channels", shard_.size, c.kv_heads,
                              c.intermediate_size);
    return {};
  }

  WeightSource& source_;
  const ModelConfig& config_;
  const DType activation_;
  const Shard shard_;
  ThreadPool& pool_;
  const LoadProgress& progress_;
  const std::atomic<bool>* const stop_;
  const std::function<int64_t(const WeightFormat&, int64_t, int64_t)>& packed_bytes_;
  WeightSink* sink_ = nullptr;  // null in the first pass
  int64_t used_ = 0;            // bytes of our memory taken
  int64_t source_bytes_ = 0;    // bytes of the checkpoint wanted
  int64_t done_ = 0, total_ = 0;
  std::optional<bool> same_head_;
  std::deque<TensorEntry> flattened_;    // entries whose shape is read as one row
  std::vector<Conversion> conversions_;  // of the first pass, in the order of the second
  size_t next_conversion_ = 0, made_conversions_ = 0;
};

}  // namespace

int64_t Linear::n() const {
  int64_t rows = 0;
  for (const LinearWeight& part : parts) rows += part.n;
  return rows;
}

int64_t Linear::weight_bytes() const {
  int64_t bytes = 0;
  for (const LinearWeight& part : parts) bytes += part.format.stored_bytes(part.n, part.k);
  return bytes;
}

int64_t Linear::size_bytes() const {
  int64_t bytes = weight_bytes();
  for (const LinearWeight& part : parts) bytes += part.bias ? part.bias.size_bytes() : 0;
  return bytes;
}

int64_t ModelWeights::bytes_per_token() const {
  int64_t bytes = final_norm.size_bytes() + lm_head.size_bytes();
  for (const LayerWeights& layer : layers) {
    const DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
    for (const Linear* linear : {&layer.qkv, &layer.o, &ffn.gate_up, &ffn.down}) bytes += linear->size_bytes();
    for (const ConstTensorView* norm : {&layer.input_norm, &layer.post_attention_norm, &layer.q_norm, &layer.k_norm})
      if (*norm) bytes += norm->size_bytes();
  }
  return bytes;
}

Result<ModelWeights> load_weights(WeightSource& source, const ModelConfig& config, const WeightsOptions& options,
                                  ThreadPool& pool) {
  ModelWeights weights;
  Binder binder(source, config, options, pool);
  HEARTH_TRY(binder.plan(weights));
  HEARTH_TRY_ASSIGN(WeightSink sink, WeightSink::create(*options.memory, binder.planned_bytes(), options.piece_bytes));
  Status read = binder.read(weights, sink);
  Result<Buffer> memory = sink.finish();  // also after an error: a piece may still be on its way
  HEARTH_TRY(std::move(read));
  HEARTH_TRY_ASSIGN(weights.memory, std::move(memory));
  return weights;
}

}  // namespace hearth
