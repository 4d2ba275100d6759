# SPDX-License-Identifier: Apache-2.0
# CUDA 13.0 for sm_90a. The runtime is linked statically; cuBLASLt and NCCL are opened at first use and
# only their headers are needed here. `make cuda` finds or installs nvcc (scripts/cuda_env.sh).
# find_package(CUDAToolkit) is not used: CMake 3.25's module fails with CUDA 13, which has no nvToolsExt.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "HEARTH_CUDA=ON and no nvcc on PATH or in CUDACXX. `make cuda` finds one or installs it; "
    "by hand: scripts/install.sh --cuda, then eval \"$(scripts/cuda_env.sh)\".")
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
  message(FATAL_ERROR "HEARTH_CUDA=ON: ${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_CUDA_COMPILER_VERSION}, wanted 13.0 or newer")
endif()

# CMake 3.25 does not know nvcc's C++20. enable_language() resets this, so it stands after it; with
# extensions on, another variable would be asked for.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

# ptxas says in passing that it serialises wgmma: an error here.
list(PREPEND CMAKE_CUDA_COMPILER_LAUNCHER ${PROJECT_SOURCE_DIR}/tools/ptxas_check.sh)
# hearth_hot_kernels(<sources>): files of hearth_kernels in which a register that spills fails the build.
function(hearth_hot_kernels)
  set_source_files_properties(${ARGN} TARGET_DIRECTORY hearth_kernels
    PROPERTIES COMPILE_OPTIONS -Xptxas=--warn-on-spills)
endfunction()

# Kernels are compressed in the program: 42 MB of them are 8.
target_compile_options(hearth_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-ffp-contract=off -lineinfo
  -compress-mode=size>)
# fmt 9 turns constexpr off under nvcc, and its own consteval constructors then no longer compile.
target_compile_definitions(hearth_flags INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
# CUDA headers for the .cpp files of memory/cuda/ alone (tools/check_layers.py). C++ files elsewhere compile
# with the same words in every preset, so that a compiler cache serves `cuda` from `cpu`.
add_library(hearth_cuda_headers INTERFACE)
target_include_directories(hearth_cuda_headers SYSTEM INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}>)
