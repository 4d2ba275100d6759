// SPDX-License-Identifier: Apache-2.0
// A block whose norms and silu_mul round for the linears behind them computes the bits of one whose linears round what
// they read; where someone looks at the values, or the parts of a linear disagree, nothing is rounded ahead.
#include "hearth/model/block.h"

#include <gtest/gtest.h>

#include <list>
#include <optional>

#include "hearth/base/random.h"
#include "hearth/kernels/linear/quantized_for_test.h"
#include "hearth/memory/host_buffer.h"

namespace hearth {
namespace {

constexpr uint64_t kSeed = 20360;
constexpr int64_t kTokens = 5, kHidden = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kFfn = 128;

// How often an op was asked to round.
struct Counts {
  int norms = 0, silus = 0, rounded_linears = 0;
  friend bool operator==(const Counts&, const Counts&) = default;
};
Counts counts;

Status counting_rmsnorm(const RmsNormArgs& args, ExecContext& exec) {
  counts.norms += static_cast<bool>(args.rounded);
  return rmsnorm_ref(args, exec);
}
Status counting_silu_mul(const SiluMulArgs& args, ExecContext& exec) {
  counts.silus += static_cast<bool>(args.rounded);
  return silu_mul_ref(args, exec);
}
Status counting_linear(const LinearArgs& args, ExecContext& exec) {
  counts.rounded_linears += args.x.dtype == DType::kE4m3;
  return linear_quantized_ref(args, exec);
}
constexpr LinearOp kCounting{"counting", linear_quantized_ref_workspace_bytes, counting_linear,
                             linear_quantized_ref_takes_rounded};

// The reference's ops, counted; `rounds` as a backend that cannot.
OpTable counting_ops(bool rounds) {
  OpTable ops = ref_ops();
  ops.rmsnorm = counting_rmsnorm;
  ops.silu_mul = counting_silu_mul;
  ops.rounds_outputs = rounds;
  ops.find_linear = [](const WeightFormat& format, DType activation) -> const LinearOp* {
    const LinearOp* const found = ref_ops().find_linear(format, activation);
    return format.code == WeightCode::kE4m3 ? &kCounting : found;
  };
  return ops;
}

WeightFormat e4m3_rows(ActFormat act) {
  return {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kF32, .act = act};
}

// One layer with random weights, one sequence, and a place for everything.
class OneBlock {
 public:
  OneBlock(DType activation, ActFormat act, std::optional<ActFormat> other_k = {})
      : activation_(activation), random_(kSeed), hidden_(filled(activation, kHidden)) {
    config_.hidden_size = kHidden, config_.intermediate_size = kFfn, config_.layers = 1;
    config_.heads = kHeads, config_.kv_heads = kKvHeads, config_.head_dim = kHeadDim;
    config_.max_positions = 64, config_.windows = {0};
    layer_.input_norm = norm(), layer_.post_attention_norm = norm();
    layer_.qkv.parts = {part(kHeads * kHeadDim, kHidden, act),
                        part(kKvHeads * kHeadDim, kHidden, other_k.value_or(act)),
                        part(kKvHeads * kHeadDim, kHidden, act)};
    layer_.o.parts = {part(kHidden, kHeads * kHeadDim, act)};
    layer_.ffn = DenseFfn{{{part(kFfn, kHidden, act), part(kFfn, kHidden, act)}}, {{part(kHidden, kFfn, act)}}};
    for (int32_t t = 0; t < kTokens; ++t) positions_.push_back(t);
    batch_ = {.tokens = positions_,
              .positions = positions_,
              .query_start = starts_,
              .context_len = context_,
              .block_table = blocks_,
              .block_table_stride = 1};
    kv_.layout = *KvLayout::make(KvFormatId::kF32, 1, kKvHeads, kHeadDim, kTokens);
    pool_ = *HostBuffer::allocate(kv_.layout.block_bytes());
    kv_.base = pool_.data();
    cos_sin_.fill(random_);
  }
  OneBlock(const OneBlock&) = delete;

  BlockOps find(const OpTable& ops) const {
    auto found = BlockOps::find(ops, layer_, activation_, 0);
    EXPECT_TRUE(found) << found.error().message;
    return *std::move(found);
  }

