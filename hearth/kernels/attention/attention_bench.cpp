// SPDX-License-Identifier: Apache-2.0
// Times attention_cpu: prefill as GFLOP/s (4 channels-keys products per visible pair), decode as GB/s of
// K and V read. Calls rotate over the layers of the pool, so that decode reads past the caches as a model
// does. All threads of the machine, or --threads N.
//   attention_bench [--threads N] [--model NAME] [--out FILE]     FILE: jsonl lines are appended
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/tensor/kv_codec.h"

namespace hearth {
namespace {

struct Model {
  std::string_view name;
  int64_t heads, kv_heads, head_dim, layers;
};

constexpr Model kModels[] = {
    {"fable-82m", 6, 2, 128, 12}, {"Llama-3-8B", 32, 8, 128, 8}, {"Qwen2-0.5B", 14, 2, 64, 24}};

struct Shape4 {
  int64_t batch, past, queries;
};

constexpr Shape4 kShapes[] = {{1, 0, 1},     {1, 127, 1}, {1, 511, 1}, {1, 1023, 1}, {1, 4095, 1},   {1, 8191, 1},
                              {1, 16383, 1}, {8, 511, 1}, {1, 0, 128}, {1, 0, 1024}, {1, 3072, 1024}};

constexpr KvFormatId kFormats[] = {KvFormatId::kBf16, KvFormatId::kF32,       KvFormatId::kFp8,
                                   KvFormatId::kInt4, KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw};

class Bench {
 public:
  Bench(const Model& model, KvFormatId format, const Shape4& shape, ThreadPool& pool)
      : model_(model), shape_(shape), context_(shape.past + shape.queries) {
    layout_ = *KvLayout::make(format, model.layers, model.kv_heads, model.head_dim, 16);
    const int64_t blocks_each = (context_ + 15) / 16, tokens = shape.batch * shape.queries;
    pool_memory_ = *HostBuffer::allocate(shape.batch * blocks_each * layout_.block_bytes());
    fill_pool();
    query_start_.push_back(0);
    for (int64_t s = 0; s < shape.batch; ++s) {
      query_start_.push_back(query_start_.back() + static_cast<int32_t>(shape.queries));
      context_len_.push_back(static_cast<int32_t>(context_));
      for (int64_t b = 0; b < blocks_each; ++b) table_.push_back((s * blocks_each + b) * layout_.block_bytes());
    }
    tokens_.assign(tokens, 0);
    batch_ = {.tokens = tokens_,
              .positions = tokens_,
              .query_start = query_start_,
              .context_len = context_len_,
              .block_table = table_,
              .block_table_stride = blocks_each};
    q_ = *HostBuffer::allocate(tokens * model.heads * model.head_dim * 4);
    out_ = *HostBuffer::allocate(q_.size_bytes());
    fill(q_.data(), q_.size_bytes() / 4);
    workspace_ = *HostBuffer::allocate(
        attention_cpu_workspace_bytes(tokens, model.heads, model.head_dim, context_, pool.size()));
    exec_ = {.pool = &pool, .workspace = workspace_.bytes()};
  }

  // One call, the layers in turn; its microseconds.
  double sample(bool warm_up) {
    const Shape shape{batch_.num_tokens(), model_.heads * model_.head_dim};
    const AttentionArgs args{.q = ConstTensorView(q_.data(), DType::kF32, shape),
                             .out = {out_.data(), DType::kF32, shape},
                             .heads = model_.heads,
                             .scale = 0.0884f,
                             .layer = calls_++ % model_.layers,
                             .kv = {pool_memory_.data(), layout_},
                             .batch = &batch_};
    const double us = time_us([&] { HEARTH_CHECK(attention_cpu(args, exec_), "attention failed"); });
    if (!warm_up) samples_.add(us);
    return us;
  }
  const Samples& samples() const { return samples_; }
  double flops() const {
    const double visible = static_cast<double>(shape_.queries) *
                           (static_cast<double>(shape_.past) + 0.5 * static_cast<double>(shape_.queries + 1));
    return 4.0 * static_cast<double>(shape_.batch * model_.heads * model_.head_dim) * visible;
  }
  double bytes() const {
    return static_cast<double>(shape_.batch * context_ * layout_.bytes_per_token() / layout_.layers);
  }

