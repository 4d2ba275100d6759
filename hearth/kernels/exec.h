// SPDX-License-Identifier: Apache-2.0
// Where an op runs: the thread team of the CPU backend or the stream of a GPU, and the scratch memory
// that the caller planned. An op never allocates and never synchronises. One context per step loop.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/memory/step_staging.h"

namespace hearth {

struct ExecContext {
  ThreadPool* pool = nullptr;      // CPU backend
  void* stream = nullptr;          // CUDA backend: a cudaStream_t
  std::span<std::byte> workspace;  // 64-byte aligned; free for use within one op, worthless after it
  StagedMemory staged;             // CUDA backend: where arrays of the step lie on the device
};

// The device's copy of an array of the step, for kernels; null where it is empty. InvalidArgument, naming op and
// array, where it is not in staged memory.
template <class T>
Result<const T*> on_device(std::string_view op, std::string_view name, std::span<const T> array,
                           const ExecContext& exec) {
  if (array.empty()) return static_cast<const T*>(nullptr);
  const auto bytes = std::as_bytes(array);
  if (exec.staged.host == nullptr || bytes.data() < exec.staged.host ||
      bytes.data() + bytes.size() > exec.staged.host + exec.staged.size_bytes)
    return invalid_argument("{}: {} is not on the device, wanted an array of a staged step", op, name);
  return static_cast<const T*>(static_cast<const void*>(exec.staged.device + (bytes.data() - exec.staged.host)));
}

}  // namespace hearth
