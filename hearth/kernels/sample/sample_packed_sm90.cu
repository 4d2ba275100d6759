// SPDX-License-Identifier: Apache-2.0
// The sampler on a GPU: a cluster of CTAs a row, few rows more CTAs each. A pass over the row costs most, so each kind
// of row takes the fewest: the largest logit; then, with a small top-k, a list of few tokens that holds the k first;
// with other cuts a histogram and an exact pass (sample_bracket_sm90.cuh); without a cut the sum of masses. The draw
// reads one segment. Rows whose tokens crowd together take more (sample_cut_sm90.cuh). docs/kernels/sample-sm90.md.
#include "hearth/kernels/sample/sample_bracket_sm90.cuh"
#include "hearth/kernels/sample/sample_cut_sm90.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

namespace cg = cooperative_groups;
using namespace sampling_sm90;

constexpr int kSharedBytes = sizeof(RowStorage);
static_assert(kSharedBytes <= 227 * 1024);

// The sparse changes: a bit for each token that has a changed logit, and these logits in the order of bits. Every CTA
// takes the tokens of its own places from all lists, so that barriers of the CTA are enough. Tokens of histories are
// counted by the same order; histories of more different tokens than there are counters are read again.
template <int kCtas>
class Adjustment {
 public:
  __device__ explicit Adjustment(const KernelParams& p)
      : work(p, true),
        s(work.s),
        row(this_row(p)),
        ids(kWarps * work.each),
        first_id(work.rank * ids - work.shift),
        prompt{list_at(p, row.prompt), row.prompt.count},
        output{list_at(p, row.output), row.output.count},
        banned{list_at(p, row.banned), row.banned.count},
        bias(list_at(p, row.bias)) {}

  // By all threads.
  __device__ void apply(const KernelParams& p) {
    mark_all();
    work.use_adjusted(p);
    values = const_cast<float*>(work.values);
    each_bias([&](int token, float by) { values[index(token)] = biased(work.allowed_at(token), by); });
    if (row.flags & PackedSampleRow::kPenalises)
      for (int begin = 0; begin < s.changed_count; begin += kCounters) penalise(begin);
    if (banned.count > 0) {
      __syncthreads();
      each_of(banned, [&](int token, float) { values[index(token)] = -INFINITY; });
    }
    __syncthreads();
  }

 private:
  static constexpr uint32_t kSeen = 0x80000000u, kBiased = 0x40000000u;
  static constexpr int kTokensAtOnce = 4;
  struct List {
    const int* tokens;
    int count;
  };

  RowWork<kCtas> work;
  RowStorage& s;
  const PackedSampleRow& row;
  const int ids, first_id;
  const List prompt, output, banned;
  const int* const bias;
  float* values = nullptr;

  __device__ int place(int token) const { return token - first_id; }
  __device__ bool is_mine(int token) const {
    return token >= 0 && static_cast<uint32_t>(place(token)) < static_cast<uint32_t>(ids);
  }
  __device__ uint32_t index(int token) const {
    const int at = place(token);
    return work.index_of(s.bits_before[at / 32], s.changed[at / 32], at);
  }

  // f(token, its logit without changes) for those of this CTA; kLogits false: without the logit.
  template <bool kLogits = false, class F>
  __device__ __forceinline__ void each_of(const List& list, const F& f) const {
    for (int i = work.tid; i < list.count; i += kTokensAtOnce * kThreads) {
      int token[kTokensAtOnce];
      float logit[kTokensAtOnce] = {};
#pragma unroll
      for (int u = 0; u < kTokensAtOnce; ++u)
        token[u] = i + u * kThreads < list.count ? __ldg(list.tokens + i + u * kThreads) : -1;
#pragma unroll
      for (int u = 0; u < kTokensAtOnce; ++u)
        if (kLogits && is_mine(token[u])) logit[u] = work.allowed_at(token[u]);
#pragma unroll
      for (int u = 0; u < kTokensAtOnce; ++u)
        if (is_mine(token[u])) f(token[u], logit[u]);
    }
  }
  // f(token, bias).
  template <class F>
  __device__ __forceinline__ void each_bias(const F& f) const {
    for (int i = work.tid; i < row.bias.count; i += kThreads)
      if (is_mine(bias[2 * i])) f(bias[2 * i], __int_as_float(bias[2 * i + 1]));
  }

