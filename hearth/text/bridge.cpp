// SPDX-License-Identifier: Apache-2.0
// Errors of the text bridge, and the ThreadSanitizer scope around its calls. Any thread.
#include "hearth/text/bridge.h"

#if defined(__SANITIZE_THREAD__)
// The runtime's own functions (dynamic annotations); it ships no header that declares them.
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace hearth::text_detail {

#if defined(__SANITIZE_THREAD__)
BridgeCall::BridgeCall() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
BridgeCall::~BridgeCall() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
#else
BridgeCall::BridgeCall() = default;
BridgeCall::~BridgeCall() = default;
#endif

Error bridge_error(htb_status status, std::string_view message) {
  switch (status) {
    case HTB_INVALID_ARGUMENT: return invalid_argument("{}", message);
    case HTB_CORRUPT: return corrupt("{}", message);
    case HTB_RESOURCE_EXHAUSTED: return resource_exhausted("{}", message);
    case HTB_DEADLINE_EXCEEDED: return deadline_exceeded("{}", message);
    case HTB_OK:
    case HTB_INTERNAL: break;
  }
  return internal_error("{}", message);
}

}  // namespace hearth::text_detail
