// SPDX-License-Identifier: Apache-2.0
// Attention for the CPU: units of rows that share a kv head walk the key tiles that they see
// (attention_plan.h), each tile transposed once, multiplied with all rows, and folded into the rows'
// running softmax. Threads take units, or partitions of units where those are too few, from a shared
// counter: which thread computes what changes no result. Scratch lies in the workspace.
#include "hearth/kernels/attention/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "hearth/kernels/attention/attention_plan.h"
#include "hearth/kernels/cpu/targets.h"
#include "hearth/tensor/hadamard.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/attention/attention_cpu.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include "hearth/kernels/attention/attention_codes-inl.h"
#include "hearth/kernels/attention/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

using cpu::AttentionPlan;
using cpu::AttentionUnit;

// Stands for the type of a cache that kv_codec.h describes: its tiles are decoded to f32 in scratch memory.
struct Coded {};

// The rows of one unit in one thread's scratch memory. T is the activation type, Kv the cache's.
template <class T, class Kv>
class UnitRows {
  static constexpr bool kCoded = std::is_same_v<Kv, Coded>;
  using Key = std::conditional_t<kCoded, float, Kv>;  // as score() finds it

 public:
  UnitRows(const AttentionPlan& plan, const AttentionUnit& unit, float* scratch)
      : plan_(plan),
        args_(*plan.args),
        unit_(unit),
        rows_(unit.row_end - unit.row_begin),
        head_dim_(args_.kv.layout.head_dim),
        width_(AttentionPlan::padded(head_dim_)) {
    constexpr int64_t kMaxRows = AttentionPlan::kMaxRows;
    q_ = scratch;
    scores_ = q_ + kMaxRows * width_;
    keys_ = scores_ + kMaxRows * kTileKeys;
    values_ = keys_ + head_dim_ * kTileKeys;
    o_ = values_ + kTileKeys * width_;
    total_o_ = o_ + kMaxRows * width_;
    maximum_ = total_o_ + kMaxRows * width_;
    sum_ = maximum_ + kMaxRows;
    total_maximum_ = sum_ + kMaxRows;
    total_sum_ = total_maximum_ + kMaxRows;
    std::fill_n(total_sum_, rows_, 0.0f);
    for (int64_t r = 0; r < rows_; ++r) {
      key_begin_[r] = plan.key_begin(unit.sequence, token(r));
      key_end_[r] = plan.key_end(unit.sequence, token(r));
    }
  }

  // Partitions that any row of the unit sees.
  int64_t partition_begin() const { return key_begin_[0] / AttentionPlan::kPartitionKeys; }
  int64_t partition_end() const { return (key_end_[rows_ - 1] - 1) / AttentionPlan::kPartitionKeys + 1; }

  // The rows of Q in f32, times the scale, as they meet the stored keys.
  void load_q() {
    for (int64_t r = 0; r < rows_; ++r) {
      const T* from = args_.q.row<T>(token_row(r)) + head(r) * head_dim_;
      float* to = q_ + r * width_;
      for_channels(head_dim_, [&](auto d, int64_t i) HWY_ATTR {
        hn::StoreU(hn::Mul(load_f32(d, from + i), hn::Set(d, args_.scale)), d, to + i);
      });
      if constexpr (kCoded) transform_query(to);
    }
  }

  // o, maximum and sum of every row over the keys of one partition.
  void run_partition(int64_t partition) {
    std::fill_n(sum_, rows_, 0.0f);
    std::fill_n(o_, rows_ * width_, 0.0f);
    const int64_t first = partition * AttentionPlan::kPartitionKeys;
    const int64_t end = std::min(first + AttentionPlan::kPartitionKeys, key_end_[rows_ - 1]);
    for (int64_t tile = first; tile < end; tile += kTileKeys)
      if (tile + kTileKeys > key_begin_[0]) run_tile(tile);
  }

  void merge_partition_state() { merge(o_, maximum_, sum_); }

