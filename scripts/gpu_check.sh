#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Tests and times the CUDA backend on another machine, one with a GPU and perhaps nothing else.
#   scripts/gpu_check.sh pack        builds with CUDA here, and fills build/gpu with programs and libraries
#   build/gpu/gpu_check.sh           there (any glibc as new as the build machine's): tests, then benchmarks
#   build/gpu/gpu_check.sh sanitize  there: compute-sanitizer's four tools over the op tests
#   build/gpu/gpu_check.sh profile   there: ncu's memory and occupancy sections of one call per shape
# build/gpu stays in a checkout: the tests read models/fable-13m and tests/fixtures. cuBLASLt 13 is looked for in the
# loader's path, beside CUDA_HOME and among python3's packages. Results go to $OUT, or to the folder `out` beside this
# script. A table of all tests comes last. Exit 1 if one fails, or without a GPU.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
op_tests="sm90_vocabulary_test embedding_sm90_test rmsnorm_sm90_test rope_sm90_test attention_sm90_test
    attention_bf16_sm90_test linear_sm90_test linear_fp8_sm90_test linear_quantized_sm90_test silu_mul_sm90_test
    sample_sm90_test second_moments_sm90_test non_finite_sm90_test"
tests="$op_tests model_cuda_test decode_step_cuda_test server_cuda_test quantized_model_cuda_test quantize_pipeline_cuda_test"
programs="$tests rmsnorm_bench linear_sm90_bench attention_sm90_bench"

pack() {
    root=$(dirname "$here")
    cd "$root"
    eval "$(scripts/cuda_env.sh)"
    build=${BUILD:-build/cuda}
    [ -f "$build/build.ninja" ] || cmake --preset cuda -B "$build"
    # shellcheck source=scripts/jobs.sh
    jobs=$(sh scripts/jobs.sh)
    # shellcheck disable=SC2086
    cmake --build "$build" -j"$jobs" --target $programs hearth
    rm -rf build/gpu
    mkdir -p build/gpu/lib
    for program in $programs hearth; do
        strip -o "build/gpu/$program" "$build/bin/$program"
        # Everything that is not glibc travels, as in the distribution.
        ldd "$build/bin/$program" | awk '$3 ~ /^\// { print $3 }' |
            grep -Ev '/(libc|libm|libdl|librt|libpthread)\.so' | xargs -r cp -Lut build/gpu/lib
    done
    cp bench/peers/rmsnorm_torch.py bench/peers/attention_torch.py bench/peers/golden_bf16_torch.py scripts/gpu_check.sh build/gpu/
    git rev-parse --short=12 HEAD > build/gpu/commit
    du -sh build/gpu
}

out=${OUT:-$here/out}
libraries=${LD_LIBRARY_PATH:-}
# cuBLASLt where the loader does not find it by itself.
cublas=
for folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" \
              "$(python3 -c 'import nvidia.cu13 as m; print(list(m.__path__)[0] + "/lib")' 2>/dev/null || true)" \
              "$(python3 -c 'import nvidia.cublas as m; print(list(m.__path__)[0] + "/lib")' 2>/dev/null || true)"; do
    if [ -z "$cublas" ] && [ -e "$folder/libcublasLt.so.13" ]; then cublas=$folder; fi
done
LD_LIBRARY_PATH="$here/lib${cublas:+:$cublas}${libraries:+:$libraries}"
has_torch() { LD_LIBRARY_PATH=$libraries python3 -c "import $1" 2>/dev/null; }

# Runs a test, keeps its output, and adds a line to the table.
run_test() {
    begin=$(date +%s)
    if "$here/$1" --gtest_brief=1 > "$out/$1.txt" 2>&1; then outcome=passed; else outcome=FAILED; failed=1; fi
    count=$(sed -n 's/^\[==========\] \([0-9]* tests\{0,1\}\).*/\1/p' "$out/$1.txt" | tail -1)
    grep -Ev '^(Note:|\[==========\])' "$out/$1.txt" | head -60 || true
    printf '%-28s %-8s %-10s %3d s\n' "$1" "$outcome" "${count:-?}" $(($(date +%s) - begin)) >> "$out/table.txt"
}

case ${1:-check} in
pack) LD_LIBRARY_PATH=$libraries; pack ;;
check)
    export LD_LIBRARY_PATH
    mkdir -p "$out"
    root=$(dirname "$(dirname "$here")")
    if [ ! -d "$root/models/fable-13m" ]; then echo "gpu_check: no models/fable-13m in $root" >&2; exit 1; fi
    cd "$root"
    : > "$out/table.txt"
    failed=0
    # How far another implementation in BF16 is from the golden values.
    if has_torch transformers; then
        HEARTH_BF16_LARGEST=$(LD_LIBRARY_PATH=$libraries python3 "$here/golden_bf16_torch.py" models/fable-13m \
            2> "$out/golden_bf16.txt" || true)
        tail -3 "$out/golden_bf16.txt"
        if [ -n "$HEARTH_BF16_LARGEST" ]; then export HEARTH_BF16_LARGEST; else unset HEARTH_BF16_LARGEST; fi
    fi
    for test in $tests; do run_test "$test"; done
    HEARTH_COMMIT=$(cat "$here/commit") "$here/rmsnorm_bench" --backend sm90 --out "$out/rmsnorm_ours.jsonl" \
        > "$out/rmsnorm_bench.txt"
    HEARTH_COMMIT=$(cat "$here/commit") "$here/linear_sm90_bench" --out "$out/linear_sm90.jsonl" > "$out/linear_sm90_bench.txt"
    HEARTH_COMMIT=$(cat "$here/commit") "$here/attention_sm90_bench" --out "$out/attention_sm90.jsonl" \
        > "$out/attention_sm90_bench.txt"
    # The peer needs its own libraries, not those beside us.
    if has_torch torch; then
        LD_LIBRARY_PATH=$libraries python3 "$here/rmsnorm_torch.py" --ours "$out/rmsnorm_ours.jsonl" --out "$out/rmsnorm.jsonl"
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$LD_LIBRARY_PATH" "$here/attention_sm90_bench" > "$out/ours"
        chmod +x "$out/ours"
        HEARTH_COMMIT=$(cat "$here/commit") LD_LIBRARY_PATH=$libraries python3 "$here/attention_torch.py" \
            --bench "$out/ours" --out "$out/attention_peers.jsonl"
    else
        echo "gpu_check: no torch here: no comparison"
    fi
    cat "$out/table.txt"
    exit "$failed" ;;
sanitize)
    export LD_LIBRARY_PATH
    for tool in memcheck racecheck initcheck synccheck; do
        for test in $op_tests; do
            echo "== $tool $test"
            compute-sanitizer --tool "$tool" --error-exitcode 1 "$here/$test" --gtest_brief=1 \
                --gtest_filter="${FILTER:--*ErrorsAreValues:*100000Cases:*Costs}"
        done
    done ;;
profile)
    export LD_LIBRARY_PATH
    mkdir -p "$out"
    ncu --graph-profiling node --launch-count 12 --launch-skip 2 --kernel-name regex:rmsnorm \
        --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
        "$here/rmsnorm_bench" --backend sm90 --quick | tee "$out/ncu.txt" ;;
*) echo "usage: gpu_check.sh [pack|check|sanitize|profile]" >&2; exit 2 ;;
esac
