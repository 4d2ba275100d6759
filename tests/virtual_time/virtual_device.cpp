// SPDX-License-Identifier: Apache-2.0
#include "tests/virtual_time/virtual_device.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "hearth/memory/host_range.h"

namespace hearth::virtual_time {
namespace {

VirtualDevice* present = nullptr;

// Addresses that nothing lies behind: touching them ends the process.
class Addresses {
 public:
  Addresses(HostRange range, int64_t size_bytes) : range_(std::move(range)), size_bytes_(size_bytes) {}
  std::byte* data() const { return range_.data(); }
  int64_t size_bytes() const { return size_bytes_; }
  Status resize(int64_t size_bytes) {
    size_bytes_ = size_bytes;
    return {};
  }

 private:
  HostRange range_;
  int64_t size_bytes_;
};

// Copies take no time. They would be of the KV pool alone.
class NoQueue final : public Queue {
 public:
  void* stream() const override { return nullptr; }
  Status copy_in(std::byte*, std::span<const std::byte>) override { return {}; }
  Status copy_out(std::span<std::byte>, const std::byte*) override { return {}; }
  Status copy_within(std::byte*, const std::byte*, int64_t) override { return {}; }
  Status synchronize() override { return {}; }
  Result<std::unique_ptr<Recording>> record(std::function<Status()>) override {
    return unsupported("a virtual device records nothing");
  }
};

// Weights and step buffers are the host's; they are small.
class VirtualMemory final : public Memory {
 public:
  std::string_view name() const override { return "virtual"; }
  std::string device_name() const override { return {}; }
  Result<int64_t> available_bytes() const override { return int64_t{1} << 40; }
  bool is_host() const override { return true; }
  Result<Buffer> allocate(int64_t size_bytes) const override { return host_memory().allocate(size_bytes); }
  Result<Buffer> allocate_resizable(int64_t size_bytes, int64_t limit_bytes) const override {
    HEARTH_TRY_ASSIGN(HostRange range, HostRange::create(0, limit_bytes));
    return Buffer(Addresses(std::move(range), size_bytes));
  }
  Result<Buffer> allocate_staging(int64_t size_bytes) const override { return host_memory().allocate(size_bytes); }
  Result<std::unique_ptr<Queue>> create_queue() const override {
    return std::unique_ptr<Queue>(std::make_unique<NoQueue>());
  }
};

const Memory& virtual_memory() {
  static const VirtualMemory memory;
  return memory;
}

template <class Args>
Status nothing(const Args&, ExecContext&) {
  return {};
}

constexpr int32_t kToken = 'a';

Status draw(const SampleArgs& args, ExecContext&) {
  for (SampleResult& result : args.results) result.token = kToken;
  return {};
}

// Weights have 8 heads of 128 as Llama-3-8B, so that its KV formats have the sizes that they truly have.
constexpr int64_t kHeads = 8, kHeadDim = 128;

Result<KvFormatId> format_of(const LoadModel& model, int64_t block_tokens) {
  for (const KvFormatId format :
       {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4, KvFormatId::kInt4Saw}) {
    HEARTH_TRY_ASSIGN(const KvLayout layout, KvLayout::make(format, model.layers, kHeads, kHeadDim, block_tokens));
    if (layout.block_bytes() == model.kv_token_bytes * block_tokens) return format;
  }
  return invalid_argument("{}: no KV format of {} layers with {} heads of {} has {} bytes a token", model.name,
                          model.layers, kHeads, kHeadDim, model.kv_token_bytes);
}

}  // namespace

struct VirtualDevice::Ops {
  static Status embedding(const EmbeddingArgs& args, ExecContext&) {
    const auto found = present->costs_.find(args.table.data);
    if (found != present->costs_.end()) present->cost_ = &found->second;  // else it gathers rows
    return {};
  }