  // Adds a partition computed apart; `partial` as store_partial() left it.
  void merge_partial(const float* partial) {
    const float* stats = partial + plan_.rows_per_unit * width_;
    merge(partial, stats, stats + plan_.rows_per_unit);
  }

  void store_partial(float* partial) const {
    float* stats = partial + plan_.rows_per_unit * width_;
    std::copy_n(o_, rows_ * width_, partial);
    std::copy_n(maximum_, rows_, stats);
    std::copy_n(sum_, rows_, stats + plan_.rows_per_unit);
  }

  void store_out() const {
    for (int64_t r = 0; r < rows_; ++r) {
      T* to = args_.out.row<T>(token_row(r)) + head(r) * head_dim_;
      const float* from = total_o_ + r * width_;
      const float inverse = 1.0f / total_sum_[r];
      for_channels(head_dim_, [&](auto d, int64_t i) HWY_ATTR {
        store_f32(d, hn::Mul(hn::LoadU(d, from + i), hn::Set(d, inverse)), to + i);
      });
    }
  }

 private:
  void transform_query(float* q) const {
    if (const float* channel = plan_.scales.channel_row(unit_.kv_head))
      for (int64_t i = 0; i < head_dim_; ++i) q[i] /= channel[i];
    if (args_.kv.layout.query_transform == QueryTransform::kHadamard)
      hadamard_rotate(std::span(q, static_cast<size_t>(head_dim_)));
  }

  int64_t token(int64_t r) const { return (unit_.row_begin + r) / plan_.group; }
  int64_t token_row(int64_t r) const { return args_.batch->query_start[unit_.sequence] + token(r); }
  int64_t head(int64_t r) const { return unit_.kv_head * plan_.group + (unit_.row_begin + r) % plan_.group; }

  void run_tile(int64_t tile) {
    // Rows ascend in position: those that see keys of this tile are neighbours.
    int64_t row_begin = 0, row_end = rows_;
    while (row_begin < row_end && key_end_[row_begin] <= tile) ++row_begin;
    while (row_begin < row_end && key_begin_[row_end - 1] >= tile + kTileKeys) --row_end;
    if (row_begin == row_end) return;
    const int64_t keys = std::min(kTileKeys, key_end_[row_end - 1] - tile);
    find_keys(tile, keys);
    score(row_begin, row_end, keys);
    // A whole tile of V is copied to f32 where it is coded, where enough rows share it, or where its rows do not fill
    // vectors.
    direct_values_ = !kCoded && row_end - row_begin <= kBlockRows && head_dim_ % kTileLanes == 0;
    if (!direct_values_) copy_values(keys);

    for (int64_t r = row_begin; r < row_end; ++r) {
      begin_[r] = std::max<int64_t>(0, key_begin_[r] - tile);
      end_[r] = std::min<int64_t>(kTileKeys, key_end_[r] - tile);
      float* row = scores_ + r * kTileKeys;
      if (begin_[r] == 0 && end_[r] == kTileKeys) {
        softmax_step<true>(row, 0, kTileKeys, maximum_[r], sum_[r], o_ + r * width_, width_);
      } else {
        softmax_step<false>(row, begin_[r], end_[r], maximum_[r], sum_[r], o_ + r * width_, width_);
      }
    }
    for (int64_t r = row_begin; r < row_end; r += kBlockRows) add_values(r, std::min<int64_t>(r + kBlockRows, row_end));
  }

  // scores = Q K^T of rows [r0, r1) with the tile's keys.
  void score(int64_t r0, int64_t r1, int64_t keys) {
    const float* q = q_ + r0 * width_;
    float* scores = scores_ + r0 * kTileKeys;
    if constexpr (kCoded) decode_keys(keys);
#if HWY_TARGET != HWY_SCALAR
    if (r1 - r0 <= kBlockRows && can_score_directly<Key>(head_dim_))
      return score_directly<Key>(key_at_, keys, head_dim_, q, width_, r1 - r0, scores);
#endif
    transpose_keys<Key>(key_at_, keys, head_dim_, keys_);
    const Product<float> operands{q, width_, keys_, kTileKeys, scores, kTileKeys, head_dim_, false};
    product(operands, r1 - r0, (keys + kTileLanes - 1) / kTileLanes * kTileLanes);
  }

