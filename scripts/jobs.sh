#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints how many compilers may run at once: min(cores, memory / 2 GiB), at least 1. HEARTH_JOBS
# overrides it. Memory is what is available to this process: MemTotal, or a cgroup's limit if lower.
set -eu
if [ -n "${HEARTH_JOBS:-}" ]; then echo "$HEARTH_JOBS"; exit 0; fi

kib=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
for limit in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
    bytes=$(cat "$limit" 2>/dev/null || true)
    case $bytes in
        '' | *[!0-9]*) ;;                       # "max" or no such file
        ????????????????*) ;;                   # 16 digits and more: cgroup 1's way to say unlimited
        *) if [ $((bytes / 1024)) -lt "$kib" ]; then kib=$((bytes / 1024)); fi ;;
    esac
done
jobs=$((kib / (2 * 1024 * 1024)))
cores=$(nproc)
if [ "$jobs" -gt "$cores" ]; then jobs=$cores; fi
if [ "$jobs" -lt 1 ]; then jobs=1; fi
echo "$jobs"
