// SPDX-License-Identifier: Apache-2.0
// Detokenizer: ids in, one at a time, text out as soon as it is certain.
// I1. What push() returns is always whole UTF-8 characters.
// I2. Without stop strings, the pieces of all push() calls and flush() add up to Tokenizer::decode(ids) for
//     byte-level and sentencepiece-like decoders. For others (WordPiece, CTC) text is decoded in a window of
//     the last tokens, which agrees for ordinary text.
// I3. No character of a stop string, or of what may still become one, is emitted before that is decided.
// I4. push() costs amortized O(bytes of the token), whatever came before.
// One thread per object; the Tokenizer is shared.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

struct DetokenizerOptions {
  bool skip_special = true;
  // true: the text continues one that is already there (a prompt), so the space that sentencepiece puts before
  // the first word is kept.
  bool continues_text = false;
  // At most 64 strings, none empty, at most 64 KiB each, UTF-8; InvalidArgument otherwise.
  std::vector<std::string> stop;
  // true: the text ends with the stop string; false: before it.
  bool include_stop = false;
};

class Detokenizer {
 public:
  static Result<Detokenizer> create(const Tokenizer& tokenizer, DetokenizerOptions options = {});
  Detokenizer(Detokenizer&&) noexcept;
  Detokenizer& operator=(Detokenizer&&) noexcept;
  ~Detokenizer();

  // Text that became certain with `id`, often empty. After a stop string was met: empty.
  // InvalidArgument for an id outside [0, vocab_size()); an id without a token adds nothing, as in decode().
  Result<std::string> push(TokenId id);
  // The rest, at the end of the sequence: held back text, incomplete characters as U+FFFD. A later push() is an
  // error of the caller. After a stop string was met: empty.
  Result<std::string> flush();

  // Index into `stop` of the string that was met: the one that ends first in the text, the longest of those that end
  // together.
  std::optional<int64_t> stop_hit() const;

 private:
  struct Impl;
  explicit Detokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