  static Status attention(const AttentionArgs& args, ExecContext&) {
    if (args.layer + 1 < args.kv.layout.layers) return {};
    VirtualDevice& device = *present;
    const double part = device.noise_ > 0 ? std::max(0.1, 1 + device.noise_ * device.random_.normal()) : 1;
    device.clock_.sleep(std::max<int64_t>(1, std::llround(device.cost_->us(load_of(*args.batch)) * part * 1e3)));
    return {};
  }

  static const OpTable& table() {
    static const LinearOp linear{.name = "nothing",
                                 .workspace_bytes = [](int64_t, int64_t, int64_t, int) { return int64_t{0}; },
                                 .run = nothing<LinearArgs>};
    static const OpTable ops{
        .backend = "virtual",
        .embedding = embedding,
        .rmsnorm = nothing<RmsNormArgs>,
        .rope_table = nothing<RopeTableArgs>,
        .rope_kv_write = nothing<RopeKvWriteArgs>,
        .attention = attention,
        .attention_workspace_bytes = [](int64_t, int64_t, int64_t, int64_t, int) { return int64_t{0}; },
        .silu_mul = nothing<SiluMulArgs>,
        .sample = draw,
        .sample_workspace_bytes = [](int64_t, int) { return int64_t{0}; },
        .find_linear = [](const WeightFormat&, DType) { return &linear; },
        .supports_kv = [](KvFormatId) { return true; },
        .memory = virtual_memory};
    return ops;
  }
};

VirtualDevice::VirtualDevice(const VirtualClock& clock, double noise, uint64_t seed)
    : clock_(clock), noise_(noise), random_(seed) {
  HEARTH_CHECK(present == nullptr, "two virtual devices at once");
  present = this;
}

VirtualDevice::~VirtualDevice() { present = nullptr; }

// A sequence's last known token, which has a row of logits, is no token of a prompt (StepCost).
StepLoad VirtualDevice::load_of(const StepBatch& batch) {
  StepLoad load{.sequences = static_cast<double>(batch.num_sequences())};
  for (int64_t s = 0; s < batch.num_sequences(); ++s) {
    const int64_t context = batch.context_len[static_cast<size_t>(s)], begin = context - batch.query_len(s);
    const int32_t last = batch.query_start[static_cast<size_t>(s) + 1] - 1;
    const int64_t end = context - std::ranges::binary_search(batch.logit_rows, last);
    load.context_tokens += static_cast<double>(context);
    load.prefill_tokens += static_cast<double>(end - begin);
    load.prefill_pairs += static_cast<double>((end - begin) * (begin + 1 + end)) / 2;
  }
  return load;
}

Result<std::shared_ptr<const ServedModel>> VirtualDevice::load(const LoadModel& model, int64_t block_tokens,
                                                               int64_t max_context) {
  HEARTH_TRY_ASSIGN(const KvFormatId format, format_of(model, block_tokens));
  HEARTH_TRY_ASSIGN(Tokenizer tokenizer, Tokenizer::bytes());
  HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config({{"architectures", {"LlamaForCausalLM"}},
                                                                  {"hidden_size", 32},
                                                                  {"intermediate_size", 32},
                                                                  {"num_hidden_layers", model.layers},
                                                                  {"num_attention_heads", kHeads},
                                                                  {"num_key_value_heads", kHeads},
                                                                  {"head_dim", kHeadDim},
                                                                  {"max_position_embeddings", max_context},
                                                                  {"vocab_size", tokenizer.vocab_size()}}));
  ThreadPool pool(1);
  HEARTH_TRY_ASSIGN(const auto weights, Model::dummy(config, Ops::table(), {}, DType::kBf16, 1, pool));
  costs_[weights->weights().embedding.data] = model.cost;
  return std::make_shared<const ServedModel>(ServedModel{.name = model.name,
                                                         .dir = {},
                                                         .model = weights,
                                                         .tokenizer = std::move(tokenizer),
                                                         .chat_template = {},
                                                         .grammars = {},
                                                         .defaults = {},
                                                         .kv_format = format,
                                                         .max_context = max_context,
                                                         .end_ids = {},
                                                         .allowed = {}});
}

}  // namespace hearth::virtual_time
