// SPDX-License-Identifier: Apache-2.0
// Times BF16 attention on a GPU: decode and prefill, each inside a CUDA graph of calls that follow one another over
// several layers, so that no call finds its keys and values in L2. Two layouts of the same KV cache take turns, replay
// by replay: a tensor for each layer, and blocks of all layers scattered over slabs of 32 MiB.
//   attention_sm90_bench [--out FILE] [--note TEXT] [--only decode|prefill] [--shape BATCHxLENGTHxHEADSxKV_HEADS]
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/attention/attention_bf16_sm90.h"
#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/memory/cuda/cuda_memory.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/step_staging.h"

namespace hearth {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kSlabBytes = int64_t{32} << 20;
constexpr double kCopyBytesPerUs = 3.026e6;  // what a copy within an H100's memory reaches (bench/peers)
constexpr int kRounds = 15, kWarmUps = 2;

struct Problem {
  bool decode;
  int64_t batch, length, heads, kv_heads, head_dim;

  int64_t tokens() const { return decode ? batch : batch * length; }
  int64_t token_bytes() const { return kv_heads * head_dim * 2 * 2; }  // of one layer
  // Keys and values of the contexts, queries and results.
  double bytes() const {
    return static_cast<double>(batch * length * token_bytes() + tokens() * heads * head_dim * 2 * 2);
  }
  double flops() const {
    const auto n = static_cast<double>(length);
    return 4.0 * static_cast<double>(batch * heads * head_dim) * (decode ? n : n * n / 2);
  }
};

constexpr Problem kProblems[] = {
    {true, 1, 1024, 32, 8, 128},    {true, 1, 4096, 32, 8, 128},    {true, 1, 16384, 32, 8, 128},
    {true, 8, 1024, 32, 8, 128},    {true, 8, 4096, 32, 8, 128},    {true, 32, 1024, 32, 8, 128},
    {true, 32, 4096, 32, 8, 128},   {true, 128, 1024, 32, 8, 128},  {true, 32, 4096, 28, 4, 128},
    {true, 32, 1024, 32, 32, 128},  {true, 32, 4096, 16, 4, 64},    {false, 1, 1024, 32, 32, 128},
    {false, 4, 1024, 32, 32, 128},  {false, 16, 1024, 32, 32, 128}, {false, 1, 4096, 32, 32, 128},
    {false, 1, 16384, 32, 32, 128}, {false, 1, 1024, 32, 8, 128},   {false, 4, 1024, 32, 8, 128},
    {false, 16, 1024, 32, 8, 128},  {false, 1, 4096, 32, 8, 128},   {false, 1, 16384, 32, 8, 128},
    {false, 1, 4096, 28, 4, 128},   {false, 1, 4096, 32, 8, 64},
};

DeviceBuffer random_bf16(int64_t bytes) {
  std::vector<uint16_t> host(static_cast<size_t>(bytes / 2));
  Random random(11);
  const size_t piece = std::min<size_t>(host.size(), 1 << 20);
  for (size_t i = 0; i < piece; ++i) host[i] = bf16::from_float(random.normal()).bits;
  for (size_t i = piece; i < host.size(); i += piece)
    std::memcpy(&host[i], host.data(), 2 * std::min(piece, host.size() - i));
  DeviceBuffer buffer = or_exit(DeviceBuffer::allocate(bytes));
  or_exit(buffer.copy_from_host(std::as_bytes(std::span(host))));
  return buffer;
}

// Where the blocks of a step lie.
struct Pool {
  std::string name;
  KvLayout layout;
  int64_t bytes = 0;
  std::vector<int64_t> offsets;

