// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/fingerprint.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/json.h"

namespace hearth {
namespace {

constexpr int64_t kReadBytes = int64_t{4} << 20;

// A bijection of 64 bits (the finalizer of MurmurHash3, public domain).
uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xFF51AFD7ED558CCD;
  x ^= x >> 33;
  x *= 0xC4CEB9FE1A85EC53;
  return x ^ x >> 33;
}

Result<std::string> tensor_fingerprint(const Checkpoint& checkpoint, const TensorEntry& tensor) {
  Fingerprint print;
  print.add(tensor.name);
  print.add(dtype_name(tensor.dtype));
  print.add(to_string(tensor.shape));
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kReadBytes, tensor.size_bytes)));
  for (int64_t begin = 0; begin < tensor.size_bytes; begin += kReadBytes) {
    const std::span<std::byte> part(buffer.data(),
                                    static_cast<size_t>(std::min(kReadBytes, tensor.size_bytes - begin)));
    HEARTH_TRY(checkpoint.read_part(tensor, begin, part));
    print.add(part);
  }
  return print.text();
}

}  // namespace

// Word by word: for a given state the next one is a bijection of the word, and the other way round.
void Fingerprint::add_word(uint64_t word) { state_ = mix(state_ * 0x2545F4914F6CDD1D + word); }

void Fingerprint::add(std::span<const std::byte> bytes) {
  add(std::ssize(bytes));
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    add_word(word);
  }
  if (i == bytes.size()) return;
  uint64_t rest = 0;
  std::memcpy(&rest, bytes.data() + i, bytes.size() - i);
  add_word(rest);
}

std::string Fingerprint::text() const { return fmt::format("{:016x}", state_); }

Result<std::string> checkpoint_fingerprint(const Checkpoint& checkpoint, ThreadPool& pool) {
  Fingerprint print;
  print.add(checkpoint.config().dump());
  // Where older quantizers say what they did.
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    const auto text = read_text_file(checkpoint.dir() / name, kMaxJsonFileBytes);
    print.add(text ? *text : std::string());
  }
  std::vector<const TensorEntry*> tensors;
  for (const TensorEntry& tensor : checkpoint.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  std::vector<Result<std::string>> parts(tensors.size(), Result<std::string>(std::string()));
  pool.run([&](int thread) {
    for (size_t i = static_cast<size_t>(thread); i < tensors.size(); i += static_cast<size_t>(pool.size()))
      parts[i] = tensor_fingerprint(checkpoint, *tensors[i]);
  });
  for (const Result<std::string>& part : parts) {
    HEARTH_TRY_ASSIGN(const std::string text, part);
    print.add(text);
  }
  return print.text();
}

}  // namespace hearth
