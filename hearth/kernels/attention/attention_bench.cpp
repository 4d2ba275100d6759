// SPDX-License-Identifier: Apache-2.0
// Times attention_cpu: prefill as GFLOP/s (4 channels-keys products per visible pair), decode as GB/s of
// K and V read. Calls rotate over the layers of the pool, so that decode reads past the caches as a model
// does. All threads of the machine, or --threads N.
//   attention_bench [--threads N] [--out FILE]     FILE: jsonl lines are appended
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/memory/host_buffer.h"

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

constexpr Shape4 kShapes[] = {{1, 0, 1},   {1, 127, 1}, {1, 511, 1},  {1, 4095, 1},   {1, 16383, 1},
                              {8, 511, 1}, {1, 0, 128}, {1, 0, 1024}, {1, 3072, 1024}};

class Bench {
 public:
  Bench(const Model& model, KvFormatId format, const Shape4& shape, ThreadPool& pool)
      : model_(model), shape_(shape), context_(shape.past + shape.queries) {
    layout_ = *KvLayout::make(format, model.layers, model.kv_heads, model.head_dim, 16);
    const int64_t blocks_each = (context_ + 15) / 16, tokens = shape.batch * shape.queries;
    pool_memory_ = *HostBuffer::allocate(shape.batch * blocks_each * layout_.block_bytes());
    fill(pool_memory_.data(), pool_memory_.size_bytes(), format == KvFormatId::kF32);
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
    fill(q_.data(), q_.size_bytes(), true);
    workspace_ = *HostBuffer::allocate(
        attention_cpu_workspace_bytes(tokens, model.heads, model.head_dim, context_, pool.size()));
    exec_ = {.pool = &pool, .workspace = workspace_.bytes()};
  }

  Samples time() {
    Samples samples;
    const double budget_us = 300e3;
    double spent = 0;
    for (int64_t i = 0; i < 500 && (i < 8 || spent < budget_us); ++i) {
      const Shape shape{batch_.num_tokens(), model_.heads * model_.head_dim};
      const AttentionArgs args{.q = ConstTensorView(q_.data(), DType::kF32, shape),
                               .out = {out_.data(), DType::kF32, shape},
                               .heads = model_.heads,
                               .scale = 0.0884f,
                               .layer = i % model_.layers,
                               .kv = {pool_memory_.data(), layout_},
                               .batch = &batch_};
      const double us = time_us([&] { HEARTH_CHECK(attention_cpu(args, exec_), "attention failed"); });
      spent += us;
      if (i >= 3) samples.add(us);
    }
    return samples;
  }
  double flops() const {
    const double visible = static_cast<double>(shape_.queries) *
                           (static_cast<double>(shape_.past) + 0.5 * static_cast<double>(shape_.queries + 1));
    return 4.0 * static_cast<double>(shape_.batch * model_.heads * model_.head_dim) * visible;
  }
  double bytes() const {
    return static_cast<double>(shape_.batch * context_ * layout_.bytes_per_token() / layout_.layers);
  }

 private:
  static void fill(std::byte* data, int64_t bytes, bool f32) {
    Random random(5);
    std::vector<float> numbers(4096);
    for (float& x : numbers) x = random.normal();
    for (int64_t i = 0; i < bytes / (f32 ? 4 : 2); ++i) {
      const bf16 narrow = bf16::from_float(numbers[i % 4093]);
      if (f32)
        std::memcpy(data + 4 * i, &numbers[i % 4093], 4);
      else
        std::memcpy(data + 2 * i, &narrow, 2);
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
};

void run(ThreadPool& pool, ResultLines& lines) {
  fmt::print("{:12} {:5} {:>6} {:>8} {:>8} {:>10} {:>18} {:>9} {:>9}\n", "model", "kv", "batch", "past", "queries",
             "us", "p10-p90", "GFLOP/s", "GB/s");
  for (const Model& model : kModels) {
    for (const KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16}) {
      for (const Shape4& shape : kShapes) {
        Bench bench(model, format, shape, pool);
        const Samples samples = bench.time();
        const double us = samples.median(), gflops = bench.flops() / us / 1e3, gbps = bench.bytes() / us / 1e3;
        fmt::print("{:12} {:5} {:6} {:8} {:8} {:10.1f} {:8.1f}-{:<9.1f} {:9.1f} {:9.1f}\n", model.name,
                   kv_format_name(format), shape.batch, shape.past, shape.queries, us, samples.percentile(10),
                   samples.percentile(90), gflops, gbps);
        const std::string common = fmt::format(
            "\"config\": {}, \"kv\": {}, \"batch\": {}, \"heads\": {}, \"kv_heads\": {}, \"head_dim\": {}, \"us\": "
            "{:.1f}, "
            "\"us_p10\": {:.1f}, \"us_p90\": {:.1f}",
            quote(model.name), quote(kv_format_name(format)), shape.batch, model.heads, model.kv_heads, model.head_dim,
            us, samples.percentile(10), samples.percentile(90));
        if (shape.queries == 1)
          lines.write("op.attention.decode",
                      fmt::format("{}, \"context\": {}, \"gbps\": {:.1f}", common, shape.past + 1, gbps));
        else
          lines.write("op.attention.prefill", fmt::format("{}, \"past\": {}, \"length\": {}, \"tflops\": {:.4f}",
                                                          common, shape.past, shape.queries, gflops / 1e3));
      }
    }
  }
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  std::string out;
  int threads = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--out" && i + 1 < argc) {
      out = argv[++i];
    } else if (std::string_view(argv[i]) == "--threads" && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else {
      fmt::print(stderr, "usage: attention_bench [--threads N] [--out FILE]\n");
      return 2;
    }
  }
  hearth::ThreadPool pool(threads);
  hearth::ResultLines lines(out, pool.size(), argc, argv, "");
  hearth::run(pool, lines);
}
