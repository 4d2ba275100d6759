// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/fingerprint.h"

#include <gtest/gtest.h>

#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

using testing_util::TempFolder;

TEST(Fingerprint, SeesEveryByteOfAModel) {
  ThreadPool pool(2);
  const TempFolder dir;
  const std::string header = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                             R"("b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}})";
  const auto print_of = [&](std::string_view config, const std::string& json, const std::string& data) {
    dir.put("config.json", config);
    dir.put("model.safetensors", testing_util::safetensors_bytes(json, data));
    const auto checkpoint = Checkpoint::open(dir.path());
    HEARTH_CHECK(checkpoint.has_value(), "{}", checkpoint.error().message);
    const auto print = checkpoint_fingerprint(*checkpoint, pool);
    HEARTH_CHECK(print.has_value(), "{}", print.error().message);
    return *print;
  };
  const std::string data(19, '\1');
  const std::string before = print_of("{\"x\":1}", header, data);
  EXPECT_EQ(before.size(), 16u);
  EXPECT_EQ(print_of("{ \"x\": 1 }", header, data), before);
  EXPECT_NE(print_of("{\"x\":2}", header, data), before);
  for (size_t i = 0; i < data.size(); ++i) {
    std::string other = data;
    other[i] ^= 0x40;
    EXPECT_NE(print_of("{\"x\":1}", header, other), before) << "byte " << i;
  }
  std::string renamed = header, shaped = header;
  renamed.replace(renamed.find("\"b\""), 3, "\"c\"");
  shaped.replace(shaped.find("[2,2]"), 5, "[4,1]");
  EXPECT_NE(print_of("{\"x\":1}", renamed, data), before);
  EXPECT_NE(print_of("{\"x\":1}", shaped, data), before);
}

// A tensor of several reads: no byte between them goes unseen, and threads do not matter.
TEST(Fingerprint, SeesEveryByteOfALargeTensor) {
  const TempFolder dir;
  dir.put("config.json", "{}");
  const auto print_of = [&](const std::string& data, int threads) {
    dir.put("model.safetensors",
            testing_util::safetensors_bytes(
                fmt::format(R"({{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}})", data.size()), data));
    const auto checkpoint = Checkpoint::open(dir.path());
    HEARTH_CHECK(checkpoint.has_value(), "{}", checkpoint.error().message);
    ThreadPool pool(threads);
    const auto print = checkpoint_fingerprint(*checkpoint, pool);
    HEARTH_CHECK(print.has_value(), "{}", print.error().message);
    return *print;
  };
  std::string data((9 << 20) + 5, '\3');
  const std::string plain = print_of(data, 1);
  EXPECT_EQ(print_of(data, 3), plain);
  for (const size_t at : {size_t{0}, size_t{70000}, size_t{4 << 20}, (size_t{4} << 20) - 1, data.size() / 2,
                          data.size() - 6, data.size() - 1}) {
    data[at] = static_cast<char>(data[at] ^ 0x80);
    EXPECT_NE(print_of(data, 2), plain) << at;
    data[at] = static_cast<char>(data[at] ^ 0x80);
  }
  data.pop_back();
  EXPECT_NE(print_of(data, 2), plain);
}

}  // namespace
}  // namespace hearth
