// SPDX-License-Identifier: Apache-2.0
// The loops over blocks of columns: fit, round, feed back; then the sweeps of coordinate descent.
#include "hearth/quantize/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace hearth {
namespace {

constexpr int64_t kBlockColumns = 128;

// Groups by descending mean moment, columns so within each.
std::vector<int32_t> descending_order(int64_t k, int64_t group, const std::vector<double>& diagonal) {
  const auto groups = static_cast<size_t>((k + group - 1) / group);
  std::vector<double> mean(groups);
  for (int64_t g = 0; g < static_cast<int64_t>(groups); ++g) {
    const int64_t begin = g * group, end = std::min(k, begin + group);
    for (int64_t i = begin; i < end; ++i) mean[static_cast<size_t>(g)] += diagonal[static_cast<size_t>(i)];
    mean[static_cast<size_t>(g)] /= static_cast<double>(end - begin);
  }
  std::vector<int32_t> order(static_cast<size_t>(k));
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
    const auto group_a = static_cast<size_t>(a / group), group_b = static_cast<size_t>(b / group);
    if (group_a != group_b) return mean[group_a] != mean[group_b] ? mean[group_a] > mean[group_b] : group_a < group_b;
    return diagonal[static_cast<size_t>(a)] > diagonal[static_cast<size_t>(b)];
  });
  return order;
}

std::vector<InputModel::Block> make_blocks(int64_t k, int64_t group, const std::vector<int32_t>& order) {
  std::vector<InputModel::Block> blocks;
  for (int64_t begin = 0; begin < k;) {
    const int64_t id = order[static_cast<size_t>(begin)] / group;
    const int64_t end = begin + std::min(group, k - id * group);
    for (int64_t at = begin; at < end; at += kBlockColumns)
      blocks.push_back({at, std::min(at + kBlockColumns, end), id, begin, end});
    begin = end;
  }
  return blocks;
}

// factor[c * width + b] = upper[begin + b][begin + c].
std::vector<float> transposed_block(const auto& upper, int64_t stride, int64_t begin, int64_t end) {
  const int64_t width = end - begin;
  std::vector<float> block(static_cast<size_t>(width * width));
  for (int64_t c = 0; c < width; ++c)
    for (int64_t b = 0; b <= c; ++b)
      block[static_cast<size_t>(c * width + b)] =
          static_cast<float>(upper[static_cast<size_t>((begin + b) * stride + begin + c)]);
  return block;
}

// M of H = M M^T for a block of H: U^-1 of the block, upper.
Result<std::vector<float>> block_factor(const std::vector<float>& h, int64_t k, int64_t begin, int64_t end,
                                        Compute& compute) {
  const int64_t width = end - begin;
  const auto at = [&](int64_t i, int64_t j) { return static_cast<size_t>(i * width + j); };
  std::vector<double> u(static_cast<size_t>(width * width)), m(u.size());
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < width; ++j) u[at(i, j)] = h[static_cast<size_t>((begin + i) * k + begin + j)];
  HEARTH_TRY(compute.inverse_factor(width, u.data()));
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t i = j; i >= 0; --i) {
      double sum = i == j ? 1.0 : 0.0;
      for (int64_t t = i + 1; t <= j; ++t) sum -= u[at(i, t)] * m[at(t, j)];
      m[at(i, j)] = sum / u[at(i, i)];
    }
  }
  return transposed_block(m, width, 0, width);
}

Status fit(const CodeLevels& code, const InputModel& model, const InputModel::Block& block, const FitArgs& how,
           const LineSearch* lines, Panel& panel, Compute& compute) {
  FitArgs args = how;
  args.code = &code;
  args.rows = panel.rows;
  args.columns = block.group_end - block.group_begin;
  args.w = panel.w.data() + block.group_begin * panel.rows;
  args.weight = model.weight.data() + block.group_begin;
  args.out = panel.params(block.group);
  std::vector<uint16_t> candidates;
  if (lines != nullptr) {
    candidates.resize(static_cast<size_t>(lines->candidates * panel.rows));
    HEARTH_TRY(lines->find(args.w, args.columns, args.weight, panel.rows, candidates.data()));
    args.candidates = lines->candidates;
    args.candidate_lines = candidates.data();
  }
  return compute.fit_group(args);
}

