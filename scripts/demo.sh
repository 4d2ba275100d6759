#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# scripts/demo.sh: starts `hearth serve` on a model, lets it write through the OpenAI API (a text and a
# chat, streamed), says how fast, and leaves the server running with its address, pid file and how to
# stop it. A server left by an earlier demo is stopped first; a port that is taken is replaced.
#
#   MODEL=models/fable-13m  PROMPT="..."  TOKENS=200   what is asked for
#   DEMO_PORT=8000                                     the port that is tried first
#   DEMO_TIMEOUT=120                                   seconds until the server must be ready
#   DEMO_EXIT=1                                        stop the server at the end
set -eu
cd "$(dirname "$0")/.."

model=${MODEL:-models/fable-13m}
timeout=${DEMO_TIMEOUT:-120}
dir=build/demo
pid_file=$dir/server.pid
log=$dir/server.log
mkdir -p "$dir"
say() { echo "demo: $*"; }

# A pid is ours only while the process behind it is hearth: pids are used again.
running() { [ -r "$pid_file" ] && [ "$(cat "/proc/$(cat "$pid_file")/comm" 2>/dev/null || true)" = hearth ]; }
stop() {
    running || return 0
    kill "$(cat "$pid_file")"
    for _ in $(seq 100); do running || break; sleep 0.1; done
    if running; then kill -9 "$(cat "$pid_file")"; fi
    rm -f "$pid_file"
}
fail() {
    say "$1; the end of $log:" >&2
    tail -n 30 "$log" >&2 || true
    stop
    exit 1
}

if running; then
    say "stopping the server of an earlier demo (pid $(cat "$pid_file"))"
    stop
fi
rm -f "$pid_file"
port=$(python3 scripts/demo_client.py --free-port "${DEMO_PORT:-8000}")
[ "$port" = "${DEMO_PORT:-8000}" ] || say "port ${DEMO_PORT:-8000} is taken; using $port"
say "starting: hearth serve $model --port $port"
# A session of its own, so that closing the terminal leaves it running.
setsid build/cpu/bin/hearth serve "$model" --port "$port" --pid-file "$pid_file" >"$log" 2>&1 </dev/null &
server=$!

url=http://127.0.0.1:$port
waited=0
until python3 scripts/demo_client.py --ready "$url"; do
    kill -0 "$server" 2>/dev/null || fail "the server ended before it was ready"
    [ "$waited" -lt "$((timeout * 5))" ] || fail "the server was not ready after $timeout s"
    waited=$((waited + 1))
    sleep 0.2
done

python3 scripts/demo_client.py --url "$url" --prompt "${PROMPT:-It was a bright morning, and the old captain}" \
    --tokens "${TOKENS:-200}" || fail "the client failed"

if [ "${DEMO_EXIT:-}" = 1 ]; then
    stop
    say "the server is stopped (DEMO_EXIT=1)"
else
    say "the server runs on: $url (pid $(cat "$pid_file"), pid file $pid_file, log $log)"
    say "ask it:  curl $url/v1/completions -H 'Content-Type: application/json' -d '{\"prompt\": \"Once\", \"max_tokens\": 40}'"
    say "stop it: kill \$(cat $pid_file)"
fi
