// SPDX-License-Identifier: Apache-2.0
// From a text file to the ids and windows that are scored. Stateless.
//
// The rule of documents: a newline, a NUL and a newline separate the documents of a file and belong to
// none. Each document of a file with separators is BOS + text + EOS, one after the other; a file without
// is one BOS + the whole text and no EOS. BOS stands only where the tokenizer puts it before any text,
// EOS only where the model has one. The text of special tokens is parsed, as transformers does.
// The rule of windows: window j feeds ids[ctx * j, ctx * (j + 1)) to an empty context and scores the next
// id at every position, the last one too; there are floor((ids - 1) / ctx) of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

inline constexpr std::string_view kDocumentSeparator{"\n\0\n", 3};

// Splits at kDocumentSeparator; empty documents are left out.
std::vector<std::string_view> split_documents(std::string_view text);

// Ids of a text by the rule above. Errors are Tokenizer::encode's.
Result<std::vector<TokenId>> encode_documents(const Tokenizer& tokenizer, std::string_view text);

// How many windows `ids` ids have. InvalidArgument where there is none, or for ctx < 1.
Result<int64_t> count_windows(int64_t ids, int64_t ctx);

// Ascending window numbers of a list such as "0-127,200"; an empty list means all of [0, count). InvalidArgument
// names the part that is no number or range, is out of range, or comes twice.
Result<std::vector<int64_t>> parse_windows(std::string_view list, int64_t count);

// Tells texts apart by their ids, in order (fingerprint.h).
std::string ids_fingerprint(std::span<const int32_t> ids);

// A whole file. NotFound, or Unavailable where it cannot be read.
Result<std::string> read_text_file(const std::filesystem::path& path);

}  // namespace hearth
