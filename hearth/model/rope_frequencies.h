// SPDX-License-Identifier: Apache-2.0
// The rotary frequencies of a model, scaling included.
#pragma once

#include <vector>

#include "hearth/model/config.h"

namespace hearth {

// inv_freq [head_dim / 2] f32. Numerics: as the models were trained, theta^(2i / d) rounded to f32 before
// its reciprocal; scaling in f32. Sources: Llama 3.1's rope scaling; YaRN (Peng et al., 2023, section 3.2).
std::vector<float> rope_inv_freq(const ModelConfig& config);

}  // namespace hearth
