// SPDX-License-Identifier: Apache-2.0
// Bytes of a server -> SseParser. The first byte chooses how the rest is cut; neither the events nor the error of an
// event that is too large may depend on that.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "hearth/client/sse.h"

namespace {

constexpr int64_t kEventBytes = 64;

std::string read_all(std::string_view bytes, size_t step) {
  hearth::SseParser parser(kEventBytes);
  std::string out;
  while (!bytes.empty()) {
    const std::string piece(bytes.substr(0, step));  // a copy, so that a read past it is seen
    bytes.remove_prefix(piece.size());
    const hearth::Status fed = parser.feed(piece, [&](const hearth::SseEvent& event) -> hearth::Status {
      if (event.data.size() > kEventBytes + 1 || event.name.size() > kEventBytes) std::abort();
      out += std::string(event.name) + "|" + std::string(event.data) + "\f";
      return {};
    });
    if (!fed) return out + fed.error().message;
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (read_all(bytes, bytes.size() + 1) != read_all(bytes, 1 + data[0] % 16)) std::abort();
  return 0;
}
