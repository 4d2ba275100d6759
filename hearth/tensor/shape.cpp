// SPDX-License-Identifier: Apache-2.0
#include "hearth/tensor/shape.h"

namespace hearth {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank(); ++i) text += fmt::format("{}{}", i ? ", " : "", shape[i]);
  return text + "]";
}

}  // namespace hearth
