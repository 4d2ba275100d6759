#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One machine compared with itself: the same load file on servers that differ in their schedule alone.
#
#   bench/compare_schedules.sh LOADFILE "RATE..." OUT -- OPTIONS OF hearth serve (models, device, KV memory)
#
# For each arm one server, for each rate (requests/s) and seed a run of hearth bench serve --load. OUT gets the results
# (results.jsonl), the steps of each arm (ARM.steps.jsonl), each request (ARM-RATE-SEED.jsonl), a picture and the report
# of each run, and table.md, which is printed. The environment may say
#   HEARTH  the program (build/cpu/bin/hearth)      ARMS   of those below ("ours static fineserve")
#   SEEDS   of the load ("1")                       DRAIN  seconds until what has not ended is lost (120)
#   LOAD_SECONDS  how long requests come (the file's)
set -euo pipefail

usage() { sed -n '3,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 5 ] && [ "$4" = -- ] || usage
load=$1 rates=$2 out=$3
shift 4
hearth=${HEARTH:-build/cpu/bin/hearth} arms=${ARMS:-ours static fineserve} seeds=${SEEDS:-1} drain=${DRAIN:-120} length=${LOAD_SECONDS:+--seconds $LOAD_SECONDS}

# What makes an arm; docs/design/schedule.md has the baselines.
flags_of() {
    case $1 in
        ours) ;;
        fcfs) echo --schedule fcfs ;;
        static) echo --schedule fcfs --kv-sharing static ;;
        fineserve) echo --schedule fineserve --reject-hopeless ;;
        *) echo "compare_schedules: no arm '$1'; wanted ours, fcfs, static or fineserve" >&2; exit 2 ;;
    esac
}
for arm in $arms; do flags_of "$arm" > /dev/null; done

mkdir -p "$out"
server=
stop_server() {
    [ -n "$server" ] || return 0
    kill "$server" 2> /dev/null || true
    wait "$server" 2> /dev/null || true
    server=
}
trap stop_server EXIT

# Sets `url`. An overload is to wait in the engine, where the schedule is, and not at the server's limits.
start_server() {
    local arm=$1 flags
    shift
    flags=$(flags_of "$arm")
    # shellcheck disable=SC2086
    "$hearth" serve --port 0 --max-waiting 100000 --limits-requests 100000 --http-connections 100000 \
        --waiting-requests 100000 --step-log "$out/$arm.steps.jsonl" $flags "$@" > "$out/$arm.server.txt" 2>&1 &
    server=$!
    until url=$(grep -om1 'http://[0-9.]*:[0-9]*' "$out/$arm.server.txt"); do
        kill -0 "$server" 2> /dev/null || { cat "$out/$arm.server.txt" >&2; exit 1; }
        sleep 0.2
    done
}

{
    echo "| schedule | requests/s | seed | requests | failed | kept % | TTFT p50 ms | p99 | TPOT p50 ms | p99 | tokens/s |"
    echo "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
} > "$out/table.md"
for arm in $arms; do
    start_server "$arm" "$@"
    for rate in $rates; do
        for seed in $seeds; do
            run=$out/$arm-$rate-$seed
            echo "$arm, $rate requests/s, seed $seed" >&2
            # shellcheck disable=SC2086
            "$hearth" bench serve --base-url "$url" --load "$load" $length --request-rate "$rate" --seed "$seed" --drain "$drain" \
                --metric-percentiles 50,99 --note "$arm" --save-result "$out/results.jsonl" --save-requests "$run.jsonl" \
                --plot "$run.svg" --quiet > "$run.txt"
            awk -v arm="$arm" -v rate="$rate" -v seed="$seed" '/^all models / {
                print "| " arm " | " rate " | " seed " | " $3 " | " $5 " | " $6 " | " $7 " | " $8 " | " $9 " | " $10 " | " $11 " |" }' \
                "$run.txt" >> "$out/table.md"
        done
    done
    stop_server
done
cat "$out/table.md"
