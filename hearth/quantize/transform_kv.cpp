// SPDX-License-Identifier: Apache-2.0
// Statistics of keys, queries and values, and the search of factors. The search runs on one thread: a sample of about a
// thousand tokens.
#include "hearth/quantize/transform_kv.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "hearth/base/check.h"
#include "hearth/tensor/hadamard.h"
#include "hearth/tensor/kv_codec.h"

namespace hearth {
namespace {

// Rows that are rotated together.
constexpr int64_t kChunk = 256;
constexpr std::array<double, 7> kExponents = {0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5};

// The heads of a row normalised (weight may be empty) and rotated.
void norm_and_rotate(std::span<float> head, const std::vector<float>& weight, double eps, const float* cos_sin) {
  const size_t half = head.size() / 2;
  if (!weight.empty()) {
    double squares = 0;
    for (const float x : head) squares += double{x} * x;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(head.size()) + eps);
    for (size_t i = 0; i < head.size(); ++i) head[i] = static_cast<float>(head[i] * scale * weight[i]);
  }
  for (size_t i = 0; i < half; ++i) {
    const double a = head[i], b = head[i + half], cos = cos_sin[i], sin = cos_sin[half + i];
    head[i] = static_cast<float>(a * cos - b * sin);
    head[i + half] = static_cast<float>(b * cos + a * sin);
  }
}

}  // namespace

AttentionStats::AttentionStats(const HeadShape& shape, const LayerTensors& layer, double norm_eps)
    : shape_(shape), q_norm_(layer.q_norm), k_norm_(layer.k_norm), norm_eps_(norm_eps) {
  const size_t channels = static_cast<size_t>(shape.kv_heads * shape.head_dim);
  for (std::vector<double>* sums : {&key_sum_, &key_square_, &query_square_, &value_square_, &key_max_})
    sums->assign(channels, 0);
  key_pair_max_.assign(channels / 2, 0);
}

std::span<const float> AttentionStats::sampled_head(int64_t token, int64_t head) const {
  return std::span(sample_).subspan(static_cast<size_t>(token * columns() + head * shape_.head_dim),
                                    static_cast<size_t>(shape_.head_dim));
}

std::vector<double> AttentionStats::rms(const std::vector<double>& squares, int64_t per_token) const {
  std::vector<double> out(squares.size(), 0);
  for (size_t i = 0; i < out.size() && tokens_ > 0; ++i)
    out[i] = std::sqrt(squares[i] / static_cast<double>(tokens_ * per_token));
  return out;
}

std::vector<double> AttentionStats::key_mean() const {
  std::vector<double> out(key_sum_.size(), 0);
  for (size_t i = 0; i < out.size() && tokens_ > 0; ++i) out[i] = key_sum_[i] / static_cast<double>(tokens_);
  return out;
}

