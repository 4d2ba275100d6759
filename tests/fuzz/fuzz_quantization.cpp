// SPDX-License-Identifier: Apache-2.0
// Fuzz target of quantized checkpoints: quantization_config and the tensors beside it. An input is a row of text
// "<rows> <columns>", a row of config.json, and a safetensors file. Every module that a tensor belongs to is looked at
// as a linear of that size. What is refused is refused with an error of the input; what is read must be as it was
// promised, and every row of it can be dequantized.
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/check.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/quantization.h"

namespace hearth {
namespace {

constexpr int64_t kMostRows = 256, kMostColumns = 1024;

// A folder of this process, for its life.
class Folder {
 public:
  Folder() : path_((std::filesystem::temp_directory_path() / "hearth-fuzz-XXXXXX").string()) {
    HEARTH_CHECK(mkdtemp(path_.data()) != nullptr, "no folder {}", path_);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  void put(const char* name, std::string_view bytes) const {
    std::ofstream(path() / name, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::filesystem::path path() const { return path_; }

 private:
  std::string path_;
};

void check_error(const Error& error) {
  HEARTH_CHECK(!error.message.empty(), "an error without a message");
  HEARTH_CHECK(error.code == ErrorCode::kCorrupt || error.code == ErrorCode::kUnsupported ||
                   error.code == ErrorCode::kInvalidArgument || error.code == ErrorCode::kNotFound,
               "code of: {}", error.message);
}

void check_module(const Checkpoint& checkpoint, const Quantization& quantization, std::string_view module, int64_t n,
                  int64_t k) {
  const auto format = quantization.format(checkpoint, module, n, k);
  const std::vector<std::string> tensors = quantization.tensors(checkpoint, module);
  if (!format) return check_error(format.error());
  if (!format->has_value()) return;
  const Status valid = (*format)->validate(n, k);
  HEARTH_CHECK(valid.has_value(), "{}", valid.error().message);
  for (const std::string& name : tensors)
    HEARTH_CHECK(checkpoint.find(name) != nullptr, "no tensor {} that is to be read", name);
  const auto matrix = quantization.read(checkpoint, module, n, k);
  if (!matrix) return check_error(matrix.error());
  HEARTH_CHECK(matrix->n == n && matrix->k == k, "{} x {}, not {} x {}", matrix->n, matrix->k, n, k);
  HEARTH_CHECK(matrix->format == **format, "read as {}", to_string(matrix->format));
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t i = 0; i < n; ++i) matrix->dequantize_row(i, row);
}

void check_folder(const std::filesystem::path& dir, int64_t n, int64_t k) {
  const auto checkpoint = Checkpoint::open(dir);
  if (!checkpoint) return check_error(checkpoint.error());
  const auto quantization = Quantization::parse(*checkpoint);
  if (!quantization) return check_error(quantization.error());
  (void)quantization->kv_format();
  std::set<std::string_view> modules = {"lm_head"};
  for (const TensorEntry& entry : checkpoint->tensors())
    modules.insert(std::string_view(entry.name).substr(0, entry.name.rfind('.')));
  for (const std::string_view module : modules) check_module(*checkpoint, *quantization, module, n, k);
}

// The text up to the next newline, which goes.
std::string_view take_row(std::string_view& input) {
  const size_t end = std::min(input.find('\n'), input.size());
  const std::string_view row = input.substr(0, end);
  input.remove_prefix(std::min(end + 1, input.size()));
  return row;
}

}  // namespace
}  // namespace hearth

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hearth;
  static const Folder folder;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view shape = take_row(input);
  int64_t n = 0, k = 0;
  const auto [space, bad_n] = std::from_chars(shape.data(), shape.data() + shape.size(), n);
  if (bad_n != std::errc() || space == shape.data() + shape.size()) return 0;
  const auto [end, bad_k] = std::from_chars(space + 1, shape.data() + shape.size(), k);
  if (bad_k != std::errc() || n < 1 || k < 1 || n > kMostRows || k > kMostColumns) return 0;
  folder.put("config.json", take_row(input));
  folder.put("model.safetensors", input);
  check_folder(folder.path(), n, k);
  return 0;
}
