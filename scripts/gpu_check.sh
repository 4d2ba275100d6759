#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Tests and times the CUDA kernels on another machine, one with a GPU and perhaps nothing else.
#   scripts/gpu_check.sh pack        builds with CUDA here, and fills build/gpu with programs and libraries
#   build/gpu/gpu_check.sh           there (any glibc as new as the build machine's): tests, then benchmarks
#   build/gpu/gpu_check.sh sanitize  there: compute-sanitizer's four tools over the tests
#   build/gpu/gpu_check.sh profile   there: ncu's memory and occupancy sections of one call per shape
# Results go to $OUT, or to the folder `out` beside this script. Exit 1 if a test fails, or without a GPU.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

pack() {
    root=$(dirname "$here")
    cd "$root"
    eval "$(scripts/cuda_env.sh)"
    build=${BUILD:-build/cuda}
    [ -f "$build/build.ninja" ] || cmake --preset cuda -B "$build"
    # shellcheck source=scripts/jobs.sh
    jobs=$(sh scripts/jobs.sh)
    cmake --build "$build" -j"$jobs" --target rmsnorm_sm90_test rmsnorm_bench
    rm -rf build/gpu
    mkdir -p build/gpu/lib
    cp "$build/bin/rmsnorm_sm90_test" "$build/bin/rmsnorm_bench" bench/peers/rmsnorm_torch.py scripts/gpu_check.sh build/gpu/
    git rev-parse --short=12 HEAD > build/gpu/commit
    # Everything that is not glibc travels, as in the distribution.
    for program in build/gpu/rmsnorm_sm90_test build/gpu/rmsnorm_bench; do
        ldd "$program" | awk '$3 ~ /^\// { print $3 }' |
            grep -Ev '/(libc|libm|libdl|librt|libpthread)\.so' | xargs -r cp -Lut build/gpu/lib
    done
    du -sh build/gpu
}

out=${OUT:-$here/out}
libraries=${LD_LIBRARY_PATH:-}
LD_LIBRARY_PATH="$here/lib${libraries:+:$libraries}"
case ${1:-check} in
pack) LD_LIBRARY_PATH=$libraries; pack ;;
check)
    export LD_LIBRARY_PATH
    mkdir -p "$out"
    "$here/rmsnorm_sm90_test" --gtest_brief=1
    HEARTH_COMMIT=$(cat "$here/commit") "$here/rmsnorm_bench" --backend sm90 --out "$out/rmsnorm_ours.jsonl"
    # The peer needs its own libraries, not those beside us.
    if LD_LIBRARY_PATH=$libraries python3 -c 'import torch' 2>/dev/null; then
        LD_LIBRARY_PATH=$libraries python3 "$here/rmsnorm_torch.py" --ours "$out/rmsnorm_ours.jsonl" --out "$out/rmsnorm.jsonl"
    else
        echo "gpu_check: no torch here: no comparison"
    fi ;;
sanitize)
    export LD_LIBRARY_PATH
    for tool in memcheck racecheck initcheck synccheck; do
        echo "== $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$here/rmsnorm_sm90_test" --gtest_brief=1 \
            --gtest_filter='-*ErrorsAreValues'
    done ;;
profile)
    export LD_LIBRARY_PATH
    mkdir -p "$out"
    ncu --graph-profiling node --launch-count 12 --launch-skip 2 --kernel-name regex:rmsnorm \
        --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
        "$here/rmsnorm_bench" --backend sm90 --quick | tee "$out/ncu.txt" ;;
*) echo "usage: gpu_check.sh [pack|check|sanitize|profile]" >&2; exit 2 ;;
esac