Status AttentionStats::observe(ConstTensorView qkv, ConstTensorView cos_sin, ThreadPool* pool) {
  if (qkv.dtype != DType::kF32 || qkv.cols() != columns())
    return invalid_argument("attention statistics: qkv is {} {}, wanted f32 rows of {}", dtype_name(qkv.dtype),
                            to_string(qkv.shape), columns());
  if (cos_sin.dtype != DType::kF32 || cos_sin.cols() != shape_.head_dim || cos_sin.rows() < qkv.rows())
    return invalid_argument("attention statistics: cos_sin is {} {}, wanted f32 [{}, {}]", dtype_name(cos_sin.dtype),
                            to_string(cos_sin.shape), qkv.rows(), shape_.head_dim);
  for (int64_t t = 0; t < qkv.rows(); ++t)
    for (int64_t i = 0; i < columns(); ++i)
      if (const float value = qkv.row<float>(t)[i]; !std::isfinite(value))
        return invalid_argument("attention statistics: qkv is {} at [{}, {}]; wanted finite numbers", value, t, i);
  const bool sample = std::ssize(starts_) <= kSampledSequences;
  const auto width = static_cast<size_t>(columns()), dim = static_cast<size_t>(shape_.head_dim);
  std::vector<float> rows(width * static_cast<size_t>(std::min(kChunk, qkv.rows())));
  const auto row = [&](int64_t t) { return std::span(rows).subspan(static_cast<size_t>(t) * width, width); };
  const auto share = [&](int64_t count, int64_t grain, FunctionRef<void(int64_t begin, int64_t end)> body) {
    if (pool == nullptr) return body(0, count);
    pool->parallel_for(count, grain, [&](int64_t begin, int64_t end, int) { body(begin, end); });
  };
  for (int64_t first = 0; first < qkv.rows(); first += kChunk) {
    const int64_t count = std::min(kChunk, qkv.rows() - first);
    share(count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        std::copy_n(qkv.row<float>(first + t), width, row(t).begin());
        for (int64_t h = 0; h < shape_.heads + shape_.kv_heads; ++h)
          norm_and_rotate(row(t).subspan(static_cast<size_t>(h) * dim, dim), h < shape_.heads ? q_norm_ : k_norm_,
                          norm_eps_, cos_sin.row<float>(first + t));
      }
    });
    // A group's sums get the tokens in order.
    share(shape_.kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group)
        for (int64_t t = 0; t < count; ++t) add_group(row(t), group);
    });
    tokens_ += count;
    if (!sample) continue;
    for (int64_t t = 0; t < std::min(count, kSampledTokens - first); ++t)
      sample_.insert(sample_.end(), row(t).begin(), row(t).end());
  }
  if (sample && qkv.rows() > 0) starts_.push_back(sampled());
  return {};
}

// A kv head and the query heads that read it.
void AttentionStats::add_group(std::span<const float> row, int64_t group) {
  const size_t dim = static_cast<size_t>(shape_.head_dim), pairs = dim / 2, at = static_cast<size_t>(group) * dim;
  const auto head = [&](int64_t h) { return row.data() + static_cast<size_t>(h) * dim; };
  for (int64_t h = group * shape_.group(); h < (group + 1) * shape_.group(); ++h)
    for (size_t i = 0; i < dim; ++i) query_square_[at + i] += double{head(h)[i]} * head(h)[i];
  const float *k = head(shape_.heads + group), *v = head(shape_.heads + shape_.kv_heads + group);
  for (size_t i = 0; i < dim; ++i) {
    key_sum_[at + i] += k[i];
    key_square_[at + i] += double{k[i]} * k[i];
    value_square_[at + i] += double{v[i]} * v[i];
    key_max_[at + i] = std::max(key_max_[at + i], std::abs(double{k[i]}));
  }
  for (size_t f = 0; f < pairs; ++f) {
    double& largest = key_pair_max_[at / 2 + f];
    largest = std::max(largest, std::sqrt(double{k[f]} * k[f] + double{k[f + pairs]} * k[f + pairs]));
  }
}

std::vector<float> fireq_pair_factors(const AttentionStats& stats, double alpha) {
  std::vector<float> out;
  for (const double largest : stats.key_pair_max())
    out.push_back(largest > 0 ? static_cast<float>(std::clamp(alpha / largest, kMinFactor, kMaxFactor)) : 1.0f);
  return out;
}

std::vector<float> fireq_channel_factors(const AttentionStats& stats, int64_t top_k, double beta) {
  const size_t dim = static_cast<size_t>(stats.shape().head_dim);
  std::vector<float> out(stats.key_max().size(), 1.0f);
  std::vector<size_t> order(dim);
  for (size_t head = 0; head < out.size(); head += dim) {
    const double* largest = stats.key_max().data() + head;
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return largest[a] > largest[b]; });
    for (size_t i = 0; i < std::min(dim, static_cast<size_t>(top_k)); ++i)
      for (const size_t channel : {order[i], (order[i] + dim / 2) % dim})
        if (largest[channel] > 0)
          out[head + channel] = static_cast<float>(std::clamp(beta / largest[channel], kMinFactor, kMaxFactor));
  }
  return out;
}

