// SPDX-License-Identifier: Apache-2.0
// Every rule of docs/formats/safetensors.md by a header that breaks just it, then files, then mutations.
#include "hearth/checkpoint/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

using testing_util::read_bytes;
using testing_util::safetensors_bytes;
using testing_util::TempFolder;

Result<SafetensorsHeader> parse(std::string_view header, int64_t data_bytes) {
  return parse_safetensors_header(std::span(header.data(), header.size()), data_bytes);
}

TEST(SafetensorsHeader, ReadsTensorsInTheOrderOfTheirOffsets) {
  const std::string_view header = R"({"__metadata__":{"format":"pt","note":"a\u00e9"},)"
                                  R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                                  R"("empty":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},)"
                                  R"("a":{"shape":[],"data_offsets":[0,4],"dtype":"F32"}}   )";
  const auto parsed = parse(header, 16);
  ASSERT_TRUE(parsed) << parsed.error().message;
  ASSERT_EQ(parsed->tensors.size(), 3u);
  const auto begin = static_cast<int64_t>(8 + header.size());
  const TensorEntry &a = parsed->tensors[0], &empty = parsed->tensors[1], &b = parsed->tensors[2];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_EQ(a.shape, Shape{});
  EXPECT_EQ(a.offset_bytes, begin);
  EXPECT_EQ(a.size_bytes, 4);
  EXPECT_EQ(empty.name, "empty");
  EXPECT_EQ(empty.shape, (Shape{0, 7}));
  EXPECT_EQ(empty.size_bytes, 0);
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kBf16);
  EXPECT_EQ(b.shape, (Shape{2, 3}));
  EXPECT_EQ(b.offset_bytes, begin + 4);
  EXPECT_EQ(b.size_bytes, 12);
  EXPECT_EQ(parsed->metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"note", "a\xC3\xA9"}}));
}

TEST(SafetensorsHeader, AcceptsNoTensorsAndUnalignedOffsets) {
  EXPECT_TRUE(parse("{}", 0));
  const auto unaligned = parse(R"({"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                               R"("y":{"dtype":"F64","shape":[1],"data_offsets":[3,11]}})",
                               11);
  ASSERT_TRUE(unaligned) << unaligned.error().message;
  EXPECT_EQ(unaligned->tensors[1].size_bytes, 8);
}

TEST(SafetensorsHeader, KnowsEveryDType) {
  const std::vector<std::pair<std::string, DType>> names = {
      {"BOOL", DType::kBool},    {"U8", DType::kU8},   {"I8", DType::kI8},   {"F8_E5M2", DType::kE5m2},
      {"F8_E4M3", DType::kE4m3}, {"I16", DType::kI16}, {"U16", DType::kU16}, {"F16", DType::kF16},
      {"BF16", DType::kBf16},    {"I32", DType::kI32}, {"U32", DType::kU32}, {"F32", DType::kF32},
      {"F64", DType::kF64},      {"I64", DType::kI64}, {"U64", DType::kU64},
  };
  for (const auto& [name, dtype] : names) {
    const int64_t bytes = 3 * dtype_bits(dtype) / 8;
    const auto parsed =
        parse(fmt::format(R"({{"t":{{"dtype":"{}","shape":[3],"data_offsets":[0,{}]}}}})", name, bytes), bytes);
    ASSERT_TRUE(parsed) << name << ": " << parsed.error().message;
    EXPECT_EQ(parsed->tensors[0].dtype, dtype) << name;
    EXPECT_EQ(safetensors_dtype_name(dtype), name);
  }
  EXPECT_EQ(safetensors_dtype_name(DType::kU4), std::nullopt);
}

struct BadHeader {
  std::string_view what;
  std::string header;
  int64_t data_bytes;
  ErrorCode code;
  std::vector<std::string> message;
};

// A header of the one tensor 't' with these fields.
std::string one(std::string_view fields) { return fmt::format(R"({{"t":{{{}}}}})", fields); }