  // Where the keys and values of positions [tile, tile + n) lie.
  void find_keys(int64_t tile, int64_t n) {
    const KvLayout& layout = args_.kv.layout;
    const auto blocks = args_.batch->blocks(unit_.sequence);
    for (int64_t j = 0; j < n;) {
      const int64_t slot = (tile + j) % layout.block_tokens, count = std::min(n - j, layout.block_tokens - slot);
      const std::byte* key = args_.kv.key(blocks[(tile + j) / layout.block_tokens], args_.layer) +
                             unit_.kv_head * layout.head_stride_bytes;
      const std::byte* steps = args_.kv.key(blocks[(tile + j) / layout.block_tokens], args_.layer) +
                               layout.scale_offset_bytes + unit_.kv_head * layout.scale_head_stride_bytes;
      for (int64_t i = 0; i < count; ++i) {
        key_at_[j + i] = key + (slot + i) * layout.token_stride_bytes;
        if constexpr (kCoded) steps_at_[j + i] = steps + (slot + i) * layout.scale_token_stride_bytes;
        run_end_[j + i] = j + count;
      }
      j += count;
    }
  }

  const Kv* value(int64_t j) const { return static_cast<const Kv*>(static_cast<const void*>(value_at(j))); }
  const std::byte* value_at(int64_t j) const { return key_at_[j] + args_.kv.layout.v_offset_bytes; }

  // The tile's keys in f32, to where its values will be; key_at_ then points to them.
  void decode_keys(int64_t n) {
    const float scale = plan_.scales.key_scale(unit_.kv_head);
    for (int64_t j = 0; j < n; ++j) {
      float* to = values_ + j * width_;
      decode(key_at_[j], steps_at_[j], scale, to);
      code_at_[j] = key_at_[j];
      key_at_[j] = static_cast<const std::byte*>(static_cast<const void*>(to));
    }
  }

  void decode(const std::byte* codes, const std::byte* steps, float scale, float* to) const {
    const KvFormatId format = args_.kv.layout.format;
    if (format == KvFormatId::kFp8) return decode_fp8(codes, scale, head_dim_, to);
    decode_int4(codes, load_kv_steps(format, steps), head_dim_, to);
  }

  void copy_values(int64_t n) {
    const int64_t v_offset = args_.kv.layout.v_offset_bytes;
    for (int64_t j = 0; j < n; ++j) {
      float* to = values_ + j * width_;
      if constexpr (kCoded) {
        decode(code_at_[j] + v_offset, steps_at_[j] + v_offset, plan_.scales.value_scale(unit_.kv_head), to);
      } else {
        const Kv* from = value(j);
        for_channels(head_dim_, [&](auto d, int64_t i) HWY_ATTR { hn::StoreU(load_f32(d, from + i), d, to + i); });
      }
      std::fill(to + head_dim_, to + width_, 0.0f);
    }
  }

  // o += P V for rows [r0, r1). Each row adds its own keys alone: what it does not see may be anything.
  void add_values(int64_t r0, int64_t r1) {
    int64_t begin = 0, end = kTileKeys;  // seen by all of them
    for (int64_t r = r0; r < r1; ++r) begin = std::max(begin, begin_[r]), end = std::min(end, end_[r]);
    if (begin >= end) {
      for (int64_t r = r0; r < r1; ++r) add_values(r, r + 1, begin_[r], end_[r]);
      return;
    }
    for (int64_t r = r0; r < r1; ++r) add_values(r, r + 1, begin_[r], begin);
    add_values(r0, r1, begin, end);
    for (int64_t r = r0; r < r1; ++r) add_values(r, r + 1, end, end_[r]);
  }

