// SPDX-License-Identifier: Apache-2.0
#include "hearth/kv/fineserve_pool.h"

#include <algorithm>
#include <numeric>

#include "hearth/base/check.h"

namespace hearth {

FineServePool::FineServePool(int64_t pool_bytes, std::vector<FineServeModel> models, uint64_t seed)
    : pool_bytes_(pool_bytes), models_(std::move(models)), live_(models_.size()), random_(seed) {}

Result<std::unique_ptr<FineServePool>> FineServePool::create(int64_t pool_bytes, std::vector<FineServeModel> models,
                                                             uint64_t seed) {
  for (const FineServeModel& m : models)
    if (m.layers < 1 || m.spec.block_tokens < 1 || m.spec.block_bytes < 1 || m.spec.block_bytes % (2 * m.layers) != 0)
      return invalid_argument("{}: blocks of {} tokens in {} bytes do not lie in {} layers of K and V", m.spec.name,
                              m.spec.block_tokens, m.spec.block_bytes, m.layers);
  std::unique_ptr<FineServePool> pool(new FineServePool(pool_bytes, std::move(models), seed));
  HEARTH_TRY(pool->split());
  return pool;
}

// Groups, their slabs and formats.
Status FineServePool::split() {
  int64_t lcm = 1;
  for (const FineServeModel& m : models_) lcm = std::lcm(lcm, m.spec.block_bytes / (2 * m.layers));
  stripe_bytes_ = 2 * lcm;
  std::vector<double> weights;
  std::vector<int64_t> least;  // slabs
  for (const FineServeModel& m : models_) {
    auto group = std::ranges::find(groups_, m.layers, &Group::layers);
    if (group == groups_.end()) {
      group = groups_.insert(group, {.layers = m.layers, .slab_bytes = 2 * m.layers * stripe_bytes_});
      weights.push_back(0);
      least.push_back(0);
    }
    const auto g = static_cast<size_t>(group - groups_.begin());
    const auto same = [&](const Format& f) {
      return f.group == static_cast<int32_t>(g) && f.block_bytes == m.spec.block_bytes;
    };
    auto format = std::ranges::find_if(formats_, same);
    if (format == formats_.end())
      format = formats_.insert(format, {.group = static_cast<int32_t>(g),
                                        .block_bytes = m.spec.block_bytes,
                                        .columns = group->slab_bytes / m.spec.block_bytes});
    model_format_.push_back(static_cast<int32_t>(format - formats_.begin()));
    weights[g] += m.rate * static_cast<double>(m.layers);
    const int64_t slab_tokens = format->columns * m.spec.block_tokens;
    least[g] += (m.least_tokens + slab_tokens - 1) / slab_tokens;
  }
  int64_t least_bytes = 0;
  for (size_t g = 0; g < groups_.size(); ++g) least_bytes += least[g] * groups_[g].slab_bytes;
  if (least_bytes > pool_bytes_)
    return resource_exhausted("the least slabs of all models have {} bytes, the pool {}", least_bytes, pool_bytes_);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  int64_t base_bytes = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    const double share = sum > 0 ? weights[g] / sum : 0;
    const int64_t slabs =
        least[g] + static_cast<int64_t>(share * static_cast<double>(pool_bytes_ - least_bytes)) / group.slab_bytes;
    group.base_bytes = base_bytes;
    group.slabs.resize(static_cast<size_t>(slabs));
    for (int64_t s = slabs - 1; s >= 0; --s) group.empty.push_back(static_cast<int32_t>(s));
    base_bytes += slabs * group.slab_bytes;
  }
  return {};
}

int64_t FineServePool::most(KvModelId model) const {
  const Format& format = format_of(model);
  return std::ssize(groups_[static_cast<size_t>(format.group)].slabs) * format.columns;
}

int64_t FineServePool::available(KvModelId model) const {
  const Format& format = format_of(model);
  const int64_t empty = std::ssize(groups_[static_cast<size_t>(format.group)].empty);
  return format.slabs * format.columns - format.live + empty * format.columns;
}

void FineServePool::set_partial(Format& format, int32_t s, bool partial) {
  std::vector<Slab>& slabs = group_of(format).slabs;
  Slab& slab = slabs[static_cast<size_t>(s)];
  if (partial == (slab.partial_at >= 0)) return;
  if (partial) {
    slab.partial_at = std::ssize(format.partial);
    format.partial.push_back(s);
    return;
  }
  const int32_t last = format.partial.back();
  format.partial[static_cast<size_t>(slab.partial_at)] = last;
  slabs[static_cast<size_t>(last)].partial_at = slab.partial_at;
  format.partial.pop_back();
  slab.partial_at = -1;
}

