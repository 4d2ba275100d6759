#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# scripts/clients.sh [--lambada] [--binary FILE]: starts `hearth serve` on the model in models/fable-13m and
# runs the tests of tests/clients against it: the official Python and Node clients of the OpenAI API.
# With --lambada it compares LAMBADA over the API with `hearth eval lambada` item by item instead; then
# HEARTH_DATA names the folder with data/eval/lambada_openai.jsonl.
# --binary takes a hearth that is there instead of building preset cpu.
# Python packages go to build/venv-clients, Node's to build/clients-node, with the versions and hashes of
# tests/clients; both are kept as long as those stay the same. The server is stopped by SIGTERM and must
# exit with 0 and without an error in its log. Anything missing is a failure, never a pass.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
exec </dev/null

fail() {
    echo "clients: $*" >&2
    exit 1
}

binary= lambada=
while [ $# -gt 0 ]; do
    case $1 in
        --lambada) lambada=1 ;;
        --binary)
            [ $# -ge 2 ] || fail "--binary: no file named"
            binary=$2
            shift
            ;;
        *) fail "$1 is unknown; wanted --lambada or --binary FILE" ;;
    esac
    shift
done
if [ -n "$lambada" ]; then
    data=${HEARTH_DATA:-}/data/eval/lambada_openai.jsonl
    [ -n "${HEARTH_DATA:-}" ] || fail "HEARTH_DATA is not set; it names the folder with data/eval/lambada_openai.jsonl"
    [ -f "$data" ] || fail "$data is missing"
fi

# The hashes of requirements.txt are of wheels for CPython 3.11 on x86-64.
python=
for candidate in python3.11 python3; do
    if "$candidate" -c 'import platform, sys