  // The bits, how many they are, and how many stand in the words before each word.
  __device__ void mark_all() {
    const int words = ids / 32;
    for (int i = work.tid; i < words; i += kThreads) s.changed[i] = 0;
    __syncthreads();
    const auto mark = [&](int token, float) { atomicOr(&s.changed[place(token) / 32], 1u << (place(token) % 32)); };
    each_bias(mark);
    each_of(prompt, mark);
    each_of(output, mark);
    each_of(banned, mark);
    __syncthreads();
    const int of_thread = (words + kThreads - 1) / kThreads;
    const int from = min(words, work.tid * of_thread), to = min(words, from + of_thread);
    int mine = 0;
    for (int i = from; i < to; ++i) mine += __popc(s.changed[i]);
    const Sums sums = work.scan(static_cast<uint64_t>(mine));
    auto before = static_cast<uint32_t>(sums.before);
    for (int i = from; i < to; ++i) {
      s.bits_before[i] = before;
      before += __popc(s.changed[i]);
    }
    if (work.tid == 0) s.changed_count = static_cast<int>(sums.all);
    __syncthreads();
  }

  // The changed tokens that are kCounters from `begin` on.
  __device__ void penalise(int begin) {
    for (int i = work.tid; i < min(kCounters, s.changed_count - begin); i += kThreads) s.counters[i] = 0;
    __syncthreads();
    // f(counter, index).
    const auto count = [&](int token, auto f) {
      const uint32_t at = index(token);
      if (at - static_cast<uint32_t>(begin) < kCounters) f(&s.counters[at - static_cast<uint32_t>(begin)], at);
    };
    each_bias([&](int token, float) { count(token, [](uint32_t* at, uint32_t) { atomicOr(at, kBiased); }); });
    each_of(prompt, [&](int token, float) { count(token, [](uint32_t* at, uint32_t) { atomicOr(at, kSeen); }); });
    each_of(output, [&](int token, float) { count(token, [](uint32_t* at, uint32_t) { atomicAdd(at, 1); }); });
    __syncthreads();
    const Penalties penalties{row.repetition_penalty, row.presence_penalty, row.frequency_penalty};
    // Whoever takes a token's count applies it.
    const auto take = [&](int token, float logit) {
      count(token, [&](uint32_t* at, uint32_t value) {
        const uint32_t taken = atomicExch(at, 0);
        if ((taken & ~kBiased) == 0) return;
        const float z = taken & kBiased ? values[value] : logit;
        values[value] = penalised(z, penalties, taken & ~(kSeen | kBiased));
      });
    };
    each_of<true>(prompt, take);
    each_of<true>(output, take);
    __syncthreads();
  }
};
template <int kCtas>
__device__ __noinline__ void adjust(const KernelParams& p) {
  Adjustment<kCtas>(p).apply(p);
}

// The most likely tokens of the raw logits.
template <int kCtas>
__device__ __noinline__ void report_top(const KernelParams& p, uint64_t largest) {
  RowWork<kCtas> work(p);
  const int count = this_row(p).top_logprobs;
  SampleCandidate* const to = p.candidates + blockIdx.y * int64_t{kMaxTopLogprobs};
  const uint64_t guess = count <= RowWork<kCtas>::kSegments ? work.guess_of(count) : 0;
  int found = kListKeys + 1;
  if (guess != 0) found = work.gather(guess);
  if (found > kListKeys) {
    const uint64_t cut = ExactCut<kCtas>(work).find(Measure::kCount, static_cast<uint64_t>(count), guess, largest, {});
    found = work.gather(cut);
  }
  if (work.rank == 0) {
    uint64_t key[kListEach];
    work.load_list(key);
    work.sort(key, found);
    if (work.tid < count) to[work.tid] = {key_token(key[0]), __ldcg(work.logits + key_token(key[0]))};
  }
  work.cluster.sync();  // other CTAs' lists have been read
}

// From a list that holds the k most likely tokens. By rank 0 alone.
template <int kCtas>
__device__ void draw_from_list(RowWork<kCtas>& work, const PackedSampleRow& row, const Kept& kept, int count,
                               SampleVerdict* verdict) {
  uint64_t key[kListEach];
  work.load_list(key);
  work.sort(key, count);
  uint64_t mass = work.tid < row.top_k ? kept.mass(key_logit(key[0])) : 0;
  if (row.top_p < sampling::kMassOne) {
    const Sums sums = work.scan(mass);
    if (sums.before >= goal_of(row.top_p, sums.all)) mass = 0;
  }
  // Now in the order of ids.
  constexpr int kBits = sampling::kMassBits + 1;
  static_assert(kMaxPackedVocab <= int64_t{1} << (64 - kBits));
  const auto last = static_cast<int>(kMaxPackedVocab - 1);
  uint64_t by_id[1] = {mass > 0 ? static_cast<uint64_t>(last - key_token(key[0])) << kBits | mass : 0};
  work.sort(by_id, row.top_k);
  mass = by_id[0] & ((uint64_t{1} << kBits) - 1);
  const Sums sums = work.scan(mass);
  const uint64_t point = draw_point(row.random, sums.all);
  if (sums.before <= point && point - sums.before < mass)
    work.answer(last - static_cast<int>(by_id[0] >> kBits), verdict);
}

