// SPDX-License-Identifier: Apache-2.0
// Checkpoint: an open model folder in the Hugging Face layout: config.json and the weights, either in
// model.safetensors or in the shards that model.safetensors.index.json names.
//   I1. All files stay open while the Checkpoint lives: one that is replaced meanwhile is not mixed in.
//   I2. Weights are only copied (pread), never mapped: what happens to a file later can make read()
//       fail but cannot signal the process, and does nothing to what was read before.
// Immutable after open(): any number of threads may read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/checkpoint/safetensors.h"

namespace hearth {

class Checkpoint {
 public:
  // Reads the configuration and every header. Errors name the file, and what was found and wanted.
  static Result<Checkpoint> open(const std::filesystem::path& dir);
  // Of some files that are all there is so far, with the configuration that the whole will have. `dir` is for messages.
  static Result<Checkpoint> open_files(const std::filesystem::path& dir, nlohmann::json config,
                                       std::span<const std::filesystem::path> files);
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;

  const std::filesystem::path& dir() const;
  // config.json: an object. (Include <nlohmann/json.hpp> to use it.)
  const nlohmann::json& config() const;
  // generation_config.json; null where there is none.
  const nlohmann::json* generation_config() const;

  // All tensors, by file, then by place in the file: the order to read them in.
  std::span<const TensorEntry> tensors() const;
  // Null where there is none of that name. The pointer lives as long as the Checkpoint.
  const TensorEntry* find(std::string_view name) const;
  // Sum of all tensors' sizes.
  int64_t total_bytes() const;

  // Copies the tensor's bytes to dst. Corrupt where the file has become shorter. Thread-safe.
  // REQUIRES: dst.size() == entry.size_bytes.
  Status read(const TensorEntry& entry, std::span<std::byte> dst) const;
  // Bytes [begin, begin + dst.size()) of the tensor. REQUIRES: they lie within it.
  Status read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const;

  // The files that hold the weights; TensorEntry::file indexes them.
  std::span<const SafetensorsFile> files() const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<const State> state);
  std::unique_ptr<const State> state_;
};

}  // namespace hearth
