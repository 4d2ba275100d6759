#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints the path of a cargo that is at least as new as text-bridge/Cargo.toml's `rust-version`:
# the one on PATH, else ~/.cargo/bin's, else Debian's /usr/bin/cargo. Exit 1 and no output: none.
# `--minimum` prints the version wanted instead. Never installs, never opens a socket.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

minimum=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$root/text-bridge/Cargo.toml" 2>/dev/null | head -n 1)
: "${minimum:=1.85}"
if [ "${1:-}" = --minimum ]; then echo "$minimum"; exit 0; fi

new_enough() {  # $1: a cargo; a rustup proxy without a toolchain fails to print a version
    found=$(RUSTUP_AUTO_INSTALL=0 "$1" --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$minimum" "$found" | sort -V | head -n 1)" = "$minimum" ]
}

for cargo in "$(command -v cargo || true)" "${HOME:-/root}/.cargo/bin/cargo" /usr/bin/cargo; do
    if [ -x "$cargo" ] && new_enough "$cargo"; then echo "$cargo"; exit 0; fi
done
exit 1
