#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks every tracked C++ and CUDA file against .clang-format with clang-format 14 (versions differ in
# what they write). --fix rewrites the files instead. Exit 1 when a file differs or the tool is missing.
set -eu
cd "$(dirname "$0")/.."

format=$(command -v clang-format-14 || true)
if [ -z "$format" ]; then
    echo "check_format: no clang-format-14; scripts/install.sh --dev installs it" >&2
    exit 1
fi
files=$(git ls-files --cached --others --exclude-standard -- '*.h' '*.cpp' '*.cu' '*.cuh' |
    while read -r file; do if [ -f "$file" ]; then echo "$file"; fi; done)
count=$(printf '%s\n' "$files" | grep -c . || true)
if [ "$count" = 0 ]; then echo "check_format: nothing to check" >&2; exit 1; fi

if [ "${1:-}" = --fix ]; then
    printf '%s\n' "$files" | xargs "$format" -i
    echo "check_format: formatted $count files"
    exit 0
fi
if ! printf '%s\n' "$files" | xargs "$format" --dry-run -Werror; then
    echo "check_format: the files above differ from .clang-format; make format" >&2
    exit 1
fi
if ! python3 tools/wgmma_wrappers.py | cmp -s - hearth/kernels/sm90/wgmma_shapes.cuh; then
    echo "check_format: hearth/kernels/sm90/wgmma_shapes.cuh is not what tools/wgmma_wrappers.py writes" >&2
    exit 1
fi
echo "check_format: $count files, 0 differ"
