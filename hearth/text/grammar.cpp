// SPDX-License-Identifier: Apache-2.0
// Grammars over the text bridge. GrammarCompiler and Grammar hold handles that are only read after they are made; any
// thread. A GrammarState's handle is its own. Compilation runs on a thread of its own for the sake of its stack: the
// compiler recurses with the schema, and how deep is bounded by the length of the schema only.
#include "hearth/text/grammar.h"

#include <pthread.h>

#include <algorithm>
#include <limits>

#include "hearth/base/check.h"
#include "hearth/text/bridge.h"

namespace hearth {
namespace {

using namespace text_detail;

// Untouched pages cost nothing.
constexpr size_t kCompileStackBytes = size_t{64} << 20;

template <typename Body>
Status run_with_stack(size_t stack_bytes, Body& body) {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return resource_exhausted("grammar: no thread to compile on");
  int failed = pthread_attr_setstacksize(&attributes, stack_bytes);
  pthread_t thread{};
  const auto entry = [](void* argument) -> void* {
    (*static_cast<Body*>(argument))();
    return nullptr;
  };
  if (failed == 0) failed = pthread_create(&thread, &attributes, entry, &body);
  pthread_attr_destroy(&attributes);
  if (failed != 0) return resource_exhausted("grammar: no thread to compile on (error {})", failed);
  failed = pthread_join(thread, nullptr);
  HEARTH_CHECK(failed == 0, "pthread_join: error {}", failed);
  return {};
}

int32_t bridge_kind(GrammarKind kind) {
  switch (kind) {
    case GrammarKind::kJsonObject: return HTB_GRAMMAR_JSON_OBJECT;
    case GrammarKind::kJsonSchema: return HTB_GRAMMAR_JSON_SCHEMA;
    case GrammarKind::kRegex: return HTB_GRAMMAR_REGEX;
    case GrammarKind::kLark: return HTB_GRAMMAR_LARK;
  }
  return -1;
}

}  // namespace

struct GrammarState::Impl {
  Impl() = default;
  ~Impl() {
    const BridgeCall call;
    htb_grammar_state_free(handle);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  htb_grammar_state* handle = nullptr;
  Status started;  // start() cannot fail; every later call says why it did
};

GrammarState::GrammarState(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrammarState::GrammarState(GrammarState&&) noexcept = default;
GrammarState& GrammarState::operator=(GrammarState&&) noexcept = default;
GrammarState::~GrammarState() = default;

Status GrammarState::fill_allowed(std::span<uint32_t> allowed) {
  HEARTH_TRY(impl_->started);
  const BridgeCall call;
  BridgeBuffer error;
  const htb_status status = htb_grammar_state_fill(impl_->handle, allowed.data(), allowed.size(), error.out());
  if (status != HTB_OK) return bridge_error(status, error.view());
  return {};
}

Status GrammarState::accept(TokenId token) {
  HEARTH_TRY(impl_->started);
  const BridgeCall call;
  BridgeBuffer error;
  // A negative id becomes one that no vocabulary has.
  const htb_status status = htb_grammar_state_accept(impl_->handle, static_cast<uint32_t>(token), error.out());
  if (status != HTB_OK) return bridge_error(status, error.view());
  return {};
}

bool GrammarState::finished() const {
  const BridgeCall call;
  return impl_->handle != nullptr && htb_grammar_state_finished(impl_->handle) != 0;
}

struct Grammar::Impl {
  Impl() = default;
  ~Impl() {
    const BridgeCall call;
    htb_grammar_free(handle);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  htb_grammar* handle = nullptr;
};

GrammarState Grammar::start() const {
  auto state = std::make_unique<GrammarState::Impl>();
  const BridgeCall call;
  BridgeBuffer error;
  const htb_status status = htb_grammar_state_new(impl_->handle, &state->handle, error.out());
  if (status != HTB_OK) state->started = bridge_error(status, error.view()).with_context("grammar");
  return GrammarState(std::move(state));
}

struct GrammarCompiler::Impl {
  Impl() = default;
  ~Impl() {
    const BridgeCall call;
    htb_grammar_compiler_free(handle);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  htb_grammar_compiler* handle = nullptr;
};

Result<GrammarCompiler> GrammarCompiler::create(const Tokenizer& tokenizer, int64_t model_vocab_size,
                                                std::span<const TokenId> end_ids) {
  if (model_vocab_size < 1 || model_vocab_size >= std::numeric_limits<TokenId>::max()) {
    return invalid_argument("grammar: model vocabulary of {} tokens", model_vocab_size);
  }
  for (const TokenId id : end_ids) {
    if (id < 0 || id >= model_vocab_size) {
      return invalid_argument("grammar: end id {}, wanted 0 to {}", id, model_vocab_size - 1);
    }
  }
  const auto count = static_cast<size_t>(model_vocab_size);
  std::string bytes;
  std::vector<uint32_t> offsets = {0};
  std::vector<uint8_t> special(count);
  offsets.reserve(count + 1);
  for (TokenId id = 0; id < model_vocab_size; ++id) {
    if (id < tokenizer.vocab_size()) {
      special[static_cast<size_t>(id)] = tokenizer.is_special(id);
      bytes += tokenizer.token_bytes(id);
    }
    offsets.push_back(static_cast<uint32_t>(bytes.size()));
  }
  const htb_token_table table = {.count = count,
                                 .bytes = bridge_bytes(bytes),
                                 .byte_offsets = offsets.data(),
                                 .special = special.data(),
                                 // int32 and uint32 may alias, and no id is negative.
                                 .end_ids = reinterpret_cast<const uint32_t*>(end_ids.data()),
                                 .end_count = end_ids.size()};
  auto impl = std::make_shared<Impl>();
  const BridgeCall call;
  BridgeBuffer error;
  const htb_status status = htb_grammar_compiler_new(&table, &impl->handle, error.out());
  if (status != HTB_OK) return bridge_error(status, error.view());
  return GrammarCompiler(std::move(impl));
}

Result<Grammar> GrammarCompiler::compile(const GrammarSpec& spec, const GrammarLimits& limits) const {
  if (std::ssize(spec.source) > limits.max_source_bytes) {
    return resource_exhausted("grammar of {} bytes, wanted at most {}", spec.source.size(), limits.max_source_bytes);
  }
  const htb_grammar_limits raw = {
      .max_depth = static_cast<uint64_t>(std::max<int64_t>(limits.max_depth, 0)),
      .max_compile_time_ms = static_cast<uint64_t>(std::max<int64_t>(limits.max_compile_time_ms, 0))};
  auto impl = std::make_shared<Grammar::Impl>();
  BridgeBuffer error;
  htb_status status = HTB_INTERNAL;
  auto compile = [&] {
    const BridgeCall call;
    status = htb_grammar_new(impl_->handle, bridge_kind(spec.kind), bridge_bytes(spec.source), spec.source.size(), &raw,
                             &impl->handle, error.out());
  };
  HEARTH_TRY(run_with_stack(kCompileStackBytes, compile));
  if (status != HTB_OK) return bridge_error(status, error.view()).with_context("grammar");
  return Grammar(std::move(impl));
}

}  // namespace hearth
