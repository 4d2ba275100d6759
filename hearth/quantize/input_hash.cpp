// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/input_hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace hearth {

void InputHash::add(std::span<const std::byte> bytes) {
  for (; bytes.size() >= sizeof(uint64_t); bytes = bytes.subspan(sizeof(uint64_t))) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), sizeof(word));
    add(word);
  }
  for (const std::byte b : bytes) add(static_cast<uint64_t>(b));
}

std::string InputHash::text() const { return fmt::format("{:016x}", hash_); }

Status add_weights(const Checkpoint& checkpoint, ThreadPool& pool, InputHash& to) {
  constexpr int64_t kPieceBytes = 4 << 20;
  struct Piece {
    const TensorEntry* entry;
    int64_t begin, size;
    uint64_t hash = 0;
    Status status = {};
  };
  std::vector<Piece> pieces;
  for (const TensorEntry& entry : checkpoint.tensors()) {
    to.add(fmt::format("{} {} {} {}", entry.name, dtype_name(entry.dtype), to_string(entry.shape), entry.size_bytes));
    for (int64_t begin = 0; begin < entry.size_bytes; begin += kPieceBytes)
      pieces.push_back({.entry = &entry, .begin = begin, .size = std::min(kPieceBytes, entry.size_bytes - begin)});
  }
  pool.parallel_for(std::ssize(pieces), 1, [&](int64_t first, int64_t end, int) {
    std::vector<std::byte> bytes;
    for (int64_t i = first; i < end; ++i) {
      Piece& piece = pieces[static_cast<size_t>(i)];
      bytes.resize(static_cast<size_t>(piece.size));
      piece.status = checkpoint.read_part(*piece.entry, piece.begin, bytes);
      InputHash part;
      part.add(bytes);
      piece.hash = part.value();
    }
  });
  for (const Piece& piece : pieces) {
    HEARTH_TRY(piece.status);
    to.add(piece.hash);
  }
  return {};
}

}  // namespace hearth
