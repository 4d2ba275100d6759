#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Proves both commands on a machine that has nothing: makes a minimal Debian 12 with debootstrap, installs
# only what README's first line says (git, make), clones HEAD into it and runs `make demo` and `make test`
# there; then that install.sh, run again, needs no network, and that it refuses clearly without root.
# When all held, .ci/fresh.sha256 records what was proved; .ci/run runs this job again only when the
# record and HEAD differ (--needed: exit 0 if they do). Needs root, debootstrap and the network.
#
# The mirror, proxies, certificates and cargo's registry settings are this machine's own. Everything is
# mounted in a private mount namespace, so nothing stays mounted whatever happens. HEARTH_FRESH_DIR
# (default /var/tmp) is where the root is made; packages are cached in $HEARTH_FRESH_DIR/hearth-fresh-cache.
set -eu
cd "$(dirname "$0")/.."
repository=$(pwd)
record=.ci/fresh.sha256

# All that decides whether the two commands work on a bare machine, beside the code itself.
proved_by="Makefile requirements scripts/install.sh scripts/find_cargo.sh scripts/jobs.sh scripts/build.sh
    scripts/run_tests.sh scripts/fresh.sh scripts/demo.sh scripts/demo_client.py cmake/HearthDependencies.cmake text-bridge/Cargo.toml text-bridge/Cargo.lock"
# shellcheck disable=SC2086
hash=$(git ls-tree -r HEAD -- $proved_by | sha256sum | cut -d ' ' -f 1)
if [ "${1:-}" = --needed ]; then
    [ "$(cat "$record" 2>/dev/null || true)" != "$hash" ]
    exit
fi

if [ "$(id -u)" != 0 ]; then echo "fresh: needs root (chroot, mount)" >&2; exit 1; fi
if ! command -v debootstrap >/dev/null 2>&1; then
    echo "fresh: no debootstrap: apt-get install debootstrap" >&2
    exit 1
fi

if [ "${HEARTH_FRESH_INSIDE:-}" != 1 ]; then
    # Again, in mount and process namespaces of our own.
    exec env HEARTH_FRESH_INSIDE=1 unshare --mount --pid --fork --kill-child "$0" "$@"
fi

suite=bookworm
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' |
    awk -v suite="$suite" '$2 == suite && $3 == "main" { print $1; exit }')
if [ -z "$mirror" ]; then
    echo "fresh: this machine's apt knows no mirror of Debian 12 ($suite)" >&2
    exit 1
fi
parent=${HEARTH_FRESH_DIR:-/var/tmp}
cache=$parent/hearth-fresh-cache
mkdir -p "$cache/archives/partial"
base=$(mktemp -d "$parent/hearth-fresh.XXXXXX")
bare=$base/root
leave() {  # only a root with nothing mounted in it is removed
    umount --lazy "$bare/proc" "$bare/dev" "$bare/var/cache/apt/archives" 2>/dev/null || true
    if grep -q " $bare/" /proc/self/mounts; then echo "fresh: $base is still in use and stays" >&2; return; fi
    rm -rf --one-file-system "$base"
}
trap leave EXIT
say() { echo "fresh: $*"; }

say "debootstrap of $suite"
debootstrap --variant=minbase --cache-dir="$cache/archives" "$suite" "$bare" "$mirror" >"$base/debootstrap.log" 2>&1 || {
    tail -n 30 "$base/debootstrap.log" >&2
    exit 1
}

# This machine's way to the packages: apt sources and keys, proxies, certificates, cargo's settings.
rm -f "$bare/etc/apt/sources.list"
for path in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/keyrings /etc/apt/trusted.gpg.d /etc/apt/auth.conf \
            /etc/apt/auth.conf.d /usr/share/keyrings /usr/local/share/ca-certificates /etc/resolv.conf /etc/hosts; do
    if [ -e "$path" ]; then
        mkdir -p "$bare$(dirname "$path")"
        cp -RLf "$path" "$bare$(dirname "$path")/"
    fi
