// SPDX-License-Identifier: Apache-2.0
// For the tests of quantized checkpoints: fixtures of tests/fixtures/quantized, and copies with something changed.
#pragma once

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quantization.h"
#include "hearth/checkpoint/safetensors_writer.h"
#include "hearth/checkpoint/test_util.h"

namespace hearth::testing_util {

inline const std::filesystem::path kQuantizedFixtures = "tests/fixtures/quantized";

// A checkpoint in memory: change it, then write it into a folder.
struct EditableCheckpoint {
  struct Tensor {
    DType dtype;
    Shape shape;
    std::vector<std::byte> bytes;
  };
  nlohmann::ordered_json config = {{"architectures", {"LlamaForCausalLM"}}};
  std::map<std::string, Tensor> tensors;

  static EditableCheckpoint load(const std::string& fixture) {
    EditableCheckpoint copy;
    copy.config = nlohmann::ordered_json::parse(read_bytes(kQuantizedFixtures / fixture / "config.json"));
    auto checkpoint = Checkpoint::open(kQuantizedFixtures / fixture);
    HEARTH_CHECK(checkpoint.has_value(), "{}", checkpoint.error().message);
    for (const TensorEntry& entry : checkpoint->tensors()) {
      Tensor tensor{entry.dtype, entry.shape, std::vector<std::byte>(static_cast<size_t>(entry.size_bytes))};
      HEARTH_CHECK(checkpoint->read(entry, tensor.bytes).has_value(), "{}", entry.name);
      copy.tensors[entry.name] = std::move(tensor);
    }
    return copy;
  }

  nlohmann::ordered_json& quantization() { return config["quantization_config"]; }
  template <class T>
  T* values(const std::string& name) {
    return static_cast<T*>(static_cast<void*>(tensors.at(name).bytes.data()));
  }
  void resize(const std::string& name, const Shape& shape) {
    Tensor& tensor = tensors.at(name);
    tensor.shape = shape;
    tensor.bytes.resize(static_cast<size_t>(dtype_bytes(tensor.dtype, shape.count())));
  }

  Result<Checkpoint> write(const std::filesystem::path& dir) const {
    std::filesystem::create_directories(dir);
    std::ofstream(dir / "config.json") << config;
    std::vector<TensorData> list;
    for (const auto& [name, tensor] : tensors)
      list.push_back({{name, tensor.dtype, tensor.shape}, std::span(tensor.bytes)});
    HEARTH_TRY(write_safetensors(dir / "model.safetensors", list));
    return Checkpoint::open(dir);
  }
};

// Every value of the matrix as it acts on x.
inline std::vector<float> dequantized(const QuantizedMatrix& matrix) {
  std::vector<float> values(static_cast<size_t>(matrix.n * matrix.k));
  for (int64_t row = 0; row < matrix.n; ++row)
    matrix.dequantize_row(
        row, std::span(values).subspan(static_cast<size_t>(row * matrix.k), static_cast<size_t>(matrix.k)));
  return values;
}

}  // namespace hearth::testing_util
