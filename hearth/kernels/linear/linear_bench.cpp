// SPDX-License-Identifier: Apache-2.0
// Speed of linear_cpu. Decode: all linears of a model for one token against a read-only sum over the
// same bytes by the same pool, alternated. Prefill and batch (2 to 64 tokens): one linear against oneDNN,
// alternated. Region: what a loop of the thread pool costs. Weights are random; all of a model's lie in one
// buffer, as after loading.
// Quantized: linear_bench_quantized.h.
//   linear_bench [decode] [prefill] [batch] [region] [quantized-decode] [quantized-prefill] [--only LAYER | FORMAT]
//                [--threads N] [--reps N] [--jsonl FILE] [--note TEXT]
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/kernels/cpu/read_sum.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_bench_onednn.h"
#include "hearth/kernels/linear/linear_bench_quantized.h"
#include "hearth/kernels/linear/linear_cpu_plan.h"
#include "hearth/memory/host_buffer.h"

namespace hearth {
namespace {

struct Options {
  bool decode = false, prefill = false, batch = false, region = false;
  bool quantized_decode = false, quantized_prefill = false;
  int threads = ThreadPool::hardware_threads();
  int reps = 0;  // 0: 40 tokens, 10 products
  std::string jsonl, note;
  std::string only;  // prefill and batch: layers of this name; quantized: formats whose name begins so
};

struct Layer {
  std::string name;
  int64_t n, k;
  int count;  // per token
};
struct Model {
  std::string name;
  std::vector<Layer> layers;
};

Model llama(const char* name, int64_t hidden, int64_t q, int64_t kv, int64_t ffn, int layers, int64_t vocab) {
  return {name,
          {{"qkv", q + 2 * kv, hidden, layers},
           {"o", hidden, q, layers},
           {"gate_up", 2 * ffn, hidden, layers},
           {"down", hidden, ffn, layers},
           {"lm_head", vocab, hidden, 1}}};
}

HostBuffer allocate(int64_t bytes) {
  Result<HostBuffer> buffer = HostBuffer::allocate(bytes);
  if (!buffer) {
    fmt::print(stderr, "linear_bench: {}\n", buffer.error().message);
    std::exit(exit_code(buffer.error().code));
  }
  return std::move(*buffer);
}

// Small random numbers of either type; the values of a 1 MiB piece repeat.
void fill(HostBuffer& buffer, DType dtype) {
  Random random(7);
  const int64_t piece = std::min<int64_t>(buffer.size_bytes(), 1 << 20);
  const int64_t count = piece * 8 / dtype_bits(dtype);
  void* data = buffer.data();
  for (int64_t i = 0; i < count; ++i) {
    const float value = random.uniform(-0.1f, 0.1f);
    if (dtype == DType::kF32) {
      static_cast<float*>(data)[i] = value;
    } else {
      static_cast<bf16*>(data)[i] = bf16::from_float(value);
    }
  }
  for (int64_t at = piece; at < buffer.size_bytes(); at += piece)
    std::memcpy(buffer.data() + at, buffer.data(), std::min(piece, buffer.size_bytes() - at));
}

LinearWeight plain_weight(const std::byte* codes, int64_t n, int64_t k, DType dtype) {
  LinearWeight weight;
  weight.format = WeightFormat::plain(dtype);
  weight.n = n, weight.k = k;
  weight.codes = ConstTensorView(codes, dtype, Shape{n, k});
  return weight;
}

void run(const LinearArgs& args, ExecContext& exec) {
  if (Status status = linear_cpu(args, exec); !status) {
    fmt::print(stderr, "linear_bench: {}\n", status.error().message);
    std::exit(1);
  }
}

void bench_decode(const Model& model, DType dtype, const Options& options, ThreadPool& pool, ResultLines& lines) {
  int64_t bytes = 0, max_n = 0, max_k = 0, workspace_bytes = 0;
  for (const Layer& layer : model.layers) {
    bytes += layer.count * dtype_bytes(dtype, layer.n * layer.k);
    max_n = std::max(max_n, layer.n), max_k = std::max(max_k, layer.k);
    workspace_bytes = std::max(workspace_bytes, linear_cpu_workspace_bytes(1, layer.n, layer.k, pool.size()));
  }
  HostBuffer weights = allocate(bytes), workspace = allocate(workspace_bytes);
  fill(weights, dtype);
  const std::span<const std::byte> all[] = {weights.bytes()};
  std::vector<float> x(max_k, 0.5f), out(max_n);
  ExecContext exec{.pool = &pool, .workspace = workspace.bytes()};

  std::map<std::string, Samples> layer_us;
  Samples sum_us, token_us, ratio;
  uint64_t sink = 0;
  const int reps = options.reps > 0 ? options.reps : 40;
  for (int rep = -3; rep < reps; ++rep) {
    const double sum = time_us([&] { sink += read_sum(all, pool); });
    std::map<std::string, double> spent;
    double token = 0;
    const std::byte* at = weights.data();
    for (const Layer& layer : model.layers)
      for (int i = 0; i < layer.count; ++i) {
        const LinearWeight weight = plain_weight(at, layer.n, layer.k, dtype);
        at += dtype_bytes(dtype, layer.n * layer.k);
        const double us = time_us([&] {
          run({.x = ConstTensorView(x.data(), DType::kF32, Shape{1, layer.k}),
               .weight = &weight,
               .out = TensorView(out.data(), DType::kF32, Shape{1, layer.n})},
              exec);
        });
        spent[layer.name] += us / layer.count;
        token += us;
      }
    if (rep < 0) continue;  // warm-up
    sum_us.add(sum), token_us.add(token), ratio.add(sum / token);
    for (const auto& [name, us] : spent) layer_us[name].add(us);
  }
  fmt::print(
      "decode {} {} {:.0f} MB, {} threads: token {:.0f} us ({:.1f} GB/s), read-only sum {:.0f} us ({:.1f} GB/s), "
      "ratio {:.3f} [{:.3f}, {:.3f}]{}\n",
      model.name, dtype_name(dtype), static_cast<double>(bytes) / 1e6, pool.size(), token_us.median(),
      static_cast<double>(bytes) / token_us.median() / 1e3, sum_us.median(),
      static_cast<double>(bytes) / sum_us.median() / 1e3, ratio.median(), ratio.percentile(10), ratio.percentile(90),
      sink == 1 ? " " : "");
  const auto write = [&](const std::string& layer, int64_t n, int64_t k, const Samples& us, double floor_us,
                         const std::string& more) {
    lines.write("op.linear",
                fmt::format("\"format\": \"{}\", \"act\": \"f32\", \"config\": \"{}\", \"layer\": \"{}\", \"N\": {}, "
                            "\"K\": {}, \"M\": 1, \"us\": {:.1f}, \"us_p10\": {:.1f}, \"us_p90\": {:.1f}, "
                            "\"floor_us\": {:.1f}, \"path\": \"direct\"{}",
                            dtype_name(dtype), model.name, layer, n, k, us.median(), us.percentile(10),
                            us.percentile(90), floor_us, more));
  };
  for (const Layer& layer : model.layers) {
    const double layer_bytes = static_cast<double>(dtype_bytes(dtype, layer.n * layer.k));
    const double floor_us = sum_us.median() * layer_bytes / static_cast<double>(bytes);
    fmt::print("  {:8} [{}, {}] {:.1f} us, {:.1f} GB/s, share of the sum's time {:.3f}\n", layer.name, layer.n, layer.k,
               layer_us[layer.name].median(), layer_bytes / layer_us[layer.name].median() / 1e3,
               floor_us / layer_us[layer.name].median());
    write(layer.name, layer.n, layer.k, layer_us[layer.name], floor_us, "");
  }
  // One token: all linears. The ratio is the median of each round's sum / token.
  write("all", 0, 0, token_us, sum_us.median(),
        fmt::format(", \"ratio_median\": {:.3f}, \"ratio_p10\": {:.3f}, \"ratio_p90\": {:.3f}, \"rounds\": {}",
                    ratio.median(), ratio.percentile(10), ratio.percentile(90), reps));
}

// One product of ours, timed.
struct Ours {
  std::string name;
  DType x_type, weight_type;
  Samples us;
};
struct Peer {
  std::string name;
  std::unique_ptr<OneDnnMatmul> matmul;
  Samples us;
};

void bench_prefill(const char* config, const char* layer, int64_t m, int64_t n, int64_t k, const Options& options,
                   ThreadPool& pool, ResultLines& lines) {
  if (!options.only.empty() && options.only != layer) return;
  std::map<DType, HostBuffer> weights, x;
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    weights[dtype] = allocate(dtype_bytes(dtype, n * k)), x[dtype] = allocate(dtype_bytes(dtype, m * k));
    fill(weights[dtype], dtype), fill(x[dtype], dtype);
  }
  HostBuffer workspace = allocate(linear_cpu_workspace_bytes(m, n, k, pool.size())), out = allocate(m * n * 4);
  auto* out_data = static_cast<float*>(static_cast<void*>(out.data()));
  ExecContext exec{.pool = &pool, .workspace = workspace.bytes()};

