#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# scripts/check_dist.sh [TAR]: proves that a distribution runs where nothing but glibc is. Unpacks it into
# a folder with a space in its name and checks: every library that an ELF file needs is glibc's or lies in
# lib/; search paths are $ORIGIN alone; no symbol is newer than glibc HEARTH_DIST_GLIBC (2.36, Debian 12);
# bin/hearth names neither this source tree nor a home folder; the size is under 40 MiB. Then starts it in a root that holds nothing but this machine's glibc, and, with
# HEARTH_UBUNTU_MIRROR=<url> and debootstrap, in a bare Ubuntu 24.04. Starting needs root.
set -eu
cd "$(dirname "$0")/.."

tar=${1:-$(ls -t build/dist/hearth-*.tar.gz 2>/dev/null | head -n 1)}
if [ -z "$tar" ] || [ ! -f "$tar" ]; then echo "check_dist: no distribution; make dist" >&2; exit 1; fi
glibc_wanted=${HEARTH_DIST_GLIBC:-2.36}
glibc_files='ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libdl.so.2 librt.so.1 libpthread.so.0 libresolv.so.2 libutil.so.1'

base=$(mktemp -d /var/tmp/hearth-dist.XXXXXX)
leave() {
    umount --lazy "$base"/*/proc "$base"/*/dev 2>/dev/null || true
    if grep -q " $base/" /proc/self/mounts; then return; fi
    rm -rf --one-file-system "$base"
}
trap leave EXIT
bad=0
fail() { echo "check_dist: $*" >&2; bad=1; }

mkdir "$base/some where"
tar -xzf "$tar" -C "$base/some where"
top=$(ls "$base/some where")
dist="$base/some where/$top"
size_bytes=$(wc -c <"$tar")
[ "$size_bytes" -lt $((40 * 1024 * 1024)) ] || fail "$tar has $size_bytes bytes, wanted under 40 MiB"
[ -x "$dist/bin/hearth" ] || { fail "no bin/hearth in $tar"; exit 1; }
[ -f "$dist/LICENSE" ] || fail "no LICENSE in $tar"
[ -f "$dist/THIRD_PARTY.md" ] || fail "no THIRD_PARTY.md in $tar"

count=0
for file in "$dist"/bin/* "$dist"/lib/*; do
    [ -f "$file" ] && readelf -h "$file" >/dev/null 2>&1 || continue
    count=$((count + 1))
    short=${file#"$dist"/}
    for needed in $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        case " $glibc_files " in *" $needed "*) continue ;; esac
        [ -e "$dist/lib/$needed" ] || fail "$short needs $needed, which is neither glibc's nor in lib/"
    done
    path=$(readelf -d "$file" | sed -n 's/.*(R[UN]*PATH).*\[\(.*\)\]/\1/p')
    case $short:$path in
        bin/*:'$ORIGIN/../lib' | lib/*: | lib/*:'$ORIGIN') ;;
        *) fail "$short has the search path '$path'" ;;
    esac
    newest=$(objdump -T "$file" | grep -o 'GLIBC_[0-9][0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)
    if [ -n "$newest" ] && [ "$(printf '%s\n%s\n' "$newest" "$glibc_wanted" | sort -V | tail -n 1)" != "$glibc_wanted" ]; then
        fail "$short needs glibc $newest, wanted at most $glibc_wanted"
    fi
done
for folder in "$(pwd)" "${HOME:-}" "${CARGO_HOME:-}"; do
    case $folder in '' | /) continue ;; esac
    if LC_ALL=C grep -aqF "$folder/" "$dist/bin/hearth"; then
        fail "bin/hearth holds a path of the build machine: $(strings "$dist/bin/hearth" | grep -oF -m 1 "$folder/")"
    fi
done
# What the loader itself resolves, with its own default paths.
resolved=$(env -u LD_LIBRARY_PATH ldd "$dist/bin/hearth")
if echo "$resolved" | grep 'not found'; then fail "ldd does not find the above"; fi
echo "$resolved" | sed -n 's/^[[:space:]]*\([^ ]*\) => \(.*\) (0x.*/\1 \2/p' >"$base/resolved"
while read -r library file; do
    case " $glibc_files " in *" $library "*) continue ;; esac
    case $(readlink -f "$file") in
        "$dist/lib/"*) ;;
        *) fail "the loader takes $library from $file" ;;
    esac
done <"$base/resolved"
[ "$bad" = 0 ] || exit 1
echo "check_dist: $count files need nothing outside lib/ and glibc $glibc_wanted; $size_bytes bytes"

# ---- start it ----------------------------------------------------------------------------------
if [ "$(id -u)" != 0 ]; then echo "check_dist: starting it in a bare root needs root" >&2; exit 1; fi
start_in() {  # $1: a root; the distribution is copied to /opt/hearth in it
    mkdir -p "$1/opt" "$1/tmp" "$1/proc" "$1/dev"
    cp -R "$dist" "$1/opt/hearth"
    mount -t proc proc "$1/proc"
    env -i "PATH=$PATH" chroot "$1" /opt/hearth/bin/hearth version </dev/null || return 1
    if [ -d "$1/opt/hearth/models/fable-13m" ]; then
        env -i "PATH=$PATH" chroot "$1" /opt/hearth/bin/hearth generate /opt/hearth/models/fable-13m \
            --prompt "Once upon a time" --max-tokens 16 --temperature 0 </dev/null || return 1
    fi
    umount "$1/proc"
}

empty=$base/empty
for library in $glibc_files; do
    file=$(readlink -f "/lib/x86_64-linux-gnu/$library" || true)
    if [ -f "$file" ]; then
        mkdir -p "$empty/lib/x86_64-linux-gnu" "$empty/lib64"
        cp "$file" "$empty/lib/x86_64-linux-gnu/$library"
    fi
done
cp "$empty/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" "$empty/lib64/"
start_in "$empty" || { echo "check_dist: does not start in a root with nothing but glibc" >&2; exit 1; }
echo "check_dist: starts in a root with nothing but glibc"

if [ -n "${HEARTH_UBUNTU_MIRROR:-}" ] && command -v debootstrap >/dev/null; then
    # Debian's debootstrap may not know the name `noble`; every Ubuntu goes by the same script.
    ubuntu=$base/ubuntu
    keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg
    check=--keyring=$keyring
    if [ ! -f "$keyring" ]; then
        echo "check_dist: no $keyring (package ubuntu-keyring): signatures of the Ubuntu root are not checked"
        check=--no-check-gpg
    fi
    debootstrap --variant=minbase "$check" noble "$ubuntu" "$HEARTH_UBUNTU_MIRROR" \
        /usr/share/debootstrap/scripts/gutsy >"$base/debootstrap.log" 2>&1 || {
        tail -n 30 "$base/debootstrap.log" >&2
        echo "check_dist: no bare Ubuntu 24.04 could be made" >&2
        exit 1
    }
    start_in "$ubuntu" || { echo "check_dist: does not start in a bare Ubuntu 24.04" >&2; exit 1; }
    echo "check_dist: starts in a bare Ubuntu 24.04 ($(sed -n 's/^VERSION="\(.*\)"/\1/p' "$ubuntu/etc/os-release"))"
else
    echo "check_dist: not run: the start in a bare Ubuntu 24.04 (set HEARTH_UBUNTU_MIRROR, install debootstrap)"
fi