Status refine(const CodeLevels& code, const InputModel& model, int sweeps, const std::vector<float>& original,
              Panel& panel, Compute& compute) {
  const int64_t k = model.k, rows = panel.rows;
  std::vector<float> gradient(panel.w.size());
  {
    std::vector<float> negative_error(panel.w.size());
    for (size_t i = 0; i < original.size(); ++i) negative_error[i] = panel.value[i] - original[i];
    HEARTH_TRY(compute.subtract_product({.m = k,
                                         .n = rows,
                                         .p = k,
                                         .a = model.h.data(),
                                         .lda = k,
                                         .b = negative_error.data(),
                                         .ldb = rows,
                                         .c = gradient.data(),
                                         .ldc = rows}));
  }
  std::vector<float> delta(static_cast<size_t>(kBlockColumns * rows));
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (const InputModel::Block& block : model.blocks) {
      const int64_t width = block.end - block.begin;
      std::vector<float> h(static_cast<size_t>(width * width));
      for (int64_t i = 0; i < width; ++i)
        std::copy_n(model.h.data() + (block.begin + i) * k + block.begin, width, h.data() + i * width);
      const int64_t first = block.begin * rows;
      HEARTH_TRY(compute.refine_group({.code = &code,
                                       .refit_scale = block.begin == block.group_begin && block.end == block.group_end,
                                       .rows = rows,
                                       .columns = width,
                                       .h = h.data(),
                                       .gradient = gradient.data() + first,
                                       .params = panel.params(block.group),
                                       .rank = panel.rank.data() + first,
                                       .value = panel.value.data() + first,
                                       .delta = delta.data()}));
      const auto others = [&](int64_t begin, int64_t end) {
        return compute.subtract_product({.m = end - begin,
                                         .n = rows,
                                         .p = width,
                                         .a = model.h.data() + block.begin * k + begin,
                                         .lda = k,
                                         .b = delta.data(),
                                         .ldb = rows,
                                         .c = gradient.data() + begin * rows,
                                         .ldc = rows});
      };
      HEARTH_TRY(others(0, block.begin));
      HEARTH_TRY(others(block.end, k));
    }
  }
  return {};
}

}  // namespace

GroupParams Panel::params(int64_t group) {
  const auto at = static_cast<size_t>(group * rows), count = static_cast<size_t>(rows);
  GroupParams params;
  if (!scale.empty()) params.scale = std::span(scale).subspan(at, count);
  if (!zero.empty()) params.zero = std::span(zero).subspan(at, count);
  if (!line.empty()) params.line = std::span(line).subspan(at, count);
  return params;
}

