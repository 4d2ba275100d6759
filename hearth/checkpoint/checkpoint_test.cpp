// SPDX-License-Identifier: Apache-2.0
// Model folders: whole ones of another implementation, and every way that a folder can be broken.
#include "hearth/checkpoint/checkpoint.h"

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>

#include "hearth/checkpoint/safetensors_writer.h"
#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using testing_util::safetensors_bytes;
using testing_util::TempFolder;

// A file of U8 tensors of four bytes each, all holding `fill`.
std::string shard(const std::vector<std::string>& names, char fill = 'x') {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  int64_t end = 0;
  for (const std::string& name : names) {
    header[name] = {{"dtype", "U8"}, {"shape", {4}}, {"data_offsets", {end, end + 4}}};
    end += 4;
  }
  return safetensors_bytes(header.dump(), std::string(static_cast<size_t>(end), fill));
}

std::string index_of(const std::vector<std::pair<std::string, std::string>>& map) {
  nlohmann::ordered_json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", nlohmann::ordered_json::object()}};
  for (const auto& [name, file] : map) index["weight_map"][name] = file;
  return index.dump();
}

std::string read_text(const Checkpoint& checkpoint, std::string_view name) {
  const TensorEntry* const entry = checkpoint.find(name);
  if (entry == nullptr) return "(no such tensor)";
  std::string bytes(static_cast<size_t>(entry->size_bytes), '\0');
  const auto status = checkpoint.read(*entry, std::as_writable_bytes(std::span(bytes)));
  return status ? bytes : status.error().message;
}

TEST(Checkpoint, OpensTheDemoModel) {
  const auto checkpoint = Checkpoint::open("models/fable-13m");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->config()["architectures"][0], "LlamaForCausalLM");
  ASSERT_NE(checkpoint->generation_config(), nullptr);
  EXPECT_EQ(checkpoint->tensors().size(), 56u);
  EXPECT_EQ(checkpoint->dir(), "models/fable-13m");
  const TensorEntry* const embedding = checkpoint->find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->shape, (Shape{8192, 384}));
  EXPECT_EQ(checkpoint->find("model.embed_tokens"), nullptr);
  // The file is its header and the tensors.
  EXPECT_EQ(checkpoint->total_bytes() + 8 + 6128,
            static_cast<int64_t>(fs::file_size("models/fable-13m/model.safetensors")));
}

TEST(Checkpoint, OpensShardsOfAnotherImplementation) {
  const auto checkpoint = Checkpoint::open("tests/fixtures/llama_sharded");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->files().size(), 2u);
  const auto index =
      nlohmann::json::parse(testing_util::read_bytes("tests/fixtures/llama_sharded/model.safetensors.index.json"));
  EXPECT_EQ(checkpoint->total_bytes(), index["metadata"]["total_size"].get<int64_t>());
  EXPECT_EQ(checkpoint->tensors().size(), index["weight_map"].size());
  for (const auto& [name, file] : index["weight_map"].items()) {
    const TensorEntry* const entry = checkpoint->find(name);
    ASSERT_NE(entry, nullptr) << name;
    EXPECT_EQ(checkpoint->files()[static_cast<size_t>(entry->file)].path().filename(), file.get<std::string>());
  }
  for (size_t i = 1; i < checkpoint->tensors().size(); ++i) {
    const TensorEntry &a = checkpoint->tensors()[i - 1], &b = checkpoint->tensors()[i];
    EXPECT_TRUE(a.file < b.file || (a.file == b.file && a.offset_bytes < b.offset_bytes));
  }
}

class CheckpointFolder : public ::testing::Test {
 protected:
  CheckpointFolder() { dir_.put("config.json", "{}"); }
  Result<Checkpoint> open() const { return Checkpoint::open(dir_.path()); }
  TempFolder dir_;
};