done
apt-config dump | grep '^Acquire::' | grep -v -e IndexTargets -e '::cdrom' >"$bare/etc/apt/apt.conf.d/90machine" || true
cargo_home=${CARGO_HOME:-${HOME:-/root}/.cargo}
for name in config config.toml; do
    if [ -f "$cargo_home/$name" ]; then
        mkdir -p "$bare/root/.cargo"
        cp "$cargo_home/$name" "$bare/root/.cargo/$name"
    fi
done
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
set -- CI=true DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 HOME=/root TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ -f "$certificates" ]; then
    cp "$certificates" "$bare/etc/machine-certificates.crt"
    for name in SSL_CERT_FILE CARGO_HTTP_CAINFO CURL_CA_BUNDLE GIT_SSL_CAINFO; do
        set -- "$@" "$name=/etc/machine-certificates.crt"
    done
fi
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY HEARTH_JOBS HEARTH_CMAKE_ARGS; do
    value=$(printenv "$name" || true)
    if [ -n "$value" ]; then set -- "$@" "$name=$value"; fi
done
environment=$(for pair in "$@"; do printf "%s\n" "$pair"; done)

mount -t proc proc "$bare/proc"
mount --rbind /dev "$bare/dev"
mount --make-rslave "$bare/dev"
mount --bind "$cache/archives" "$bare/var/cache/apt/archives"
inside() {  # runs a command line in the bare root, in the clone, with nothing of this environment
    echo "$environment" | sed "s/'/'\\\\''/g; s/^\([A-Za-z_]*\)=\(.*\)$/export \1='\2'/" >"$bare/etc/machine-environment"
    env -i "PATH=$PATH" chroot "$bare" /bin/sh -c ". /etc/machine-environment; cd /root/hearth 2>/dev/null || cd /; $1" </dev/null
}

say "apt-get install git make"
inside "apt-get update -q && apt-get install -y -q git make" >"$base/apt.log" 2>&1 || {
    tail -n 30 "$base/apt.log" >&2
    exit 1
}
for tool in rustup cargo rustc node npm pip pip3 python3 cmake g++; do
    if inside "command -v $tool" >/dev/null; then say "the root is not bare: it has $tool" >&2; exit 1; fi
done
git clone -q --no-local --depth 1 "file://$repository" "$bare/root/hearth"

say "install.sh without root"
chmod 755 "$bare/root"
if chroot --userspec=nobody "$bare" /bin/sh -c "cd /root/hearth && scripts/install.sh" >"$base/nobody.log" 2>&1 </dev/null ||
    ! grep -q '^ *apt-get update && apt-get install .*libsimdjson-dev' "$base/nobody.log"; then
    cat "$base/nobody.log"
    say "install.sh without root and sudo must fail and print the apt line" >&2
    exit 1
fi

say "make demo"
start=$(date +%s)
{ inside "make demo DEMO_EXIT=1" 2>&1 || echo "$?" >"$base/demo.failed"; } | tee "$base/demo.log"
if [ -e "$base/demo.failed" ]; then say "make demo failed with $(cat "$base/demo.failed")" >&2; exit 1; fi
if ! grep -q 'tokens/s' "$base/demo.log"; then say "make demo printed no tokens/s" >&2; exit 1; fi
say "make demo took $(($(date +%s) - start)) s"
start=$(date +%s)
code=0
inside "make test" || code=$?
if [ "$code" != 0 ]; then say "make test failed with $code" >&2; exit 1; fi
say "make test took $(($(date +%s) - start)) s"

say "install.sh again, without a network"
if ! unshare --net chroot "$bare" /bin/sh -c "cd /root/hearth && scripts/install.sh" >"$base/again.log" 2>&1 </dev/null ||
    ! grep -q 'all present' "$base/again.log"; then
    cat "$base/again.log"
    say "a second install.sh must find all present, without the network" >&2
    exit 1
fi

echo "$hash" >"$record"
say "both commands hold on a bare Debian 12; recorded in $record"