Result<InputModel> make_input_model(int64_t k, int64_t group, const SecondMoments* moments,
                                    const EncodeOptions& options, Compute& compute) {
  InputModel model;
  model.k = k;
  model.group = group;
  model.order.resize(static_cast<size_t>(k));
  std::iota(model.order.begin(), model.order.end(), 0);
  model.weight.assign(static_cast<size_t>(k), 1.0f);
  double mean = 0;
  std::vector<double> diagonal(static_cast<size_t>(k));
  if (moments != nullptr && moments->tokens() > 0) {
    for (int64_t i = 0; i < k; ++i) {
      const double value = moments->diagonal(i) / static_cast<double>(moments->tokens());
      if (!std::isfinite(value)) return invalid_argument("second moments: channel {} has {}", i, value);
      diagonal[static_cast<size_t>(i)] = value;
      mean += value / static_cast<double>(k);
    }
  }
  const bool informed = mean > 0 && options.method != EncodeMethod::kNearest;
  if (!informed) {
    model.blocks = make_blocks(k, group, model.order);
    return model;
  }

  const bool feedback = options.method == EncodeMethod::kGptq;
  if (feedback && options.order == ColumnOrder::kGroups) model.order = descending_order(k, group, diagonal);
  model.blocks = make_blocks(k, group, model.order);
  const std::span<const double> sums = moments->sums();
  const double per_token = 1.0 / static_cast<double>(moments->tokens());
  model.h.resize(static_cast<size_t>(k * k));
  std::vector<double> upper(feedback ? static_cast<size_t>(k * k) : 0);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = i; j < k; ++j) {
      const int64_t a = model.order[static_cast<size_t>(i)], b = model.order[static_cast<size_t>(j)];
      double value = sums[static_cast<size_t>(std::min(a, b) * k + std::max(a, b))] * per_token;
      if (i == j) value += options.damping * mean;
      model.h[static_cast<size_t>(i * k + j)] = model.h[static_cast<size_t>(j * k + i)] = static_cast<float>(value);
      if (feedback) upper[static_cast<size_t>(i * k + j)] = value;
    }
  }
  if (feedback) {
    HEARTH_TRY(compute.inverse_factor(k, upper.data()));
    model.factor.assign(upper.begin(), upper.end());
    for (int64_t i = 0; i < k; ++i) {
      const double pivot = upper[static_cast<size_t>(i * k + i)];
      model.weight[static_cast<size_t>(i)] = static_cast<float>(1.0 / (pivot * pivot));
    }
    return model;
  }
  for (int64_t i = 0; i < k; ++i) model.weight[static_cast<size_t>(i)] = model.h[static_cast<size_t>(i * k + i)];
  for (const InputModel::Block& block : model.blocks) {
    const bool whole = block.begin == block.group_begin && block.end == block.group_end;
    model.group_factor.emplace_back();
    if (whole) {
      HEARTH_TRY_ASSIGN(model.group_factor.back(), block_factor(model.h, k, block.begin, block.end, compute));
    }
  }
  return model;
}

Status encode_panel(const CodeLevels& code, const InputModel& model, const EncodeOptions& options,
                    const LineSearch* lines, Panel& panel, Compute& compute) {
  const int64_t k = model.k, rows = panel.rows;
  panel.value.resize(panel.w.size());
  panel.rank.resize(panel.w.size());
  const bool feedback = !model.factor.empty();
  const std::vector<float> original = feedback && options.sweeps > 0 ? panel.w : std::vector<float>();
  std::vector<float> error(feedback ? static_cast<size_t>(kBlockColumns * rows) : 0);
  for (size_t i = 0; i < model.blocks.size(); ++i) {
    const InputModel::Block& block = model.blocks[i];
    const bool whole = block.begin == block.group_begin && block.end == block.group_end;
    std::vector<float> factor;
    if (feedback) factor = transposed_block(model.factor, k, block.begin, block.end);
    if (block.begin == block.group_begin) {
      FitArgs how;
      how.signed_scales = options.signed_scales;
      how.metric = FitMetric::kDiagonal;
      if (options.method == EncodeMethod::kNearest && lines == nullptr) how.metric = FitMetric::kAbsMax;
      if (whole && feedback) {
        how.metric = FitMetric::kFeedback;
        how.factor = factor.data();
      } else if (whole && !model.group_factor.empty()) {
        how.metric = FitMetric::kBlock;
        how.factor = model.group_factor[i].data();
      }
      HEARTH_TRY(fit(code, model, block, how, lines, panel, compute));
    }
    const int64_t first = block.begin * rows;
    HEARTH_TRY(compute.round_block({.code = &code,
                                    .rows = rows,
                                    .columns = block.end - block.begin,
                                    .w = panel.w.data() + first,
                                    .factor = feedback ? factor.data() : nullptr,
                                    .params = panel.params(block.group),
                                    .rank = panel.rank.data() + first,
                                    .value = panel.value.data() + first,
                                    .error = feedback ? error.data() : nullptr}));
    if (feedback)
      HEARTH_TRY(compute.subtract_product({.m = k - block.end,
                                           .n = rows,
                                           .p = block.end - block.begin,
                                           .a = model.factor.data() + block.begin * k + block.end,
                                           .lda = k,
                                           .b = error.data(),
                                           .ldb = rows,
                                           .c = panel.w.data() + block.end * rows,
                                           .ldc = rows}));
  }
  if (feedback && options.sweeps > 0) {
    HEARTH_TRY(refine(code, model, options.sweeps, original, panel, compute));
  }
  return {};
}

}  // namespace hearth
