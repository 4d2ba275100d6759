// SPDX-License-Identifier: Apache-2.0
// For the tests of checkpoint: a folder that goes away, files of given bytes, expected errors.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"

namespace hearth::testing_util {

class TempFolder {
 public:
  TempFolder() {
    const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::path(::testing::TempDir()) /
            fmt::format("hearth_{}_{}_{}", ::getpid(), info->test_suite_name(), info->name());
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path put(const std::string& name, std::string_view bytes) const {
    const std::filesystem::path file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The bytes of a safetensors file: length, header, data.
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  std::string file;
  for (size_t i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  file += header;
  file += data;
  return file;
}

}  // namespace hearth::testing_util

// The Result failed with `code` and its message has every one of the given parts.
#define EXPECT_ERROR(result, expected_code, ...)                                     \
  do {                                                                               \
    const auto& expect_error_result_ = (result);                                     \
    ASSERT_FALSE(expect_error_result_) << "wanted an error";                         \
    EXPECT_EQ(::hearth::error_code_name(expect_error_result_.error().code),          \
              ::hearth::error_code_name(::hearth::ErrorCode::expected_code));        \
    for (const std::string part : std::vector<std::string>{__VA_ARGS__})             \
      EXPECT_THAT(expect_error_result_.error().message, ::testing::HasSubstr(part)); \
  } while (false)
