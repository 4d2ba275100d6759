// SPDX-License-Identifier: Apache-2.0
// What the operator says of single models: `--model-options "NAME: ttft-slo=0.5, tpot-slo=0.05, weight=2, kv-cap=4Gi"`, or the same keys in
// the [[model]] tables of hearth.toml.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/engine/engine.h"

namespace hearth {

struct NamedTerms {
  std::string model;  // one of its names, or its path as it was given
  ServiceTerms terms;
  MemoryLimits limits;
};

// InvalidArgument for another form, unknown keys and values out of range.
Result<NamedTerms> parse_model_options(std::string_view text);

// The keys, for errors and for the reader of hearth.toml.
std::span<const std::string_view> model_option_keys();

}  // namespace hearth
