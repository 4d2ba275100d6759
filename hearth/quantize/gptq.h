// SPDX-License-Identifier: Apache-2.0
// Panel encoding: chooses parameters and ranks for a column panel of weights, by any method, under any code.
// Frantar et al., "GPTQ" (arXiv 2210.17323) for the feedback. Beyond it: a group's scale is the one of least loss when
// the group is rounded with feedback, and coordinate descent lowers (w - q)^T H (w - q) afterwards.
// Internal to quantize.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "hearth/quantize/compute.h"
#include "hearth/quantize/encode.h"

namespace hearth {

// What the input's second moments say, in the order in which columns are quantized; shared by all rows.
struct InputModel {
  int64_t k = 0;
  int64_t group = 0;           // columns of a group; the last may be shorter
  std::vector<int32_t> order;  // [k]: the stored column at each place
  struct Block {
    int64_t begin, end;              // places
    int64_t group;                   // of the stored order
    int64_t group_begin, group_end;  // places of the whole group; it is wider than a block above 128 columns
  };
  std::vector<Block> blocks;
  std::vector<float> h;                          // [k][k] mean second moments, damped; empty without moments
  std::vector<float> factor;                     // [k][k] U; GPTQ only
  std::vector<float> weight;                     // [k]: what the wide scale search weighs a column's squared error with
  std::vector<std::vector<float>> group_factor;  // kClip: by block, as FitArgs::factor of kBlock
};

Result<InputModel> make_input_model(int64_t k, int64_t group, const SecondMoments* moments,
                                    const EncodeOptions& options, Compute& compute);

// Rows of W as they are encoded; places in the order of the model.
struct Panel {
  int64_t rows = 0;            // padded
  std::vector<float> w;        // [k][rows]
  std::vector<float> value;    // [k][rows]: w as quantized
  std::vector<uint8_t> rank;   // [k][rows]
  std::vector<float> scale;    // [groups][rows]
  std::vector<float> zero;     // [groups][rows]
  std::vector<uint16_t> line;  // [groups][rows]; lines only
  GroupParams params(int64_t group);
};

// Lines only: fills candidate lines [candidates][rows] for the group's updated weights [columns][rows].
struct LineSearch {
  int64_t candidates = 0;
  std::function<Status(const float* w, int64_t columns, const float* weight, int64_t rows, uint16_t* lines)> find;
};

// Fills all but `w` of the panel.
Status encode_panel(const CodeLevels& code, const InputModel& model, const EncodeOptions& options,
                    const LineSearch* lines, Panel& panel, Compute& compute);

// tr(E H E^T) of w [n][model.k] when it is encoded by `options`, `model` being its input's: `h` and what the method
// reads. No lines.
Result<double> encoding_loss(std::span<const float> w, int64_t n, const InputModel& model, const EncodeOptions& options,
                             Compute& compute);

}  // namespace hearth