TEST_F(CheckpointFolder, ReadsTheShardThatTheIndexNames) {
  dir_.put("one.safetensors", shard({"a", "both", "spare"}, '1'));
  dir_.put("two.safetensors", shard({"b", "both"}, '2'));
  dir_.put("model.safetensors.index.json",
           index_of({{"a", "one.safetensors"}, {"b", "two.safetensors"}, {"both", "two.safetensors"}}));
  const auto checkpoint = open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  EXPECT_EQ(checkpoint->total_bytes(), 12);
  EXPECT_EQ(read_text(*checkpoint, "a"), "1111");
  EXPECT_EQ(read_text(*checkpoint, "both"), "2222");
  EXPECT_EQ(checkpoint->find("spare"), nullptr);  // of no shard by the index: ignored, with a warning
  EXPECT_EQ(checkpoint->generation_config(), nullptr);
}

TEST_F(CheckpointFolder, RefusesAnIndexThatIsWrong) {
  dir_.put("one.safetensors", shard({"a"}));
  const auto with_index = [&](std::string_view index) {
    dir_.put("model.safetensors.index.json", index);
    return open();
  };
  const std::string file = "model.safetensors.index.json";
  EXPECT_ERROR(with_index("{"), kCorrupt, file, "not JSON: line 1, column 2");
  EXPECT_ERROR(with_index("[]"), kCorrupt, file, "holds an array; wanted an object");
  EXPECT_ERROR(with_index("{}"), kCorrupt, file, "has no weight_map");
  EXPECT_ERROR(with_index(R"({"weight_map":[]})"), kCorrupt, file, "weight_map is an array; wanted an object");
  EXPECT_ERROR(with_index(R"({"weight_map":{}})"), kCorrupt, file, "weight_map is empty");
  EXPECT_ERROR(with_index(R"({"weight_map":{"a":1}})"), kCorrupt, file, "tensor 'a' is in 1; wanted a file name");
  EXPECT_ERROR(with_index(R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})"), kCorrupt, file,
               "tensor 'a' is given twice");
  for (const std::string path : {"../one.safetensors", "..", ".", "", "/etc/passwd", "sub/one.safetensors"}) {
    EXPECT_ERROR(with_index(index_of({{"a", path}})), kCorrupt, file, fmt::format("tensor 'a' is in '{}'", path),
                 "in the same folder");
  }
  EXPECT_ERROR(with_index(index_of({{"a", "one.safetensors"}, {"b", "gone.safetensors"}})), kNotFound,
               "no shard 'gone.safetensors'", "download is incomplete");
  EXPECT_ERROR(with_index(index_of({{"a", "one.safetensors"}, {"b", "one.safetensors"}})), kCorrupt, file,
               "tensor 'b' should be in 'one.safetensors'");
  // The same where as many tensors are found as wanted, but others.
  dir_.put("one.safetensors", shard({"a", "c"}));
  EXPECT_ERROR(with_index(index_of({{"a", "one.safetensors"}, {"b", "one.safetensors"}})), kCorrupt, "tensor 'b'");
  dir_.put("one.safetensors", "short");
  EXPECT_ERROR(with_index(index_of({{"a", "one.safetensors"}})), kCorrupt, "one.safetensors: has 5 bytes");
}

TEST_F(CheckpointFolder, SaysWhatTheFolderHoldsInstead) {
  EXPECT_ERROR(Checkpoint::open(dir_.path() / "absent"), kNotFound, "no folder", "absent");
  EXPECT_ERROR(Checkpoint::open(dir_.path() / "config.json"), kInvalidArgument, "config.json is not a folder");
  EXPECT_ERROR(open(), kNotFound, "no model.safetensors;", "found 'config.json'");
  dir_.put("consolidated.safetensors", shard({"a"}));
  EXPECT_ERROR(open(), kNotFound, "found 'config.json', 'consolidated.safetensors'");
  for (const std::string other : {"pytorch_model.bin", "model-q4.gguf", "consolidated.00.pth"}) {
    const fs::path path = dir_.put(other, "weights");
    EXPECT_ERROR(open(), kUnsupported, other, "convert the model to safetensors");
    fs::remove(path);
  }
  // Beside safetensors they do not matter.
  dir_.put("pytorch_model.bin", "weights");
  dir_.put("model.safetensors", shard({"a"}));
  ASSERT_TRUE(open());
  fs::remove(dir_.path() / "config.json");
  EXPECT_ERROR(open(), kNotFound, "no config.json;", "'model.safetensors'");
}

