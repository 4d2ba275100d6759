// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/eval_common.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "hearth/eval/results.h"

namespace hearth {
namespace {

template <class F>
void for_each_linear(const Model& model, F visit) {
  for (const LayerWeights& layer : model.weights().layers) {
    visit(layer.qkv);
    visit(layer.o);
    std::visit([&](const DenseFfn& ffn) { visit(ffn.gate_up), visit(ffn.down); }, layer.ffn);
  }
}

}  // namespace

Status check_output_file(const char* option, const std::string& path) {
  if (path.empty()) return {};
  std::FILE* file = std::fopen(path.c_str(), "ab");
  if (file == nullptr) return unavailable("{}: cannot open {} for writing: {}", option, path, std::strerror(errno));
  std::fclose(file);
  return {};
}

double bits_per_weight(const Model& model) {
  int64_t bytes = 0, weights = 0;
  for_each_linear(model, [&](const Linear& linear) {
    bytes += linear.weight_bytes();
    weights += linear.n() * linear.k();
  });
  return weights > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(weights) : 0;
}

std::string stored_format(const Model& model) {
  std::vector<std::string> formats;
  for_each_linear(model, [&](const Linear& linear) {
    for (const LinearWeight& part : linear.parts) {
      std::string format = to_string(part.format);
      if (std::find(formats.begin(), formats.end(), format) == formats.end()) formats.push_back(std::move(format));
    }
  });
  return fmt::format("{}", fmt::join(formats, " + "));
}

std::string device_of(const OpTable& ops, int threads) {
  const std::string gpu = ops.memory().device_name();
  return gpu.empty() ? cpu_device(threads) : gpu;
}

}  // namespace hearth
