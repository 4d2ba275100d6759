// SPDX-License-Identifier: Apache-2.0
// What is written is read back equal, and a failure leaves nothing behind.
#include "hearth/checkpoint/safetensors_writer.h"

#include <sys/resource.h>

#include <array>
#include <csignal>
#include <limits>

#include "hearth/checkpoint/safetensors.h"
#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

using testing_util::read_bytes;
using testing_util::safetensors_bytes;
using testing_util::TempFolder;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(SafetensorsWriter, WritesTheseVeryBytes) {
  const TempFolder dir;
  const auto path = dir.path() / "out.safetensors";
  const std::array<TensorData, 2> tensors = {
      TensorData{{"a\"b", DType::kU8, Shape{3}}, bytes_of("xyz")},
      TensorData{{"f", DType::kF32, Shape{}}, bytes_of("1234")},
  };
  ASSERT_TRUE(write_safetensors(path, tensors, {{"format", "pt"}}));
  // I2: the four-byte element first.
  std::string header = R"({"__metadata__":{"format":"pt"},"f":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                       R"("a\"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  EXPECT_EQ(read_bytes(path), safetensors_bytes(header, "1234xyz"));
  EXPECT_EQ(dir.names(), std::vector<std::string>{"out.safetensors"});
}

TEST(SafetensorsWriter, RoundTripsEveryDTypeAndShape) {
  const TempFolder dir;
  const auto path = dir.path() / "out.safetensors";
  std::vector<std::string> data;
  std::vector<TensorData> tensors;
  const std::vector<Shape> shapes = {Shape{}, Shape{0}, Shape{3}, Shape{2, 3}, Shape{1, 2, 1, 3, 5}, Shape{4, 0, 2}};
  for (int d = static_cast<int>(DType::kF64); d <= static_cast<int>(DType::kBool); ++d) {
    for (const Shape& shape : shapes) {
      const auto dtype = static_cast<DType>(d);
      std::string bytes(static_cast<size_t>(dtype_bytes(dtype, shape.count())), '\0');
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 + data.size());
      data.push_back(std::move(bytes));
      tensors.push_back({{fmt::format("t{}", data.size()), dtype, shape}, {}});
    }
  }
  for (size_t i = 0; i < data.size(); ++i) tensors[i].bytes = bytes_of(data[i]);
  ASSERT_TRUE(write_safetensors(path, tensors));
  const auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (const TensorEntry& entry : file->tensors()) {
    const auto i = static_cast<size_t>(std::stoi(entry.name.substr(1))) - 1;
    EXPECT_EQ(entry.dtype, tensors[i].spec.dtype);
    EXPECT_EQ(entry.shape, tensors[i].spec.shape);
    EXPECT_EQ(entry.offset_bytes % (dtype_bits(entry.dtype) / 8), 0) << entry.name;
    std::string bytes(static_cast<size_t>(entry.size_bytes), '\0');
    ASSERT_TRUE(file->read(entry, std::as_writable_bytes(std::span(bytes))));
    EXPECT_EQ(bytes, data[i]) << entry.name;
  }
}

TEST(SafetensorsWriter, I1AppearsOnlyWhenFinished) {
  const TempFolder dir;
  const auto path = dir.put("out.safetensors", "old");
  const std::array<TensorSpec, 2> specs = {TensorSpec{"a", DType::kU8, Shape{1}},
                                           TensorSpec{"b", DType::kU8, Shape{1}}};
  {
    auto writer = SafetensorsWriter::create(path, specs);
    ASSERT_TRUE(writer) << writer.error().message;
    ASSERT_TRUE(writer->write(1, bytes_of("B")));
    EXPECT_EQ(read_bytes(path), "old");
    EXPECT_EQ(dir.names().size(), 2u);
  }
  EXPECT_EQ(dir.names(), std::vector<std::string>{"out.safetensors"});
  EXPECT_EQ(read_bytes(path), "old");

  auto writer = SafetensorsWriter::create(path, specs);
  ASSERT_TRUE(writer);
  ASSERT_TRUE(writer->write(1, bytes_of("B")));
  ASSERT_TRUE(writer->write(0, bytes_of("A")));
  ASSERT_TRUE(writer->finish());
  EXPECT_TRUE(read_bytes(path).ends_with("AB"));
  EXPECT_EQ(dir.names(), std::vector<std::string>{"out.safetensors"});
}

TEST(SafetensorsWriter, RefusesWhatTheFormatCannotSay) {
  const TempFolder dir;
  const auto path = dir.path() / "out.safetensors";
  const auto create = [&](std::vector<TensorSpec> specs, std::map<std::string, std::string> metadata = {}) {
    return SafetensorsWriter::create(path, specs, metadata);
  };
  EXPECT_ERROR(create({{"a", DType::kU8, Shape{}}, {"a", DType::kU8, Shape{}}}), kInvalidArgument, "out.safetensors",
               "tensor 'a' is given twice");
  EXPECT_ERROR(create({{"__metadata__", DType::kU8, Shape{}}}), kInvalidArgument, "'__metadata__' is a reserved name");
  EXPECT_ERROR(create({{"a", DType::kU4, Shape{2}}}), kInvalidArgument, "tensor 'a': safetensors has no dtype u4");
  EXPECT_ERROR(create({{"a", DType::kU8, Shape{-1}}}), kInvalidArgument, "[-1] has a negative dimension");
  EXPECT_ERROR(create({{"a", DType::kF32, Shape{int64_t{1} << 32, int64_t{1} << 32}}}), kInvalidArgument, "2^63");
  EXPECT_ERROR(create({{"a\xFF", DType::kU8, Shape{}}}), kInvalidArgument, "is not UTF-8");
  EXPECT_ERROR(create({}, {{"k", "\xFF"}}), kInvalidArgument, "is not UTF-8");
  EXPECT_ERROR(SafetensorsWriter::create(dir.path(), {}), kInvalidArgument, "is a folder");
  EXPECT_ERROR(SafetensorsWriter::create(dir.path() / "no" / "out.safetensors", {}), kNotFound, "cannot create");
  auto writer = create({{"a", DType::kF32, Shape{2}}});
  ASSERT_TRUE(writer);
  EXPECT_ERROR(writer->write(0, bytes_of("1234")), kInvalidArgument, "tensor 'a' is given 4 bytes; its shape needs 8");
}

// The largest file that this process may write, as a stand-in for a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit = {bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int);
};

TEST(SafetensorsWriter, AFullDiskIsAnErrorThatLeavesNothing) {
  const TempFolder dir;
  const auto path = dir.path() / "out.safetensors";
  const std::array<TensorSpec, 1> specs = {TensorSpec{"a", DType::kU8, Shape{1 << 20}}};
  {
    const FileSizeLimit limit(4096);
    const auto writer = SafetensorsWriter::create(path, specs);
    // Succeeds on file systems that cannot reserve space.
    if (!writer) EXPECT_ERROR(writer, kResourceExhausted, "out.safetensors", "reserve 1048");
  }
  EXPECT_TRUE(dir.names().empty());
  {
    auto writer = SafetensorsWriter::create(path, specs);
    ASSERT_TRUE(writer);
    const FileSizeLimit limit(4096);
    const std::string data(1 << 20, 'x');
    EXPECT_ERROR(writer->write(0, bytes_of(data)), kResourceExhausted, "cannot write tensor 'a' to", "out.safetensors");
  }
  EXPECT_TRUE(dir.names().empty());
}

}  // namespace
}  // namespace hearth