 private:
  static void fill(std::byte* data, int64_t floats) {
    Random random(5);
    for (int64_t i = 0; i < floats; ++i) {
      const float number = random.normal();
      std::memcpy(data + 4 * i, &number, 4);
    }
  }
  // Random heads, of which 61 are encoded and the rest are copies.
  void fill_pool() {
    Random random(5);
    constexpr int64_t kHeads = 61;
    std::vector<std::byte> codes(kHeads * layout_.token_stride_bytes), steps(kHeads * layout_.scale_bytes + 1);
    std::vector<float> x(layout_.head_dim);
    for (int64_t i = 0; i < kHeads; ++i) {
      for (float& number : x) number = random.normal();
      store_kv_head(layout_.format, x, 1, &codes[i * layout_.token_stride_bytes], &steps[i * layout_.scale_bytes]);
    }
    int64_t next = 0;
    for (std::byte* half = pool_memory_.data(); half < pool_memory_.data() + pool_memory_.size_bytes();
         half += layout_.v_offset_bytes)
      for (int64_t h = 0; h < layout_.kv_heads; ++h)
        for (int64_t t = 0; t < layout_.block_tokens; ++t, next = (next + 1) % kHeads) {
          std::memcpy(half + h * layout_.head_stride_bytes + t * layout_.token_stride_bytes,
                      &codes[next * layout_.token_stride_bytes], layout_.token_stride_bytes);
          std::memcpy(half + layout_.scale_offset_bytes + h * layout_.scale_head_stride_bytes +
                          t * layout_.scale_token_stride_bytes,
                      &steps[next * layout_.scale_bytes], layout_.scale_bytes);
        }
  }

  Model model_;
  Shape4 shape_;
  int64_t context_;
  KvLayout layout_;
  HostBuffer pool_memory_, q_, out_, workspace_;
  std::vector<int32_t> query_start_, context_len_, tokens_;
  std::vector<int64_t> table_;
  StepBatch batch_;
  ExecContext exec_;
  int64_t calls_ = 0;
  Samples samples_;
};

// One shape in all formats, whose calls alternate: a disturbance of the machine meets all of them.
void run_shape(const Model& model, const Shape4& shape, ThreadPool& pool, ResultLines& lines) {
  std::vector<std::unique_ptr<Bench>> benches;
  for (const KvFormatId format : kFormats) benches.push_back(std::make_unique<Bench>(model, format, shape, pool));
  const double budget_us = 1e6;
  double spent_us = 0;
  for (int64_t i = 0; i < 500 && (i < 8 || spent_us < budget_us); ++i)
    for (const auto& bench : benches) spent_us += bench->sample(i < 3);
  const double bf16_us = benches.front()->samples().median();
  for (size_t i = 0; i < benches.size(); ++i) {
    const Bench& bench = *benches[i];
    const Samples& samples = bench.samples();
    const std::string_view format = kv_format_name(kFormats[i]);
    const double us = samples.median(), gflops = bench.flops() / us / 1e3, gbps = bench.bytes() / us / 1e3;
    fmt::print("{:12} {:10} {:6} {:8} {:8} {:10.1f} {:8.1f}-{:<9.1f} {:7.2f} {:9.1f} {:9.1f}\n", model.name, format,
               shape.batch, shape.past, shape.queries, us, samples.percentile(10), samples.percentile(90), us / bf16_us,
               gflops, gbps);
    const std::string common = fmt::format(
        "\"config\": {}, \"kv\": {}, \"batch\": {}, \"heads\": {}, \"kv_heads\": {}, \"head_dim\": {}, \"us\": {:.1f}, "
        "\"us_p10\": {:.1f}, \"us_p90\": {:.1f}, \"ratio_to_bf16\": {:.3f}",
        quote(model.name), quote(format), shape.batch, model.heads, model.kv_heads, model.head_dim, us,
        samples.percentile(10), samples.percentile(90), us / bf16_us);
    if (shape.queries == 1)
      lines.write("op.attention.decode",
                  fmt::format("{}, \"context\": {}, \"gbps\": {:.1f}", common, shape.past + 1, gbps));
    else
      lines.write("op.attention.prefill", fmt::format("{}, \"past\": {}, \"length\": {}, \"tflops\": {:.4f}", common,
                                                      shape.past, shape.queries, gflops / 1e3));
  }
}

void run(ThreadPool& pool, std::string_view only, ResultLines& lines) {
  fmt::print("{:12} {:10} {:>6} {:>8} {:>8} {:>10} {:>18} {:>7} {:>9} {:>9}\n", "model", "kv", "batch", "past",
             "queries", "us", "p10-p90", "/ bf16", "GFLOP/s", "GB/s");
  for (const Model& model : kModels)
    if (only.empty() || only == model.name)
      for (const Shape4& shape : kShapes) run_shape(model, shape, pool, lines);
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  std::string out, model;
  int threads = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--out" && i + 1 < argc) {
      out = argv[++i];
    } else if (std::string_view(argv[i]) == "--threads" && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else if (std::string_view(argv[i]) == "--model" && i + 1 < argc) {
      model = argv[++i];
    } else {
      fmt::print(stderr, "usage: attention_bench [--threads N] [--model NAME] [--out FILE]\n");
      return 2;
    }
  }
  hearth::ThreadPool pool(threads);
  hearth::ResultLines lines(out, pool.size(), argc, argv, "");
  hearth::run(pool, model, lines);
}
