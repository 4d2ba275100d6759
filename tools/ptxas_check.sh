#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a compiler command, as CMake's CUDA compiler launcher, and fails where ptxas says that it serialises wgmma (C7510,
# C7512): it calls that information, and the kernel would be right and several times slower. Spills are an error where a
# hot kernel's file is compiled with --warn-on-spills (cmake/HearthCuda.cmake).
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$@" 2>"$log"
status=$?
cat "$log" >&2
if [ $status -eq 0 ] && grep -q 'C7510\|C7512' "$log"; then
    echo "ptxas_check: ptxas serialises wgmma, see above; the build wants kernels in which it does not" >&2
    exit 1
fi
exit $status
