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

// The sparse changes, made where the logits lie and taken back: biases, penalties, bans, in this order, each of what the
// one before left. Every CTA takes the tokens of its own places from all lists, so that its barriers are enough.
template <int kCtas>
class Changes {
 public:
  __device__ explicit Changes(const KernelParams& p)
      : s(row_storage()),
        row(this_row(p)),
        logits(p.logits + blockIdx.y * p.row_stride),
        bias(list_at(p, row.bias)),
        banned(list_at(p, row.banned)),
        bumped(list_at(p, row.bumped)),
        added(list_at(p, row.added)),
        history(p.histories + row.history.begin),
        held(static_cast<int>(row.history.entries)),
        entries(held + row.added.count) {
    const RowWork<kCtas> work(p);
    ids = kWarps * work.each;
    first_id = work.rank * ids - work.shift;
    const int changes = row.bias.count + entries + row.banned.count;
    kept = changes <= kKeptShared ? s.kept : p.adjusted + row.scratch_row * int64_t{p.vocab + kMostListedChanges};
  }

  // By all threads of the CTA, as take_back(). Also of a bad row: what its history gains is kept by this.
  __device__ void apply() {
    bool finite = false;
    for (int i = tid(); i < row.bias.count; i += kThreads)
      if (is_mine(bias[2 * i])) finite |= change(i, bias[2 * i], [&](float z) { return biased(z, by(i)); });
    __syncthreads();
    finite |= penalise();
    __syncthreads();
    for (int i = tid(); i < row.banned.count; i += kThreads)
      if (is_mine(banned[i]))
        finite |= change(row.bias.count + entries + i, banned[i], [](float) { return -INFINITY; });
    finite = __syncthreads_or(finite);
    if (tid() == 0) s.hides_finite = finite;
    __syncthreads();
  }

  // After a cluster barrier behind the last pass, in the reverse order. Whoever has the token of the verdict corrects
  // its logit.
  __device__ void take_back(SampleVerdict* verdict) const {
    for (int i = tid(); i < row.banned.count; i += kThreads) {
      // A token may be there twice: one of them kept what was there, the other perhaps what the first one wrote.
      const float was = is_mine(banned[i]) ? kept[row.bias.count + entries + i] : -INFINITY;
      if (was != -INFINITY) logits[banned[i]] = was;
    }
    __syncthreads();
    for (int i = tid(); i < entries; i += kThreads) {
      const int token = entry(i).token;
      if (is_mine(token)) logits[token] = kept[row.bias.count + i];
    }
    __syncthreads();
    for (int i = tid(); i < row.bias.count; i += kThreads)
      if (is_mine(bias[2 * i])) logits[bias[2 * i]] = kept[i];
    __syncthreads();
    if (tid() == 0) {
      const int token = __ldcg(&verdict->token);
      if (token >= 0 && is_mine(token)) verdict->logit = __ldcg(logits + token);
    }
  }

 private:
  static constexpr int kAtATime = 4;

  RowStorage& s;
  const PackedSampleRow& row;
  float* const logits;
  const int* const bias;
  const int* const banned;
  const int* const bumped;
  const int* const added;
  HistoryEntry* const history;
  const int held, entries;  // of the history: before, and with those added now
  int ids, first_id;
  float* kept;  // of biases, then of the history, then of bans

  __device__ static int tid() { return static_cast<int>(threadIdx.x); }
  __device__ bool is_mine(int token) const {
    return static_cast<uint32_t>(token - first_id) < static_cast<uint32_t>(ids);
  }
  __device__ float by(int i) const { return __int_as_float(bias[2 * i + 1]); }
  __device__ __forceinline__ HistoryEntry entry(int i) const {
    if (i >= held) return {added[2 * (i - held)], static_cast<uint32_t>(added[2 * (i - held) + 1])};
    const int2 words = __ldcg(reinterpret_cast<const int2*>(history + i));
    return {words.x, static_cast<uint32_t>(words.y)};
  }