__device__ __forceinline__ Kept all_of(const PackedSampleRow& row, uint64_t largest) {
  return {.max = key_logit(largest), .inverse_temperature = row.inverse_temperature, .mass_least = row.mass_least};
}

// True: the token is in the verdict, if a segment or more has each of the k.
template <int kCtas>
__device__ __noinline__ bool choose_of_few(const KernelParams& p, uint64_t largest) {
  RowWork<kCtas> work(p, true);
  work.use_adjusted(p);
  const PackedSampleRow& row = this_row(p);
  const uint64_t guess = work.guess_of(row.top_k);
  if (guess == 0) return false;
  const int count = work.gather(guess);
  if (count > kListKeys) return false;
  if (work.rank == 0) draw_from_list(work, row, all_of(row, largest), count, p.verdicts + blockIdx.y);
  return true;
}

template <int kCtas>
__device__ __noinline__ BracketOutcome bracket(const KernelParams& p, uint64_t largest) {
  RowWork<kCtas> work(p, true);
  work.use_adjusted(p);
  const PackedSampleRow& row = this_row(p);
  return BracketCut<kCtas>(work, row, all_of(row, largest)).find();
}
// False where the bracket holds too many tokens.
template <int kCtas>
__device__ __noinline__ bool choose_by_bracket(const KernelParams& p, uint64_t largest) {
  RowWork<kCtas> work(p, true);
  work.use_adjusted(p);
  const PackedSampleRow& row = this_row(p);
  return BracketCut<kCtas>(work, row, all_of(row, largest)).draw(p.verdicts + blockIdx.y);
}

template <int kCtas>
__device__ __noinline__ uint64_t sum_raw(const KernelParams& p, float largest) {
  return RowWork<kCtas>(p).sum_masses(Kept{.max = largest}, 0);
}
template <int kCtas>
__device__ __noinline__ uint64_t sum_kept(const KernelParams& p, uint64_t largest, uint64_t cut) {
  RowWork<kCtas> work(p, true);
  work.use_adjusted(p);
  Kept kept = all_of(this_row(p), largest);
  kept.cut = cut;
  return work.sum_masses(kept, 1);
}

// A cut of what is above `cut`.
template <int kCtas>
__device__ __noinline__ uint64_t find_cut(const KernelParams& p, uint64_t largest, Measure measure, uint64_t goal,
                                          uint64_t low, uint64_t cut) {
  RowWork<kCtas> work(p, true);
  work.use_adjusted(p);
  Kept kept = all_of(this_row(p), largest);
  kept.cut = cut;
  return ExactCut<kCtas>(work).find(measure, goal, low, largest, kept);
}

// What top-k and top-p keep, for any row.
template <int kCtas>
__device__ uint64_t find_cuts(const KernelParams& p, const PackedSampleRow& row, uint64_t largest) {
  uint64_t cut = 0;
  if (row.top_k > 0) cut = find_cut<kCtas>(p, largest, Measure::kCount, static_cast<uint64_t>(row.top_k), 0, 0);
  if (row.top_p < sampling::kMassOne) {
    const uint64_t goal = goal_of(row.top_p, sum_kept<kCtas>(p, largest, cut));
    const float likely = __fsub_rn(key_logit(largest), row.likely_range);
    const uint64_t low = max(static_cast<uint64_t>(ordered_bits(likely)) << 32, cut);
    cut = find_cut<kCtas>(p, largest, Measure::kMass, goal, low, cut);
  }
  return cut;
}

// From the segments' masses in rank 0's `segments`. By rank 0 alone.
template <int kCtas>
__device__ __noinline__ void draw_kept(const KernelParams& p, uint64_t largest, uint64_t cut, int segments) {
  RowWork<kCtas> work(p, true);
  work.use_adjusted(p);
  const PackedSampleRow& row = this_row(p);
  Kept kept = all_of(row, largest);
  kept.cut = cut;
  const bool has_segment = work.tid < RowWork<kCtas>::kSegments;
  work.draw(kept, has_segment ? work.s.segments[segments][work.tid] : 0, row.random, p.verdicts + blockIdx.y);
}