  void add_values(int64_t r0, int64_t r1, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const float* p = scores_ + r0 * kTileKeys;
    float* o = o_ + r0 * width_;
    if (!direct_values_) {
      const Product<float> sum{p + begin, kTileKeys, values_ + begin * width_, width_, o, width_, end - begin, true};
      return product(sum, r1 - r0, width_);
    }
    if constexpr (!kCoded) {
      const int64_t stride = args_.kv.layout.token_stride_bytes / static_cast<int64_t>(sizeof(Kv));
      for (int64_t j = begin; j < end;) {
        const int64_t stop = std::min(end, run_end_[j]);
        const Product<Kv> sum{p + j, kTileKeys, value(j), stride, o, width_, stop - j, true};
        product(sum, r1 - r0, head_dim_);
        j = stop;
      }
    }
  }

  void merge(const float* o, const float* maximum, const float* sum) {
    for (int64_t r = 0; r < rows_; ++r)
      merge_partition(o + r * width_, maximum[r], sum[r], total_o_ + r * width_, total_maximum_[r], total_sum_[r],
                      width_);
  }

  const AttentionPlan& plan_;
  const AttentionArgs& args_;
  const AttentionUnit unit_;
  const int64_t rows_, head_dim_, width_;
  // Scratch: [rows, width], [rows, keys], [head_dim, keys], [keys, width], 2 x [rows, width], 4 x [rows].
  float *q_, *scores_, *keys_, *values_, *o_, *total_o_, *maximum_, *sum_, *total_maximum_, *total_sum_;
  int64_t key_begin_[AttentionPlan::kMaxRows] = {}, key_end_[AttentionPlan::kMaxRows] = {};  // keys that a row sees
  // Of the current tile.
  bool direct_values_ = false;
  const std::byte* key_at_[kTileKeys];
  const std::byte *code_at_[kTileKeys], *steps_at_[kTileKeys];  // coded: of the keys
  int64_t run_end_[kTileKeys];                                  // up to where tokens follow each other in one block
  int64_t begin_[AttentionPlan::kMaxRows], end_[AttentionPlan::kMaxRows];  // seen by a row
};

template <class T, class Kv>
void run_task(const AttentionPlan& plan, int64_t task, float* scratch) {
  if (!plan.split) {
    UnitRows<T, Kv> rows(plan, plan.unit(task), scratch);
    rows.load_q();
    for (int64_t p = rows.partition_begin(); p < rows.partition_end(); ++p) {
      rows.run_partition(p);
      rows.merge_partition_state();
    }
    return rows.store_out();
  }
  const int64_t partition = task % plan.max_partitions;
  UnitRows<T, Kv> rows(plan, plan.unit(task / plan.max_partitions), scratch);
  if (partition < rows.partition_begin() || partition >= rows.partition_end()) return;
  rows.load_q();
  rows.run_partition(partition);
  rows.store_partial(plan.partials + task * plan.partial_floats());
}

template <class T, class Kv>
void run_merge(const AttentionPlan& plan, int64_t unit, float* scratch) {
  UnitRows<T, Kv> rows(plan, plan.unit(unit), scratch);
  for (int64_t p = rows.partition_begin(); p < rows.partition_end(); ++p)
    rows.merge_partial(plan.partials + (unit * plan.max_partitions + p) * plan.partial_floats());
  rows.store_out();
}

template <class T>
void run_task_of(const AttentionPlan& plan, int64_t task, float* scratch) {
  switch (plan.args->kv.layout.format) {
    case KvFormatId::kF32: return run_task<T, float>(plan, task, scratch);
    case KvFormatId::kBf16: return run_task<T, bf16>(plan, task, scratch);
    default: return run_task<T, Coded>(plan, task, scratch);
  }
}

// One task of the plan: a unit, or where the plan is split, a partition of one.
void attention_task(const AttentionPlan& plan, int64_t task, float* scratch) {
  plan.args->q.dtype == DType::kF32 ? run_task_of<float>(plan, task, scratch) : run_task_of<bf16>(plan, task, scratch);
}

