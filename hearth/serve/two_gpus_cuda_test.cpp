// SPDX-License-Identifier: Apache-2.0
// Models on the GPU that was chosen (--device cuda:N), and on no other: golden values, FP8 steps, and a server's texts,
// on one GPU; and where there are two, on both at the same time, a process each. Label gpu: without a device every test
// here fails, with one the second is skipped.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <thread>

#include "hearth/checkpoint/test_util.h"
#include "hearth/memory/cuda/context_for_test.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/model/golden_for_test.h"
#include "hearth/model/rounded_for_test.h"
#include "hearth/serve/cuda_server_for_test.h"

extern char** environ;

namespace hearth {
namespace {

namespace fs = std::filesystem;

// What a process of this test is told by its environment; none: GPU 0, and nobody to meet.
constexpr const char *kGpu = "HEARTH_TEST_GPU", *kMeeting = "HEARTH_TEST_MEETING";

int this_gpu() {
  const char* const number = std::getenv(kGpu);
  return number == nullptr ? 0 : std::atoi(number);
}

// The other process has come as far, too.
void meet() {
  const char* const folder = std::getenv(kMeeting);
  if (folder == nullptr) return;
  std::ofstream(fs::path(folder) / fmt::format("here{}", this_gpu())) << "here";
  for (int tries = 0; !fs::exists(fs::path(folder) / fmt::format("here{}", 1 - this_gpu())); ++tries) {
    ASSERT_LT(tries, 12'000) << "the process on GPU " << 1 - this_gpu() << " did not come";
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void expect_contexts_on_this_gpu_alone(const char* when) {
  const auto count = cuda_device_count();
  ASSERT_TRUE(count) << count.error().message;
  for (int device = 0; device < *count; ++device) {
    const auto has = has_cuda_context_for_test(device);
    ASSERT_TRUE(has) << has.error().message;
    EXPECT_EQ(*has, device == this_gpu()) << when << ": GPU " << device;
  }
}

// Steps of 1, 9 to 64 and more rows, eager and recorded, of FP8 weights: every kind of linear; the bits of their
// logits.
std::string fp8_bits() {
  const testing_util::TempFolder folder;
  testing::write_rounded(folder.path(), testing::fp8(ActFormat::kE4m3PerToken));
  ThreadPool pool(2);
  const auto model = testing::load_model(folder.path(), pool, {.activation = DType::kBf16}, *cuda_ops());
  std::string bits;
  for (const std::vector<int64_t>& recorded : {std::vector<int64_t>(), {1, 16}}) {
    Runner runner = testing::make_runner(
        model, pool,
        {.max_sequences = 16, .max_context = 512, .kv_format = KvFormatId::kBf16, .decode_batches = recorded});
    std::vector<SlotTokens> feeds;
    std::vector<int32_t> ids(32);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(100 + 37 * i);
    for (int64_t slot = 0; slot < 16; ++slot)
      feeds.push_back({slot, std::span(ids).first(static_cast<size_t>(1 + slot))});
    for (const size_t count : {16, 1, 16, 9, 1}) {
      const auto logits = runner.step(std::span(feeds).first(count));
      EXPECT_TRUE(logits) << logits.error().message;
      if (!logits) return bits;
      for (const std::vector<float>& row : testing::copy_rows(*logits))
        bits.append(static_cast<const char*>(static_cast<const void*>(row.data())), row.size() * sizeof(float));
      for (SlotTokens& feed : feeds) feed.tokens = std::span(ids).subspan(20, 1);
    }
  }
  return bits;
}

TEST(Gpus, AModelRunsOnTheChosenOneAlone) {
  const Status chosen = cuda_ops()->choose_device(this_gpu());
  ASSERT_TRUE(chosen) << chosen.error().message;
  const auto count = cuda_device_count();
  const auto info = cuda_device_info(this_gpu());
  ASSERT_TRUE(count && info);
  fmt::print("on cuda:{} of {}: {}\n", cuda_device(), *count, info->name);
  ASSERT_TRUE(Stream::create());
  expect_contexts_on_this_gpu_alone("at first");

  ThreadPool pool(2);
  const auto golden_prompts = testing::read_golden("models/fable-13m");
  auto model = testing::load_model("models/fable-13m", pool, {}, *cuda_ops());
  auto runner =
      std::make_unique<Runner>(testing::make_runner(model, pool, {.max_context = 512, .decode_batches = {1}}));
  meet();
  if (HasFatalFailure()) return;
  for (int round = 0; round < 3; ++round) testing::expect_golden(*runner, golden_prompts, 1e-4, 512);
  const std::string bits = fp8_bits();
  EXPECT_FALSE(bits.empty());
  if (const char* const folder = std::getenv(kMeeting); folder != nullptr)
    std::ofstream(fs::path(folder) / fmt::format("bits{}", this_gpu()), std::ios::binary) << bits;

  const auto prompts = golden();
  for (const DType activation : {DType::kF32, DType::kBf16}) {
    const auto server = make_server(activation, true);
    const auto texts = all_at_once(server->port(), prompts, 3);
    for (size_t p = 0; p < prompts.size() && activation == DType::kF32; ++p)
      for (const std::string& text : texts[p]) EXPECT_EQ(text, prompts[p].text) << "prompt " << p;
    json drawn = request_of(prompts.front());
    drawn["temperature"] = 1, drawn["top_p"] = 0.9, drawn["seed"] = 7;
    EXPECT_FALSE(text_of(post(server->port(), drawn)).empty());
  }
  // On a thread that has never seen a GPU.
  std::thread([&] { runner.reset(), model.reset(); }).join();
  expect_contexts_on_this_gpu_alone("in the end");
}

// This program again, for one test on one GPU; its output goes to a file of the folder.
pid_t start_on(int gpu, const fs::path& folder) {
  std::vector<std::string> variables{fmt::format("{}={}", kGpu, gpu), fmt::format("{}={}", kMeeting, folder.string())};
  std::vector<char*> environment;
  for (std::string& variable : variables) environment.push_back(variable.data());
  for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);
  environment.push_back(nullptr);
  std::string program = "hearth", filter = "--gtest_filter=Gpus.AModelRunsOnTheChosenOneAlone";
  char* const arguments[] = {program.data(), filter.data(), nullptr};
  const std::string output = folder / fmt::format("output{}", gpu);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  pid_t child = -1;
  const int error = posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments, environment.data());
  posix_spawn_file_actions_destroy(&actions);
  EXPECT_EQ(error, 0) << std::strerror(error);
  return error == 0 ? child : -1;
}

TEST(Gpus, TwoAtTheSameTime) {
  const auto count = cuda_device_count();
  ASSERT_TRUE(count) << count.error().message;
  if (*count < 2) GTEST_SKIP() << "this process sees " << *count << " GPU, wanted 2";
  const testing_util::TempFolder folder;
  const pid_t children[] = {start_on(0, folder.path()), start_on(1, folder.path())};
  for (int gpu = 0; gpu < 2; ++gpu) {
    if (children[gpu] < 0) continue;
    int status = 0;
    ASSERT_EQ(waitpid(children[gpu], &status, 0), children[gpu]);
    const std::string output = testing_util::read_bytes(folder.path() / fmt::format("output{}", gpu));
    fmt::print("-- the process on GPU {}:\n{}", gpu, output);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "GPU " << gpu << ": status " << status;
    EXPECT_NE(output.find(fmt::format("on cuda:{} of", gpu)), std::string::npos);
  }
  const std::string first = testing_util::read_bytes(folder.path() / "bits0"),
                    second = testing_util::read_bytes(folder.path() / "bits1");
  EXPECT_FALSE(first.empty());
  EXPECT_TRUE(first == second) << "two GPUs of the same kind give other bits";
}

}  // namespace
}  // namespace hearth
