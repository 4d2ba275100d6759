// SPDX-License-Identifier: Apache-2.0
// Times attention on a GPU: decode and prefill, each inside a CUDA graph of calls that follow one another over several
// layers, so that no call finds its keys and values in L2. KV caches take turns, replay by replay: in BF16 a tensor for
// each layer, and blocks of all layers scattered over slabs of 32 MiB; for prompts, a tensor for each layer in each coded
// format. `--cores 1` adds the latter in blocks of 12 tokens, which tensor cores do not take.
//   attention_sm90_bench [--out FILE] [--note TEXT] [--only decode|prefill] [--shape BATCHxLENGTHxHEADSxKV_HEADS]
//                        [--cores 1]
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/memory/cuda/cuda_memory.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/step_staging.h"

namespace hearth {
namespace {

constexpr int64_t kBlockTokens = 16, kCoresBlockTokens = 12;
constexpr int64_t kSlabBytes = int64_t{32} << 20;
constexpr double kCopyBytesPerUs = 3.026e6;  // what a copy within an H100's memory reaches (bench/peers)
constexpr int kRounds = 15, kWarmUps = 2;

struct Problem {
  bool decode;
  int64_t batch, length, heads, kv_heads, head_dim;
  int64_t past = 0;  // of the length: tokens of earlier steps

  int64_t queries() const { return decode ? 1 : length - past; }
  int64_t tokens() const { return batch * queries(); }
  int64_t token_bytes() const { return kv_heads * head_dim * 2 * 2; }  // of one layer, in BF16
  // Keys and values of the contexts, queries and results.
  double bytes(int64_t kv_bits) const {
    return static_cast<double>(batch * length * kv_heads * head_dim * 2 * kv_bits / 8 +
                               tokens() * heads * head_dim * 2 * 2);
  }
  double flops() const {
    const auto n = static_cast<double>(length);
    const auto before = static_cast<double>(past);
    return 4.0 * static_cast<double>(batch * heads * head_dim) * (decode ? n : (n * n - before * before) / 2);
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
    {false, 1, 4096, 28, 4, 128},   {false, 1, 4096, 32, 8, 64},    {false, 1, 4096, 32, 8, 128, 2048},
};

DeviceBuffer random_bf16(int64_t bytes, uint16_t mask = 0xFFFF) {
  std::vector<uint16_t> host(static_cast<size_t>(bytes / 2));
  Random random(11);
  const size_t piece = std::min<size_t>(host.size(), 1 << 20);
  for (size_t i = 0; i < piece; ++i) host[i] = bf16::from_float(random.normal()).bits & mask;
  for (size_t i = piece; i < host.size(); i += piece)
    std::memcpy(&host[i], host.data(), 2 * std::min(piece, host.size() - i));
  DeviceBuffer buffer = or_exit(DeviceBuffer::allocate(bytes));
  or_exit(buffer.copy_from_host(std::as_bytes(std::span(host))));
  return buffer;
}

// Of a code.
int64_t kv_bits(KvFormatId format) { return format == KvFormatId::kBf16 ? 16 : format == KvFormatId::kFp8 ? 8 : 4; }

// Where the blocks of a step lie.
struct Pool {
  std::string name;
  KvLayout layout;
  int64_t bytes = 0;
  std::vector<int64_t> offsets;

