// SPDX-License-Identifier: Apache-2.0
// A SAX handler that builds the tree within limits, and the field readers. Pure functions.
#include "hearth/serve/json_request.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace hearth {
namespace {

// Builds a Json; stops at the first thing that is over a limit.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(const ApiLimits& limits, JsonBudget& budget, int64_t depth)
      : limits_(limits), budget_(budget), depth_(depth) {}

  bool null() override { return add(nullptr) != nullptr; }
  bool boolean(bool value) override { return add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return add(value) != nullptr; }
  bool string(string_t& value) override { return add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    key_ = std::move(name);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // The library's message without its own name in front: "[json.exception.parse_error.101] parse error at ..."
    std::string_view text = error.what();
    if (const size_t end = text.find("] "); end != std::string_view::npos) text.remove_prefix(end + 2);
    constexpr size_t kLongest = 200;
    error_ = bad_request({}, "the body is not JSON (byte {}): {}", position, text.substr(0, kLongest));
    return false;
  }

  Json& root() { return root_; }
  std::optional<ApiError>& error() { return error_; }

 private:
  template <class T>
  Json* add(T&& value) {
    if (--budget_.values < 0) {
      error_ = over_limit({}, fmt::format("the body has more than {} JSON values", limits_.json_values));
      return nullptr;
    }
    if (path_.empty()) {
      root_ = Json(std::forward<T>(value));
      return &root_;
    }
    Json& parent = *path_.back();
    if (parent.is_array()) {
      parent.push_back(Json(std::forward<T>(value)));
      return &parent.back();
    }
    // Without a search for the key, which would make objects of many members quadratic; close() sees to doubles.
    auto& members = parent.get_ref<Json::object_t&>();
    members.emplace_back(std::move(key_), Json(std::forward<T>(value)));
    return &members.back().second;
  }

  bool open(Json value) {
    if (depth_ + std::ssize(path_) >= limits_.json_depth) {
      error_ = over_limit({}, fmt::format("the body nests deeper than {} arrays and objects", limits_.json_depth));
      return false;
    }
    Json* const place = add(std::move(value));
    if (place == nullptr) return false;
    path_.push_back(place);
    return true;
  }

  bool close() {
    if (path_.back()->is_object()) keep_last(path_.back()->get_ref<Json::object_t&>());
    path_.pop_back();
    return true;
  }

  // Of members with the same key, leaves the last one. By sorting: a client can find keys that a hash puts into one
  // place.
  static void keep_last(Json::object_t& members) {
    if (members.size() < 2) return;
    auto* const list = members.data();  // its operator[] looks for keys
    std::vector<size_t> order(members.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      const int names = list[a].first.compare(list[b].first);
      return names != 0 ? names < 0 : a < b;
    });
    std::vector<bool> hidden(members.size());
    bool any = false;
    for (size_t i = 0; i + 1 < order.size(); ++i)
      if (list[order[i]].first == list[order[i + 1]].first) any = hidden[order[i]] = true;
    if (!any) return;
    Json::object_t kept;
    for (size_t i = 0; i < members.size(); ++i)
      if (!hidden[i]) kept.emplace_back(list[i].first, std::move(list[i].second));
    members = std::move(kept);
  }

  const ApiLimits& limits_;
  JsonBudget& budget_;
  const int64_t depth_;
  Json root_;
  std::vector<Json*> path_;  // open containers: only the last one grows, so the pointers stay good
  std::string key_;
  std::optional<ApiError> error_;
};

std::string quote(const std::string& text) {
  constexpr size_t kLongest = 40;
  std::string part = text.substr(0, kLongest);
  // Not in the middle of a character.
  if (text.size() > kLongest) {
    while (!part.empty() && (static_cast<uint8_t>(text[part.size()]) & 0xc0) == 0x80) part.pop_back();
    part += "...";
  }
  return to_text(Json(part));
}

ApiError wanted(std::string_view name, const Json& value, std::string_view what) {
  return bad_request(std::string(name), "{}: {}; wanted {}", name, describe(value), what);
}

