#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes build/dist/hearth-<version>-linux-x86_64.tar.gz: bin/hearth, the shared libraries that it needs
# and that are not glibc in lib/ (found by $ORIGIN/../lib), licence texts, and the demo model if all of it
# stays under 40 MiB. cmake/HearthInstall.cmake says what is packed, scripts/check_dist.sh proves it.
#   CUDA=1                with the CUDA backend; needs nvcc
#   HEARTH_CMAKE_ARGS     more words for cmake; -DHEARTH_TEXT_BRIDGE_LIB=/path/libhearth_text_bridge.a
#                         on a machine without cargo
#   HEARTH_CRATE_LICENSES the folder licenses/crates of an earlier distribution, for the same case
set -eu
cd "$(dirname "$0")/.."

limit_bytes=$((40 * 1024 * 1024))
version=$(sed -n 's/^project(hearth VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
name=hearth-$version-linux-$(uname -m)
out=build/dist/$name
args="-DHEARTH_DIST=ON -DHEARTH_TESTS=OFF -DCMAKE_BUILD_TYPE=Release -DHEARTH_CUDA=OFF"
if [ -n "${CUDA:-}" ]; then
    environment=$(scripts/cuda_env.sh)
    eval "$environment"
    args="$args -DHEARTH_CUDA=ON"
fi
if [ -z "${CMAKE_CXX_COMPILER_LAUNCHER:-}" ] && command -v ccache >/dev/null 2>&1; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_C_COMPILER_LAUNCHER=ccache
fi
cargo=$(scripts/find_cargo.sh || true)
if [ -n "$cargo" ]; then PATH=$(dirname "$cargo"):$PATH; export PATH; fi

# A list of words, split on purpose.
# shellcheck disable=SC2086
cmake -S . -B build/dist-build -G Ninja --log-level=WARNING $args ${HEARTH_CMAKE_ARGS:-}
cmake --build build/dist-build -j "$(scripts/jobs.sh)" --target hearth
rm -rf "$out"
mkdir -p "$out"
cmake --install build/dist-build --prefix "$out" --strip >/dev/null

# ---- licence texts -----------------------------------------------------------------------------
# Of everything that is inside: Debian keeps one file per package, cargo one folder per crate.
mkdir -p "$out/licenses/packages" "$out/licenses/crates"
packages="libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev libtomlplusplus-dev libboost1.81-dev"  # what is compiled in from headers
for library in "$out"/lib/*.so*; do
    [ -f "$library" ] || continue
    # By name: a package may have recorded /lib for what now lies in /usr/lib.
    package=$(dpkg-query -S "*/$(uname -m)-linux-gnu/$(basename "$(readlink -f "$library")")" 2>/dev/null |
        head -n 1 | cut -d : -f 1 || true)
    if [ -n "$package" ]; then
        packages="$packages $package"
    else
        echo "dist: no package is known to hold $(basename "$library"); its licence text is missing" >&2
    fi
done
for package in $packages; do
    if [ -f "/usr/share/doc/$package/copyright" ]; then
        cp -L "/usr/share/doc/$package/copyright" "$out/licenses/packages/$package"
    fi
done
if [ -n "${HEARTH_CRATE_LICENSES:-}" ]; then
    cp -R "$HEARTH_CRATE_LICENSES/." "$out/licenses/crates/"
elif [ -n "$cargo" ]; then
    "$cargo" metadata --format-version 1 --locked --offline --manifest-path text-bridge/Cargo.toml \
        --filter-platform x86_64-unknown-linux-gnu | python3 scripts/crate_licenses.py "$out/licenses/crates"
else
    echo "dist: no cargo and HEARTH_CRATE_LICENSES is not set: the crates' licence texts are missing" >&2
fi

# ---- pack --------------------------------------------------------------------------------------
date=$(git log -1 --format=%cI 2>/dev/null || echo 2000-01-01T00:00:00Z)
pack() {
    tar -C build/dist --sort=name --mtime="$date" --owner=0 --group=0 --numeric-owner -cf - "$name" |
        gzip -n -9 >"$out.tar.gz"
    wc -c <"$out.tar.gz"
}
mkdir -p "$out/models/fable-13m"
cp models/fable-13m/* "$out/models/fable-13m/"
rm -f "$out/models/fable-13m/golden.json"
size_bytes=$(pack)
if [ "$size_bytes" -gt "$limit_bytes" ]; then
    echo "dist: $size_bytes bytes with the demo model; left out"
    rm -rf "$out/models"
    size_bytes=$(pack)
fi
if [ "$size_bytes" -gt "$limit_bytes" ]; then
    echo "dist: $out.tar.gz has $size_bytes bytes, wanted at most $limit_bytes" >&2
    exit 1
fi
echo "dist: $out.tar.gz, $size_bytes bytes"