std::vector<BadHeader> bad_headers() {
  constexpr ErrorCode kCorrupt = ErrorCode::kCorrupt, kUnsupported = ErrorCode::kUnsupported;
  const std::string huge_rank = one(R"("dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,1])");
  const auto shape = [](std::string_view dims, std::string_view offsets = "[0,4]") {
    return one(fmt::format(R"("dtype":"F32","shape":{},"data_offsets":{})", dims, offsets));
  };
  const std::string whole = "wanted whole numbers from 0 to 2^63 - 1";
  return {
      {"empty", "", 0, kCorrupt, {"header is empty"}},
      {"blank first", " {}", 0, kCorrupt, {"begins with byte 0x20", "wanted '{'"}},
      {"not an object", "[]", 0, kCorrupt, {"begins with byte 0x5b"}},
      {"not JSON", R"({"t":})", 0, kCorrupt, {"header: not JSON: line 1, column 6"}},
      {"not JSON in line 2", "{\n\"t\" 1}", 0, kCorrupt, {"not JSON: line 2, column 5"}},
      {"cut off", R"({"t":{"dtype":"F32")", 0, kCorrupt, {"not JSON: line 1, column 20"}},
      {"two values", "{}{}", 0, kCorrupt, {"not JSON"}},
      {"not UTF-8", "{\"\xFF\":1}", 0, kCorrupt, {"not JSON", "UTF-8"}},
      {"trailing zero byte", std::string("{}\0", 3), 0, kCorrupt, {"not JSON"}},
      {"deep", fmt::format("{{\"t\":{:[>100000}", ""), 0, kCorrupt, {"nests deeper than 100"}},
      {"tensor is no object", R"({"t":5})", 0, kCorrupt, {"tensor 't': is 5; wanted an object"}},
      {"same name twice",
       R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("\u0074":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2,
       kCorrupt,
       {"tensor 't' is given twice"}},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0, kCorrupt, {"'__metadata__' is given twice"}},
      {"metadata is no object", R"({"__metadata__":null})", 0, kCorrupt, {"__metadata__ is null; wanted an object"}},
      {"metadata value", R"({"__metadata__":{"k":1}})", 0, kCorrupt, {"__metadata__ 'k' is 1; wanted a string"}},
      {"metadata key twice", R"({"__metadata__":{"k":"1","k":"1"}})", 0, kCorrupt, {"'k' is given twice"}},
      {"no dtype", one(R"("shape":[1],"data_offsets":[0,1])"), 1, kCorrupt, {"tensor 't': has no dtype"}},
      {"no shape", one(R"("dtype":"U8","data_offsets":[0,1])"), 1, kCorrupt, {"has no shape"}},
      {"no offsets", one(R"("dtype":"U8","shape":[1])"), 1, kCorrupt, {"has no data_offsets"}},
      {"field twice",
       one(R"("dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1])"),
       1,
       kCorrupt,
       {"tensor 't': field dtype is given twice"}},
      {"unknown field",
       one(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1])"),
       1,
       kUnsupported,
       {"tensor 't': unknown field 'strides'"}},
      {"dtype is no string",
       one(R"("dtype":8,"shape":[1],"data_offsets":[0,1])"),
       1,
       kCorrupt,
       {"dtype is 8; wanted a string"}},
      {"unknown dtype",
       one(R"("dtype":"F4","shape":[2],"data_offsets":[0,1])"),
       1,
       kUnsupported,
       {"tensor 't': dtype 'F4'; wanted one of F64", "BF16", "F8_E5M2"}},
      {"dtype in lower case", one(R"("dtype":"f32","shape":[1],"data_offsets":[0,4])"), 4, kUnsupported, {"'f32'"}},
      {"shape is no array", shape("4"), 4, kCorrupt, {"shape is 4; wanted an array"}},
      {"rank", huge_rank, 1, kUnsupported, {"shape has 6 dimensions; at most 5"}},
      {"negative", shape("[-1]"), 4, kCorrupt, {"tensor 't': shape holds -1", whole}},
      {"fraction", shape("[1.5]"), 4, kCorrupt, {"shape holds 1.5", whole}},
      {"whole but a float", shape("[1.0]"), 4, kCorrupt, {"shape holds 1.0", whole}},
      {"exponent", shape("[1e0]"), 4, kCorrupt, {"shape holds 1.0", whole}},
      {"string", shape(R"(["1"])"), 4, kCorrupt, {"shape holds a string", whole}},
      {"null", shape("[null]"), 4, kCorrupt, {"shape holds null", whole}},
      {"2^63", shape("[9223372036854775808]"), 4, kCorrupt, {"shape holds 9223372036854775808", whole}},
      {"2^64",
       shape("[18446744073709551616]"),
       4,
       kCorrupt,
       {"header: not JSON: 't': the number '18446744073709551616'"}},
      {"count overflows", shape("[4294967296,4294967296]"), 4, kCorrupt, {"[4294967296, 4294967296]", "2^63"}},
      {"count overflows before a zero", shape("[4294967296,4294967296,0]", "[0,0]"), 0, kCorrupt, {"2^63"}},
      {"bytes overflow", shape("[4611686018427387904]"), 4, kCorrupt, {"2^63"}},
      {"offsets are no array", shape("[1]", "4"), 4, kCorrupt, {"data_offsets is 4; wanted an array"}},
      {"one offset", shape("[1]", "[4]"), 4, kCorrupt, {"data_offsets has 1 elements; wanted [begin, end]"}},
      {"three offsets", shape("[1]", "[0,4,4]"), 4, kCorrupt, {"data_offsets has 3 elements"}},
      {"negative offset", shape("[1]", "[-4,0]"), 4, kCorrupt, {"data_offsets holds -4", whole}},
      {"float offset", shape("[1]", "[0,4.0]"), 4, kCorrupt, {"data_offsets holds 4.0", whole}},
      {"end before begin", shape("[1]", "[4,0]"), 4, kCorrupt, {"[4, 0]: the end lies before the begin"}},
      {"size",
       shape("[2]", "[0,4]"),
       4,
       kCorrupt,
       {"tensor 't': data_offsets [0, 4] hold 4 bytes; shape [2] of F32 needs 8"}},
      {"beyond the file", shape("[1]"), 3, kCorrupt, {"tensor 't' ends at byte 4 of the data, the file has 3"}},
      {"beyond the file by far",
       one(R"("dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807])"),
       3,
       kCorrupt,
       {"more bytes than 2^63"}},
      {"far away",
       shape("[1]", "[9223372036854775803,9223372036854775807]"),
       4,
       kCorrupt,
       {"ends at byte 9223372036854775807 of the data, the file has 4"}},
      {"trailing bytes", shape("[1]"), 9, kCorrupt, {"end at byte 4 of the data, the file has 9"}},
      {"data without tensors", "{}", 1, kCorrupt, {"end at byte 0 of the data, the file has 1"}},
      {"hole at the beginning", shape("[1]", "[4,8]"), 8, kCorrupt, {"tensor 't' begins at byte 4", "wanted 0"}},
      {"hole",
       R"({"s":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"t":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
       5,
       kCorrupt,
       {"tensor 't' begins at byte 3", "wanted 2"}},
      {"overlap",
       R"({"s":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       3,
       kCorrupt,
       {"tensor 's' begins at byte 1", "inside tensor 't', which ends at 2"}},
      {"same bytes",
       R"({"s":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       2,
       kCorrupt,
       {"tensor 't' begins at byte 0", "inside tensor 's'"}},
      {"empty tensor inside another",
       R"({"s":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"t":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})",
       2,
       kCorrupt,
       {"tensor 't' begins at byte 1", "inside tensor 's'"}},
      {"escapes in names", R"({"a\n\u001b[31m":5})", 0, kCorrupt, {R"('a\x0a\x1b[31m')"}},
      {"long names", fmt::format("{{\"{:n>500}\":5}}", ""), 0, kCorrupt, {fmt::format("{:n>120}'... (500 bytes)", "")}},
  };
}