sys.exit(sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64" or sys.implementation.name != "cpython")
' 2>/dev/null; then
        python=$(command -v "$candidate")
        break
    fi
done
[ -n "$python" ] || fail "no CPython 3.11 for x86-64; apt-get install python3 python3-venv (Debian 12)"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv; apt-get install python3-venv"
if [ -z "$lambada" ]; then
    for program in node npm; do
        command -v "$program" >/dev/null || fail "no $program; apt-get install nodejs npm (Node 18 or later)"
    done
    node_major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$node_major" -ge 18 ] || fail "node is version $(node --version); wanted 18 or later"
fi

if [ -z "$binary" ]; then
    scripts/build.sh cpu hearth
    binary=build/cpu/bin/hearth
fi
[ -x "$binary" ] || fail "$binary is no program"
binary=$(realpath "$binary")

# fresh FOLDER HASH: true where FOLDER was made for HASH.
fresh() { [ "$(cat "$1/made-for" 2>/dev/null)" = "$2" ]; }
hash_of() { cat "$@" | sha256sum | cut -c1-64; }

venv=build/venv-clients
wanted="$(hash_of tests/clients/python/requirements.txt) $python $("$python" --version)"
if ! fresh "$venv" "$wanted"; then
    echo "clients: installing the Python client into $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: \
        -r tests/clients/python/requirements.txt
    echo "$wanted" >"$venv/made-for"
fi

modules=build/clients-node
if [ -z "$lambada" ]; then
    wanted="$(hash_of tests/clients/node/package.json tests/clients/node/package-lock.json) $(node --version)"
    if ! fresh "$modules" "$wanted"; then
        echo "clients: installing the Node client into $modules"
        rm -rf "$modules"
        mkdir -p "$modules"
        cp tests/clients/node/package.json tests/clients/node/package-lock.json tests/clients/node/.npmrc "$modules"
        (cd "$modules" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
        echo "$wanted" >"$modules/made-for"
    fi
    # Node looks for packages beside the file that imports them.
    rm -f "$modules"/*.mjs
    cp tests/clients/node/*.mjs "$modules"
fi

work=$(mktemp -d "$root/build/clients-run.XXXXXX")
server=
cleanup() {
    if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
        kill -KILL "$server"
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
tail_of_log() {
    echo "clients: the end of the server's log:" >&2
    tail -n 40 "$work/log" "$work/out" >&2
}

random_key() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
key=$(random_key) other_key=$(random_key) requests_per_key=8
(
    umask 077
    printf '%s\n%s\n' "$key" "$other_key" >"$work/keys"
)
"$binary" serve models/fable-13m --host 127.0.0.1 --port 0 --pid-file "$work/pid" --api-key-file "$work/keys" \
    --limits-requests-per-key "$requests_per_key" >"$work/out" 2>"$work/log" &
server=$!

url=
end=$(($(date +%s) + ${HEARTH_CLIENTS_WAIT_S:-60}))
while [ -z "$url" ]; do
    url=$(sed -n 's/^hearth: serving .* on \(http:[^ ]*\) (pid [0-9]*)$/\1/p' "$work/out")
    [ -z "$url" ] || break
    if ! kill -0 "$server" 2>/dev/null; then
        tail_of_log
        fail "the server ended before it was ready"
    fi
    if [ "$(date +%s)" -ge "$end" ]; then
        tail_of_log
        fail "the server was not ready after ${HEARTH_CLIENTS_WAIT_S:-60} s"
    fi
    sleep 0.1
done
[ "$(cat "$work/pid")" = "$server" ] || fail "the pid file says $(cat "$work/pid"), the server is $server"
echo "clients: $binary serves at $url"

export HEARTH_CLIENTS_URL="$url" HEARTH_CLIENTS_KEY="$key" HEARTH_CLIENTS_OTHER_KEY="$other_key"
export HEARTH_CLIENTS_REQUESTS_PER_KEY="$requests_per_key" HEARTH_CLIENTS_MODEL_DIR="$root/models/fable-13m"
export HEARTH_CLIENTS_BINARY="$binary" PYTHONDONTWRITEBYTECODE=1
# The server is on this machine: no proxy is to be asked.
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1

code=0
if [ -n "$lambada" ]; then
    "$venv/bin/python" tests/clients/python/lambada.py --data "$data" --items "$work/items.jsonl" --limit 0 || code=1
else
    echo "== Python"
    "$venv/bin/python" -W error::ResourceWarning -m unittest discover -v -s tests/clients/python -p 'test_*.py' \
        >"$work/python" 2>&1 || code=1
    cat "$work/python"
    # A run of no tests, or of skipped ones, proves nothing.
    grep -Eq '^Ran [1-9][0-9]* tests? in' "$work/python" || { echo "clients: no Python test ran" >&2; code=1; }
    if grep -q 'skipped' "$work/python"; then echo "clients: Python tests were skipped" >&2; code=1; fi
    echo "== Node"
    # One file after the other: their tests look at the server's gauges.
    count=0
    for file in "$modules"/*.test.mjs; do
        node --test "$file" >"$work/node" 2>&1 || code=1
        cat "$work/node"
        passed=$(sed -n 's/^[^a-z]*pass \([0-9]*\)$/\1/p' "$work/node" | tail -n 1)
        count=$((count + ${passed:-0}))
        if ! grep -Eq '^[^a-z]*skipped 0$' "$work/node"; then echo "clients: Node tests were skipped" >&2; code=1; fi
    done
    [ "$count" -gt 0 ] || { echo "clients: no Node test ran" >&2; code=1; }
    echo "clients: Node: $count tests passed"
fi

kill -TERM "$server"
server_code=0
wait "$server" || server_code=$?
[ "$server_code" = 0 ] || { echo "clients: the server exited with $server_code" >&2; code=1; }
[ ! -e "$work/pid" ] || { echo "clients: the pid file is still there" >&2; code=1; }
if grep -Eq '^(error|critical) ' "$work/log"; then
    echo "clients: errors in the server's log:" >&2
    grep -E '^(error|critical) ' "$work/log" | head -n 20 >&2
    code=1
fi
if [ "$code" != 0 ]; then
    tail_of_log
    fail "failed"
fi
echo "clients: passed"