namespace {

// E[x x^T] over the rows that `row(i)` gives, i < count; [dim, dim].
template <class Row>
std::vector<double> second_moments(int64_t count, size_t dim, const Row& row) {
  std::vector<double> sums(dim * dim, 0);
  for (int64_t n = 0; n < count; ++n) {
    const std::span<const float> x = row(n);
    for (size_t i = 0; i < dim; ++i)
      for (size_t j = 0; j < dim; ++j) sums[i * dim + j] += double{x[i]} * x[j];
  }
  for (double& sum : sums) sum /= static_cast<double>(std::max<int64_t>(count, 1));
  return sums;
}

double quadratic_form(std::span<const double> m, std::span<const double> x) {
  double total = 0;
  std::array<double, 4> sums{};
  for (size_t i = 0; i < x.size(); ++i) {
    const double* row = m.data() + i * x.size();
    sums = {};
    for (size_t j = 0; j + 4 <= x.size(); j += 4)
      for (size_t lane = 0; lane < 4; ++lane) sums[lane] += row[j + lane] * x[j + lane];
    for (size_t j = x.size() / 4 * 4; j < x.size(); ++j) sums[0] += row[j] * x[j];
    total += x[i] * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

// What a head comes back as, less what it was, when it is stored times `factors` and perhaps rotated, and read back.
class StoredHead {
 public:
  explicit StoredHead(const KvLayout& layout)
      : layout_(layout),
        codes_(static_cast<size_t>(layout.token_stride_bytes)),
        scales_(static_cast<size_t>(std::max<int64_t>(layout.scale_bytes, 1))),
        scaled_(static_cast<size_t>(layout.head_dim)) {}

  // `offsets` may be empty.
  void error(std::span<const float> x, std::span<const float> offsets, std::span<const float> factors, bool rotate,
             std::span<double> out) {
    const auto moved = [&](size_t i) { return offsets.empty() ? x[i] : x[i] - offsets[i]; };
    for (size_t i = 0; i < x.size(); ++i) scaled_[i] = moved(i) * factors[i];
    if (rotate) hadamard_rotate(std::span(scaled_));
    store_kv_head(layout_.format, scaled_, 1, codes_.data(), scales_.data());
    load_kv_head(layout_.format, codes_.data(), scales_.data(), 1, scaled_);
    if (rotate) hadamard_rotate(std::span(scaled_));
    for (size_t i = 0; i < x.size(); ++i) out[i] = double{scaled_[i]} / factors[i] - moved(i);
  }

 private:
  const KvLayout& layout_;
  std::vector<std::byte> codes_, scales_;
  std::vector<float> scaled_;
};

Result<KvLayout> layout_for(const AttentionStats& stats, KvFormatId format) {
  if (format != KvFormatId::kInt4 && format != KvFormatId::kInt4Fireq && format != KvFormatId::kInt4Saw)
    return invalid_argument("KV format {} takes no factors; wanted int4, int4-fireq or int4-saw",
                            kv_format_name(format));
  if (stats.sampled() == 0) return invalid_argument("KV factors need calibration; there were no tokens");
  return KvLayout::make(format, 1, stats.shape().kv_heads, stats.shape().head_dim, 1);
}

// The errors of a kv head's vectors of the sample, [tokens, head_dim].
template <class Head>
std::vector<double> stored_errors(const AttentionStats& stats, const KvLayout& layout, const Head& head,
                                  std::span<const float> offsets, std::span<const float> factors, bool rotate) {
  const size_t dim = static_cast<size_t>(stats.shape().head_dim), count = static_cast<size_t>(stats.sampled());
  StoredHead stored(layout);
  std::vector<double> errors(count * dim);
  for (size_t t = 0; t < count; ++t)
    stored.error(head(static_cast<int64_t>(t)), offsets, factors, rotate, std::span(errors).subspan(t * dim, dim));
  return errors;
}

template <class T>
double dot(std::span<const float> a, const T* b) {
  std::array<double, 4> sums{};
  size_t i = 0;
  for (; i + 4 <= a.size(); i += 4)
    for (size_t lane = 0; lane < 4; ++lane) sums[lane] += double{a[i + lane]} * b[i + lane];
  for (; i < a.size(); ++i) sums[0] += double{a[i]} * b[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Every kQueryStride-th query of the sample with its attention probabilities over the keys up to its own.
class SampledAttention {
 public:
  static constexpr int64_t kQueryStride = 8;

  explicit SampledAttention(const AttentionStats& stats) : stats_(stats) {
    const std::span<const int64_t> starts = stats.sequence_starts();
    for (size_t s = 0; s + 1 < starts.size(); ++s)
      for (int64_t t = starts[s]; t < starts[s + 1]; t += kQueryStride)
        for (int64_t h = 0; h < stats.shape().heads; ++h) rows_.push_back(attend(starts[s], t, h));
  }

  // errors [tokens, head_dim] of the keys of a kv head: the mean variance of its queries' score errors.
  double loss(int64_t kv_head, std::span<const double> errors) const {
    const size_t dim = static_cast<size_t>(stats_.shape().head_dim);
    double total = 0;
    int64_t queries = 0;
    for (const Row& row : rows_) {
      if (row.head / stats_.shape().group() != kv_head) continue;
      const std::span<const float> query = stats_.sampled_query(row.token, row.head);
      double mean = 0, square = 0;
      for (size_t j = 0; j < row.probability.size(); ++j) {
        const double error = dot(query, errors.data() + (static_cast<size_t>(row.first) + j) * dim);
        mean += row.probability[j] * error;
        square += row.probability[j] * error * error;
      }
      total += square - mean * mean;
      ++queries;
    }
    return total / static_cast<double>(std::max<int64_t>(queries, 1)) / static_cast<double>(dim);
  }

 private:
  struct Row {
    int64_t first, token, head;
    std::vector<double> probability;  // of keys [first, token]
  };

  Row attend(int64_t first, int64_t token, int64_t head) const {
    Row row{first, token, head, {}};
    const double scale = 1 / std::sqrt(static_cast<double>(stats_.shape().head_dim));
    for (int64_t j = first; j <= token; ++j)
      row.probability.push_back(
          scale * dot(stats_.sampled_query(token, head), stats_.sampled_key(j, head / stats_.shape().group()).data()));
    const double largest = *std::max_element(row.probability.begin(), row.probability.end());
    double sum = 0;
    for (double& p : row.probability) sum += p = std::exp(p - largest);
    for (double& p : row.probability) p /= sum;
    return row;
  }

  const AttentionStats& stats_;
  std::vector<Row> rows_;
};

// The products of O's columns, summed over its rows and the query heads of a group: [dim, dim].
std::vector<double> output_moments(const LayerLinear& o, const HeadShape& shape, int64_t kv_head) {
  const int64_t group = shape.group();
  std::vector<double> m =
      second_moments(o.n * group, static_cast<size_t>(shape.head_dim), [&](int64_t i) -> std::span<const float> {
        const int64_t head = kv_head * group + i % group;
        return o.row(i / group).subspan(static_cast<size_t>(head * shape.head_dim),
                                        static_cast<size_t>(shape.head_dim));
      });
  for (double& x : m) x *= static_cast<double>(o.n);  // the mean over a group's heads of the sum over rows
  return m;
}

// [pairs] the pair's channels together, as if both had their root mean square.
std::vector<double> pair_rms(std::span<const double> head) {
  const size_t pairs = head.size() / 2;
  std::vector<double> out(pairs);
  for (size_t f = 0; f < pairs; ++f) out[f] = std::sqrt((head[f] * head[f] + head[f + pairs] * head[f + pairs]) / 2);
  return out;
}

// [kv_heads, head_dim / 2] of K and Q: of each head, or of all heads together where they share a norm.
struct PairSizes {
  std::vector<double> key, query;
};

PairSizes pair_sizes(const AttentionStats& stats, const LayerTensors& layer, const std::vector<double>& key) {
  const size_t dim = static_cast<size_t>(stats.shape().head_dim), pairs = dim / 2;
  const size_t heads = static_cast<size_t>(stats.shape().kv_heads);
  const auto sizes = [&](const std::vector<double>& channels) {
    std::vector<double> out;
    for (size_t h = 0; h < heads; ++h) {
      const std::vector<double> head = pair_rms(std::span(channels).subspan(h * dim, dim));
      out.insert(out.end(), head.begin(), head.end());
    }
    if (layer.k_norm.empty()) return out;
    for (size_t f = 0; f < pairs; ++f) {
      double squares = 0;
      for (size_t h = 0; h < heads; ++h) squares += out[h * pairs + f] * out[h * pairs + f];
      for (size_t h = 0; h < heads; ++h) out[h * pairs + f] = std::sqrt(squares / static_cast<double>(heads));
    }
    return out;
  };
  return {sizes(key), sizes(stats.query_rms())};
}

}  // namespace

std::vector<float> even_pair_factors(const AttentionStats& stats, const LayerTensors& layer) {
  const PairSizes sizes = pair_sizes(stats, layer, stats.key_rms());
  std::vector<float> factors = balancing_factors(sizes.key, sizes.query, 0.5);
  for (float& n : factors) n = std::exp2(std::round(std::log2(n)));
  return factors;
}

std::vector<double> steady_key_means(const AttentionStats& stats, std::span<const float> inv_freq, int64_t window,
                                     int64_t context) {
  std::vector<double> means = stats.key_mean();
  const size_t pairs = inv_freq.size();
  HEARTH_CHECK(pairs * 2 == static_cast<size_t>(stats.shape().head_dim), "{} frequencies for heads of {}", pairs,
               stats.shape().head_dim);
  for (size_t i = 0; i < means.size(); ++i)
    if (double{inv_freq[i % pairs]} * static_cast<double>(context - window) > 1) means[i] = 0;
  return means;
}

namespace {

// The search of one format's factors: a candidate is an exponent of balancing_factors, with or without offsets.
class KeySearch {
 public:
  KeySearch(const AttentionStats& stats, const LayerTensors& layer, const KvLayout& layout)
      : stats_(stats), layer_(layer), layout_(layout), attention_(stats) {}

  KeyScales run(std::span<const double> offsets) {
    const size_t channels = stats_.key_rms().size();
    KeyScales best;
    best.pairs.assign(channels / 2, 1.0f);
    if (per_channel()) best.channels.assign(channels, 1.0f);
    best.loss = best.plain_loss = loss_of({}, std::vector<float>(channels, 1.0f));
    for (const double exponent : kExponents) try_exponent(exponent, {}, best);
    if (!offsets.empty() && per_channel())
      for (const double exponent : kExponents) try_exponent(exponent, offsets, best);
    return best;
  }

 private:
  bool per_channel() const { return layout_.query_transform == QueryTransform::kChannelScale; }

  double loss_of(const std::vector<float>& offsets, const std::vector<float>& factors) const {
    const size_t dim = static_cast<size_t>(stats_.shape().head_dim);
    const auto of_head = [&](const std::vector<float>& values, int64_t h) {
      return values.empty() ? std::span<const float>() : std::span(values).subspan(static_cast<size_t>(h) * dim, dim);
    };
    double loss = 0;
    for (int64_t h = 0; h < stats_.shape().kv_heads; ++h)
      loss += attention_.loss(
          h, stored_errors(
                 stats_, layout_, [&](int64_t t) { return stats_.sampled_key(t, h); }, of_head(offsets, h),
                 of_head(factors, h), layout_.query_transform == QueryTransform::kHadamard));
    return loss / static_cast<double>(stats_.shape().kv_heads);
  }

  // [kv_heads, head_dim] root mean squares of K less the offsets.
  std::vector<double> key_sizes(std::span<const double> offsets) const {
    std::vector<double> sizes = stats_.key_rms();
    const std::vector<double> mean = stats_.key_mean();
    for (size_t i = 0; i < offsets.size(); ++i)
      sizes[i] = std::sqrt(std::max(0.0, sizes[i] * sizes[i] - offsets[i] * (2 * mean[i] - offsets[i])));
    return sizes;
  }

  void try_exponent(double exponent, std::span<const double> offsets, KeyScales& best) const {
    const std::vector<double> key = key_sizes(offsets), query = stats_.query_rms();
    const size_t dim = static_cast<size_t>(stats_.shape().head_dim), pairs = dim / 2;
    KeyScales tried;
    tried.exponent = exponent;
    tried.plain_loss = best.plain_loss;
    const PairSizes sizes = pair_sizes(stats_, layer_, key);
    tried.pairs = balancing_factors(sizes.key, sizes.query, exponent);
    const auto pair_factor = [&](size_t i) { return tried.pairs[i / dim * pairs + i % pairs]; };
    std::vector<float> whole(key.size()), seen;
    for (size_t i = 0; i < whole.size(); ++i) whole[i] = pair_factor(i);
    if (per_channel()) {
      const std::vector<float> wanted = balancing_factors(key, query, exponent);
      for (size_t i = 0; i < whole.size(); ++i) {
        tried.channels.push_back(wanted[i] / whole[i]);
        whole[i] *= tried.channels[i];
      }
    }
    for (size_t i = 0; i < offsets.size(); ++i) {
      seen.push_back(static_cast<float>(offsets[i]));
      // The cache sees K times the pairs' factors.
      tried.offsets.push_back(seen[i] * pair_factor(i));
    }
    tried.loss = loss_of(seen, whole);
    if (tried.loss < best.loss) best = std::move(tried);
  }

  const AttentionStats& stats_;
  const LayerTensors& layer_;
  const KvLayout& layout_;
  const SampledAttention attention_;
};

}  // namespace

Result<KeyScales> search_key_scales(const AttentionStats& stats, const LayerTensors& layer, KvFormatId format,
                                    std::span<const double> offsets) {
  HEARTH_TRY_ASSIGN(const KvLayout layout, layout_for(stats, format));
  return KeySearch(stats, layer, layout).run(offsets);
}

Result<ValueScales> search_value_scales(const AttentionStats& stats, const LayerTensors& layer, KvFormatId format) {
  HEARTH_TRY_ASSIGN(const KvLayout layout, layout_for(stats, format));
  const HeadShape& shape = stats.shape();
  const size_t dim = static_cast<size_t>(shape.head_dim), heads = static_cast<size_t>(shape.kv_heads);
  std::vector<std::vector<double>> moments;
  std::vector<double> reader;
  for (size_t h = 0; h < heads; ++h) {
    moments.push_back(output_moments(layer.o, shape, static_cast<int64_t>(h)));
    for (size_t i = 0; i < dim; ++i) reader.push_back(std::sqrt(moments[h][i * dim + i]));
  }
  const auto loss_of = [&](const std::vector<float>& factors, bool rotate) {
    double loss = 0;
    for (size_t h = 0; h < heads; ++h) {
      const std::vector<double> errors = stored_errors(
          stats, layout, [&](int64_t t) { return stats.sampled_value(t, static_cast<int64_t>(h)); }, {},
          std::span(factors).subspan(h * dim, dim), rotate);
      for (size_t at = 0; at < errors.size(); at += dim)
        loss += quadratic_form(moments[h], std::span(errors).subspan(at, dim));
    }
    return loss / static_cast<double>(stats.sampled());
  };

  ValueScales best;
  best.factors.assign(heads * dim, 1.0f);
  best.loss = best.plain_loss = loss_of(best.factors, false);
  const auto consider = [&](double exponent, const std::vector<float>& stored, bool rotate) {
    const double loss = loss_of(stored, rotate);
    if (!(loss < best.loss)) return;
    best.exponent = exponent;
    best.rotate = rotate;
    best.loss = loss;
    // scale_v_o divides V.
    for (size_t i = 0; i < stored.size(); ++i) best.factors[i] = 1 / stored[i];
  };
  const bool can_rotate = std::has_single_bit(dim);
  if (can_rotate) consider(-1, std::vector<float>(heads * dim, 1.0f), true);
  const std::vector<double> writer = stats.value_rms();
  for (const double exponent : kExponents) {
    const std::vector<float> stored = balancing_factors(writer, reader, exponent);
    consider(exponent, stored, false);
    if (can_rotate) consider(exponent, stored, true);
  }
  return best;
}

}  // namespace hearth