// The merge of a unit's partitions, after all tasks of a split plan. No keys are read here.
void attention_merge(const AttentionPlan& plan, int64_t unit, float* scratch) {
  plan.args->q.dtype == DType::kF32 ? run_merge<float, float>(plan, unit, scratch)
                                    : run_merge<bf16, float>(plan, unit, scratch);
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace {

HWY_EXPORT(attention_task);
HWY_EXPORT(attention_merge);

// Keys times channels below which waking the team costs more than it saves (about 10 us of one thread).
constexpr int64_t kInlineWork = 65536;

// Calls body(task, thread) for all tasks, the last (longest) first.
void run_tasks(ThreadPool* pool, int64_t tasks, FunctionRef<void(int64_t, int)> body) {
  if (pool == nullptr || tasks == 1) {
    for (int64_t task = tasks - 1; task >= 0; --task) body(task, 0);
    return;
  }
  std::atomic<int64_t> left{tasks};
  pool->run([&](int thread) {
    for (int64_t task; (task = left.fetch_sub(1, std::memory_order_relaxed) - 1) >= 0;) body(task, thread);
  });
}

int64_t total_work(const cpu::AttentionPlan& plan) {
  const StepBatch& batch = *plan.args->batch;
  int64_t keys = 0;
  for (int64_t s = 0; s < batch.num_sequences(); ++s)
    if (const int64_t queries = batch.query_len(s); queries > 0)
      keys += queries * (plan.key_end(s, queries - 1) - plan.key_begin(s, queries - 1));
  return keys * plan.args->heads * plan.args->kv.layout.head_dim;
}

}  // namespace

int64_t attention_cpu_workspace_bytes(int64_t max_tokens, int64_t heads, int64_t head_dim, int64_t max_context,
                                      int threads) {
  using cpu::AttentionPlan;
  const int64_t partitions = (max_context + AttentionPlan::kPartitionKeys - 1) / AttentionPlan::kPartitionKeys;
  // A split plan has fewer than 2 * threads units; each also holds at least one of the rows.
  const int64_t units = threads > 1 ? std::min<int64_t>(2 * threads, max_tokens * heads) : 0;
  const int64_t partial = AttentionPlan::kSplitRows * (AttentionPlan::padded(head_dim) + 2);
  return static_cast<int64_t>(sizeof(float)) *
         (threads * AttentionPlan::scratch_floats(head_dim) + units * partitions * partial);
}

Status attention_cpu(const AttentionArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  HEARTH_TRY_ASSIGN(KvScales scales,
                    check_kv_scales("attention", args.kv.layout, {args.k_channel_scale, args.k_scale, args.v_scale}));
  using cpu::AttentionPlan;
  ThreadPool* pool = exec.pool;
  AttentionPlan plan = AttentionPlan::make(args, pool ? pool->size() : 1);
  if (plan.units == 0) return {};
  plan.scales = scales;
  if (pool != nullptr && total_work(plan) < kInlineWork) {
    pool = nullptr;
    plan.split = false;
  }
  const int threads = pool ? pool->size() : 1;
  const int64_t scratch_floats = AttentionPlan::scratch_floats(args.kv.layout.head_dim);
  const int64_t partials = plan.split ? plan.units * plan.max_partitions * plan.partial_floats() : 0;
  const int64_t wanted = static_cast<int64_t>(sizeof(float)) * (threads * scratch_floats + partials);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("attention: workspace has {} bytes, wanted {}", exec.workspace.size(), wanted);
  float* scratch = static_cast<float*>(static_cast<void*>(exec.workspace.data()));
  plan.partials = scratch + threads * scratch_floats;
  const auto scratch_of = [&](int thread) { return scratch + thread * scratch_floats; };

  run_tasks(pool, plan.split ? plan.units * plan.max_partitions : plan.units, [&](int64_t task, int thread) {
    HWY_DYNAMIC_DISPATCH(attention_task)(plan, task, scratch_of(thread));
  });
  if (!plan.split) return {};
  // Merging reads every partial once: little enough for one thread, but for long contexts.
  run_tasks(partials < kInlineWork ? nullptr : pool, plan.units, [&](int64_t unit, int thread) {
    HWY_DYNAMIC_DISPATCH(attention_merge)(plan, unit, scratch_of(thread));
  });
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