TEST(SafetensorsHeader, RefusesEveryBrokenRule) {
  for (const BadHeader& bad : bad_headers()) {
    SCOPED_TRACE(bad.what);
    const auto parsed = parse(bad.header, bad.data_bytes);
    ASSERT_FALSE(parsed);
    EXPECT_EQ(parsed.error().code, bad.code) << parsed.error().message;
    for (const std::string& part : bad.message) EXPECT_THAT(parsed.error().message, ::testing::HasSubstr(part));
  }
}

TEST(SafetensorsHeader, ChecksTheLength) {
  const auto length = [](std::string_view prefix, int64_t file_bytes) {
    std::byte bytes[8];
    std::memcpy(bytes, prefix.data(), 8);
    return safetensors_header_bytes(bytes, file_bytes);
  };
  using namespace std::string_view_literals;
  const auto good = length("\x02\x01\0\0\0\0\0\0"sv, 8 + 258);
  ASSERT_TRUE(good);
  EXPECT_EQ(*good, 258);
  EXPECT_ERROR(length("\x02\x01\0\0\0\0\0\0"sv, 8 + 257), kCorrupt, "header length 258, the file has 265 bytes");
  EXPECT_ERROR(length("\x01\0\0\0\0\0\0\0"sv, 100), kCorrupt, "header length 1; wanted 2 to 100000000");
  EXPECT_ERROR(length("\x01\xE1\xF5\x05\0\0\0\0"sv, int64_t{1} << 40), kCorrupt, "header length 100000001; wanted");
  EXPECT_TRUE(length("\0\xE1\xF5\x05\0\0\0\0"sv, int64_t{1} << 40));
  EXPECT_ERROR(length("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"sv, 100), kCorrupt, "header length 18446744073709551615");
  EXPECT_ERROR(length("version "sv, 130), kCorrupt, "Git LFS pointer");
}

