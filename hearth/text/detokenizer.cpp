// SPDX-License-Identifier: Apache-2.0
// Detokenizer: tokens -> certain text (one Assembler per kind of decoder) -> StopMatcher -> caller.
// One thread per object; the tokenizer state is only read.
#include "hearth/text/detokenizer.h"

#include "hearth/base/check.h"
#include "hearth/text/stop_matcher.h"
#include "hearth/text/tokenizer_state.h"
#include "hearth/text/utf8.h"

namespace hearth {
namespace {

using namespace text_detail;

constexpr size_t kMaxStops = 64;
constexpr size_t kMaxStopBytes = size_t{64} << 10;
constexpr std::string_view kMetaspace = "\xe2\x96\x81";  // U+2581
// A decoder that looks at neighbours sees this many tokens at most that gave no text yet.
constexpr size_t kMaxWindow = 16;

std::string utf8_of(uint32_t code) {
  std::string out;
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  }
  return out;
}

// Turns tokens into text that later tokens cannot change. Tokens that are skipped never come here.
class Assembler {
 public:
  virtual ~Assembler() = default;
  virtual Status append(TokenId id, std::string& out) = 0;
  virtual Status finish(std::string& out) = 0;
};

// HTB_DECODER_BYTES.
class ByteAssembler final : public Assembler {
 public:
  explicit ByteAssembler(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}
  Status append(TokenId id, std::string& out) override {
    utf8_.append(vocabulary_.bytes(id), out);
    return {};
  }
  Status finish(std::string& out) override {
    utf8_.finish(out);
    return {};
  }

 private:
  const Vocabulary& vocabulary_;
  LossyUtf8Decoder utf8_;
};

// HTB_DECODER_FALLBACK. A run of byte tokens is text only as a whole: one bad byte at its end turns every byte of
// it into U+FFFD. So a run is held until it ends.
class FallbackAssembler final : public Assembler {
 public:
  FallbackAssembler(const Vocabulary& vocabulary, bool continues_text)
      : vocabulary_(vocabulary),
        strip_(utf8_of(vocabulary.strip_char())),
        strip_left_(continues_text ? 0 : vocabulary.strip_count()) {}
  Status append(TokenId id, std::string& out) override {
    if (vocabulary_.byte_token(id)) {
      run_ += vocabulary_.bytes(id);
      return {};
    }
    end_run(out);
    emit(vocabulary_.bytes(id), out);
    return {};
  }
  Status finish(std::string& out) override {
    end_run(out);
    return {};
  }

 private:
  void end_run(std::string& out) {
    if (run_.empty()) return;
    if (is_valid_utf8(run_)) {
      emit(run_, out);
    } else {
      for (size_t i = 0; i < run_.size(); ++i) emit(kReplacementCharacter, out);
    }
    run_.clear();
  }
  void emit(std::string_view text, std::string& out) {
    while (strip_left_ > 0 && !text.empty()) {
      if (text.starts_with(strip_)) {
        text.remove_prefix(strip_.size());
        --strip_left_;
      } else {
        strip_left_ = 0;
      }
    }
    out += text;
  }

  const Vocabulary& vocabulary_;
  const std::string strip_;
  uint32_t strip_left_;
  std::string run_;
};

// HTB_DECODER_METASPACE and HTB_DECODER_SPACED: only the first token is different.
class FirstTokenAssembler final : public Assembler {
 public:
  FirstTokenAssembler(const Vocabulary& vocabulary, bool continues_text)
      : vocabulary_(vocabulary), first_(!continues_text) {}
  Status append(TokenId id, std::string& out) override {
    const bool first = std::exchange(first_, false);
    if (vocabulary_.decoder_kind() == HTB_DECODER_SPACED) {
      if (!first) out += ' ';
      out += vocabulary_.bytes(id);
    } else if (first && vocabulary_.strip_count() > 0) {
      std::string_view piece = vocabulary_.piece(id);
      for (size_t at; (at = piece.find(kMetaspace)) != piece.npos; piece.remove_prefix(at + kMetaspace.size())) {
        out += piece.substr(0, at);
      }
      out += piece;
    } else {
      out += vocabulary_.bytes(id);
    }
    return {};
  }
  Status finish(std::string&) override { return {}; }

