// SPDX-License-Identifier: Apache-2.0
// The cache's layout in a folder of our own; the process's environment is not looked at.
#include "hearth/checkpoint/hub.h"

#include <map>

#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using testing_util::TempFolder;

Environment environment(std::map<std::string, std::string> variables) {
  return {[variables = std::move(variables)](const char* name) -> std::optional<std::string> {
    const auto it = variables.find(name);
    if (it == variables.end()) return std::nullopt;
    return it->second;
  }};
}

TEST(HubCacheDir, FollowsTheVariablesInTheirOrder) {
  std::map<std::string, std::string> variables = {{"HF_HUB_CACHE", "/a"},
                                                  {"HUGGINGFACE_HUB_CACHE", "/b"},
                                                  {"HF_HOME", "/c"},
                                                  {"XDG_CACHE_HOME", "/d"},
                                                  {"HOME", "/home/somebody"}};
  const auto expect = [&](const std::string& path, const std::string& drop) {
    const auto dir = hub_cache_dir(environment(variables));
    ASSERT_TRUE(dir) << drop;
    EXPECT_EQ(*dir, path);
    variables[drop] = "";  // an empty variable counts as none
  };
  expect("/a", "HF_HUB_CACHE");
  expect("/b", "HUGGINGFACE_HUB_CACHE");
  expect("/c/hub", "HF_HOME");
  expect("/d/huggingface/hub", "XDG_CACHE_HOME");
  expect("/home/somebody/.cache/huggingface/hub", "HOME");
  EXPECT_ERROR(hub_cache_dir(environment(variables)), kNotFound, "HF_HUB_CACHE", "HF_HOME");
  EXPECT_EQ(*hub_cache_dir(environment({{"HF_HOME", "~/hf"}, {"HOME", "/h"}})), "/h/hf/hub");
}

class HubCache : public ::testing::Test {
 protected:
  static constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";
  static constexpr const char* kOther = "fedcba9876543210fedcba9876543210fedcba98";

  HubCache() {
    blob("config", "{}");
    blob("weights", "w");
    snapshot(kCommit);
    dir_.put("models--org--name/refs/main", kCommit);
  }
  void blob(const std::string& name, const std::string& text) { dir_.put(repo("blobs/") + name, text); }
  void snapshot(const std::string& commit) {
    const fs::path folder = dir_.path() / repo("snapshots") / commit;
    fs::create_directories(folder);
    fs::create_symlink("../../blobs/config", folder / "config.json");
    fs::create_symlink("../../blobs/weights", folder / "model.safetensors");
  }
  static std::string repo(const std::string& path) { return fmt::format("models--org--name/{}", path); }
  fs::path snapshot_path(const std::string& commit) const { return dir_.path() / repo("snapshots") / commit; }
  Result<fs::path> resolve(std::string_view name) const {
    return resolve_model(name, environment({{"HF_HUB_CACHE", dir_.path().string()}}));
  }
  TempFolder dir_;
};

TEST_F(HubCache, FindsBranchesTagsAndCommits) {
  snapshot(kOther);
  dir_.put(repo("refs/v1.0"), fmt::format("{}\n", kOther));
  dir_.put(repo("refs/refs/pr/7"), kOther);
  const auto expect = [&](std::string_view name, const std::string& commit) {
    const auto path = resolve(name);
    ASSERT_TRUE(path) << path.error().message;
    EXPECT_EQ(*path, snapshot_path(commit));
  };
  expect("org/name", kCommit);
  expect("org/name@main", kCommit);
  expect("org/name@v1.0", kOther);
  expect("org/name@refs/pr/7", kOther);
  expect(fmt::format("org/name@{}", kOther), kOther);
}

TEST_F(HubCache, FindsNamesWithoutAnOrganisation) {
  fs::rename(dir_.path() / "models--org--name", dir_.path() / "models--gpt");
  const auto path = resolve("gpt");
  ASSERT_TRUE(path) << path.error().message;
  EXPECT_EQ(*path, dir_.path() / "models--gpt" / "snapshots" / kCommit);
}

