#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds every fuzz target (clang 14, libFuzzer, address and undefined-behaviour sanitizers) in
# build/fuzz and runs each for FUZZ_SECONDS (30), from the committed inputs of tests/fuzz/corpus/<target>
# and what earlier runs found in build/fuzz/corpus/<target>. A finding is kept in build/fuzz/findings
# and fails the run; so does having no target at all.
set -eu
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-30}
scripts/build.sh fuzz hearth_fuzz_targets
count=0 failed=
for target in build/fuzz/bin/fuzz_*; do
    [ -x "$target" ] || continue
    name=$(basename "$target")
    count=$((count + 1))
    mkdir -p "build/fuzz/corpus/$name" "build/fuzz/findings/$name"
    set -- "build/fuzz/corpus/$name"
    if [ -d "tests/fuzz/corpus/$name" ]; then set -- "$@" "tests/fuzz/corpus/$name"; fi
    log=build/fuzz/$name.log
    if "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="build/fuzz/findings/$name/" "$@" >"$log" 2>&1 </dev/null; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "fuzz: $name: $runs inputs in $seconds s, no finding"
    else
        failed="$failed $name"
        tail -n 60 "$log"
        echo "fuzz: $name: FOUND something, see build/fuzz/findings/$name and $log" >&2
    fi
done
if [ "$count" = 0 ]; then echo "fuzz: there is no fuzz target" >&2; exit 1; fi
[ -z "$failed" ] || exit 1
echo "fuzz: $count targets, 0 findings"