  std::vector<Ours> ours;
  ours.push_back({"f32", DType::kF32, DType::kF32, {}});
  ours.push_back({"bf16", DType::kF32, DType::kBf16, {}});
  ours.push_back({"bf16, x bf16", DType::kBf16, DType::kBf16, {}});
  std::vector<Peer> peers;
  for (DType dtype : {DType::kF32, DType::kBf16})
    for (bool own_layout : {false, true}) {
      auto matmul = make_onednn_matmul({m, n, k, dtype, own_layout, x[dtype].data(), weights[dtype].data(), out_data});
      if (!matmul) {
        fmt::print("  {}\n", matmul.error().message);
        continue;
      }
      peers.push_back(
          {fmt::format("onednn-{}{}", dtype_name(dtype), own_layout ? "-packed" : ""), std::move(*matmul), {}});
    }

  const int reps = options.reps > 0 ? options.reps : 10;
  // The threads of one library spin for a while after a call: let them fall asleep before the next.
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
  for (int rep = -1; rep < reps; ++rep) {
    for (Ours& one : ours) {
      pause();
      const LinearWeight weight = plain_weight(weights[one.weight_type].data(), n, k, one.weight_type);
      const double us = time_us([&] {
        run({.x = ConstTensorView(x[one.x_type].data(), one.x_type, Shape{m, k}),
             .weight = &weight,
             .out = TensorView(out_data, DType::kF32, Shape{m, n})},
            exec);
      });
      if (rep >= 0) one.us.add(us);
    }
    for (Peer& peer : peers) {
      pause();
      const double us = time_us([&] { peer.matmul->run(); });
      if (rep >= 0) peer.us.add(us);
    }
  }
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  fmt::print("prefill {} {} M {} N {} K {}, {} threads\n", config, layer, m, n, k, pool.size());
  std::string peer_json;
  for (const Peer& peer : peers) {
    fmt::print("  {:20} {:9.0f} us [{:.0f}, {:.0f}] {:6.1f} GFLOP/s  ({})\n", peer.name, peer.us.median(),
               peer.us.percentile(10), peer.us.percentile(90), flops / peer.us.median() / 1e3,
               peer.matmul->implementation());
    peer_json += fmt::format("{}\"{}\": {:.1f}", peer_json.empty() ? "" : ", ", peer.name, peer.us.median());
  }
  for (const Ours& one : ours) {
    fmt::print("  {:20} {:9.0f} us [{:.0f}, {:.0f}] {:6.1f} GFLOP/s ", one.name, one.us.median(), one.us.percentile(10),
               one.us.percentile(90), flops / one.us.median() / 1e3);
    for (const Peer& peer : peers) fmt::print(" {:.3f} of {}", peer.us.median() / one.us.median(), peer.name);
    fmt::print("\n");
    lines.write(
        "op.linear",
        fmt::format("\"format\": \"{}\", \"act\": \"{}\", \"config\": \"{}\", \"layer\": \"{}\", \"N\": {}, \"K\": {}, "
                    "\"M\": {}, "
                    "\"us\": {:.1f}, \"us_p10\": {:.1f}, \"us_p90\": {:.1f}, \"peers\": {{{}}}, \"path\": \"{}\"",
                    dtype_name(one.weight_type), dtype_name(one.x_type), config, layer, n, k, m, one.us.median(),
                    one.us.percentile(10), one.us.percentile(90), peer_json,
                    m <= linear_plan::kDirectTokens ? "direct" : "panel"));
  }
}

void bench_region(ThreadPool& pool) {
  Samples us;
  for (int batch = 0; batch < 200; ++batch)
    us.add(time_us([&] {
             for (int i = 0; i < 100; ++i) pool.run([](int) {});
           }) /
           100);
  fmt::print("region, {} threads: {:.2f} us [{:.2f}, {:.2f}]\n", pool.size(), us.median(), us.percentile(10),
             us.percentile(90));
}

int main_with(const Options& options, int argc, char** argv) {
  ThreadPool pool(options.threads);
  ResultLines lines(options.jsonl, options.threads, argc, argv, options.note);
  fmt::print("{}\n", lines.device());
  if (options.region) bench_region(pool);
  if (options.decode) {
    const Model fable = llama("fable-82m", 768, 768, 256, 2048, 12, 8192);
    bench_decode(fable, DType::kBf16, options, pool, lines);
    bench_decode(fable, DType::kF32, options, pool, lines);
    bench_decode(llama("Llama-3.2-1B", 2048, 2048, 512, 8192, 16, 128256), DType::kBf16, options, pool, lines);
  }
  if (options.prefill) {
    bench_prefill("fable-82m", "qkv", 512, 1280, 768, options, pool, lines);
    bench_prefill("fable-82m", "o", 512, 768, 768, options, pool, lines);
    bench_prefill("fable-82m", "gate_up", 512, 4096, 768, options, pool, lines);
    bench_prefill("fable-82m", "down", 512, 768, 2048, options, pool, lines);
    bench_prefill("fable-82m", "gate_up", 1024, 4096, 768, options, pool, lines);
    bench_prefill("Llama-3-8B", "o", 512, 4096, 4096, options, pool, lines);
    bench_prefill("Llama-3-8B", "gate", 512, 14336, 4096, options, pool, lines);
    bench_prefill("Llama-3-8B", "down", 512, 4096, 14336, options, pool, lines);
  }
  if (options.batch)
    for (int64_t m : {2, 4, 6, 8, 12, 16, 24, 32, 64}) {
      bench_prefill("fable-82m", "gate_up", m, 4096, 768, options, pool, lines);
      bench_prefill("Llama-3-8B", "o", m, 4096, 4096, options, pool, lines);
    }
  const QuantizedBenchOptions quantized{options.reps, options.only};
  if (options.quantized_decode) bench_quantized_decode(quantized, pool, lines);
  if (options.quantized_prefill) bench_quantized_prefill(quantized, pool, lines);
  return 0;
}

// OpenMP reads its settings when it is loaded: start again with those that make the comparison fair, the
// same number of threads and about the same time of spinning.
void set_openmp(int threads, char** argv) {
  const std::string wanted = std::to_string(threads);
  const char* now = std::getenv("OMP_NUM_THREADS");
  if (now != nullptr && now == wanted && std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  setenv("OMP_NUM_THREADS", wanted.c_str(), 1);
  setenv("GOMP_SPINCOUNT", "2000", 1);
  execv("/proc/self/exe", argv);
}

Options parse(int argc, char** argv) {
  Options options;
  const auto usage = [&] {
    fmt::print(stderr,
               "usage: linear_bench [decode] [prefill] [batch] [region] [quantized-decode] [quantized-prefill] "
               "[--only LAYER | FORMAT] [--threads N] [--reps N] [--jsonl FILE] [--note TEXT]\n");
    std::exit(exit_code(ErrorCode::kInvalidArgument));
  };
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 >= argc) usage();
      return argv[++i];
    };
    const auto number = [&](int& into) {
      const std::string_view text = value();
      if (std::from_chars(text.data(), text.data() + text.size(), into).ptr != text.data() + text.size() || into < 1)
        usage();
    };
    if (arg == "decode")
      options.decode = true;
    else if (arg == "prefill")
      options.prefill = true;
    else if (arg == "batch")
      options.batch = true;
    else if (arg == "region")
      options.region = true;
    else if (arg == "quantized-decode")
      options.quantized_decode = true;
    else if (arg == "quantized-prefill")
      options.quantized_prefill = true;
    else if (arg == "--threads")
      number(options.threads);
    else if (arg == "--reps")
      number(options.reps);
    else if (arg == "--only")
      options.only = value();
    else if (arg == "--jsonl")
      options.jsonl = value();
    else if (arg == "--note")
      options.note = value();
    else
      usage();
  }
  if (!options.decode && !options.prefill && !options.batch && !options.region && !options.quantized_decode &&
      !options.quantized_prefill)
    options.decode = options.prefill = options.batch = options.region = options.quantized_decode =
        options.quantized_prefill = true;
  return options;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  const hearth::Options options = hearth::parse(argc, argv);
  hearth::set_openmp(options.threads, argv);
  return hearth::main_with(options, argc, argv);
}