  // A tensor [blocks, K or V, kv heads, tokens, channels] for each layer.
  static Pool layers(const Problem& p, int64_t layers, KvFormatId format, int64_t block_tokens) {
    const int64_t blocks = p.batch * ((p.length + block_tokens - 1) / block_tokens);
    Pool pool{"layers", or_exit(KvLayout::make(format, layers, p.kv_heads, p.head_dim, block_tokens)), 0, {}};
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

void bench(const Problem& p, bool cores, ResultLines& lines) {
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
  const auto add = [&](Pool pool) { rivals.push_back({std::move(pool), {}, {}, {}, {}, {}, {}, {}, {}, {}}); };
  add(Pool::layers(p, layers, KvFormatId::kBf16, kBlockTokens));
  add(Pool::slabs(p, layers, blocks));
  if (!p.decode)
    for (KvFormatId format : {KvFormatId::kFp8, KvFormatId::kInt4, KvFormatId::kInt4Saw}) {
      add(Pool::layers(p, layers, format, kBlockTokens));
      if (cores) add(Pool::layers(p, layers, format, kCoresBlockTokens));
    }
  for (Rival& rival : rivals) {
    const KvLayout& layout = rival.pool.layout;
    // As E4M3 and as f16 these bytes are numbers below 2.
    rival.memory = random_bf16(rival.pool.bytes, layout.format == KvFormatId::kBf16 ? 0xFFFF : 0xBFBF);
    rival.query_start.push_back(0);
    const int64_t queries = p.queries(), entries = std::ssize(rival.pool.offsets);
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
                         .block_table_stride = entries / p.batch};
    rival.staging = or_exit(StepStaging::create(
        cuda_memory(), {.tokens = p.tokens(), .sequences = p.batch, .logit_rows = 0, .block_entries = entries}));
    rival.batch = or_exit(rival.staging.stage(host, *queue));
    or_exit(queue->synchronize());
    ExecContext exec{.stream = stream.handle(),
                     .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)},
                     .staged = rival.staging.memory()};
    const auto run = [&](int64_t layer) {
      return attention_sm90({.q = ConstTensorView(q.data(), DType::kBf16, Shape{p.tokens(), p.heads * p.head_dim}),
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
  fmt::print("{} batch {} length {}, {} before, heads {}/{} of {}\n", p.decode ? "decode " : "prefill", p.batch,
             p.length, p.past, p.heads, p.kv_heads, p.head_dim);
  for (const Rival& rival : rivals) {
    const double us = rival.us.median();
    const KvLayout& layout = rival.pool.layout;
    const std::string_view kv = kv_format_name(layout.format);
    const double bytes = p.bytes(kv_bits(layout.format)), floor_us = bytes / kCopyBytesPerUs;
    fmt::print("  {:8} {:7} of {:2} {:8.1f} us [{:.1f}, {:.1f}]", kv, rival.pool.name, layout.block_tokens, us,
               rival.us.percentile(10), rival.us.percentile(90));
    if (p.decode) {
      fmt::print(" {:7.1f} GB/s, floor {:.1f} us: {:.1f} %\n", bytes / us / 1e3, floor_us, 100 * floor_us / us);
    } else {
      fmt::print(" {:7.1f} TFLOP/s, {:.3f} of the first's speed\n", p.flops() / us / 1e6, rivals[0].us.median() / us);
    }
    lines.write(
        p.decode ? "op.attention.decode" : "op.attention.prefill",
        fmt::format("\"kv\": {}, \"block_tokens\": {}, \"batch\": {}, \"{}\": {}, \"past\": {}, \"heads\": {}, "
                    "\"kv_heads\": {}, "
                    "\"head_dim\": {}, \"layout\": {}, \"layers\": {}, \"us\": {:.2f}, \"us_p10\": {:.2f}, "
                    "\"us_p90\": {:.2f}, \"floor_us\": {:.2f}, \"gbps\": {:.1f}, \"tflops\": {:.2f}",
                    quote(kv), layout.block_tokens, p.batch, p.decode ? "context" : "length", p.length, p.past, p.heads,
                    p.kv_heads, p.head_dim, quote(rival.pool.name), layers, us, rival.us.percentile(10),
                    rival.us.percentile(90), floor_us, bytes / us / 1e3, p.flops() / us / 1e6));
  }
  std::fflush(stdout);
}

int main_with(int argc, char** argv) {
  std::string only, out, note, shape;
  bool cores = false;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--only") only = argv[i + 1];
    if (name == "--out") out = argv[i + 1];
    if (name == "--note") note = argv[i + 1];
    if (name == "--shape") shape = argv[i + 1];
    if (name == "--cores") cores = argv[i + 1] == std::string_view("1");
  }
  ResultLines lines(out, 1, argc, argv, note);
  lines.set_device(or_exit(cuda_device_info(0)).name);
  fmt::print("{}\n", lines.device());
  for (const Problem& problem : kProblems)
    if ((only.empty() || (only == "decode") == problem.decode) &&
        (shape.empty() ||
         shape == fmt::format("{}x{}x{}x{}", problem.batch, problem.length, problem.heads, problem.kv_heads)))
      bench(problem, cores, lines);
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_with(argc, argv); }