bool FineServePool::allocate(KvModelId model, int64_t count, std::vector<KvBlock>& blocks) {
  if (count > available(model)) return false;
  const int32_t f = model_format_[static_cast<size_t>(model)];
  Format& format = formats_[static_cast<size_t>(f)];
  Group& group = group_of(format);
  live_[static_cast<size_t>(model)] += count;
  format.live += count;
  while (count > 0) {
    int32_t s = 0;
    if (!format.partial.empty()) {
      s = format.partial[static_cast<size_t>(random_.below(std::ssize(format.partial)))];
    } else {
      s = group.empty.back();
      group.empty.pop_back();
      Slab& slab = group.slabs[static_cast<size_t>(s)];
      slab.format = f;
      slab.free.resize(static_cast<size_t>(format.columns));
      std::iota(slab.free.rbegin(), slab.free.rend(), 0);
      ++format.slabs;
    }
    Slab& slab = group.slabs[static_cast<size_t>(s)];
    for (; count > 0 && !slab.free.empty(); --count) {
      if (unused_.empty()) {
        unused_.push_back(static_cast<KvBlock>(blocks_.size()));
        blocks_.emplace_back();
      }
      blocks_[static_cast<size_t>(unused_.back())] = {
          .format = f, .slab = s, .column = slab.free.back(), .references = 1, .model = model};
      blocks.push_back(unused_.back());
      unused_.pop_back();
      slab.free.pop_back();
      ++slab.live;
    }
    set_partial(format, s, !slab.free.empty());
  }
  return true;
}

void FineServePool::retain(std::span<const KvBlock> blocks) {
  for (const KvBlock b : blocks) ++blocks_[static_cast<size_t>(b)].references;
}

void FineServePool::release(std::span<const KvBlock> blocks) {
  for (const KvBlock b : blocks) {
    Block& block = blocks_[static_cast<size_t>(b)];
    HEARTH_CHECK(block.references > 0, "KV block {} released while free", b);
    if (--block.references > 0) continue;
    Format& format = formats_[static_cast<size_t>(block.format)];
    Slab& slab = group_of(format).slabs[static_cast<size_t>(block.slab)];
    slab.free.push_back(block.column);
    --format.live;
    --live_[static_cast<size_t>(block.model)];
    const bool empty = --slab.live == 0;
    set_partial(format, block.slab, !empty);
    if (empty) {
      --format.slabs;
      slab.format = -1;
      group_of(format).empty.push_back(block.slab);
    }
    unused_.push_back(b);
  }
}

int64_t FineServePool::offset_bytes(KvBlock b) const {
  const Block& block = blocks_[static_cast<size_t>(b)];
  const Format& format = formats_[static_cast<size_t>(block.format)];
  const Group& group = groups_[static_cast<size_t>(format.group)];
  return group.base_bytes + block.slab * group.slab_bytes + block.column * format.block_bytes;
}

std::optional<KvModelId> FineServePool::victim_for(KvModelId needy) const {
  if (live_[static_cast<size_t>(needy)] == 0) return std::nullopt;
  return needy;
}

KvPoolStats FineServePool::stats() const {
  KvPoolStats stats{.pool_bytes = pool_bytes_};
  for (const Group& group : groups_) {
    stats.slabs += std::ssize(group.slabs);
    stats.empty_slabs += std::ssize(group.empty);
  }
  for (const Format& format : formats_) {
    const int64_t free = format.slabs * format.columns - format.live;
    stats.formats.push_back({.block_bytes = format.block_bytes,
                             .columns_per_slab = format.columns,
                             .slabs = format.slabs,
                             .live = format.live,
                             .free = free});
    stats.live_bytes += format.live * format.block_bytes;
    stats.free_bytes += free * format.block_bytes;
  }
  for (KvModelId m = 0; m < std::ssize(models_); ++m)
    stats.models.push_back({.model = m, .live = live_[static_cast<size_t>(m)]});
  return stats;
}

Result<KvModelId> FineServePool::add_model(const KvModelSpec& spec) {
  return unsupported("{}: FineServe's models are known from the start", spec.name);
}

Status FineServePool::set_limits(KvModelId model, const KvLimits&) {
  return unsupported("{}: FineServe has no quotas", models_[static_cast<size_t>(model)].spec.name);
}

Result<std::vector<KvMove>> FineServePool::resize(int64_t slabs) {
  return unsupported("FineServe's pool keeps its size, {} slabs are wanted", slabs);
}

PrefixChain FineServePool::root(KvModelId model, std::string_view salt) const {
  return {{}, static_cast<uint64_t>(model), salt};
}

}  // namespace hearth
