// SPDX-License-Identifier: Apache-2.0
// What the linears that read one input lose when they are encoded, for a choice of scales of that input: the judge of
// the scale search (transform_scales.h).
//   I1. Scales that differ by powers of two by which the input had been multiplied before give the same loss, bit for
//       bit: channels are measured by their root mean square, the damping of second moments too.
// One owner; the work runs on the threads of `compute`.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/quantize/encode.h"
#include "hearth/quantize/gptq.h"
#include "hearth/quantize/layer.h"
#include "hearth/quantize/moments.h"

namespace hearth {

class SiteLoss {
 public:
  // `moments`: of the input before scales; not kept.
  SiteLoss(const SecondMoments& moments, Compute& compute);

  // The expected squared error of what `linear` gives, by the method of `options` without coordinate descent, of some
  // rows that stand for all: the weights' share, and that of INT8 activations where the format has them (E4M3's errors
  // are relative to each value and do not depend on scales). A uniform code stands for SBVR's lines.
  //   linear: its columns are scaled already;  factors [k]: what its input was multiplied by
  // InvalidArgument as encode(); Internal where second moments are not positive definite.
  Result<double> operator()(const LayerLinear& linear, std::span<const float> factors, const EncodeOptions& options);

 private:
  struct Judge {
    InputModel even;    // of channels that all have root mean square 1
    InputModel scaled;  // memory for the one of a choice
  };
  Result<Judge*> judge_of(const EncodeOptions& options);

  SecondMoments even_;
  std::vector<double> rms_;                                   // [k]
  std::map<std::pair<int64_t, EncodeMethod>, Judge> judges_;  // by group and method
  Compute& compute_;
};

}  // namespace hearth
