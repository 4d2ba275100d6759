# SPDX-License-Identifier: Apache-2.0
# hearth_fuzz(<name> SOURCES ... DEPS ... LIBS ...)
#   A libFuzzer executable; the name begins with fuzz_. Its first inputs are the files of
#   tests/fuzz/corpus/<name>/. Exists only in a build with HEARTH_FUZZ=ON, which needs clang: there all
#   code of ours carries coverage, address and undefined-behaviour instrumentation.
#   `make fuzz` builds all of them in build/fuzz and runs each for FUZZ_SECONDS.
option(HEARTH_FUZZ "Build the fuzz targets, with clang's libFuzzer" OFF)
if(HEARTH_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "HEARTH_FUZZ needs clang, found ${CMAKE_CXX_COMPILER_ID}; see `make fuzz`")
  endif()
  # Warnings are judged by g++; clang 14 has others.
  target_compile_options(hearth_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -Wno-error -Wno-unknown-warning-option>)
  target_link_options(hearth_flags INTERFACE -fsanitize=address,undefined)
  add_custom_target(hearth_fuzz_targets)
endif()

function(hearth_fuzz name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  if(NOT name MATCHES "^fuzz_")
    message(FATAL_ERROR "hearth_fuzz(${name}): the name of a fuzz target begins with fuzz_")
  endif()
  if(NOT HEARTH_FUZZ)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE hearth_flags ${ARG_LIBS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  foreach(dep IN LISTS ARG_DEPS)
    target_link_libraries(${name} PRIVATE hearth_${dep})
  endforeach()
  add_dependencies(hearth_fuzz_targets ${name})
endfunction()