  // Whether the logit was finite. A NaN or infinity stays, so that the row is found bad.
  template <class F>
  __device__ __forceinline__ bool change(int at, int token, const F& f) const {
    return change(at, token, __ldcg(logits + token), f);
  }
  template <class F>
  __device__ __forceinline__ bool change(int at, int token, float was, const F& f) const {
    kept[at] = was;
    if (was < INFINITY) logits[token] = f(was);
    return was > -INFINITY;
  }

  // Several tokens of a thread at a time, as each of them is two reads one after the other.
  __device__ bool penalise() const {
    const Penalties penalties{row.repetition_penalty, row.presence_penalty, row.frequency_penalty};
    bool finite = false;
#pragma unroll 1
    for (int first = tid(); first < entries; first += kAtATime * kThreads) {
      HistoryEntry one[kAtATime];
      float z[kAtATime];
#pragma unroll
      for (int u = 0; u < kAtATime; ++u) {
        const int i = first + u * kThreads;
        one[u] = i < entries ? entry(i) : HistoryEntry{-1, 0};
        if (one[u].token < 0 || !is_mine(one[u].token)) one[u].token = -1;
      }
#pragma unroll
      for (int u = 0; u < kAtATime; ++u)
        if (one[u].token >= 0) z[u] = __ldcg(logits + one[u].token);
#pragma unroll
      for (int u = 0; u < kAtATime; ++u) {
        const int i = first + u * kThreads;
        if (one[u].token < 0) continue;
        uint32_t how = one[u].how;
#pragma unroll 1
        for (int b = 0; b < row.bumped.count; ++b) how += bumped[b] == one[u].token ? 1 : 0;
        if (i >= held || how != one[u].how) history[i] = {one[u].token, how};
        finite |= change(row.bias.count + i, one[u].token, z[u],
                         [&](float was) { return penalised(was, penalties, how & ~HistoryEntry::kOfPrompt); });
      }
    }
    return finite;
  }
};
template <int kCtas>
__device__ __noinline__ void apply_changes(const KernelParams& p) {
  Changes<kCtas>(p).apply();
}
template <int kCtas>
__device__ __noinline__ void take_back_changes(const KernelParams& p) {
  Changes<kCtas>(p).take_back(p.verdicts + blockIdx.y);
}

