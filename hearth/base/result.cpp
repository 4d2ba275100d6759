// SPDX-License-Identifier: Apache-2.0
// The one table of error codes.
#include "hearth/base/result.h"

namespace hearth {
namespace {

struct CodeInfo {
  std::string_view name;
  int exit_code;
};

CodeInfo info(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return {"InvalidArgument", 2};
    case ErrorCode::kNotFound: return {"NotFound", 3};
    case ErrorCode::kCorrupt: return {"Corrupt", 4};
    case ErrorCode::kUnsupported: return {"Unsupported", 5};
    case ErrorCode::kResourceExhausted: return {"ResourceExhausted", 6};
    case ErrorCode::kDeadlineExceeded: return {"DeadlineExceeded", 7};
    case ErrorCode::kUnavailable: return {"Unavailable", 8};
    case ErrorCode::kDeviceLost: return {"DeviceLost", 9};
    case ErrorCode::kInternal: return {"Internal", 10};
    case ErrorCode::kCancelled: return {"Cancelled", 130};
  }
  return {"Internal", 10};
}

}  // namespace

std::string_view error_code_name(ErrorCode code) { return info(code).name; }
int exit_code(ErrorCode code) { return info(code).exit_code; }

}  // namespace hearth
