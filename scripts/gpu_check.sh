#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Tests and times the CUDA backend on a machine with a GPU, which may have nothing else (docs/guides/gpu-check.md).
#   scripts/gpu_check.sh             builds here if it can (CUDA, CMake, ninja, hearth's libraries), then checks
#   scripts/gpu_check.sh pack        builds with CUDA, and fills build/gpu with programs and libraries to take along
#   build/gpu/gpu_check.sh           there: every GPU test, a benchmark of a minute or so, a table last
#   build/gpu/gpu_check.sh full      the same with all benchmarks and their peers
#   build/gpu/gpu_check.sh peers [linear|attention|rmsnorm...]  PyTorch's ops beside ours alone; PEER_ARGS: see bench/peers
#   build/gpu/gpu_check.sh sanitize [TOOL...]  compute-sanitizer's memcheck and racecheck (or TOOLs) over the op tests
#   build/gpu/gpu_check.sh profile   ncu's memory and occupancy sections of one call per shape
# build/gpu stays in a checkout: the tests read models/fable-13m and tests/fixtures; HEARTH_DATA names the folder with
# models/fable-82m and data/eval, if there. Results go to $OUT, or to `out` beside this script. ONLY: tests to run, and
# no benchmarks; JOBS: how many tests at once (4). Exit 1 if one fails, or without a GPU.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# Those that take longest under a sanitizer come first.
op_tests="pack_units_sm90_test linear_quantized_sm90_test attention_sm90_test linear_fp8_sm90_test linear_lines_sm90_test
    linear_nibble_sm90_test
    linear_nibble_wide_sm90_test sample_sm90_test linear_sm90_test
    attention_bf16_sm90_test sm90_vocabulary_test embedding_sm90_test rmsnorm_sm90_test rope_sm90_test
    silu_mul_sm90_test second_moments_sm90_test non_finite_sm90_test"
tests="$op_tests cuda_memory_test model_cuda_test golden_cuda_test decode_step_cuda_test quantized_model_cuda_test
    rounding_cuda_test two_models_cuda_test kv_sharing_cuda_test server_cuda_test two_gpus_cuda_test quantize_pipeline_cuda_test"
# Tests that want the GPU to themselves: they see by its clock which kernels overlap, or lose it on purpose.
alone="sm90_vocabulary_test server_cuda_test"
# Those that hold themselves to times, in tests called Costs.
timed="sample_sm90_test"
programs="$tests rmsnorm_bench linear_sm90_bench attention_sm90_bench"
# What takes long under a sanitizer, calls CUDA wrongly or loses the device on purpose, or wants kernels that overlap.
left_out="*ErrorsAreValues:*100000Cases:*Costs:*LongPrompt:*LongContexts:*MoreTilesThanBlocks:*OnModelShapes"
left_out="$left_out:*MoreRowsThanAGridHolds:*DeathTest*:*BeginsBeforeTheOneBeforeItHasEnded"
# The same for racecheck, which is slower.
racecheck_left_out="*EqualsTheCpu*:LinearFp8Sm90.AFewRows*"
bench_s=90 # of all benchmarks of a check

die() {
    echo "gpu_check: $*" >&2
    exit 1
}

pack() {
    root=$(dirname "$here")
    cd "$root"
    environment=$(scripts/cuda_env.sh) || die "no CUDA toolkit to build with"
    eval "$environment"
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
    cp bench/peers/turns.py bench/peers/*_torch.py scripts/gpu_check.sh build/gpu/
    git rev-parse --short=12 HEAD > build/gpu/commit 2> /dev/null || echo unknown > build/gpu/commit
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

# A line of the table: what, how it ended, how many tests and skipped ones, seconds.
row() { printf '%-38s %-8s %-10s %-11s %4d s\n' "$@" >> "$out/table.txt"; }

# Runs a test, keeps its output, and adds a line to the table. $1 what it is called, $2 the program, then its command.
run_test() {
    name=$1
    program=$2
    shift 2
    begin=$(date +%s)
    if "$@" > "$out/$name.txt" 2>&1; then outcome=passed; else outcome=FAILED; fi
    count=$(sed -n 's/^\[==========\] \([0-9]* tests\{0,1\}\).*/\1/p' "$out/$name.txt" | tail -1)
    skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]* tests\{0,1\}\).*/\1/p' "$out/$name.txt" | tail -1)
    # A program that ran no test has shown nothing; FILTER may leave it none.
    if [ -z "$count" ] || { [ "$count" = "0 tests" ] && [ -z "${FILTER:-}" ]; }; then outcome=FAILED; fi
    said=$(grep -Ev '^(Note:|Running main|\[==========\])' "$out/$name.txt" | head -80)
    # In one piece: others may be writing too.
    printf '%s\n' "== $program${said:+
$said}"
    row "$name" "$outcome" "${count:-?}" "${skipped:+$skipped off}" $(($(date +%s) - begin))
    [ "$outcome" = passed ]
}

