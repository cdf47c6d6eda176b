#!/usr/bin/env bash
# Puts a Debian kernel for the emulated machine of the tests (tests/e2e/emulated.py) into FOLDER: the
# image as `vmlinuz` and the few modules that the machine loads. Nothing is installed, the kernel of
# this machine stays what it is. Costs a few milliseconds when it is there already.
#
#   fetch-guest-kernel.sh FOLDER [PACKAGE.deb]
#
# The package is Debian's smallest kernel with the nbd driver, 26 MB, fetched through apt unless it is
# given.
set -euo pipefail

readonly META_PACKAGE=linux-image-cloud-amd64
readonly MODULES='/(nbd|failover|net_failover|virtio(_ring|_pci|_pci_modern_dev|_pci_legacy_dev|_net)?)\.ko$'

say() { printf 'set-up: %s\n' "$*" >&2; }

folder=$1
given=${2:-}
[[ ! -e $folder/complete ]] || exit 0

mkdir -p "$folder"
# Two test processes may come here at once.
exec 9>"$folder/lock"
flock 9
[[ ! -e $folder/complete ]] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The metapackage's only dependency is the kernel that is current.
current_package() {
    apt-cache depends "$META_PACKAGE" 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'
}

download() {
    local package
    package=$(current_package)
    [[ -n $package ]] && (cd "$work" && apt-get -q download "$package") >"$work/log" 2>&1
}

if [[ -z $given ]]; then
    say "fetching a kernel for the emulated machine of the tests (26 MB)"
    # The lists may be missing, or older than the archive.
    if ! download && ! { apt-get -q update >>"$work/log" 2>&1 && download; }; then
        [[ ! -e $work/log ]] || tail -n 5 "$work/log" >&2
        say "apt gave no $META_PACKAGE. By hand: get the package that it depends on, then"
        say "  $0 $folder PACKAGE.deb"
        exit 1
    fi
    given=("$work"/linux-image-*.deb)
fi

mkdir "$work/files"
dpkg-deb --fsys-tarfile "${given[0]}" | tar -x -C "$work/files"
rm -rf "$folder/modules"
mkdir "$folder/modules"
find "$work/files/lib/modules" -regextype posix-extended -regex ".*$MODULES" \
    -exec cp -t "$folder/modules" {} +
cp "$work"/files/boot/vmlinuz-* "$folder/vmlinuz"
touch "$folder/complete"
