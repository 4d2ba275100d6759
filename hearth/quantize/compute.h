// SPDX-License-Identifier: Apache-2.0
// Compute: the narrow interface of the quantizer's heavy loops. Methods (gptq.cpp, sbvr_lines.cpp, ...) say what is
// computed, an implementation says where. Matrices of weights are column panels here: [columns][rows], so that the
// rows of W, which are quantized independently, run along vector lanes or GPU threads.
//   I1. A result does not depend on the number of threads: every sum has an order that follows from the sizes alone.
//   I2. Rows of a panel are padded to a multiple of kRowTile with zeros; padding is computed and dropped.
// One owner at a time; an implementation uses its threads inside a call.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/tensor/dtype.h"

namespace hearth {

// Rows of W that are computed together.
inline constexpr int64_t kRowTile = 16;

// The values that an element can take, in ascending order ("ranks" 0, 1, ...), before the scale of its group.
struct CodeLevels {
  enum class Kind : uint8_t {
    kUniform,  // integers low..high; with zero_point low = -zero and high = 15 - zero, per group
    kTable,    // levels[0, count)
    kE4m3,     // every value of E4M3; it has no ranks (0)
    kLines,    // subset sums of the group's line: line_values[line * 16 + rank]
  };
  Kind kind = Kind::kUniform;
  float low = -8;
  float high = 7;
  bool zero_point = false;
  int count = 16;
  std::array<float, 16> levels{};
  DType scale_dtype = DType::kF32;
  // Lines: [lines][16] ascending, scaled; fewer than 16 subset sums are padded with the largest one.
  std::span<const float> line_values;
};

// A code's free parameters per row of one group.
struct GroupParams {
  std::span<float> scale;    // [rows]; not for lines
  std::span<float> zero;     // [rows]; 0 where the code has no zero points
  std::span<uint16_t> line;  // [rows]; lines only
};

// What a group's scale is chosen by.
enum class FitMetric : uint8_t {
  kAbsMax,    // the widest value just fits: absmax / 7.5, / 7, / 3 or / 448; with zero point (max - min) / 15
  kDiagonal,  // least sum of weight[c] (w - q)^2
  kFeedback,  // as kDiagonal, then least loss of rounding with feedback by `factor`
  kBlock,     // as kDiagonal, then least e^T H e, `factor` being H's upper factor M (H = M M^T)
};

struct FitArgs {
  const CodeLevels* code = nullptr;
  FitMetric metric = FitMetric::kDiagonal;
  bool signed_scales = true;      // kUniform with low != -high: negative scales are tried too
  int64_t rows = 0;               // padded
  int64_t columns = 0;            // of the group
  const float* w = nullptr;       // [columns][rows]
  const float* weight = nullptr;  // [columns]; kAbsMax needs none
  const float* factor = nullptr;  // [columns][columns]: factor[c * columns + b], b <= c, is U[b][c] (or M[b][c])
  // kLines: the lines that are tried for each row, best of them taken (kAbsMax is not for lines).
  int64_t candidates = 0;
  const uint16_t* candidate_lines = nullptr;  // [candidates][rows]
  GroupParams out;
};

// Rounds the columns of one block in order. With a factor each residual is fed back to the later columns of the block.
struct RoundArgs {
  const CodeLevels* code = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  const float* w = nullptr;       // [columns][rows]
  const float* factor = nullptr;  // as FitArgs (kFeedback); null: no feedback
  GroupParams params;
  uint8_t* rank = nullptr;  // out [columns][rows]
  float* value = nullptr;   // out [columns][rows]: the quantized values
  float* error = nullptr;   // out [columns][rows]: (updated w - value) / U[c][c]; may be null
};

// Coordinate descent on (w - q)^T H (w - q) within one group: each column's best code given all others, then the best
// scale for the codes.
struct RefineArgs {
  const CodeLevels* code = nullptr;
  bool refit_scale = true;  // not for kE4m3 and kLines
  int64_t rows = 0;
  int64_t columns = 0;
  const float* h = nullptr;   // [columns][columns], the group's block of H
  float* gradient = nullptr;  // in and out [columns][rows]: (H (w - q)) of the group's columns
  GroupParams params;         // in and out
  uint8_t* rank = nullptr;    // in and out
  float* value = nullptr;     // in and out
  float* delta = nullptr;     // out [columns][rows]: new value - old value
};

// Lines as the search reads them, ascending by the distance of their largest from their smallest value.
struct LineTable {
  int64_t lines = 0;            // a multiple of kRowTile: the last is repeated
  int64_t count = 0;            // values of a line, 2^S
  std::vector<float> size;      // [lines]
  std::vector<float> smallest;  // [lines]
  std::vector<float> middle;    // [count - 1][lines]: half way between neighbouring values
  std::vector<float> step;      // [count - 1][lines]: their distance
  std::vector<uint16_t> line;   // [lines]: which line it is
};

// The best lines for each row of a group, by sum of weight[c] (w - q)^2. The error is read off a table of 256 knots per
// row, within about 1% of the exact one: callers judge a few candidates exactly.
struct AssignArgs {
  const LineTable* table = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  const float* w = nullptr;       // [columns][rows]
  const float* weight = nullptr;  // [columns]
  int64_t candidates = 0;
  uint16_t* lines = nullptr;  // out [candidates][rows], best first; repeated where there are fewer lines
};

class Compute {
 public:
  virtual ~Compute() = default;

  // upper [k][k] f64, symmetric positive definite in its upper triangle, becomes U (upper, zeros below) with
  // H^-1 = U^T U. InvalidArgument where it is not positive definite; its content is lost then.
  virtual Status inverse_factor(int64_t k, double* upper) = 0;
  // c [m][n] (row stride ldc) -= a^T b for a [p][m], b [p][n] (strides lda, ldb), sums in f32 blocks of 256.
  struct Product {
    int64_t m = 0, n = 0, p = 0;
    const float* a = nullptr;
    int64_t lda = 0;
    const float* b = nullptr;
    int64_t ldb = 0;
    float* c = nullptr;
    int64_t ldc = 0;
  };
  virtual Status subtract_product(const Product& product) = 0;
  virtual Status fit_group(const FitArgs& args) = 0;
  virtual Status round_block(const RoundArgs& args) = 0;
  virtual Status refine_group(const RefineArgs& args) = 0;
  virtual Status assign_lines(const AssignArgs& args) = 0;

  // The threads for work that is cheap beside the calls above.
  virtual ThreadPool& pool() = 0;
};

// On the CPU, on the threads of `pool`, which outlives it.
std::unique_ptr<Compute> make_cpu_compute(ThreadPool& pool);

}  // namespace hearth
