// SPDX-License-Identifier: Apache-2.0
// The server over a GPU: greedy texts of fable-13m against the golden ones, one request alone and all at once, whole
// and streamed; and a GPU that is lost under it. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include <atomic>

#include "hearth/memory/cuda/cuda_memory.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/trap_for_test.h"
#include "hearth/serve/cuda_server_for_test.h"

namespace hearth {
namespace {

// float32: each text is the golden one, however steps are batched.
TEST(ServerCuda, GreedyTextsAreTheGoldenOnes) {
  const auto prompts = golden();
  ASSERT_GE(prompts.size(), 4u);
  for (const bool graphs : {false, true}) {
    SCOPED_TRACE(graphs ? "graphs" : "eager");
    const auto server = make_server(DType::kF32, graphs);
    for (const Golden& g : prompts) EXPECT_EQ(text_of(post(server->port(), request_of(g))), g.text);
    const auto texts = all_at_once(server->port(), prompts, 4);
    for (size_t p = 0; p < prompts.size(); ++p)
      for (const std::string& text : texts[p]) EXPECT_EQ(text, prompts[p].text) << "prompt " << p << " among others";
  }
}

// bf16 may take another way at a near tie; alone the same request is the same text, with graphs and without.
TEST(ServerCuda, Bf16TextsAreRepeatableAndTheSameWithGraphs) {
  const auto prompts = golden();
  const auto eager = make_server(DType::kBf16, false), graphs = make_server(DType::kBf16, true);
  size_t as_golden = 0;
  for (const Golden& g : prompts) {
    const std::string text = text_of(post(graphs->port(), request_of(g)));
    EXPECT_EQ(text_of(post(graphs->port(), request_of(g))), text);
    EXPECT_EQ(text_of(post(eager->port(), request_of(g))), text);
    as_golden += text == g.text;
  }
  fmt::print("bf16: {} of {} texts are those of float32\n", as_golden, prompts.size());
  json streamed = request_of(prompts.front());
  streamed["stream"] = true;
  const Answer answer = post(graphs->port(), streamed);
  EXPECT_EQ(answer.status, 200);
  EXPECT_TRUE(answer.whole);
  EXPECT_TRUE(answer.body.ends_with("data: [DONE]\n\n"));
}

// What serve does when a kernel traps under it, in a process of its own: answers, says why, ends with DeviceLost's
// code.
[[noreturn]] void serve_until_the_gpu_is_lost() {
  const auto fail = [](int line, std::string_view what) {
    fmt::print(stderr, "line {}: {}\n", line, what);
    std::_Exit(1);
  };
  const auto expect_lost = [&](int line, const auto& result) {
    if (result) fail(line, "worked on a lost GPU");
    if (result.error().code != ErrorCode::kDeviceLost) fail(line, result.error().message);
  };
  auto server = make_server(DType::kBf16, true);
  const uint16_t port = server->port();
  json body = {{"model", "fable"}, {"prompt", "It was"}, {"max_tokens", 800}, {"ignore_eos", true}};
  body["stream"] = true;
  // One answer after the other is under way when the GPU is lost.
  std::atomic<bool> begun = false;
  std::thread running([&] {
    for (int i = 0; i < 1000 && server->device(); ++i) {
      const Answer answer = post(port, body);
      begun = true;
    }
  });
  while (!begun) std::this_thread::yield();
  const Status trapped = lose_cuda_device_for_test();
  expect_lost(__LINE__, trapped);
  expect_lost(__LINE__, DeviceBuffer::allocate(1024));
  expect_lost(__LINE__, PinnedBuffer::allocate(1024));
  expect_lost(__LINE__, Stream::create());
  expect_lost(__LINE__, cuda_memory().available_bytes());
  running.join();
  body["stream"] = false;
  const Answer answer = post(port, body);
  if (answer.status != 503 || answer.body.find("device_lost") == std::string::npos) fail(__LINE__, answer.body);
  const Status device = server->device();
  expect_lost(__LINE__, device);
  if (!server->drain(5000)) fail(__LINE__, "answers were left");
  server.reset();
  fmt::print(stderr, "ended: {}\n", device.error().message);
  std::exit(exit_code(device.error().code));
}

TEST(ServerCudaDeathTest, ALostGpuIsAnsweredAndReported) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(serve_until_the_gpu_is_lost(), ::testing::ExitedWithCode(exit_code(ErrorCode::kDeviceLost)), "ended: ");
}

// Far more than a GPU has: refused with what was wanted and what there is, and the process goes on.
TEST(ServerCuda, AKvPoolThatDoesNotFitIsRefused) {
  ServeOptions options;
  options.port = 0;
  options.ops = cuda_ops();
  options.load.activation = DType::kBf16;
  options.engine.threads = 2;
  options.engine.kv_bytes = int64_t{1} << 44;
  options.models = {{.names = {"fable"}, .dir = "models/fable-13m"}};
  {
    auto server = Server::create(options);
    ASSERT_TRUE(server) << server.error().message;
    const Status started = (*server)->start();
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, ErrorCode::kResourceExhausted) << started.error().message;
    EXPECT_NE(started.error().message.find("KV pool of "), std::string::npos) << started.error().message;
    EXPECT_NE(started.error().message.find(" bytes"), std::string::npos) << started.error().message;
    fmt::print("{}\n", started.error().message);
  }
  const auto server = make_server(DType::kBf16, true);
  const auto prompts = golden();
  EXPECT_FALSE(text_of(post(server->port(), request_of(prompts.front()))).empty());
}

}  // namespace
}  // namespace hearth
