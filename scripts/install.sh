#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what hearth needs to build, test and run on Debian 12: packages from apt, a Rust compiler
# only if there is none that is new enough, the CUDA toolkit as wheels only if asked for and absent.
# May be run any number of times: when all is present it changes nothing and uses no network. At most
# one `apt-get update`. Without root and sudo it prints the apt line to run and exits with 1.
#
#   scripts/install.sh            what `make demo` and `make test` need
#   scripts/install.sh --dev      and what the checks need: clang-format, clang + libFuzzer, oneDNN, node
#   scripts/install.sh --cuda     and nvcc, if there is none
#   scripts/install.sh --check    install nothing; list what is missing, exit 1 if anything is
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

dev=0 cuda=0 check=0
for arg in "$@"; do
    case $arg in
        --dev) dev=1 ;;
        --cuda) cuda=1 ;;
        --check) check=1 ;;
        -h | --help) sed -n '3,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "install: unknown option $arg (known: --dev --cuda --check)" >&2; exit 2 ;;
    esac
done
say() { echo "install: $*"; }

# ---- what is missing ---------------------------------------------------------------------------
# A program counts wherever PATH finds it; a library counts as a Debian package.
missing=
need_program() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need_package() {
    for package in "$@"; do
        case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
            *' installed') ;;
            *) missing="$missing $package" ;;
        esac
    done
}

need_program g++ g++
need_program make make
need_program cmake cmake
need_program ninja ninja-build
need_program git git
need_program python3 python3        # the layer check and its test; no pip, no modules
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"  # cargo fetches crates
need_package libboost1.81-dev libsimdjson-dev nlohmann-json3-dev libspdlog-dev libfmt-dev \
    libcli11-dev libtomlplusplus-dev prometheus-cpp-dev libgtest-dev libgmock-dev libbenchmark-dev \
    libhwy-dev

if [ "$dev" = 1 ]; then
    need_program clang-format-14 clang-format-14
    need_program clang++-14 clang-14
    need_package libclang-rt-14-dev libdnnl-dev
    need_program ccache ccache
    need_program node nodejs            # the official clients, scripts/clients.sh
    need_program npm npm
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || need_package python3-venv
fi

cargo=$("$root/scripts/find_cargo.sh" || true)
cargo_wanted=$("$root/scripts/find_cargo.sh" --minimum)
if [ -z "$cargo" ]; then
    say "no cargo >= $cargo_wanted on PATH or in ~/.cargo/bin: taking Debian's cargo-web and rustc-web"
    missing="$missing cargo-web rustc-web"
fi

wheels=0
venv=$root/build/venv-cuda
if [ "$cuda" = 1 ]; then
    wheels_hash=$(sha256sum "$root/requirements/cuda.txt" | cut -d ' ' -f 1)
    nvcc=$("$root/scripts/cuda_env.sh" --nvcc 2>/dev/null || true)
    case $nvcc in
        '') wheels=1 ;;
        "$venv"/*) [ "$(cat "$venv/.installed" 2>/dev/null || true)" = "$wheels_hash" ] || wheels=1 ;;
    esac
    if [ "$wheels" = 1 ]; then
        python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || need_package python3-venv
    fi
fi

if [ "$check" = 1 ]; then
    [ "$wheels" = 0 ] || say "missing: nvcc (requirements/cuda.txt)"
    [ -z "$missing" ] || say "missing:$missing"
    [ -z "$missing" ] && [ "$wheels" = 0 ] || exit 1
    say "all present"
    exit 0
fi

# ---- packages ----------------------------------------------------------------------------------
if [ -n "$missing" ]; then
    line="apt-get update && apt-get install -y --no-install-recommends$missing"
    if ! command -v apt-get >/dev/null 2>&1; then
        say "no apt-get here; hearth is set up on Debian 12. Missing:$missing" >&2
        exit 1
    fi
    as_root=
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            say "neither root nor sudo. Have an administrator run:" >&2
            echo "  $line" >&2
            exit 1
        fi
        as_root="sudo"
    fi
    say "installing:$missing"
    # Split on purpose: $missing and $as_root are lists of words without spaces in them.
    # shellcheck disable=SC2086
    if ! { $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null &&
           $as_root env DEBIAN_FRONTEND=noninteractive \
               apt-get install -y -q --no-install-recommends $missing </dev/null; }; then
        say "apt-get failed. Run by hand, as root:" >&2
        echo "  $line" >&2
        exit 1
    fi
    if [ -z "$cargo" ]; then
        cargo=$("$root/scripts/find_cargo.sh" || true)
        if [ -z "$cargo" ]; then
            say "found no cargo >= $cargo_wanted even after installing cargo-web: install one with rustup" >&2
            exit 1
        fi
    fi
fi

# ---- CUDA toolkit ------------------------------------------------------------------------------
if [ "$wheels" = 1 ]; then
    say "installing the CUDA 13.0 toolkit (about 700 MB of wheels) into build/venv-cuda"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --require-hashes --no-deps --only-binary=:all: -r "$root/requirements/cuda.txt"
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # The wheels have lib/, not lib64/, and no unversioned names: add what nvcc.profile, CMake's
    # FindCUDAToolkit and the linker look for, and NCCL into the same tree.
    toolkit=$site/nvidia/cu13
    ln -sfn lib "$toolkit/lib64"
    ln -sf ../../nccl/lib/libnccl.so.2 "$toolkit/lib/libnccl.so.2"
    ln -sf ../../nccl/include/nccl.h "$toolkit/include/nccl.h"
    for library in "$toolkit"/lib/*.so.[0-9]*; do ln -sf "$(basename "$library")" "${library%.so.*}.so"; done
    ln -sfn "$toolkit" "$venv/cuda"
    "$venv/cuda/bin/nvcc" --version >/dev/null
    echo "$wheels_hash" >"$venv/.installed"
fi

if [ -z "$missing" ] && [ "$wheels" = 0 ]; then say "all present"; else say "done"; fi
say "cargo: $cargo ($("$cargo" --version 2>/dev/null | cut -d ' ' -f 2)), build jobs: $("$root/scripts/jobs.sh")"