# The time that the benchmarks of a check have left, at least a second.
bench_left() {
    left=$((bench_until - $(date +%s)))
    if [ "$left" -lt 1 ]; then left=1; fi
    echo "$left"
}

# $1 what it is called, then its command: the output goes to a file of that name. In a check it ends with its time.
run_bench() {
    name=$1
    shift
    begin=$(date +%s)
    if [ "$mode" = full ]; then limit=900; else limit=$(bench_left); fi
    code=0
    HEARTH_COMMIT=$(cat "$here/commit") timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || code=$?
    case $code in
    0) outcome=done ;;
    124) outcome=cut ;; # out of time: what there is counts
    *)
        outcome=FAILED
        failed=1
        tail -5 "$out/$name.txt"
        ;;
    esac
    row "$name" "$outcome" "" "" $(($(date +%s) - begin))
}

# Everything that a run needs, or a word on what is missing.
prepare() {
    for program in ${ONLY:-$programs hearth}; do
        [ -x "$here/$program" ] || die "$here has no $program: run \`scripts/gpu_check.sh pack\` where hearth builds, and" \
            "bring build/gpu along"
    done
    root=$(dirname "$(dirname "$here")")
    [ -d "$root/models/fable-13m" ] || die "no models/fable-13m in $root: build/gpu belongs into a checkout"
    command -v nvidia-smi > /dev/null || echo "gpu_check: no nvidia-smi here; the tests will say whether there is a GPU" >&2
    cd "$root"
    mkdir -p "$out"
    : > "$out/table.txt"
    failed=0
    export LD_LIBRARY_PATH
}

