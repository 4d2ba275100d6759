// SPDX-License-Identifier: Apache-2.0
// Writing safetensors files. The file appears under its name whole or not at all: it is written beside it
// under a temporary name, brought to the disk, then renamed.
//   I1. Until finish() succeeds nothing at `path` changes; without it, the destructor removes all traces.
//   I2. Elements are aligned to their size: tensors lie in the order of falling element size, as given
//       within one size.
// One owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/tensor/dtype.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// What the header says of a tensor.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

class SafetensorsWriter {
 public:
  // Writes the header and reserves the space. InvalidArgument for a name given twice, a dtype that the
  // format lacks (packed 4-bit codes are stored as u8) or negative sizes; ResourceExhausted: disk full.
  static Result<SafetensorsWriter> create(const std::filesystem::path& path, std::span<const TensorSpec> tensors,
                                          const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;

  // Writes tensor `index` of the list given to create(), in any order. InvalidArgument where `bytes` has
  // not the tensor's size.
  Status write(int64_t index, std::span<const std::byte> bytes);
  // Brings the file to the disk and under its name. REQUIRES: every tensor was written; called once.
  Status finish();

 private:
  struct State;
  explicit SafetensorsWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct TensorData {
  TensorSpec spec;
  std::span<const std::byte> bytes;
};

// A whole file in one call.
Status write_safetensors(const std::filesystem::path& path, std::span<const TensorData> tensors,
                         const std::map<std::string, std::string>& metadata = {});

}  // namespace hearth