// The whole number that `value` is, however it is written.
std::optional<int64_t> whole_number(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const auto number = value.get<double>();
  constexpr double kExact = 9007199254740992.0;  // 2^53: beyond it a double does not say which number was meant
  if (!(std::abs(number) <= kExact) || std::trunc(number) != number) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::string range_text(IntegerRange range) {
  const bool any_min = range.min == std::numeric_limits<int64_t>::min();
  const bool any_max = range.max == std::numeric_limits<int64_t>::max();
  if (any_min && any_max) return "a whole number of 64 bits";
  if (any_max) return fmt::format("a whole number of {} or more", range.min);
  return fmt::format("a whole number from {} to {}", range.min, range.max);
}

std::string range_text(NumberRange range) {
  const bool any_min = range.min == NumberRange().min, any_max = range.max == NumberRange().max;
  if (any_min && any_max) return "a number";
  if (any_max) return fmt::format("a number {} {}", range.min_open ? "above" : "of at least", range.min);
  return fmt::format("a number {} {} to {}", range.min_open ? "above" : "from", range.min, range.max);
}

}  // namespace

ApiResult<Json> parse_json_object(std::string_view text, const ApiLimits& limits) {
  JsonBudget budget{.values = limits.json_values};
  return parse_json_object(text, limits, budget);
}

ApiResult<Json> parse_json_object(std::string_view text, const ApiLimits& limits, JsonBudget& budget, int64_t depth) {
  Builder builder(limits, budget, depth);
  if (!Json::sax_parse(text, &builder)) {
    if (builder.error()) return std::move(*builder.error());
    return bad_request({}, "the body is not JSON");
  }
  if (!builder.root().is_object())
    return bad_request({}, "the body: {}; wanted a JSON object", describe(builder.root()));
  return std::move(builder.root());
}

std::string describe(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "null";
    case Json::value_t::boolean: return fmt::format("{} is a boolean", to_text(value));
    case Json::value_t::string: return fmt::format("{} is a string", quote(value.get_ref<const std::string&>()));
    case Json::value_t::array: return fmt::format("found an array of {}", value.size());
    case Json::value_t::object: return "found an object";
    default: return fmt::format("found {}", to_text(value));
  }
}

const Json* find_field(const Json& object, std::string_view name) {
  const auto found = object.find(std::string(name));
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

ApiStatus read_bool(const Json& object, std::string_view name, bool& value) {
  const Json* const field = find_field(object, name);
  if (field == nullptr) return {};
  if (!field->is_boolean()) return wanted(name, *field, "true or false");
  value = field->get<bool>();
  return {};
}

ApiStatus read_integer(const Json& object, std::string_view name, IntegerRange range, std::optional<int64_t>& value) {
  const Json* const field = find_field(object, name);
  if (field == nullptr) return {};
  HEARTH_TRY_ASSIGN(value, to_integer(*field, std::string(name), range));
  return {};
}

ApiStatus read_number(const Json& object, std::string_view name, NumberRange range, std::optional<double>& value) {
  const Json* const field = find_field(object, name);
  if (field == nullptr) return {};
  if (!field->is_number()) return wanted(name, *field, range_text(range));
  const auto number = field->get<double>();
  const bool above = range.min_open ? number > range.min : number >= range.min;
  if (!above || !(number <= range.max)) return wanted(name, *field, range_text(range));
  value = number;
  return {};
}

ApiStatus read_string(const Json& object, std::string_view name, int64_t max_bytes, std::optional<std::string>& value) {
  const Json* const field = find_field(object, name);
  if (field == nullptr) return {};
  if (!field->is_string()) return wanted(name, *field, "a string");
  const auto& text = field->get_ref<const std::string&>();
  if (std::ssize(text) > max_bytes)
    return over_limit(std::string(name), fmt::format("{}: {} bytes; wanted at most {}", name, text.size(), max_bytes));
  value = text;
  return {};
}

ApiResult<int64_t> to_integer(const Json& value, const std::string& what, IntegerRange range) {
  const std::optional<int64_t> number = whole_number(value);
  if (!number || *number < range.min || *number > range.max) return wanted(what, value, range_text(range));
  return *number;
}

ApiResult<std::vector<int32_t>> to_token_ids(const Json& array, const std::string& what) {
  constexpr IntegerRange kIds{0, std::numeric_limits<int32_t>::max()};
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    // The name is written only where it is needed: lists of ids are long.
    const std::optional<int64_t> id = whole_number(array[i]);
    if (!id || *id < kIds.min || *id > kIds.max)
      return wanted(fmt::format("{}[{}]", what, i), array[i], "a token id, a whole number from 0");
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

std::string to_text(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace hearth
