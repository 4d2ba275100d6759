#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# scripts/run_tests.sh PRESET LABELS: runs the tests of build/PRESET whose label matches the regular
# expression LABELS, several at once; no matching test is an error. After ctest's own lines it lists the
# test cases that skipped themselves, with their reason: ctest would count them as passed.
set -eu
cd "$(dirname "$0")/.."

preset=$1
labels=$2
log=build/$preset/Testing/Temporary/LastTest.log
rm -f "$log"
code=0
ctest --preset "$preset" -L "$labels" --no-tests=error -j "$(scripts/jobs.sh)" </dev/null || code=$?

# A skipped GoogleTest case prints `file:line: Skipped`, its reason, an empty line and
# `[  SKIPPED ] Suite.Case (N ms)`; a skipped unittest case prints `... skipped 'reason'`.
if [ -f "$log" ]; then
    awk '
        /^[^ ]+:[0-9]+: Skipped$/          { if ((getline line) > 0) reason = line; next }
        /^\[  SKIPPED \] .* \([0-9]+ ms\)/ { sub(/ \([0-9]+ ms\)$/, ""); sub(/^\[  SKIPPED \] /, "")
                                             skipped[++n] = $0 ": " (reason == "" ? "no reason given" : reason)
                                             reason = ""; next }
        / \.\.\. skipped /                 { skipped[++n] = $0 }
        END { if (n) { printf "%d test cases were skipped and prove nothing here:\n", n
                       for (i = 1; i <= n; ++i) print "  " skipped[i] } }' "$log"
fi
exit "$code"
