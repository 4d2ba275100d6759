# SPDX-License-Identifier: Apache-2.0
# The libraries that hearth stands on (docs/decisions/0002-dependencies.md). fmt and spdlog are
# the compiled libraries: as headers they cost every source file of ours 4 s and more.
option(HEARTH_TESTS "Build tests and benchmarks" ON)

# hearth_find(<package> <Debian package> [version...]): find_package, and where it is missing an error that
# says what installs it.
macro(hearth_find package debian)
  find_package(${package} ${ARGN} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} ${ARGN} was not found. scripts/install.sh installs it (Debian: ${debian}).")
  endif()
endmacro()

hearth_find(Threads libc6-dev)
hearth_find(fmt libfmt-dev 9)
hearth_find(spdlog libspdlog-dev 1.10)
hearth_find(nlohmann_json nlohmann-json3-dev 3.11)
hearth_find(simdjson libsimdjson-dev 3.0)
if(HEARTH_TESTS)
  hearth_find(GTest "libgtest-dev libgmock-dev")
endif()
