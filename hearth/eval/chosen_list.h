// SPDX-License-Identifier: Apache-2.0
// The list of windows or items that an evaluation takes of a text: made once with a seed, committed, and
// used by everyone, so that tables can be compared. A file is one JSON object:
//   {"text": "heldout_books", "unit": "window", "ctx": 1024, "ids": 1417862, "of": 1384, "seed": 4,
//    "chosen": [3, 17, ...]}
// `unit` is window or item; ctx and ids are there for windows alone. tools/choose_windows.py writes them. Stateless.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

struct ChosenList {
  enum class Unit { kWindow, kItem };
  std::string name;  // "all", or the file's name without its ending
  std::string text;  // of which it chooses
  Unit unit = Unit::kWindow;
  int64_t ctx = 0;  // tokens of a window
  int64_t ids = 0;  // of the whole text
  int64_t of = 0;   // windows or items of the whole text
  int64_t seed = 0;
  std::vector<int64_t> chosen;  // ascending, each once, in [0, of); not empty
};

// Corrupt where the text is no such object: says which field, what was found and wanted.
Result<ChosenList> parse_chosen_list(std::string_view json, std::string name);
// The same of a file, with its name in errors.
Result<ChosenList> read_chosen_list(const std::filesystem::path& path);
// [0, of), by the name "all".
ChosenList all_of(std::string text, ChosenList::Unit unit, int64_t of);

// InvalidArgument unless the list was made for this text: a text or a tokenizer that has changed has other windows.
Status check_window_list(const ChosenList& list, int64_t ctx, int64_t ids, int64_t windows);
Status check_item_list(const ChosenList& list, int64_t items);

}  // namespace hearth
