#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# scripts/build.sh PRESET [TARGET...]: configures build/PRESET and builds it with as many compilers as
# scripts/jobs.sh allows. $HEARTH_CMAKE_ARGS are more words for cmake, such as
# -DHEARTH_TEXT_BRIDGE_LIB=/path/libhearth_text_bridge.a on a machine without cargo. Uses ccache if it
# is there. The presets: cpu, asan, tsan, cuda (CMakePresets.json), and fuzz (clang, not a preset
# because its compiler is).
set -eu
cd "$(dirname "$0")/.."

preset=$1
shift
if [ -z "${CMAKE_CXX_COMPILER_LAUNCHER:-}" ] && command -v ccache >/dev/null 2>&1; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_C_COMPILER_LAUNCHER=ccache
fi
args=
case $preset in
    cuda)
        environment=$(scripts/cuda_env.sh)
        eval "$environment"
        ;;
    fuzz)
        if ! command -v clang++-14 >/dev/null 2>&1; then
            echo "build: no clang++-14; scripts/install.sh --dev installs it" >&2
            exit 1
        fi
        args="-DHEARTH_FUZZ=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER=clang-14 -DCMAKE_CXX_COMPILER=clang++-14"
        ;;
esac
# What Debian's own cargo-web builds with must be what find_cargo.sh found, also where PATH has an
# older one.
cargo=$(scripts/find_cargo.sh || true)
if [ -n "$cargo" ]; then PATH=$(dirname "$cargo"):$PATH; export PATH; fi

# Split on purpose: lists of words.
# shellcheck disable=SC2086
if [ "$preset" = fuzz ]; then
    cmake -S . -B build/fuzz -G Ninja --log-level=WARNING $args ${HEARTH_CMAKE_ARGS:-}
else
    cmake --preset "$preset" --log-level=WARNING ${HEARTH_CMAKE_ARGS:-}
fi
if [ $# -gt 0 ]; then
    cmake --build "build/$preset" -j "$(scripts/jobs.sh)" --target "$@"
else
    cmake --build "build/$preset" -j "$(scripts/jobs.sh)"
fi
