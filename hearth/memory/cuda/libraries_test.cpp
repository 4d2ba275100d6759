// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/cuda/libraries.h"

#include <gtest/gtest.h>

namespace hearth {
namespace {

// Where a library is there it has its entry point; where it is not, the answer is Unavailable and names it.
template <class Open>
void expect_there_or_unavailable(Open open, const char* entry_point, std::string_view file) {
  const auto library = open();
  if (library) {
    EXPECT_TRUE(library->function(entry_point));
    return;
  }
  EXPECT_EQ(library.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(library.error().message.find(file), std::string::npos) << library.error().message;
}

TEST(CudaLibraries, OpenAtFirstUseOrUnavailable) {
  expect_there_or_unavailable(open_cublaslt, "cublasLtCreate", "libcublasLt.so.13");
  expect_there_or_unavailable(open_nccl, "ncclGetVersion", "libnccl.so.2");
}

}  // namespace
}  // namespace hearth