TEST_F(CheckpointFolder, RefusesBrokenConfigurations) {
  dir_.put("model.safetensors", shard({"a"}));
  dir_.put("config.json", "\xEF\xBB\xBF{\"a\": 1}");
  ASSERT_TRUE(open());
  dir_.put("config.json", "{\n\"a\": }");
  EXPECT_ERROR(open(), kCorrupt, "config.json: line 2, column 6: not JSON");
  dir_.put("config.json", "3");
  EXPECT_ERROR(open(), kCorrupt, "config.json holds number; wanted an object");
  dir_.put("config.json", "");
  EXPECT_ERROR(open(), kCorrupt, "config.json: line 1, column 1: not JSON");
  dir_.put("config.json", "{}");
  dir_.put("generation_config.json", "{\"eos_token_id\": 2}");
  const auto good = open();
  ASSERT_TRUE(good);
  EXPECT_EQ((*good->generation_config())["eos_token_id"], 2);
  dir_.put("generation_config.json", "{");
  EXPECT_ERROR(open(), kCorrupt, "generation_config.json: line 1");
}

TEST_F(CheckpointFolder, I2TruncationUnderTheProcessIsAnError) {
  // Pages of the file are in use, then gone: with a mapping this would be SIGBUS.
  constexpr int64_t kBytes = 1 << 20;
  const std::string data(kBytes, 'w');
  const TensorData tensor = {{"a", DType::kU8, Shape{kBytes}}, std::as_bytes(std::span(data))};
  ASSERT_TRUE(write_safetensors(dir_.path() / "model.safetensors", std::span(&tensor, 1)));
  const auto checkpoint = open();
  ASSERT_TRUE(checkpoint);
  const TensorEntry& entry = *checkpoint->find("a");
  std::string before(kBytes, '\0'), after(kBytes, '\0');
  ASSERT_TRUE(checkpoint->read(entry, std::as_writable_bytes(std::span(before))));
  fs::resize_file(dir_.path() / "model.safetensors", 4096);
  EXPECT_EQ(before, data);
  EXPECT_ERROR(checkpoint->read(entry, std::as_writable_bytes(std::span(after))), kCorrupt, "tensor 'a'",
               "model.safetensors: ends at byte 4096", "when it was opened");
  fs::resize_file(dir_.path() / "model.safetensors", 0);
  EXPECT_ERROR(checkpoint->read(entry, std::as_writable_bytes(std::span(after))), kCorrupt, "ends at byte");
}

TEST_F(CheckpointFolder, I1AReplacedFileIsNotMixedIn) {
  dir_.put("model.safetensors", shard({"a"}, 'o'));
  const auto checkpoint = open();
  ASSERT_TRUE(checkpoint);
  dir_.put("new", shard({"a"}, 'n'));
  fs::rename(dir_.path() / "new", dir_.path() / "model.safetensors");
  EXPECT_EQ(read_text(*checkpoint, "a"), "oooo");
  fs::remove(dir_.path() / "model.safetensors");
  EXPECT_EQ(read_text(*checkpoint, "a"), "oooo");
}

TEST(Checkpoint, ThreadsReadAtOnce) {
  const auto checkpoint = Checkpoint::open("tests/fixtures/llama_sharded");
  ASSERT_TRUE(checkpoint);
  std::vector<std::string> alone;
  for (const TensorEntry& entry : checkpoint->tensors()) alone.push_back(read_text(*checkpoint, entry.name));
  std::atomic<int> different{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < alone.size(); ++i) {
        if (read_text(*checkpoint, checkpoint->tensors()[i].name) != alone[i]) ++different;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(different, 0);
}

}  // namespace
}  // namespace hearth