TEST(SafetensorsFile, ReadsWhatAnotherImplementationWrote) {
  // The numbers are Python's, from the same file: json, struct and zlib.crc32.
  const auto file = SafetensorsFile::open("models/fable-13m/model.safetensors");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(std::ssize(file->tensors()), 56);
  const auto it = std::ranges::find(file->tensors(), "model.layers.2.self_attn.k_proj.weight", &TensorEntry::name);
  ASSERT_NE(it, file->tensors().end());
  EXPECT_EQ(it->dtype, DType::kBf16);
  EXPECT_EQ(it->shape, (Shape{128, 384}));
  EXPECT_EQ(it->offset_bytes, 14952952);
  std::vector<std::byte> bytes(static_cast<size_t>(it->size_bytes));
  ASSERT_TRUE(file->read(*it, bytes));
  uint32_t crc = 0xFFFFFFFF;
  for (const std::byte b : bytes) {
    crc ^= std::to_integer<uint32_t>(b);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
  }
  EXPECT_EQ(~crc, 0xa9fd2a04u);
  std::byte part[5];
  ASSERT_TRUE(file->read_part(*it, 3, part));
  EXPECT_TRUE(std::ranges::equal(part, std::span(bytes).subspan(3, 5)));
}

TEST(SafetensorsFile, NamesTheFileInEveryError) {
  const TempFolder dir;
  const std::string good = safetensors_bytes(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "abcd");
  ASSERT_TRUE(SafetensorsFile::open(dir.put("good.safetensors", good)));

  EXPECT_ERROR(SafetensorsFile::open(dir.path() / "absent.safetensors"), kNotFound, "absent.safetensors");
  EXPECT_ERROR(SafetensorsFile::open(dir.path()), kInvalidArgument, dir.path().string(), "is a folder");
  ASSERT_EQ(::mkfifo((dir.path() / "pipe.safetensors").c_str(), 0600), 0);
  EXPECT_ERROR(SafetensorsFile::open(dir.path() / "pipe.safetensors"), kInvalidArgument, "pipe.safetensors",
               "wanted a regular file");
  EXPECT_ERROR(SafetensorsFile::open(dir.put("empty.safetensors", "")), kCorrupt, "empty.safetensors: has 0 bytes");
  EXPECT_ERROR(SafetensorsFile::open(dir.put("lfs.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
               kCorrupt, "lfs.safetensors: is a Git LFS pointer");
  // Cut at every byte: always an error that names the file, and the last cuts name the tensor.
  for (size_t size = 0; size < good.size(); ++size) {
    SCOPED_TRACE(size);
    const auto cut = SafetensorsFile::open(dir.put("cut.safetensors", good.substr(0, size)));
    EXPECT_ERROR(cut, kCorrupt, "cut.safetensors: ");
    if (size > good.size() - 4) {
      EXPECT_THAT(cut.error().message, ::testing::HasSubstr("tensor 't' ends at byte 4"));
    }
  }
  EXPECT_ERROR(SafetensorsFile::open(dir.put("long.safetensors", good + "x")), kCorrupt,
               "long.safetensors: the tensors end at byte 4");
}

// I1..I3, recomputed from scratch.
void expect_invariants(const SafetensorsHeader& header, int64_t header_bytes, int64_t data_bytes) {
  int64_t end = 8 + header_bytes;
  std::vector<std::string> names;
  for (const TensorEntry& entry : header.tensors) {
    EXPECT_EQ(entry.offset_bytes, end);
    EXPECT_EQ(entry.size_bytes, dtype_bytes(entry.dtype, entry.shape.count()));
    end += entry.size_bytes;
    names.push_back(entry.name);
  }
  EXPECT_EQ(end, 8 + header_bytes + data_bytes);
  std::ranges::sort(names);
  EXPECT_EQ(std::ranges::adjacent_find(names), names.end());
}

TEST(SafetensorsHeader, MutationsGiveAnErrorOrTheInvariants) {
  const std::string base = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                           R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},)"
                           R"("c":{"dtype":"BF16","shape":[0],"data_offsets":[11,11]}})";
  constexpr std::string_view kPieces[] = {"0", "1", "-",  "8", "11",  "{",  "}", "[", "]",
                                          ",", ":", "\"", "a", "F32", "U8", " ", "e9"};
  constexpr uint64_t kSeed = 20251122;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  int accepted = 0;
  constexpr int kRounds = 20000;
  for (int round = 0; round < kRounds; ++round) {
    std::string header = base;
    for (int64_t edits = 1 + random.below(3); edits > 0; --edits) {
      const auto at = static_cast<size_t>(random.below(std::ssize(header)));
      const auto piece = kPieces[static_cast<size_t>(random.below(std::ssize(kPieces)))];
      switch (random.below(4)) {
        case 0: header[at] = static_cast<char>(random.below(256)); break;
        case 1: header.erase(at, static_cast<size_t>(1 + random.below(4))); break;
        case 2: header.insert(at, piece); break;
        default: header.replace(at, piece.size(), piece);
      }
      if (header.empty()) header.push_back('{');
    }
    const int64_t data_bytes = random.below(4) == 0 ? random.below(32) : 11;
    const auto parsed = parse(header, data_bytes);
    if (!parsed) continue;
    ++accepted;
    expect_invariants(*parsed, std::ssize(header), data_bytes);
    if (::testing::Test::HasFailure()) FAIL() << header;
  }
  // The mutations reach both outcomes.
  EXPECT_GT(accepted, kRounds / 100);
  EXPECT_LT(accepted, kRounds / 2);
}

TEST(SafetensorsHeader, ParsesManyTensorsFast) {
  // 200,000 tensors, 15 MB: well below a second where each byte is looked at a constant number of times;
  // minutes where anything is quadratic. The limit is wide, for sanitizers.
  constexpr int64_t kCount = 200'000;
  std::string header = "{";
  for (int64_t i = kCount - 1; i >= 0; --i) {
    header += fmt::format(R"({}"model.layers.{}.weight":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})",
                          header.size() == 1 ? "" : ",", i, i, i + 1);
  }
  header += "}";
  const std::clock_t start = std::clock();  // processor time: the machine may be busy
  const auto parsed = parse(header, kCount);
  const double elapsed_s = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(std::ssize(parsed->tensors), kCount);
  EXPECT_EQ(parsed->tensors[17].name, "model.layers.17.weight");
  EXPECT_LT(elapsed_s, 20);
}

}  // namespace
}  // namespace hearth
