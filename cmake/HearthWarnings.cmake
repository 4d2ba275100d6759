# SPDX-License-Identifier: Apache-2.0
# Flags that every target of ours is built with.
add_library(hearth_flags INTERFACE)
target_include_directories(hearth_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(hearth_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wcast-align=strict -Wundef
  -Wno-missing-field-initializers -Werror>
  # A fused multiply-add happens where the code says so, nowhere else: results may not depend on
  # what the compiler contracts.
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -fno-omit-frame-pointer>
  # Messages and debug information name hearth/base/log.cpp, not where this tree happened to lie.
  $<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=>)
if(HEARTH_SANITIZE)
  # g++ 12 reports uninitialized uses that are none in instrumented code; the release build judges those.
  target_compile_options(hearth_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${HEARTH_SANITIZE} -fno-sanitize-recover=all -Wno-maybe-uninitialized>)
  target_link_options(hearth_flags INTERFACE -fsanitize=${HEARTH_SANITIZE})
endif()
