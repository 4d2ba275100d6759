// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/model_options.h"

#include <algorithm>
#include <cmath>

#include "hearth/checkpoint/quote.h"
#include "hearth/cli/options.h"
#include "hearth/cli/serve_settings.h"

namespace hearth {
namespace {

constexpr std::string_view kKeys[] = {"ttft-slo", "tpot-slo", "weight", "kv-guarantee", "kv-cap"};
constexpr Setting<double> kSlo{"", "", 0, 3600, "seconds", ""};
constexpr Setting<double> kWeight{"", "", 0.01, 100, "", ""};

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// As every setting in bytes.
Result<int64_t> parse_bytes(std::string_view text) {
  int64_t bytes = 0;
  ServeSetting setting{.kind = SettingKind::kBytes, .max = int64_t{1} << 50};
  setting.set_number = [&](ServeSettings&, std::optional<int64_t> value) { bytes = *value; };
  ServeSettings unused;
  HEARTH_TRY(apply_setting(setting, {std::string(text)}, unused));
  return bytes;
}

Status set(std::string_view key, std::string_view value, NamedTerms& named) {
  ServiceTerms& terms = named.terms;
  if (key == "ttft-slo" || key == "tpot-slo") {
    HEARTH_TRY_ASSIGN(const double seconds, parse_number(value, kSlo).with_context(std::string(key)));
    (key == "ttft-slo" ? terms.slo.ttft_us : terms.slo.tpot_us) = std::llround(seconds * 1e6);
    return {};
  }
  if (key == "weight") {
    HEARTH_TRY_ASSIGN(terms.weight, parse_number(value, kWeight).with_context(std::string(key)));
    return {};
  }
  if (key == "kv-guarantee" || key == "kv-cap") {
    HEARTH_TRY_ASSIGN(const int64_t bytes, parse_bytes(value).with_context(std::string(key)));
    (key == "kv-cap" ? named.limits.cap_bytes : named.limits.guarantee_bytes) = bytes;
    return {};
  }
  return invalid_argument("unknown key {}; wanted one of {}", quote_name(key), fmt::join(kKeys, ", "));
}

}  // namespace

std::span<const std::string_view> model_option_keys() { return kKeys; }

Result<NamedTerms> parse_model_options(std::string_view text) {
  // A name may have a colon, what follows has none.
  const size_t colon = text.rfind(':');
  const std::string_view name = trimmed(text.substr(0, colon));
  if (colon == std::string_view::npos || name.empty())
    return invalid_argument("{} names no model; wanted \"NAME: KEY=VALUE, ...\"", quote_name(text));
  NamedTerms named{.model = std::string(name), .terms = {}, .limits = {}};
  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const size_t comma = rest.find(',');
    const std::string_view part = trimmed(rest.substr(0, comma));
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos)
      return invalid_argument("{}: {} is no KEY=VALUE; wanted one of {}", name, quote_name(part),
                              fmt::join(kKeys, ", "));
    HEARTH_TRY(
        set(trimmed(part.substr(0, equals)), trimmed(part.substr(equals + 1)), named).with_context(std::string(name)));
    if (comma == std::string_view::npos) return named;
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace hearth
