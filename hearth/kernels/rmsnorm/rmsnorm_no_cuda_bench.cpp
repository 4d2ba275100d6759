// SPDX-License-Identifier: Apache-2.0
// The GPU side of rmsnorm_bench in a build without CUDA.
#include "hearth/kernels/rmsnorm/rmsnorm_bench.h"

namespace hearth {

Result<std::unique_ptr<RmsNormBench>> make_rmsnorm_sm90_bench(std::string&) {
  return unavailable("this build has no CUDA backend; make cuda builds one");
}

}  // namespace hearth
