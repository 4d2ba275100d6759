// SPDX-License-Identifier: Apache-2.0
// What every user of the C ABI in text-bridge/include needs: owners of its buffers, its errors as Error, and a
// scope that tells ThreadSanitizer about code that it cannot see. Internal to hearth/text. Any thread.
#pragma once

#include <hearth_text_bridge.h>

#include <string>
#include <string_view>

#include "hearth/base/result.h"

namespace hearth::text_detail {

class BridgeBuffer {
 public:
  BridgeBuffer() = default;
  ~BridgeBuffer() { htb_buffer_free(raw_); }
  BridgeBuffer(const BridgeBuffer&) = delete;
  BridgeBuffer& operator=(const BridgeBuffer&) = delete;
  htb_buffer* out() { return &raw_; }
  std::string_view view() const { return {reinterpret_cast<const char*>(raw_.data), raw_.size}; }
  std::string str() const { return std::string(view()); }

 private:
  htb_buffer raw_{};
};

class BridgeIds {
 public:
  BridgeIds() = default;
  ~BridgeIds() { htb_ids_free(raw_); }
  BridgeIds(const BridgeIds&) = delete;
  BridgeIds& operator=(const BridgeIds&) = delete;
  htb_ids* out() { return &raw_; }
  const uint32_t* begin() const { return raw_.data; }
  const uint32_t* end() const { return raw_.data + raw_.size; }

 private:
  htb_ids raw_{};
};

// The Rust code is not instrumented, so ThreadSanitizer sees neither its locks nor most of its accesses, but it does
// see its calls of memcpy and would report what those locks protect. Open during every call through the bridge.
class BridgeCall {
 public:
  BridgeCall();
  ~BridgeCall();
  BridgeCall(const BridgeCall&) = delete;
  BridgeCall& operator=(const BridgeCall&) = delete;
};

// The error of a call that did not return HTB_OK.
Error bridge_error(htb_status status, std::string_view message);

inline const uint8_t* bridge_bytes(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

}  // namespace hearth::text_detail
