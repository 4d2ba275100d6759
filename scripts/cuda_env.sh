#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Says where the CUDA toolkit is: $CUDACXX, nvcc on PATH, $CUDA_HOME, /usr/local/cuda, and last the
# wheels that `scripts/install.sh --cuda` put into build/venv-cuda. Prints `export` lines for
#   eval "$(scripts/cuda_env.sh)"       (CUDACXX is what CMake reads; CUDA_HOME; PATH)
# or, with --nvcc, only the path of nvcc. Exit 1 with one line on stderr when there is none.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

nvcc=
for candidate in "${CUDACXX:-}" "$(command -v nvcc || true)" "${CUDA_HOME:-/nonexistent}/bin/nvcc" \
                 /usr/local/cuda/bin/nvcc "$root/build/venv-cuda/cuda/bin/nvcc"; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then nvcc=$candidate; break; fi
done
if [ -z "$nvcc" ]; then
    echo "cuda_env: no nvcc on PATH, in /usr/local/cuda or in build/venv-cuda; run scripts/install.sh --cuda" >&2
    exit 1
fi
if [ "${1:-}" = --nvcc ]; then echo "$nvcc"; exit 0; fi
home=$(dirname "$(dirname "$nvcc")")
echo "export CUDACXX='$nvcc'"
echo "export CUDA_HOME='$home'"
echo "export PATH='$home/bin':\"\$PATH\""