// `summed`: the masses of the raw logits are those of a draw without a cut.
template <int kCtas>
__device__ void choose(const KernelParams& p, const PackedSampleRow& row, uint64_t largest, bool summed, bool first) {
  uint64_t cut = 0;
  if (row.top_k > 0 && row.top_k <= RowWork<kCtas>::kSegments && choose_of_few<kCtas>(p, largest)) return;
  if (row.top_k > 0 || row.top_p < sampling::kMassOne) {
    const BracketOutcome outcome = bracket<kCtas>(p, largest);
    if (outcome == BracketOutcome::kFound && choose_by_bracket<kCtas>(p, largest)) return;
    if (outcome != BracketOutcome::kAllKept) cut = find_cuts<kCtas>(p, row, largest);
  }
  summed = summed && cut == 0;
  if (!summed) sum_kept<kCtas>(p, largest, cut);
  if (first) draw_kept<kCtas>(p, largest, cut, summed ? 0 : 1);
}

// With the row's changes, or of the raw logits.
template <int kCtas>
__device__ __noinline__ Largest find_largest(const KernelParams& p, bool changed, Slot slot) {
  RowWork<kCtas> work(p, changed);
  if (changed) work.use_adjusted(p);
  return work.find_largest(slot);
}

// Grid kCtas x rows, a cluster a row.
template <int kCtas>
__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ KernelParams p) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const PackedSampleRow& row = this_row(p);
  const cg::cluster_group cluster = cg::this_cluster();
  const bool first = cluster.block_rank() == 0, leads = first && threadIdx.x == 0;
  SampleVerdict* const verdict = p.verdicts + blockIdx.y;
  const bool adjusts = row.flags & PackedSampleRow::kAdjusts, masks = row.flags & PackedSampleRow::kAllowed;
  const bool logprobs = row.flags & PackedSampleRow::kLogprobs;

  // Changes are in the first pass already, unless the most likely ones of the raw logits are asked for.
  const bool reports = row.top_logprobs > 0;
  if (adjusts && !reports) adjust<kCtas>(p);
  const Largest found = find_largest<kCtas>(p, !reports, kSlotLargest);
  if (found.bad) {
    if (leads) *verdict = {-1, SampleVerdict::Outcome::kBadLogits, 0, 0, 0};
    cluster.sync();  // no CTA ends while another reads its memory
    return;
  }
  const uint64_t total = logprobs ? sum_raw<kCtas>(p, found.raw) : 0;
  uint64_t largest = found.key;
  if (reports) {
    report_top<kCtas>(p, found.key);
    if (adjusts) adjust<kCtas>(p);
    if (adjusts || masks) largest = find_largest<kCtas>(p, true, kSlotChanged).key;
  }
  const bool forced = row.forced_token >= 0, greedy = row.flags & PackedSampleRow::kGreedy;
  const auto outcome = largest == 0 ? SampleVerdict::Outcome::kNothingLeft : SampleVerdict::Outcome::kToken;
  if (leads) {
    const int token = forced ? row.forced_token : outcome == SampleVerdict::Outcome::kToken ? key_token(largest) : -1;
    // A drawn token takes the place of the most likely one: by rank 0 too, and barriers later.
    *verdict = {token, outcome, token >= 0 ? __ldcg(p.logits + blockIdx.y * p.row_stride + token) : 0, found.raw,
                total};
  }
  if (!forced && !greedy && outcome == SampleVerdict::Outcome::kToken) {
    const bool summed = logprobs && !adjusts && !masks && row.inverse_temperature == 1 && row.mass_least == 0;
    choose<kCtas>(p, row, largest, summed, first);
  }
  cluster.sync();
}

template <int kCtas>
Status start(const KernelParams& params, int64_t rows, ExecContext& exec) {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(
      cudaFuncSetAttribute(sample_kernel<kCtas>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  Launch how(dim3(kCtas, static_cast<unsigned>(rows)), dim3(kThreads), exec.stream);
  how.shared_bytes = kSharedBytes;
  how.pdl = true;
  return launch(how, sample_kernel<kCtas>, params);
}

}  // namespace

Status sample_packed_sm90(const SamplePackedArgs& args, ExecContext& exec) {
  const int64_t rows = args.logits.rows(), vocab = args.logits.cols();
  if (vocab < 1 || vocab > kMaxPackedVocab || rows > 65535)
    return unsupported("sample: {} rows of {} logits, wanted at most 65535 of {}", rows, vocab, kMaxPackedVocab);
  if (rows == 0) return {};
  const KernelParams params{static_cast<const float*>(args.logits.data),
                            args.logits.row_stride,
                            args.block,
                            args.verdicts,
                            args.candidates,
                            args.adjusted,
                            static_cast<int>(vocab)};
  // One CTA to a multiprocessor, at least two to a row: an H100 has 132, in groups of 16 and 18.
  if (rows <= 12) return start<8>(params, rows, exec);
  if (rows <= 30) return start<4>(params, rows, exec);
  return start<2>(params, rows, exec);
}

}  // namespace hearth
