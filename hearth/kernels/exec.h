// SPDX-License-Identifier: Apache-2.0
// Where an op runs: the thread team of the CPU backend or the stream of a GPU, and the scratch memory
// that the caller planned. An op never allocates and never synchronises. One context per step loop.
#pragma once

#include <cstddef>
#include <span>

#include "hearth/base/thread_pool.h"

namespace hearth {

struct ExecContext {
  ThreadPool* pool = nullptr;      // CPU backend
  void* stream = nullptr;          // CUDA backend: a cudaStream_t
  std::span<std::byte> workspace;  // 64-byte aligned; free for use within one op, worthless after it
};

}  // namespace hearth
