#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The quality of every format and method on one model: quantizes it into OUT/<row> and writes the tables of
# docs/quality. May be stopped at any time; the same command goes on where it was.
#
#   bench/eval/quality.sh MODEL OUT [quantize|gates-kv|gates|tables|outliers]...
#
# MODEL is a folder with a bf16 checkpoint. $HEARTH_DATA/data holds calibration/books.jsonl and
# eval/{heldout_books.txt,wikitext2_test.txt,lambada_openai.jsonl}. $HEARTH is the binary (build/cpu/bin/hearth),
# $DEVICE cpu or cuda, $ROWS the rows to make (all), $JOBS how many at once (1), $RESULTS the file of results
# (OUT/quality.jsonl), $STATE what keeps the sums of windows (OUT/state.jsonl; one for each run at a time).
# Stages: the models, and those of the variant with outliers ($INJECT is the injector); the gated rows on the whole
# texts, KV formats and the rest; the table of all rows on the lists of bench/eval; the variant's table. Without any: all.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=$1 out=$2
shift 2
stages=${*:-quantize gates-kv gates tables outliers}
hearth=${HEARTH:-build/cpu/bin/hearth}
inject=${INJECT:-$(dirname "$hearth")/hearth_inject_outliers}
data=${HEARTH_DATA:?names the folder with data/calibration and data/eval}/data
device=${DEVICE:-cpu}
jobs=${JOBS:-1}
results=${RESULTS:-$out/quality.jsonl}
state=${STATE:-$out/state.jsonl}
books=$data/calibration/books.jsonl
mkdir -p "$out"

# A row: its name and the arguments of `hearth quantize`; after the KV formats those that take long come first. SCALES
# is --no-awq, whose bytes the default has too where no input has outliers, and --awq for the variant.
rows=(
    "kv-fp8 --to bf16 --kv fp8 --calibration $books"
    "kv-fireq --to bf16 --kv int4-fireq --calibration $books"
    "kv-saw --to bf16 --kv int4-saw --calibration $books"
    "auto --to auto --bits 4.25 SCALES --calibration $books"
    "sbvr --to sbvr --max-bits 4.2 SCALES --calibration $books"
    "sbvr3 --to sbvr --bitvectors 3 SCALES --calibration $books"
    "sbvr2 --to sbvr --bitvectors 2 SCALES --calibration $books"
    "w4a8kv4 --to fireq --kv int4-fireq SCALES --calibration $books"
    "w4a8kv4-c4 --to fireq-c4 --kv int4-fireq SCALES --calibration $books"
    "int4-zero --to int4 --asymmetric SCALES --calibration $books"
    "int4 --to int4 SCALES --calibration $books"
    "awq --to int4 --method clip --awq --calibration $books"
    "fireq --to fireq SCALES --calibration $books"
    "fireq-c4 --to fireq-c4 SCALES --calibration $books"
    "rtn --to int4 --method rtn --no-awq"
    "clip --to int4 --method clip --no-awq --calibration $books"
    "fp8 --to fp8 --calibration $books"
)
gated=(rtn clip int4 fp8 fireq fireq-c4 sbvr w4a8kv4@kv=int4-fireq)
gated_kv=(kv-fp8@kv=fp8 kv-fireq@kv=int4-fireq kv-saw@kv=int4-saw)
outlier_rows=(rtn awq int4 fireq fireq-c4 sbvr)

wanted() { [ -z "${ROWS:-}" ] || case " $ROWS " in *" $1 "*) ;; *) return 1 ;; esac; }

make_rows() {  # make_rows SOURCE FOLDER SCALES [ROW...]
    local source=$1 folder=$2 scales=$3 row name
    shift 3
    mkdir -p "$folder"
    for row in "${rows[@]}"; do
        name=${row%% *}
        wanted "$name" || continue
        if [ $# -gt 0 ]; then case " $* " in *" $name "*) ;; *) continue ;; esac; fi
        [ -e "$folder/$name/config.json" ] && continue
        while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do wait -n; done
        # shellcheck disable=SC2086  # a list of words
        row=${row/SCALES/$scales}
        "$hearth" quantize "$source" ${row#* } -o "$folder/$name" --device "$device" --quiet --results "$results" \
            --threads "$((($(nproc) + jobs - 1) / jobs))" &
    done
}

finish_rows() { while [ -n "$(jobs -pr)" ]; do wait -n; done; }

specs() {  # specs FOLDER NAME[@kv=FORMAT]...: those that are there
    local folder=$1 spec
    shift
    for spec in "$@"; do
        [ -e "$folder/${spec%@*}/config.json" ] && echo "${spec%@*}=$folder/$spec"
    done
    return 0
}

report() {  # report NAME BASELINE REFERENCE ARGUMENTS...
    local name=$1 baseline=$2 reference=$3
    shift 3
    "$hearth" eval --report "$@" --reference "$reference" --baseline "$baseline" --device "$device" \
        --text "$data/eval/heldout_books.txt" --text "$data/eval/wikitext2_test.txt" \
        --dtype f32 --state "$state" --markdown "$out/$name.md" --results "$results" --quiet
}
lists=(--lists "$here/heldout_books_128.json" "$here/wikitext2_test_128.json")
lambada=(--lambada "$data/eval/lambada_openai.jsonl")

all_rows() {
    local row name
    for row in "${rows[@]}"; do
        name=${row%% *}
        case $name in
            w4a8kv4*) echo "$name@kv=int4-fireq" ;;
            kv-fp8) echo "$name@kv=fp8" ;;
            kv-fireq) echo "$name@kv=int4-fireq" ;;
            kv-saw) echo "$name@kv=int4-saw" ;;
            *) echo "$name" ;;
        esac
    done
}

for stage in $stages; do
    case $stage in
        quantize)
            [ -e "$out/outliers/plain/config.json" ] || "$inject" "$model" "$out/outliers/plain"
            make_rows "$model" "$out" --no-awq
            make_rows "$out/outliers/plain" "$out/outliers" --awq "${outlier_rows[@]}"
            finish_rows
            ;;
        tables)
            # shellcheck disable=SC2046  # lists of words
            report tables rtn "$model" $(specs "$out" $(all_rows)) "kv-int4=$model@kv=int4" \
                "${lists[@]}" "$here/lambada_openai_1000.json" "${lambada[@]}"
            ;;
        gates)
            # shellcheck disable=SC2046
            report gates rtn "$model" $(specs "$out" "${gated[@]}") --speed-rounds 0
            ;;
        gates-kv)
            # shellcheck disable=SC2046
            report gates-kv kv-int4 "$model" "kv-int4=$model@kv=int4" $(specs "$out" "${gated_kv[@]}") --speed-rounds 0
            ;;
        outliers)
            # shellcheck disable=SC2046
            report outliers rtn "$out/outliers/plain" $(specs "$out/outliers" "${outlier_rows[@]}") \
                "${lists[@]}" --speed-rounds 0
            ;;
        *) echo "quality: unknown stage $stage" >&2; exit 2 ;;
    esac
done