TEST_F(HubCache, AFolderIsItself) {
  const auto path = resolve(dir_.path().string());
  ASSERT_TRUE(path);
  EXPECT_EQ(*path, dir_.path());
  EXPECT_EQ(*resolve("models/fable-13m"), "models/fable-13m");
}

TEST_F(HubCache, SaysHowToGetWhatIsNotThere) {
  EXPECT_ERROR(resolve("org/other"), kNotFound, "model org/other", "neither a folder nor in the Hugging Face cache",
               dir_.path().string(), "`hf download org/other`");
  EXPECT_ERROR(resolve("org/name@v2"), kNotFound, "revision 'v2'", "`hf download org/name --revision v2`");
  EXPECT_ERROR(resolve(fmt::format("org/name@{}", kOther)), kNotFound, kOther, "hf download");
  EXPECT_ERROR(resolve_model("org/name", environment({})), kNotFound, "HF_HUB_CACHE");
}

TEST_F(HubCache, NamesTheFileOfAnIncompleteSnapshot) {
  fs::remove(dir_.path() / repo("blobs/weights"));
  EXPECT_ERROR(resolve("org/name"), kNotFound, "model.safetensors is in the cache only as a link to nothing",
               "`hf download org/name`");
  blob("weights", "w");
  ASSERT_TRUE(resolve("org/name"));
  fs::remove(snapshot_path(kCommit) / "config.json");
  EXPECT_ERROR(resolve("org/name"), kNotFound, "has no config.json", "`hf download org/name`");
  dir_.put(repo("refs/main"), kOther);
  EXPECT_ERROR(resolve("org/name"), kNotFound, "revision 'main' has no files", kOther);
}

TEST_F(HubCache, RefusesReferencesThatAreNoCommit) {
  for (const std::string text : {"", "main", "../../../etc", "0123456789abcdef0123456789abcdef0123456g"}) {
    dir_.put(repo("refs/main"), text);
    EXPECT_ERROR(resolve("org/name"), kCorrupt, "refs/main holds", "wanted a commit");
  }
}

TEST_F(HubCache, RefusesWhatIsNoName) {
  dir_.put("models--org--name/refs/secret", kCommit);
  for (const std::string name :
       {"org/..", "../name", "org/name@..", "org/name@../refs/main", "org/name@", "org/name@/main", "org/na me",
        "org/-name", "org/name.", "org/na--me", "org/na..me", "or\ng/name", "@main"}) {
    SCOPED_TRACE(name);
    const auto path = resolve(name);
    ASSERT_FALSE(path);
    EXPECT_THAT(path.error().code, ::testing::AnyOf(ErrorCode::kInvalidArgument, ErrorCode::kNotFound));
    EXPECT_THAT(path.error().message, ::testing::AnyOf(::testing::HasSubstr("neither a folder nor a name"),
                                                       ::testing::HasSubstr("no such folder")));
  }
  EXPECT_ERROR(resolve(""), kInvalidArgument, "wanted a folder or org/name");
  EXPECT_ERROR(resolve(std::string_view("org/na\0me", 9)), kInvalidArgument, "wanted a folder or org/name");
  EXPECT_ERROR(resolve("/no/such/folder"), kNotFound, "'/no/such/folder': no such folder");
  EXPECT_ERROR(resolve("./model"), kNotFound, "no such folder");
  EXPECT_ERROR(resolve("a/b/c"), kNotFound, "no such folder");
}

TEST_F(HubCache, ExplainsFiles) {
  EXPECT_ERROR(resolve(dir_.put("model.safetensors", "x").string()), kInvalidArgument, "is a file",
               "wanted the folder that holds config.json");
  EXPECT_ERROR(resolve(dir_.put("model.gguf", "x").string()), kUnsupported, "another format", "convert it");
}

}  // namespace
}  // namespace hearth
