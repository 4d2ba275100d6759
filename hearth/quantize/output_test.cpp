// SPDX-License-Identifier: Apache-2.0
// The quantizer's output folder: when it goes on, begins anew and refuses.
#include "hearth/quantize/output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/safetensors_writer.h"
#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using testing_util::read_bytes;
using testing_util::TempFolder;

constexpr int64_t kShards = 3;

std::vector<StoredTensor> tensors() {
  StoredTensor tensor;
  tensor.spec = {.name = "a", .dtype = DType::kF32, .shape = Shape{1}};
  tensor.bytes.resize(4);
  return {tensor};
}

// A run that ended after `shards` shards; the first, the embedding, has no line.
void unfinished(const fs::path& dir, int64_t shards) {
  auto folder = OutputFolder::open(dir, {{"to", "int4"}}, kShards);
  ASSERT_TRUE(folder) << folder.error().message;
  for (int64_t i = 0; i < shards; ++i)
    ASSERT_TRUE(folder->write_shard(tensors(), i == 0 ? ordered_json::array() : ordered_json{{{"module", "m"}}}));
}

TEST(OutputFolder, BeginsAnewWhereNothingWasEncoded) {
  for (const int64_t shards : {0, 1}) {
    SCOPED_TRACE(shards);
    const TempFolder temp;
    unfinished(temp.path() / "out", shards);
    {
      // Other arguments and another number of shards.
      const auto folder = OutputFolder::open(temp.path() / "out", {{"to", "fp8"}}, kShards + 1);
      ASSERT_TRUE(folder) << folder.error().message;
      EXPECT_EQ(folder->shards_done(), 0);
    }
    EXPECT_FALSE(fs::exists(temp.path() / "out/model-00001-of-00003.safetensors"));
    // The folder is that run's now.
    const auto again = OutputFolder::open(temp.path() / "out", {{"to", "fp8"}}, kShards + 1);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(ordered_json::parse(read_bytes(temp.path() / "out" / kQuantizeStateFile))["fingerprint"]["to"], "fp8");
  }
}

TEST(OutputFolder, RemovesItsOwnFilesAlone) {
  const TempFolder temp;
  const fs::path out = temp.path() / "out";
  unfinished(out, 1);
  const std::vector<std::string> kept = {"notes.tmp",
                                         "model-00001-of-00003.safetensors.bak",
                                         "model-0001-of-0003.safetensors",
                                         "model-00002-of-00003.safetensors",
                                         "model-00002-of-00003.safetensors.mine.tmp",
                                         "model-notes.tmp"};
  for (const std::string& name : kept) std::ofstream(out / name) << "mine";
  std::ofstream(out / "model-00002-of-00003.safetensors.17-0.tmp") << "half";
  ASSERT_TRUE(OutputFolder::open(out, {{"to", "fp8"}}, kShards));
  for (const std::string& name : kept) EXPECT_EQ(read_bytes(out / name), "mine") << name;
  EXPECT_FALSE(fs::exists(out / "model-00001-of-00003.safetensors"));
  EXPECT_FALSE(fs::exists(out / "model-00002-of-00003.safetensors.17-0.tmp"));
}

TEST(OutputFolder, ADamagedCountIsCorrupt) {
  for (const char* count : {"-1", "9223372036854775807"}) {
    const TempFolder temp;
    unfinished(temp.path() / "out", 2);
    const fs::path state = temp.path() / "out" / kQuantizeStateFile;
    ordered_json stored = ordered_json::parse(read_bytes(state));
    stored["shards_done"] = ordered_json::parse(count);
    std::ofstream(state) << stored.dump();
    const auto again = OutputFolder::open(temp.path() / "out", {{"to", "int4"}}, kShards);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, ErrorCode::kCorrupt) << again.error().message;
  }
}

TEST(OutputFolder, RefusesOthersWhereSomethingWouldBeLost) {
  const TempFolder temp;
  unfinished(temp.path() / "encoded", 2);
  unfinished(temp.path() / "settled", 0);
  {
    auto folder = OutputFolder::open(temp.path() / "settled", {{"to", "int4"}}, kShards);
    ASSERT_TRUE(folder && folder->settle({{"model.layers.0", "fp8"}}));
  }
  for (const char* name : {"encoded", "settled"}) {
    SCOPED_TRACE(name);
    const std::string state = read_bytes(temp.path() / name / kQuantizeStateFile);
    const auto refused = OutputFolder::open(temp.path() / name, {{"to", "fp8"}}, kShards);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(refused.error().message, ::testing::HasSubstr("its to is \"int4\", this one's \"fp8\""));
    EXPECT_EQ(read_bytes(temp.path() / name / kQuantizeStateFile), state);
    EXPECT_TRUE(OutputFolder::open(temp.path() / name, {{"to", "int4"}}, kShards));
  }
  EXPECT_TRUE(fs::exists(temp.path() / "encoded/model-00001-of-00003.safetensors"));
}

}  // namespace
}  // namespace hearth