 private:
  const Vocabulary& vocabulary_;
  bool first_;
};

// HTB_DECODER_OTHER: decodes a window of tokens, of which the first `settled_` gave their text already and are there
// as context.
class WindowAssembler final : public Assembler {
 public:
  explicit WindowAssembler(const TokenizerState& state) : state_(state) {}
  Status append(TokenId id, std::string& out) override {
    window_.push_back(id);
    HEARTH_TRY_ASSIGN(const std::string text, state_.decode(window_, /*skip_special=*/false));
    const bool unfinished = text.ends_with(kReplacementCharacter) || text.size() <= settled_text_.size();
    if (unfinished && window_.size() - settled_ < kMaxWindow) return {};
    return settle(text, out);
  }
  Status finish(std::string& out) override {
    HEARTH_TRY_ASSIGN(const std::string text, state_.decode(window_, /*skip_special=*/false));
    return settle(text, out);
  }

 private:
  Status settle(const std::string& text, std::string& out) {
    // What the two texts share is out already. They part inside the settled text only if a decoder went back on
    // its word; the cut then moves to the start of a character.
    size_t shared = std::min(text.size(), settled_text_.size());
    if (!text.starts_with(settled_text_)) {
      const auto is_continuation = [&](size_t i) { return i < text.size() && (text[i] & 0xc0) == 0x80; };
      while (shared < text.size() && is_continuation(shared)) ++shared;
    }
    out += std::string_view(text).substr(shared);
    window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(settled_));
    settled_ = window_.size();
    HEARTH_TRY_ASSIGN(settled_text_, state_.decode(window_, /*skip_special=*/false));
    return {};
  }

  const TokenizerState& state_;
  std::vector<TokenId> window_;
  size_t settled_ = 0;
  std::string settled_text_;  // of the first settled_ tokens of the window
};

std::unique_ptr<Assembler> make_assembler(const TokenizerState& state, bool continues_text) {
  switch (state.vocabulary.decoder_kind()) {
    case HTB_DECODER_BYTES: return std::make_unique<ByteAssembler>(state.vocabulary);
    case HTB_DECODER_FALLBACK: return std::make_unique<FallbackAssembler>(state.vocabulary, continues_text);
    case HTB_DECODER_METASPACE:
    case HTB_DECODER_SPACED: return std::make_unique<FirstTokenAssembler>(state.vocabulary, continues_text);
    case HTB_DECODER_OTHER: break;
  }
  return std::make_unique<WindowAssembler>(state);
}

Status check_stops(const std::vector<std::string>& stops) {
  if (stops.size() > kMaxStops) return invalid_argument("{} stop strings, wanted at most {}", stops.size(), kMaxStops);
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty() || stops[i].size() > kMaxStopBytes) {
      return invalid_argument("stop string {} has {} bytes, wanted 1 to {}", i, stops[i].size(), kMaxStopBytes);
    }
    if (!is_valid_utf8(stops[i])) return invalid_argument("stop string {} is not UTF-8", i);
  }
  return {};
}

}  // namespace

struct Detokenizer::Impl {
  std::shared_ptr<const TokenizerState> state;
  bool skip_special;
  bool include_stop;
  std::unique_ptr<Assembler> assembler;
  StopMatcher stops;
  bool finished = false;
};

Detokenizer::Detokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;
Detokenizer& Detokenizer::operator=(Detokenizer&&) noexcept = default;
Detokenizer::~Detokenizer() = default;

Result<Detokenizer> Detokenizer::create(const Tokenizer& tokenizer, DetokenizerOptions options) {
  HEARTH_TRY(check_stops(options.stop));
  const std::shared_ptr<const TokenizerState>& state = tokenizer.state_;
  return Detokenizer(std::make_unique<Impl>(Impl{state, options.skip_special, options.include_stop,
                                                 make_assembler(*state, options.continues_text),
                                                 StopMatcher(std::move(options.stop))}));
}

Result<std::string> Detokenizer::push(TokenId id) {
  Impl& d = *impl_;
  HEARTH_CHECK(!d.finished, "push() after flush()");
  const Vocabulary& vocabulary = d.state->vocabulary;
  if (id < 0 || id >= vocabulary.size()) {
    return invalid_argument("detokenize: id {}, wanted 0 to {}", id, vocabulary.size() - 1);
  }
  std::string out;
  if (d.stops.hit() || !vocabulary.contains(id) || (d.skip_special && vocabulary.special(id))) return out;
  std::string text;
  HEARTH_TRY(d.assembler->append(id, text));
  d.stops.append(text, d.include_stop, out);
  return out;
}

Result<std::string> Detokenizer::flush() {
  Impl& d = *impl_;
  HEARTH_CHECK(!d.finished, "flush() after flush()");
  d.finished = true;
  std::string out;
  if (d.stops.hit()) return out;
  std::string text;
  HEARTH_TRY(d.assembler->finish(text));
  d.stops.append(text, d.include_stop, out);
  d.stops.finish(out);
  return out;
}

std::optional<int64_t> Detokenizer::stop_hit() const { return impl_->stops.hit(); }

}  // namespace hearth
