#!/usr/bin/env bash
# Brings a machine to where `make demo` and `make test` can run, and costs a few milliseconds when it
# already is there; `setup.sh bench` adds what the benchmarks compare with and draw plots with,
# `setup.sh fuzz` the coverage-guided fuzzer:
#
#   1. Debian packages: those missing are installed through apt as root (or with a sudo that asks for
#      no password); otherwise they are listed with the command that installs them.
#   2. .cache/guest-kernel: a Debian kernel for the emulated machine of the tests, unpacked and not
#      installed.
#   3. .venv with this project (editable) and its test extra. A stamp holds the hash of what decides
#      its content, so that a changed pyproject.toml is noticed.
#
# Packages of the benchmarks that cannot be installed are no failure: the benchmarks name them.
#
# Nothing outside .venv, .cache and the package manager is touched.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin:/sbin"

# One line for each Debian package: its name, then something that shows it is there
# (a command, or an absolute path, maybe with wildcards).
readonly PACKAGES="
python3-libnbd  /usr/lib/python3/dist-packages/nbd.py
libnbd-bin      nbdfuse
libnbd-bin      nbdinfo
libnbd-bin      nbdcopy
libnbd-bin      nbddump
nbdkit          nbdkit
qemu-utils      qemu-img
qemu-utils      qemu-io
qemu-system-x86 qemu-system-x86_64
qemu-system-common qemu-storage-daemon
fio             fio
fuse3           fusermount3
e2fsprogs       mkfs.ext4
e2fsprogs       e2fsck
xfsprogs        mkfs.xfs
xfsprogs        xfs_repair
mount           losetup
mount           mount
mount           umount
util-linux      blkid
util-linux      unshare
util-linux      nsenter
iproute2        ip
iproute2        tc
nftables        nft
systemd         systemd-analyze
gcc             gcc
libc6-dev       /usr/include/stdlib.h
python3-dev     /usr/include/python3*/Python.h
"

# What only the benchmarks use.
readonly BENCH_PACKAGES="
nbdkit              nbdkit
nbd-server          nbd-server
qemu-utils          qemu-nbd
qemu-system-common  qemu-storage-daemon
util-linux          taskset
linux-perf          perf
gcc                 gcc
libc6-dev           /usr/include/stdlib.h
"

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# missing_packages LIST
missing_packages() {
    local package shown_by
    while read -r package shown_by; do
        [[ -n $package ]] || continue
        if [[ $shown_by == /* ]]; then
            compgen -G "$shown_by" >/dev/null || echo "$package"
        else
            command -v "$shown_by" >/dev/null || echo "$package"
        fi
    done <<<"$1" | sort -u
}

# install_packages LIST
install_packages() {
    local missing as_root=()
    mapfile -t missing < <(missing_packages "$1")
    ((${#missing[@]})) || return 0
    local by_hand="apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    if ((EUID != 0)); then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            say "these Debian packages are missing: ${missing[*]}"
            fail "install them as root, then run this again:  $by_hand"
        fi
    fi
    command -v apt-get >/dev/null ||
        fail "these packages are missing and there is no apt-get here: ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { "${as_root[@]}" apt-get -q update &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -q -y install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "apt failed (above). By hand, as root:  $by_hand"
    fi
    rm -f "$log"
    mapfile -t missing < <(missing_packages "$1")
    ((${#missing[@]} == 0)) || fail "still missing after apt: ${missing[*]}"
}

# The system's own interpreter comes first: Debian builds the libnbd binding for that version only.
choose_python() {
    local candidate
    for candidate in /usr/bin/python3 python3.11 python3 python3.12 python3.13 python3.14; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    fail "no Python 3.11 or newer with venv and pip; on Debian 12:  apt-get install python3 python3-venv"
}

wanted_stamp() {
    echo "$(cat pyproject.toml deploy/setup/setup.sh | sha256sum | cut -d' ' -f1) $PWD"
}

make_venv() {
    local stamp=.venv/set-up-stamp wanted python
    wanted=$(wanted_stamp)
    if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return 0
    fi
    python=$(choose_python)
    if [[ -e .venv ]] && { [[ ! -f $stamp || $(<"$stamp") != *" $PWD" ]] ||
        ! .venv/bin/python -c 'import pip' 2>/dev/null; }; then
        # Half made, or moved here from another folder: its scripts point elsewhere.
        rm -rf .venv
    fi
    if [[ ! -e .venv ]]; then
        say "making .venv with $("$python" --version) ($python)"
        "$python" -m venv .venv
    fi
    say "installing Python packages"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' ||
        fail "pip could not install this project's packages (above)"
    echo "$wanted" >"$stamp"
}

add_bench_extra() {
    local stamp=.venv/bench-stamp wanted
    wanted=$(wanted_stamp)
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return 0
    say "installing Python packages for the benchmarks"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' ||
        fail "pip could not install this project's packages (above)"
    echo "$wanted" >"$stamp"
}

# There is none for every machine and every Python; the targets then run without it.
add_fuzz_extra() {
    local stamp=.venv/fuzz-stamp wanted
    wanted=$(wanted_stamp)
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return 0
    say "installing Python packages for fuzzing"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=atheris \
        --editable '.[fuzz]' || return 0
    echo "$wanted" >"$stamp"
}

install_packages "$PACKAGES"
deploy/setup/fetch-guest-kernel.sh .cache/guest-kernel
make_venv
if [[ ${1-} == bench ]]; then
    # In a subshell, so that a failure there ends only this.
    (install_packages "$BENCH_PACKAGES") || say "the benchmarks go on without these and name them"
    add_bench_extra
fi
if [[ ${1-} == fuzz ]]; then
    add_fuzz_extra
fi