// The most likely tokens of the raw logits.
template <int kCtas>
__device__ __noinline__ void report_top(const KernelParams& p) {
  RowWork<kCtas> work(p);
  const int count = this_row(p).top_logprobs;
  SampleCandidate* const to = p.candidates + blockIdx.y * int64_t{kMaxTopLogprobs};
  const uint64_t guess = count <= RowWork<kCtas>::kSegments ? work.guess_of(count) : 0;
  int found = kListKeys + 1;
  if (guess != 0) found = work.gather(guess);
  if (found > kListKeys) {
    const uint64_t cut =
        ExactCut<kCtas>(work).find(Measure::kCount, static_cast<uint64_t>(count), guess, work.s.largest, {});
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

__device__ __forceinline__ Kept all_of(const PackedSampleRow& row) {
  return {.max = key_logit(row_storage().largest),
          .inverse_temperature = row.inverse_temperature,
          .mass_least = row.mass_least};
}

// True: the token is in the verdict, if a segment or more has each of the k.
template <int kCtas>
__device__ __noinline__ bool choose_of_few(const KernelParams& p) {
  RowWork<kCtas> work(p, true);
  const PackedSampleRow& row = this_row(p);
  const uint64_t guess = work.guess_of(row.top_k);
  if (guess == 0) return false;
  const int count = work.gather(guess);
  if (count > kListKeys) return false;
  if (work.rank == 0) draw_from_list(work, row, all_of(row), count, p.verdicts + blockIdx.y);
  return true;
}

template <int kCtas>
__device__ __noinline__ BracketOutcome bracket(const KernelParams& p) {
  RowWork<kCtas> work(p, true);
  const PackedSampleRow& row = this_row(p);
  return BracketCut<kCtas>(work, row, all_of(row)).find();
}
template <int kCtas>
__device__ __noinline__ int list_bracket(const KernelParams& p) {
  RowWork<kCtas> work(p, true);
  const PackedSampleRow& row = this_row(p);
  return BracketCut<kCtas>(work, row, all_of(row)).list_bracket();
}
template <int kCtas>
__device__ __noinline__ void draw_of_bracket(const KernelParams& p, int count) {
  RowWork<kCtas> work(p, true);
  const PackedSampleRow& row = this_row(p);
  BracketCut<kCtas>(work, row, all_of(row)).draw(count, p.verdicts + blockIdx.y);
}

template <int kCtas>
__device__ __noinline__ uint64_t sum_raw(const KernelParams& p, float largest) {
  return RowWork<kCtas>(p).sum_masses(Kept{.max = largest}, 0);
}
template <int kCtas>
__device__ __noinline__ uint64_t sum_kept(const KernelParams& p, uint64_t cut) {
  RowWork<kCtas> work(p, true);
  Kept kept = all_of(this_row(p));
  kept.cut = cut;
  return work.sum_masses(kept, 1);
}

// A cut of what is above `cut`.
template <int kCtas>
__device__ __noinline__ uint64_t find_cut(const KernelParams& p, Measure measure, uint64_t goal, uint64_t low,
                                          uint64_t cut) {
  RowWork<kCtas> work(p, true);
  Kept kept = all_of(this_row(p));
  kept.cut = cut;
  return ExactCut<kCtas>(work).find(measure, goal, low, work.s.largest, kept);
}

// What top-k and top-p keep, for any row.
template <int kCtas>
__device__ uint64_t find_cuts(const KernelParams& p, const PackedSampleRow& row) {
  uint64_t cut = 0;
  if (row.top_k > 0) cut = find_cut<kCtas>(p, Measure::kCount, static_cast<uint64_t>(row.top_k), 0, 0);
  if (row.top_p < sampling::kMassOne) {
    const uint64_t goal = goal_of(row.top_p, sum_kept<kCtas>(p, cut));
    const float likely = __fsub_rn(key_logit(row_storage().largest), row.likely_range);
    const uint64_t low = max(static_cast<uint64_t>(ordered_bits(likely)) << 32, cut);
    cut = find_cut<kCtas>(p, Measure::kMass, goal, low, cut);
  }
  return cut;
}

// From the segments' masses in rank 0's `segments`. By rank 0 alone.
template <int kCtas>
__device__ __noinline__ void draw_kept(const KernelParams& p, uint64_t cut, int segments) {
  RowWork<kCtas> work(p, true);
  const PackedSampleRow& row = this_row(p);
  Kept kept = all_of(row);
  kept.cut = cut;
  const bool has_segment = work.tid < RowWork<kCtas>::kSegments;
  work.draw(kept, has_segment ? work.s.segments[segments][work.tid] : 0, row.random, p.verdicts + blockIdx.y);
}

// `summed`: the masses of the raw logits are those of a draw without a cut.
template <int kCtas>
__device__ void choose(const KernelParams& p, const PackedSampleRow& row, bool summed, bool first) {
  uint64_t cut = 0;
  if (row.top_k > 0 && row.top_k <= RowWork<kCtas>::kSegments && choose_of_few<kCtas>(p)) return;
  if (row.top_k > 0 || row.top_p < sampling::kMassOne) {
    const BracketOutcome outcome = bracket<kCtas>(p);
    if (outcome == BracketOutcome::kFound) {
      const int count = list_bracket<kCtas>(p);
      if (count <= kListKeys) {
        if (first) draw_of_bracket<kCtas>(p, count);
        return;
      }
    }
    if (outcome != BracketOutcome::kAllKept) cut = find_cuts<kCtas>(p, row);
  }
  summed = summed && cut == 0;
  if (!summed) sum_kept<kCtas>(p, cut);
  if (first) draw_kept<kCtas>(p, cut, summed ? 0 : 1);
}

// With the row's mask and changes, or of the raw logits. Leaves the key in every CTA's `largest`.
template <int kCtas>
__device__ __noinline__ Largest find_largest(const KernelParams& p, bool changed, Slot slot) {
  RowWork<kCtas> work(p, changed);
  const bool hides_finite = changed && this_row(p).flags & PackedSampleRow::kAdjusts && work.s.hides_finite;
  const Largest found = work.find_largest(slot, hides_finite);
  if (work.tid == 0) work.s.largest = found.key;
  __syncthreads();
  return found;
}

// The changes of one row, if it has some, are in its logits behind this. Little lives from phase to phase: what does is
// spilled.
template <int kCtas>
__device__ __forceinline__ void sample_row(const KernelParams& p, const PackedSampleRow& row, bool first) {
  const bool leads = first && threadIdx.x == 0;
  SampleVerdict* const verdict = p.verdicts + blockIdx.y;
  const bool adjusts = row.flags & PackedSampleRow::kAdjusts, masks = row.flags & PackedSampleRow::kAllowed;
  const bool logprobs = row.flags & PackedSampleRow::kLogprobs, reports = row.top_logprobs > 0;

  // Changes come before the first pass, unless the logits as the model gave them are asked for.
  const bool raw_first = reports || (logprobs && adjusts);
  if (adjusts && !raw_first) apply_changes<kCtas>(p);
  const Largest found = find_largest<kCtas>(p, !raw_first, kSlotLargest);
  if (leads) *verdict = {-1, SampleVerdict::Outcome::kBadLogits, 0, found.raw, 0};
  if (found.bad) {
    if (adjusts && raw_first) apply_changes<kCtas>(p);
    return;
  }
  if (logprobs) {
    const uint64_t total = sum_raw<kCtas>(p, found.raw);
    if (leads) verdict->total = total;
  }
  if (raw_first) {
    if (reports) report_top<kCtas>(p);
    if (adjusts) apply_changes<kCtas>(p);
    if (adjusts || masks) find_largest<kCtas>(p, true, kSlotChanged);
  }
  const bool forced = row.forced_token >= 0, greedy = row.flags & PackedSampleRow::kGreedy;
  const uint64_t largest = row_storage().largest;
  const auto outcome = largest == 0 ? SampleVerdict::Outcome::kNothingLeft : SampleVerdict::Outcome::kToken;
  if (leads) {
    // A drawn token takes the place of the most likely one: by rank 0 too, and barriers later.
    const int token = forced ? row.forced_token : outcome == SampleVerdict::Outcome::kToken ? key_token(largest) : -1;
    verdict->token = token;
    verdict->outcome = outcome;
    if (token >= 0) verdict->logit = __ldcg(p.logits + blockIdx.y * p.row_stride + token);
  }
  if (forced || greedy || outcome != SampleVerdict::Outcome::kToken) return;
  const bool summed = logprobs && !adjusts && !masks && row.inverse_temperature == 1 && row.mass_least == 0;
  choose<kCtas>(p, row, summed, first);
}

// Grid kCtas x rows, a cluster a row.
template <int kCtas>
__global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ KernelParams p) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const PackedSampleRow& row = this_row(p);
  const cg::cluster_group cluster = cg::this_cluster();
  sample_row<kCtas>(p, row, cluster.block_rank() == 0);
  cluster.sync();  // no CTA ends while another reads its memory, nor takes changes back while one reads the row
  if (row.flags & PackedSampleRow::kAdjusts) take_back_changes<kCtas>(p);
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
  const KernelParams params{static_cast<float*>(const_cast<void*>(args.logits.data)),
                            args.logits.row_stride,
                            args.block,
                            args.verdicts,
                            args.candidates,
                            args.adjusted,
                            args.histories,
                            static_cast<int>(vocab)};
  // One CTA to a multiprocessor, at least two to a row: an H100 has 132, in groups of 16 and 18.
  if (rows <= 12) return start<8>(params, rows, exec);
  if (rows <= 30) return start<4>(params, rows, exec);
  return start<2>(params, rows, exec);
}

}  // namespace hearth
