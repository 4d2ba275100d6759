// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/cuda/libraries.h"

namespace hearth {

// dlopen counts references: a library that is open already costs a look-up.
Result<SharedLibrary> open_cublaslt() {
  return SharedLibrary::open({"libcublasLt.so.13", "libcublasLt.so"}, "BF16 and FP8 on the GPU");
}

Result<SharedLibrary> open_nccl() {
  return SharedLibrary::open({"libnccl.so.2", "libnccl.so"}, "a model on several GPUs");
}

}  // namespace hearth
