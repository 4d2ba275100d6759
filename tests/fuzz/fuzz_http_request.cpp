// SPDX-License-Identifier: Apache-2.0
// Bytes of a connection -> HttpRequestReader, request after request, as a connection drives it. The first byte
// chooses how the rest is cut; what is accepted may not depend on that, nor be more than the limits allow. (How
// soon something wrong is seen does: a request that is refused and one that is cut off count as the same.)
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "hearth/serve/http_request.h"

namespace {

using hearth::HttpRequestReader;

constexpr int64_t kHeaderBytes = 512, kBodyBytes = 300;

// All that the requests of `bytes` say, in a text, given `step` bytes at a time.
std::string read_all(std::string_view bytes, size_t step) {
  std::string out, in;
  for (;;) {
    HttpRequestReader reader(kHeaderBytes);
    bool head_seen = false;
    for (;;) {
      size_t used = 0;
      const auto result = reader.advance(in, used);
      if (used > in.size()) std::abort();
      in.erase(0, used);
      if (result == HttpRequestReader::Step::kFailed) {
        const auto& failure = reader.failure();
        if (failure.status < 400 || failure.status > 501 || failure.message.empty()) std::abort();
        return out + "refused";
      }
      if (result == HttpRequestReader::Step::kMore) {
        if (in.size() >= static_cast<size_t>(kHeaderBytes)) std::abort();
        if (bytes.empty()) return out + (reader.started() ? "refused" : "end");
        in.append(bytes.substr(0, step));
        bytes.remove_prefix(bytes.size() < step ? bytes.size() : step);
        continue;
      }
      if (result == HttpRequestReader::Step::kHead) {
        if (head_seen) std::abort();
        head_seen = true;
        auto& head = reader.head();
        if (head.path.empty() || !hearth::is_request_id(head.request_id)) std::abort();
        out += head.method + " " + head.path + "?" + head.query + "\n";
        for (const auto& [name, value] : head.headers) {
          if (name.empty() || value.find_first_of("\r\n") != std::string::npos) std::abort();
          out += name + ": " + value + "\n";
        }
        out += reader.keep_alive() ? "keep " : "close ";
        out += reader.expects_continue() ? "continue\n" : "\n";
        if (reader.begin_body(kBodyBytes)) return out + "refused";
        continue;
      }
      if (!head_seen || reader.body().size() > static_cast<size_t>(kBodyBytes)) std::abort();
      out += reader.body() + "\n";
      if (!reader.keep_alive()) return out;
      break;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string whole = read_all(bytes, bytes.size() + 1);
  if (read_all(bytes, 1 + data[0]) != whole) std::abort();
  return 0;
}