  // A tensor [blocks, K or V, kv heads, tokens, channels] for each layer.
  static Pool layers(const Problem& p, int64_t layers, int64_t blocks) {
    Pool pool{
        "layers", or_exit(KvLayout::make(KvFormatId::kBf16, layers, p.kv_heads, p.head_dim, kBlockTokens)), 0, {}};
    const int64_t block_bytes = pool.layout.layer_stride_bytes;
    pool.layout.layer_stride_bytes = blocks * block_bytes;
    pool.bytes = layers * blocks * block_bytes;
    for (int64_t b = 0; b < blocks; ++b) pool.offsets.push_back(b * block_bytes);
    return pool;
  }
  // Blocks of all layers in slabs, in random order.
  static Pool slabs(const Problem& p, int64_t layers, int64_t blocks) {
    Pool pool{"slabs", or_exit(KvLayout::make(KvFormatId::kBf16, layers, p.kv_heads, p.head_dim, kBlockTokens)), 0, {}};
    const int64_t block_bytes = pool.layout.block_bytes(), per_slab = std::max<int64_t>(1, kSlabBytes / block_bytes);
    const int64_t slab_bytes = std::max(kSlabBytes, block_bytes);
    const int64_t slabs = (blocks + per_slab - 1) / per_slab;
    for (int64_t b = 0; b < slabs * per_slab; ++b)
      pool.offsets.push_back(b / per_slab * slab_bytes + b % per_slab * block_bytes);
    Random random(12);
    for (size_t i = pool.offsets.size() - 1; i > 0; --i)
      std::swap(pool.offsets[i], pool.offsets[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    pool.offsets.resize(static_cast<size_t>(blocks));
    pool.bytes = slabs * slab_bytes;
    return pool;
  }
};

// A layout with its step on the device and its graph.
struct Rival {
  Pool pool;
  DeviceBuffer memory;
  std::vector<int32_t> tokens, positions, query_start, context_len;
  StepStaging staging;
  StepBatch batch;
  Graph graph;
  Samples us;
};

void bench(const Problem& p, ResultLines& lines) {
  const int64_t blocks_each = (p.length + kBlockTokens - 1) / kBlockTokens, blocks = p.batch * blocks_each;
  const int64_t layer_bytes = p.batch * p.length * p.token_bytes();
  const int64_t layers = std::clamp<int64_t>((int64_t{400} << 20) / layer_bytes + 1, 2, 32);
  const int64_t calls = p.decode ? 2 * layers : layers;
  const int64_t row_bytes = p.heads * p.head_dim * 2;
  const DeviceBuffer q = random_bf16(p.tokens() * row_bytes);
  const DeviceBuffer out = or_exit(DeviceBuffer::allocate(p.tokens() * row_bytes));
  const int64_t workspace_bytes = attention_sm90_workspace_bytes(p.tokens(), p.heads, p.head_dim, p.length, 1);
  const DeviceBuffer workspace = or_exit(DeviceBuffer::allocate(workspace_bytes));
  const Stream stream = or_exit(Stream::create());
  const std::unique_ptr<Queue> queue = or_exit(cuda_memory().create_queue());
  Event begin = or_exit(Event::create()), end = or_exit(Event::create());

  std::vector<Rival> rivals;
  rivals.push_back({Pool::layers(p, layers, blocks), {}, {}, {}, {}, {}, {}, {}, {}, {}});
  rivals.push_back({Pool::slabs(p, layers, blocks), {}, {}, {}, {}, {}, {}, {}, {}, {}});
  for (Rival& rival : rivals) {
    rival.memory = random_bf16(rival.pool.bytes);
    rival.query_start.push_back(0);
    const int64_t queries = p.decode ? 1 : p.length;
    for (int64_t s = 0; s < p.batch; ++s) {
      rival.context_len.push_back(static_cast<int32_t>(p.length));
      rival.query_start.push_back(static_cast<int32_t>((s + 1) * queries));
      for (int64_t i = p.length - queries; i < p.length; ++i) rival.positions.push_back(static_cast<int32_t>(i));
    }
    rival.tokens.assign(rival.positions.size(), 0);
    const StepBatch host{.tokens = rival.tokens,
                         .positions = rival.positions,
                         .query_start = rival.query_start,
                         .context_len = rival.context_len,
                         .block_table = rival.pool.offsets,
                         .block_table_stride = blocks_each};
    rival.staging = or_exit(StepStaging::create(
        cuda_memory(), {.tokens = p.tokens(), .sequences = p.batch, .logit_rows = 0, .block_entries = blocks}));
    rival.batch = or_exit(rival.staging.stage(host, *queue));
    or_exit(queue->synchronize());
    ExecContext exec{.stream = stream.handle(),
                     .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)},
                     .staged = rival.staging.memory()};
    const auto run = [&](int64_t layer) {
      return attention_bf16_sm90({.q = ConstTensorView(q.data(), DType::kBf16, Shape{p.tokens(), p.heads * p.head_dim}),
                                  .out = TensorView(out.data(), DType::kBf16, Shape{p.tokens(), p.heads * p.head_dim}),
                                  .heads = p.heads,
                                  .scale = 0.088f,
                                  .layer = layer,
                                  .kv = {rival.memory.data(), rival.pool.layout},
                                  .batch = &rival.batch},
                                 exec);
    };
    or_exit(run(0));
    or_exit(stream.synchronize());
    rival.graph = or_exit(Graph::capture(stream, [&]() -> Status {
      for (int64_t i = 0; i < calls; ++i) HEARTH_TRY(run(i % layers));
      return {};
    }));
  }
  for (int round = -kWarmUps; round < kRounds; ++round)
    for (Rival& rival : rivals) {
      or_exit(begin.record(stream));
      or_exit(rival.graph.launch(stream));
      or_exit(end.record(stream));
      const double us = or_exit(end.us_since(begin)) / static_cast<double>(calls);
      if (round >= 0) rival.us.add(us);
    }
  const double floor_us = p.bytes() / kCopyBytesPerUs;
  fmt::print("{} batch {} length {} heads {}/{} of {}\n", p.decode ? "decode " : "prefill", p.batch, p.length, p.heads,
             p.kv_heads, p.head_dim);
  for (const Rival& rival : rivals) {
    const double us = rival.us.median();
    fmt::print("  {:7} {:8.1f} us [{:.1f}, {:.1f}]", rival.pool.name, us, rival.us.percentile(10),
               rival.us.percentile(90));
    if (p.decode) {
      fmt::print(" {:7.1f} GB/s, floor {:.1f} us: {:.1f} %\n", p.bytes() / us / 1e3, floor_us, 100 * floor_us / us);
    } else {
      fmt::print(" {:7.1f} TFLOP/s\n", p.flops() / us / 1e6);
    }
    lines.write(p.decode ? "op.attention.decode" : "op.attention.prefill",
                fmt::format("\"kv\": \"bf16\", \"batch\": {}, \"{}\": {}, \"heads\": {}, \"kv_heads\": {}, "
                            "\"head_dim\": {}, \"layout\": {}, \"layers\": {}, \"us\": {:.2f}, \"us_p10\": {:.2f}, "
                            "\"us_p90\": {:.2f}, \"floor_us\": {:.2f}, \"gbps\": {:.1f}, \"tflops\": {:.2f}",
                            p.batch, p.decode ? "context" : "length", p.length, p.heads, p.kv_heads, p.head_dim,
                            quote(rival.pool.name), layers, us, rival.us.percentile(10), rival.us.percentile(90),
                            floor_us, p.bytes() / us / 1e3, p.flops() / us / 1e6));
  }
  std::fflush(stdout);
}

int main_with(int argc, char** argv) {
  std::string only, out, note, shape;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--only") only = argv[i + 1];
    if (name == "--out") out = argv[i + 1];
    if (name == "--note") note = argv[i + 1];
    if (name == "--shape") shape = argv[i + 1];
  }
  ResultLines lines(out, 1, argc, argv, note);
  lines.set_device(or_exit(cuda_device_info(0)).name);
  fmt::print("{}\n", lines.device());
  for (const Problem& problem : kProblems)
    if ((only.empty() || (only == "decode") == problem.decode) &&
        (shape.empty() ||
         shape == fmt::format("{}x{}x{}x{}", problem.batch, problem.length, problem.heads, problem.kv_heads)))
      bench(problem, lines);
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_with(argc, argv); }