# $1 word, $2 words.
is_one_of() { case " $2 " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# $1 test: one of check(), without what it holds to times.
test_one() { run_test "$1" "$1" timeout 300 "$here/$1" --gtest_brief=1 '--gtest_filter=-*Costs*'; }

check() {
    prepare
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader 2> /dev/null || true
    # How far another implementation in BF16 is from the golden values.
    if [ -z "${HEARTH_BF16_LARGEST:-}" ] && has_torch transformers; then
        goldens=models/fable-13m
        if [ -d "${HEARTH_DATA:-/nonexistent}/models/fable-82m" ]; then goldens="$goldens $HEARTH_DATA/models/fable-82m"; fi
        # shellcheck disable=SC2086
        HEARTH_BF16_LARGEST=$(LD_LIBRARY_PATH=$libraries python3 "$here/golden_bf16_torch.py" $goldens \
            2> "$out/golden_bf16.txt" || true)
        tail -3 "$out/golden_bf16.txt"
        if [ -n "$HEARTH_BF16_LARGEST" ]; then export HEARTH_BF16_LARGEST; else unset HEARTH_BF16_LARGEST; fi
    fi
    # Several at once, as most of their time is the CPU's; then those that no other may disturb.
    for test in ${ONLY:-$tests}; do
        if ! is_one_of "$test" "$alone"; then echo "$test"; fi
    done | OUT=$out xargs -r -P "${JOBS:-4}" -n 1 "$here/gpu_check.sh" test-one || failed=1
    for test in ${ONLY:-$tests}; do
        if is_one_of "$test" "$alone"; then test_one "$test" || failed=1; fi
        if is_one_of "$test" "$timed"; then
            run_test "$test-costs" "$test, its costs" timeout 300 "$here/$test" --gtest_brief=1 '--gtest_filter=*Costs*' ||
                failed=1
        fi
    done
    if [ -z "${ONLY:-}" ]; then benchmarks; fi
    cat "$out/table.txt"
    exit "$failed"
}

benchmarks() {
    bench_until=$(($(date +%s) + bench_s))
    if [ "$mode" = full ]; then
        run_bench rmsnorm_bench "$here/rmsnorm_bench" --backend sm90 --out "$out/rmsnorm_sm90.jsonl"
        run_bench linear_sm90_bench "$here/linear_sm90_bench" --out "$out/linear_sm90.jsonl"
        run_bench attention_sm90_bench "$here/attention_sm90_bench" --out "$out/attention_sm90.jsonl"
        peers
    fi
    run_bench bench_ops "$here/hearth" bench ops bench/configs/llama-3-8b.json --device cuda --quick --results "$out/ops.jsonl"
    cat "$out/bench_ops.txt"
    run_bench bench_model "$here/hearth" bench model bench/configs/llama-3-8b.json --load-format dummy --device cuda -p 4096 \
        -n 64 -b 1,32 -r 2 --results "$out/model.jsonl"
    cat "$out/bench_model.txt"
}

# $*: which ones. They need their own libraries, not those beside us, and start ours with these.
peers() {
    if ! has_torch torch; then
        echo "gpu_check: no torch here: no comparison"
        return
    fi
    mkdir -p "$out/ours"
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$LD_LIBRARY_PATH" "$here/hearth" > "$out/ours/hearth"
    chmod +x "$out/ours/hearth"
    for peer in ${*:-linear attention rmsnorm}; do
        # shellcheck disable=SC2086
        run_bench "${peer}_torch" env LD_LIBRARY_PATH="$libraries" PYTHONUNBUFFERED=1 python3 "$here/${peer}_torch.py" \
            --bench "$out/ours/hearth" --out "$out/${peer}_peers.jsonl" ${PEER_ARGS:-}
        cat "$out/${peer}_torch.txt"
    done
}

# Them alone.
peers_only() {
    ONLY=hearth prepare
    mode=full # all the time that they want
    has_torch torch || die "no torch here: nothing to compare with"
    peers "$@"
    cat "$out/table.txt"
    exit "$failed"
}

# Several tests at once: their time goes to the CPU's references, which a sanitizer does not slow down. Ends in time:
# what is not done by then has failed.
sanitize() {
    prepare
    command -v compute-sanitizer > /dev/null || die "no compute-sanitizer on PATH; it comes with the CUDA toolkit"
    sanitize_until=$(($(date +%s) + ${SANITIZE_S:-460}))
    for test in ${ONLY:-$op_tests}; do
        for tool in ${*:-memcheck racecheck}; do echo "$tool $test"; done
    done | OUT=$out SANITIZE_UNTIL=$sanitize_until xargs -P "${JOBS:-4}" -n 2 "$here/gpu_check.sh" sanitize-one || failed=1
    sort "$out/table.txt"
    exit "$failed"
}

# $1 tool, then a program: fails where it does, or where the tool finds something in it. racecheck names hazards within
# cuBLASLt's kernels, which are not counted, but told to leave those out (--kernel-name) it ends in an error of its own.
under_tool() {
    if [ "$1" != racecheck ]; then
        tool=$1
        shift
        exec compute-sanitizer --tool "$tool" --error-exitcode 1 "$@"
    fi
    shift
    found=$(mktemp)
    if compute-sanitizer --tool racecheck --log-file "$found" "$@"; then outcome=0; else outcome=1; fi
    # A report is a few lines up to an empty one.
    awk 'BEGIN { RS = "========= ?\n" } /Race reported|Internal Sanitizer Error/ && !/ access at (nvjet|void cutlass)/' \
        "$found" > "$found.ours"
    tail -n 1 "$found"
    if [ -s "$found.ours" ]; then
        cat "$found.ours"
        outcome=1
    fi
    rm "$found" "$found.ours"
    exit "$outcome"
}

# $1 tool, $2 test: one of sanitize().
sanitize_one() {
    export LD_LIBRARY_PATH
    cd "$(dirname "$(dirname "$here")")"
    skipped_tests=$left_out
    one_case_in=7
    if [ "$1" = racecheck ]; then
        skipped_tests="$left_out:$racecheck_left_out"
        one_case_in=13
    fi
    limit=$((SANITIZE_UNTIL - $(date +%s)))
    if [ "$limit" -gt "${LIMIT:-280}" ]; then limit=${LIMIT:-280}; fi
    if [ "$limit" -lt 1 ]; then limit=1; fi
    export HEARTH_ONE_CASE_IN="${HEARTH_ONE_CASE_IN:-$one_case_in}"
    run_test "$1-$2" "$1 $2" timeout -k 10 "$limit" "$here/gpu_check.sh" under-tool "$1" \
        "$here/$2" --gtest_brief=1 "--gtest_filter=${FILTER:--$skipped_tests}"
}

mode=${1:-}
if [ -z "$mode" ]; then
    mode=check
    # In scripts/, not beside the programs: build them first.
    if [ "$(basename "$here")" = scripts ]; then
        LD_LIBRARY_PATH=$libraries "$here/gpu_check.sh" pack ||
            die "nothing was built here; run \`scripts/gpu_check.sh pack\` where hearth builds (scripts/install.sh --cuda)," \
                "bring build/gpu into this checkout, and start build/gpu/gpu_check.sh"
        exec "$here/../build/gpu/gpu_check.sh"
    fi
fi
case $mode in
pack) LD_LIBRARY_PATH=$libraries; pack ;;
check | full) check ;;
peers) shift; peers_only "$@" ;;
sanitize) shift; sanitize "$@" ;;
sanitize-one) sanitize_one "$2" "$3" ;;
under-tool) shift; under_tool "$@" ;;
test-one)
    export LD_LIBRARY_PATH
    cd "$(dirname "$(dirname "$here")")"
    test_one "$2" ;;
profile)
    export LD_LIBRARY_PATH
    mkdir -p "$out"
    ncu --graph-profiling node --launch-count 12 --launch-skip 2 --kernel-name regex:rmsnorm \
        --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
        "$here/rmsnorm_bench" --backend sm90 --quick | tee "$out/ncu.txt" ;;
*) echo "usage: gpu_check.sh [pack|check|full|peers|sanitize|profile]" >&2; exit 2 ;;
esac
