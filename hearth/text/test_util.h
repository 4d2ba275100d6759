// SPDX-License-Identifier: Apache-2.0
// Fixtures of the text tests: golden files, folders of one test, tokenizers of HEARTH_DATA. Tests only, one thread.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hearth/text/tokenizer.h"

namespace hearth::text_test {

namespace fs = std::filesystem;
using Json = nlohmann::json;
// Keeps the order of members, which chat templates can see.
using OrderedJson = nlohmann::ordered_json;

inline const fs::path kFixtures = "tests/fixtures/text";
inline const fs::path kDemoModel = "models/fable-13m";

inline std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

// A folder that goes away with the object.
class TempDir {
 public:
  TempDir() {
    std::string name = (fs::temp_directory_path() / "hearth-text-XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~TempDir() {
    std::error_code ec;
    fs::remove_all(path_, ec);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const fs::path& path() const { return path_; }
  void write(const fs::path& name, std::string_view text) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
  }

 private:
  fs::path path_;
};

inline Tokenizer load_demo() {
  Result<Tokenizer> tokenizer = Tokenizer::load(kDemoModel);
  if (!tokenizer) ADD_FAILURE() << tokenizer.error().message;
  return std::move(tokenizer).value();
}

// The folder of tokenizers that are not part of the repository; empty without HEARTH_DATA.
inline fs::path data_tokenizers() {
  const char* data = std::getenv("HEARTH_DATA");
  return data ? fs::path(data) / "data" / "tokenizers" : fs::path();
}

// The tokenizer of HEARTH_DATA that `golden` (an entry of other_tokenizers_golden.json) is about, with the
// replacements that restore a damaged file.
inline Tokenizer load_other(const Json& golden) {
  const fs::path source = data_tokenizers() / golden.at("tokenizer").get<std::string>();
  const TempDir dir;
  std::string json = read_file(source / "tokenizer.json");
  for (const Json& edit : golden.value("edits", Json::array())) {
    const std::string from = edit[0], to = edit[1];
    const size_t at = json.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    EXPECT_EQ(json.find(from, at + 1), std::string::npos) << from;
    if (at != std::string::npos) json.replace(at, from.size(), to);
  }
  dir.write("tokenizer.json", json);
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    if (fs::exists(source / name)) dir.write(name, read_file(source / name));
  }
  Result<Tokenizer> tokenizer = Tokenizer::load(dir.path());
  if (!tokenizer) ADD_FAILURE() << tokenizer.error().message;
  return std::move(tokenizer).value();
}

inline Json other_goldens() { return Json::parse(read_file(kFixtures / "other_tokenizers_golden.json"))["tokenizers"]; }

}  // namespace hearth::text_test
