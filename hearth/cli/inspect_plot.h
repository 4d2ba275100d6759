// SPDX-License-Identifier: Apache-2.0
// The picture of hearth inspect --plot: for each of some linears a histogram of its weights in units of their scales,
// with the levels of the code over it. Stateless.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/model/config.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

// One histogram. Bin i of counts covers [-range + i * width, ...) with width = 2 range / counts.size().
struct WeightHistogram {
  std::string title, subtitle;
  double range = 1;
  std::vector<int64_t> counts;
  std::vector<double> levels;  // that the code can say; empty where there are too many to draw
};

// Of a matrix in canonical form: each weight divided by its scale (bitvectors: by the largest sum of its line; the levels
// are those of the line that most groups have).
WeightHistogram matrix_histogram(const QuantizedMatrix& matrix, const std::string& title);

// Of linear `module`. A plain weight is divided by the largest of its group of 128 columns, and the levels are those of
// symmetric INT4 (absmax / 7.5). NotFound for a module that the checkpoint does not have; errors of Quantization.
Result<WeightHistogram> weight_histogram(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const std::string& module);

// The panels as a picture, three in a row.
std::string histograms_svg(std::span<const WeightHistogram> histograms);

// Writes the picture of `modules` (none: a few of the first and the last layer) to `file`.
Status plot_weights(const Checkpoint& checkpoint, const ModelConfig& config, std::vector<std::string> modules,
                    const std::filesystem::path& file);

}  // namespace hearth
