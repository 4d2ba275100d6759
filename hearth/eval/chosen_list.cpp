// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/chosen_list.h"

#include <nlohmann/json.hpp>
#include <numeric>

#include "hearth/checkpoint/json.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

Result<std::string> text_field(const nlohmann::json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_string()) return corrupt("no string '{}'", name);
  return found->get<std::string>();
}

Result<int64_t> number_field(const nlohmann::json& object, const char* name, int64_t min) {
  const auto found = object.find(name);
  if (found == object.end()) return corrupt("no number '{}'", name);
  if (!found->is_number_integer() || (found->is_number_unsigned() && found->get<uint64_t>() > INT64_MAX) ||
      found->get<int64_t>() < min)
    return corrupt("'{}' is {}; wanted a whole number from {}", name, found->dump(), min);
  return found->get<int64_t>();
}

Status read_chosen(const nlohmann::json& object, ChosenList& list) {
  const auto found = object.find("chosen");
  if (found == object.end() || !found->is_array() || found->empty())
    return corrupt("no list 'chosen' with at least one number");
  for (const nlohmann::json& entry : *found) {
    if (!entry.is_number_unsigned() || entry.get<uint64_t>() >= static_cast<uint64_t>(list.of))
      return corrupt("'chosen' has {}; wanted whole numbers from 0 to {}", entry.dump(), list.of - 1);
    const auto number = entry.get<int64_t>();
    if (!list.chosen.empty() && number <= list.chosen.back())
      return corrupt("'chosen' has {} after {}; wanted ascending numbers", number, list.chosen.back());
    list.chosen.push_back(number);
  }
  return {};
}

}  // namespace

Result<ChosenList> parse_chosen_list(std::string_view json, std::string name) {
  HEARTH_TRY_ASSIGN(const nlohmann::json object, parse_json(json));
  if (!object.is_object()) return corrupt("{} is not an object", object.type_name());
  ChosenList list;
  list.name = std::move(name);
  HEARTH_TRY_ASSIGN(list.text, text_field(object, "text"));
  HEARTH_TRY_ASSIGN(const std::string unit, text_field(object, "unit"));
  if (unit != "window" && unit != "item") return corrupt("'unit' is '{}'; wanted window or item", unit);
  list.unit = unit == "window" ? ChosenList::Unit::kWindow : ChosenList::Unit::kItem;
  if (list.unit == ChosenList::Unit::kWindow) {
    HEARTH_TRY_ASSIGN(list.ctx, number_field(object, "ctx", 1));
    HEARTH_TRY_ASSIGN(list.ids, number_field(object, "ids", 1));
  }
  HEARTH_TRY_ASSIGN(list.of, number_field(object, "of", 1));
  HEARTH_TRY_ASSIGN(list.seed, number_field(object, "seed", 0));
  HEARTH_TRY(read_chosen(object, list));
  return list;
}

Result<ChosenList> read_chosen_list(const std::filesystem::path& path) {
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(path));
  return parse_chosen_list(text, path.stem().string()).with_context(path.string());
}

ChosenList all_of(std::string text, ChosenList::Unit unit, int64_t of) {
  ChosenList list;
  list.name = "all";
  list.text = std::move(text);
  list.unit = unit;
  list.of = of;
  list.chosen.resize(static_cast<size_t>(of));
  std::iota(list.chosen.begin(), list.chosen.end(), 0);
  return list;
}

Status check_window_list(const ChosenList& list, int64_t ctx, int64_t ids, int64_t windows) {
  if (list.unit != ChosenList::Unit::kWindow)
    return invalid_argument("list {} is of items; {} needs one of windows", list.name, list.text);
  if (list.name == "all") return {};
  if (list.ctx != ctx)
    return invalid_argument("list {} is of windows of {} tokens; these have {}", list.name, list.ctx, ctx);
  if (list.ids != ids || list.of != windows)
    return invalid_argument("list {} was made for {} ids in {} windows; this text has {} in {}", list.name, list.ids,
                            list.of, ids, windows);
  return {};
}

Status check_item_list(const ChosenList& list, int64_t items) {
  if (list.unit != ChosenList::Unit::kItem)
    return invalid_argument("list {} is of windows; {} needs one of items", list.name, list.text);
  if (list.of != items)
    return invalid_argument("list {} was made for {} items; these are {}", list.name, list.of, items);
  return {};
}

}  // namespace hearth