  // The residual stream after the block.
  TestTensor run(bool rounds, const BlockObserver* observer = nullptr) {
    const OpTable ops = counting_ops(rounds);
    const BlockOps linears = find(ops);
    TestTensor hidden = hidden_;
    const auto rows = [&](int64_t cols) { return TestTensor(activation_, kTokens, cols); };
    TestTensor normed = rows(kHidden), qkv = rows((kHeads + 2 * kKvHeads) * kHeadDim),
               attention = rows(kHeads * kHeadDim), gate_up = rows(2 * kFfn), ffn = rows(kFfn), cos_sin = cos_sin_;
    HostBuffer scratch = *HostBuffer::allocate(linears.workspace_bytes(layer_, kTokens, 1));
    ExecContext exec{.workspace = scratch.bytes()};
    SingleRank comm;
    counts = {};
    const BlockArgs args{.config = &config_,
                         .ops = &ops,
                         .weights = &layer_,
                         .linears = &linears,
                         .activation = activation_,
                         .batch = &batch_,
                         .kv = kv_,
                         .buffers = {.hidden = hidden.data(),
                                     .normed = normed.data(),
                                     .qkv = qkv.data(),
                                     .attention = attention.data(),
                                     .gate_up = gate_up.data(),
                                     .ffn = ffn.data(),
                                     .cos_sin = cos_sin.data()},
                         .observer = observer};
    const Status status = forward_block(args, comm, exec);
    EXPECT_TRUE(status) << status.error().message;
    return hidden;
  }

 private:
  TestTensor filled(DType dtype, int64_t cols) {
    TestTensor tensor(dtype, kTokens, cols);
    tensor.fill(random_);
    return tensor;
  }
  ConstTensorView norm() { return norms_.emplace_back(DType::kF32, 1, kHidden).fill(random_).vector(); }
  LinearWeight part(int64_t n, int64_t k, ActFormat act) {
    return parts_.emplace_back(testing::random_matrix(e4m3_rows(act), n, k, false, random_)).weight;
  }

  const DType activation_;
  Random random_;
  ModelConfig config_;
  std::list<TestTensor> norms_;
  std::list<testing::PlacedWeight> parts_;
  LayerWeights layer_;
  std::vector<int32_t> positions_, starts_{0, kTokens}, context_{kTokens};
  std::vector<int64_t> blocks_{0};
  StepBatch batch_;
  HostBuffer pool_;
  KvView kv_;
  TestTensor hidden_, cos_sin_{DType::kF32, kTokens, kHeadDim};
};

TEST(Block, RoundsAheadWithTheSameBits) {
  for (const DType activation : {DType::kBf16, DType::kF32}) {
    SCOPED_TRACE(dtype_name(activation));
    OneBlock block(activation, ActFormat::kE4m3PerToken);
    const TestTensor plain = block.run(false);
    EXPECT_EQ(counts, Counts{});
    const TestTensor ahead = block.run(true);
    EXPECT_EQ(counts, (Counts{.norms = 2, .silus = 1, .rounded_linears = 6})) << "q, k, v, gate, up and down";
    EXPECT_TRUE(ahead.same_bits(plain));
  }
}

// Several parts have static scales of their own: only down, which is one part, has its input rounded ahead.
TEST(Block, RoundsAheadByOneStaticScale) {
  OneBlock block(DType::kBf16, ActFormat::kE4m3Static);
  const TestTensor plain = block.run(false);
  const TestTensor ahead = block.run(true);
  EXPECT_EQ(counts, (Counts{.norms = 0, .silus = 1, .rounded_linears = 1}));
  EXPECT_TRUE(ahead.same_bits(plain));
}

TEST(Block, RoundsNothingAheadForPartsThatDisagree) {
  OneBlock block(DType::kBf16, ActFormat::kE4m3PerToken, ActFormat::kNative);
  const BlockOps linears = block.find(counting_ops(true));
  EXPECT_EQ(linears.qkv_input, ActFormat::kNative);
  EXPECT_EQ(linears.gate_up_input, ActFormat::kE4m3PerToken);
  EXPECT_EQ(linears.down_input, ActFormat::kE4m3PerToken);
  const TestTensor plain = block.run(false);
  const TestTensor ahead = block.run(true);
  EXPECT_EQ(counts, (Counts{.norms = 1, .silus = 1, .rounded_linears = 3}));
  EXPECT_TRUE(ahead.same_bits(plain));
}

// The quantizer's observers get numbers, and the block's result does not depend on who looks.
TEST(Block, ObserversSeeValues) {
  OneBlock block(DType::kBf16, ActFormat::kE4m3PerToken);
  const TestTensor unseen = block.run(true);
  int points = 0;
  const auto look = [&](BlockPoint, ConstTensorView values) -> Status {
    ++points;
    EXPECT_EQ(values.dtype, DType::kBf16);
    for (int64_t i = 0; i < values.cols(); ++i) EXPECT_TRUE(std::isfinite(values.row<bf16>(0)[i].to_float()));
    return {};
  };
  const BlockObserver observer(look);
  const TestTensor seen = block.run(true, &observer);
  EXPECT_EQ(points, 5);
  EXPECT_EQ(counts, Counts{});
  EXPECT_TRUE(seen.same_bits(unseen));
}

}  // namespace
}  // namespace hearth
