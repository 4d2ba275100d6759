// SPDX-License-Identifier: Apache-2.0
// What `hearth quantize` left about its work in the folder that it wrote: quantize_report.jsonl, a line for each
// linear. Stateless.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

struct QuantizedModule {
  std::string module, format, method;
  std::optional<double> bits_per_weight;
  std::optional<double> rel_error;  // |W - Q|^2 / |W|^2
  std::optional<double> proxy;      // tr(E H E^T) / tr(W H W^T)
};

// Empty where the folder has no such file. Corrupt names the line that is none.
Result<std::vector<QuantizedModule>> read_quantize_report(const std::filesystem::path& dir);

// The different formats, or methods, of the modules that are quantized, joined by " + ".
std::string formats_of(const std::vector<QuantizedModule>& modules);
std::string methods_of(const std::vector<QuantizedModule>& modules);

// For people: a line for each module, and the mean of the figures.
std::string quantize_report_text(const std::vector<QuantizedModule>& modules);
nlohmann::json quantize_report_json(const std::vector<QuantizedModule>& modules);

}  // namespace hearth
