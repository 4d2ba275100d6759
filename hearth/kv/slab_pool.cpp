// SPDX-License-Identifier: Apache-2.0
// Models, their quotas, and blocks from allocation to release; the rest is in slab_pool_cache.cpp and
// slab_pool_move.cpp.
#include "hearth/kv/slab_pool.h"

#include <algorithm>
#include <utility>

#include "hearth/base/check.h"

namespace hearth {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Result<std::unique_ptr<SlabPool>> SlabPool::create(const SlabPoolOptions& options) {
  if (options.slab_bytes < 64 || options.slab_bytes % 64 != 0)
    return invalid_argument("KV slabs of {} bytes; wanted a multiple of 64", options.slab_bytes);
  if (options.slabs < 0 || options.slabs > std::numeric_limits<int32_t>::max())
    return invalid_argument("a KV pool of {} slabs", options.slabs);
  if (options.low_slabs < 0 || options.low_slabs > options.high_slabs)
    return invalid_argument("watermarks of {} and {} slabs; wanted 0 <= low <= high", options.low_slabs,
                            options.high_slabs);
  return std::unique_ptr<SlabPool>(new SlabPool(options));
}

SlabPool::Model& SlabPool::at(KvModelId model) { return const_cast<Model&>(std::as_const(*this).at(model)); }

SlabPool::SlabPool(const SlabPoolOptions& options)
    : slabs_(options.slab_bytes, options.slabs),
      prefix_cache_(options.prefix_cache),
      secret_(options.secret),
      watermark_(options.low_slabs, options.high_slabs) {}

const SlabPool::Model& SlabPool::at(KvModelId model) const {
  HEARTH_CHECK(model >= 0 && model < std::ssize(models_) && models_[static_cast<size_t>(model)].there,
               "the KV pool has no model {}", model);
  return models_[static_cast<size_t>(model)];
}

const SlabPool::Block& SlabPool::live_block(KvBlock block) const {
  HEARTH_CHECK(block >= 0 && block < std::ssize(blocks_) && blocks_[static_cast<size_t>(block)].references > 0,
               "KV block {} is not live", block);
  return blocks_[static_cast<size_t>(block)];
}

// ---- models and their limits

// `old`: whose limits these will replace, -1: nobody's.
Status SlabPool::check_limits(const KvModelSpec& spec, const KvLimits& limits, KvModelId old) const {
  if (limits.reserved < 0 || limits.reserved > limits.kept || limits.kept > limits.guarantee ||
      limits.guarantee > limits.cap)
    return invalid_argument(
        "{}: {} blocks reserved, {} kept, {} guaranteed, at most {}; wanted 0 <= reserved <= kept <= guaranteed <= at "
        "most",
        spec.name, limits.reserved, limits.kept, limits.guarantee, limits.cap);
  const int64_t columns = slabs_.slab_bytes() / spec.block_bytes;
  // No more than fits, so that sums cannot overflow.
  int64_t same_format = std::min(limits.guarantee, (slabs_.size() + 1) * columns), others = 0;
  for (int32_t f = 0; f < slabs_.formats(); ++f) {
    int64_t guaranteed = uses_[static_cast<size_t>(f)].guaranteed;
    if (old >= 0 && at(old).format == f) guaranteed -= at(old).spec.limits.guarantee;
    if (slabs_.format(f).users > 0 && slabs_.format(f).block_bytes == spec.block_bytes) {
      same_format += guaranteed;
    } else if (slabs_.format(f).users > 0) {
      others += least_slabs(f, guaranteed);
    }
  }
  if (ceil_div(same_format, columns) + others > slabs_.size())
    return resource_exhausted(
        "{}: a guarantee of {} KV blocks of {} bytes needs {} slabs of {} bytes, others' guarantees {}; the pool has "
        "{}",
        spec.name, limits.guarantee, spec.block_bytes, ceil_div(same_format, columns), slabs_.slab_bytes(), others,
        slabs_.size());
  return {};
}

void SlabPool::count_limits(const Model& model, int64_t sign) {
  FormatUse& use = uses_[static_cast<size_t>(model.format)];
  use.owed += sign * model.owed();
  use.guaranteed += sign * model.spec.limits.guarantee;
}

Result<KvModelId> SlabPool::add_model(const KvModelSpec& spec) {
  if (spec.block_tokens < 1 || spec.block_bytes < 64 || spec.block_bytes % 64 != 0)
    return invalid_argument(
        "{}: KV blocks of {} tokens in {} bytes; wanted at least 1 token and a multiple of 64 bytes", spec.name,
        spec.block_tokens, spec.block_bytes);
  if (spec.block_bytes > slabs_.slab_bytes())
    return resource_exhausted("{}: a KV block of {} tokens has {} bytes, a slab {}", spec.name, spec.block_tokens,
                              spec.block_bytes, slabs_.slab_bytes());
  HEARTH_TRY(check_limits(spec, spec.limits, -1));
  auto unused = std::ranges::find(models_, false, &Model::there);
  if (unused == models_.end()) unused = models_.emplace(models_.end());
  Model& model = *unused;
  model = Model{
      .spec = spec,
      .there = true,
      .serial = serial_++,
      .format = slabs_.use_format(spec.block_bytes),
      .efficiency = MemoryEfficiency(static_cast<double>(spec.block_tokens) / static_cast<double>(spec.block_bytes))};
  uses_.resize(static_cast<size_t>(slabs_.formats()));
  if (slabs_.format(model.format).users == 1) uses_[static_cast<size_t>(model.format)] = {};
  count_limits(model, 1);
  return static_cast<KvModelId>(&model - models_.data());
}

void SlabPool::remove_model(KvModelId id) {
  Model& model = at(id);
  HEARTH_CHECK(model.live == 0, "{} leaves the KV pool with {} live blocks", model.spec.name, model.live);
  for (KvBlock b = 0; b < std::ssize(blocks_) && model.cached > 0; ++b) {
    const Block& block = blocks_[static_cast<size_t>(b)];
    if (block.published && block.model == id) evict(b);
  }
  count_limits(model, -1);
  model.there = false;
  slabs_.leave_format(model.format);
  see_level();
}

Status SlabPool::set_limits(KvModelId id, const KvLimits& limits) {
  Model& model = at(id);
  HEARTH_TRY(check_limits(model.spec, limits, id));
  count_limits(model, -1);
  model.spec.limits = limits;
  count_limits(model, 1);
  return {};
}

// ---- how much a model can have
//
// Slabs without live blocks, E + I (empty, idle), are anybody's. Of a format F with c columns a slab, room(F) columns
// in live slabs are free or can be evicted, for F alone. Its models have owed(F) = sum of max(0, kept - live) blocks to
// get. What is kept is safe while
//   E + I >= sum over F of ceil(max(0, owed(F) - room(F)) / c(F)).                                            (1)
// x blocks more for a model of F, d of them kept for it, leave that true exactly if
//   x <= room(F) + c(F) * A - (owed(F) - d),  A = E + I - what the sum says of the other formats:
// a slab that is taken adds c to the room and takes 1 from A.

int64_t SlabPool::least_slabs(int32_t format, int64_t blocks) const {
  return ceil_div(blocks, slabs_.format(format).columns);
}

int64_t SlabPool::needed_for_kept(int32_t format) const {
  return least_slabs(format,
                     std::max<int64_t>(0, uses_[static_cast<size_t>(format)].owed - slabs_.format(format).room));
}

int64_t SlabPool::needed_for_kept() const {
  int64_t slabs = 0;
  for (int32_t f = 0; f < slabs_.formats(); ++f) slabs += needed_for_kept(f);
  return slabs;
}

SlabPool::Supply SlabPool::supply(const Model& model) const {
  const int64_t all = slabs_.empty() + slabs_.idle();
  int64_t others = 0;
  for (int32_t f = 0; f < slabs_.formats(); ++f)
    if (f != model.format && uses_[static_cast<size_t>(f)].owed > 0) others += needed_for_kept(f);
  const int64_t owed = uses_[static_cast<size_t>(model.format)].owed, own = model.owed();
  const SlabSet::Format& format = slabs_.format(model.format);
  // While (1) is not true, only what is kept is given out, first come, first served.
  if (all - others < needed_for_kept(model.format))
    return {.slabs = own > 0 ? all : 0, .blocks = std::min(own, format.room + format.columns * all)};
  return {.slabs = all - others, .blocks = format.room + format.columns * (all - others) - (owed - own)};
}

int64_t SlabPool::available(KvModelId id) const {
  const Model& model = at(id);
  return std::max<int64_t>(0, std::min(supply(model).blocks, model.spec.limits.cap - model.live));
}

int64_t SlabPool::most(KvModelId id, int64_t slabs) const {
  const Model& model = at(id);
  std::vector<int64_t> reserved(uses_.size());  // by format, for others
  for (const Model& m : models_)
    if (m.there && &m != &model) reserved[static_cast<size_t>(m.format)] += m.spec.limits.reserved;
  for (int32_t f = 0; f < slabs_.formats(); ++f)
    if (f != model.format && slabs_.format(f).users > 0) slabs -= least_slabs(f, reserved[static_cast<size_t>(f)]);
  const int64_t columns =
      std::max<int64_t>(slabs, 0) * slabs_.format(model.format).columns - reserved[static_cast<size_t>(model.format)];
  return std::max<int64_t>(0, std::min(model.spec.limits.cap, columns));
}

void SlabPool::set_live(Model& model, int64_t live) {
  int64_t& owed = uses_[static_cast<size_t>(model.format)].owed;
  owed -= model.owed();
  model.live = live;
  owed += model.owed();
}

// ---- blocks

// A slab with a free column for the next of `count` blocks. Many at once get slabs of their own, which will be empty
// again when their sequence has ended; few go where they fit best.
int32_t SlabPool::slab_to_fill(const Model& model, int64_t count) {
  const int32_t f = model.format;
  const SlabSet::Format& format = slabs_.format(f);
  const bool may_take = supply(model).slabs > 0;
  if (may_take && slabs_.empty() > 0 && count >= format.columns) return slabs_.cut(f);
  if (const int32_t s = slabs_.best_fit(f, count); s != kNoSlab) return s;
  if (may_take && slabs_.empty() > 0) return slabs_.cut(f);
  // From here on caches go: a column of this format, or a whole slab of any, whichever was not used for longer.
  const int32_t mixed = format.mixed.first, idle = may_take ? least_useful_idle() : kNoSlab;
  HEARTH_CHECK(mixed != kNoSlab || idle != kNoSlab, "{}: the KV pool has less than it said", model.spec.name);
  if (idle == kNoSlab || (mixed != kNoSlab && slabs_.slab(mixed).used_at < slabs_.slab(idle).used_at)) {
    evict_oldest(mixed);
    return mixed;
  }
  if (slabs_.slab(idle).format == f && slabs_.slab(idle).free.empty()) {
    evict_oldest(idle);
  } else if (slabs_.slab(idle).format != f) {
    evict_cached(idle);
  }
  return slabs_.slab(idle).format < 0 ? slabs_.cut(f) : idle;  // nothing is left in it
}

KvBlock SlabPool::new_block(KvModelId model) {
  if (unused_.empty()) {
    unused_.push_back(static_cast<KvBlock>(blocks_.size()));
    blocks_.emplace_back();
  }
  const KvBlock block = unused_.back();
  unused_.pop_back();
  blocks_[static_cast<size_t>(block)] = {.references = 1, .model = model};
  return block;
}

bool SlabPool::allocate(KvModelId id, int64_t count, std::vector<KvBlock>& blocks) {
  HEARTH_CHECK(count >= 0, "{} KV blocks wanted", count);
  if (count > available(id)) return false;
  Model& model = at(id);
  while (count > 0) {
    const int32_t s = slab_to_fill(model, count);
    const int64_t here = std::min(count, std::ssize(slabs_.slab(s).free));
    for (int64_t i = 0; i < here; ++i) {
      const KvBlock block = new_block(id);
      blocks_[static_cast<size_t>(block)].at = {.slab = s, .column = slabs_.fill(s, block)};
      blocks.push_back(block);
    }
    set_live(model, model.live + here);
    count -= here;
  }
  see_level();
  return true;
}

void SlabPool::retain(std::span<const KvBlock> blocks) {
  for (const KvBlock b : blocks) {
    live_block(b);
    ++blocks_[static_cast<size_t>(b)].references;
  }
}

// From the end to the beginning: a prefix is of use without what follows, not the other way round.
void SlabPool::release(std::span<const KvBlock> blocks) {
  for (size_t i = blocks.size(); i-- > 0;) {
    live_block(blocks[i]);
    Block& block = blocks_[static_cast<size_t>(blocks[i])];
    if (--block.references > 0) continue;
    Model& model = at(block.model);
    set_live(model, model.live - 1);
    if (block.published) {
      block.used_at = ++now_;
      slabs_.cache(block.at, now_);
      ++model.cached;
    } else {
      slabs_.free_live(block.at, ++now_);
      unused_.push_back(blocks[i]);
    }
  }
  see_level();
}

// ---- pressure

void SlabPool::see_level() { watermark_.see(slabs_.empty() + slabs_.idle()); }

void SlabPool::served(KvModelId id, int64_t tokens) {
  Model& model = at(id);
  model.efficiency.served(tokens, model.live * model.spec.block_bytes);
}

std::optional<KvModelId> SlabPool::victim_for(KvModelId needy) const {
  // A model that has its guarantee takes only from one that gains clearly less, or memory would go to and fro.
  constexpr double kClearly = 1.25;
  const Model& asks = at(needy);
  const bool guaranteed = asks.live < asks.spec.limits.guarantee;
  const double limit = asks.efficiency.tokens_per_byte() / kClearly;
  std::optional<KvModelId> victim;
  double least = 0;
  for (KvModelId m = 0; m < std::ssize(models_); ++m) {
    const Model& model = models_[static_cast<size_t>(m)];
    if (!model.there || m == needy || model.live <= model.spec.limits.guarantee) continue;
    const double gain = model.efficiency.tokens_per_byte();
    if (!guaranteed && gain >= limit) continue;
    if (!victim || gain < least) victim = m, least = gain;
  }
  if (!victim && asks.live > 0) victim = needy;
  return victim;
}

void SlabPool::rank_borrowers(std::span<KvModelId> wanting) const {
  std::ranges::stable_sort(wanting, [&](KvModelId a, KvModelId b) {
    const Model &x = at(a), &y = at(b);
    const bool x_below = x.live < x.spec.limits.guarantee, y_below = y.live < y.spec.limits.guarantee;
    if (x_below != y_below) return x_below;
    return x.efficiency.tokens_per_byte() > y.efficiency.tokens_per_byte();
  });
}

KvPoolStats SlabPool::stats() const {
  KvPoolStats stats{.pool_bytes = slabs_.size() * slabs_.slab_bytes(),
                    .slabs = slabs_.size(),
                    .empty_slabs = slabs_.empty(),
                    .idle_slabs = slabs_.idle(),
                    .touched_slabs = slabs_.touched(),
                    .moved_blocks = moved_blocks_};
  for (int32_t f = 0; f < slabs_.formats(); ++f) {
    const SlabSet::Format& format = slabs_.format(f);
    if (format.users == 0) continue;
    const int64_t tail = slabs_.slab_bytes() - format.columns * format.block_bytes;
    stats.formats.push_back({.block_bytes = format.block_bytes,
                             .columns_per_slab = format.columns,
                             .slabs = format.slabs,
                             .live = format.live,
                             .cached = format.cached,
                             .free = format.free,
                             .tail_bytes = format.slabs * tail});
    stats.live_bytes += format.live * format.block_bytes;
    stats.cached_bytes += format.cached * format.block_bytes;
    stats.free_bytes += format.free * format.block_bytes;
    stats.tail_bytes += format.slabs * tail;
  }
  for (KvModelId m = 0; m < std::ssize(models_); ++m)
    if (models_[static_cast<size_t>(m)].there) stats.models.push_back(this->stats(m));
  return stats;
}

KvModelStats SlabPool::stats(KvModelId id) const {
  const Model& model = at(id);
  return {.model = id,
          .live = model.live,
          .cached = model.cached,
          .borrowed = std::max<int64_t>(0, model.live - model.spec.limits.guarantee),
          .unused = std::max<int64_t>(0, model.spec.limits.guarantee - model.live),
          .asked_blocks = model.asked_blocks,
          .hit_blocks = model.hit_blocks,
          .evicted_blocks = model.evicted_blocks,
          .tokens_per_byte = model.efficiency.tokens_per_byte()};
}

}  // namespace hearth
