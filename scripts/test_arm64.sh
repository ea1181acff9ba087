#!/bin/sh
# The agent on another processor: a Debian arm64 root made by debootstrap, run through qemu-user; then scripts/test_arm64.py.
# Needs root (chroot, binfmt_misc), about 1.3 GB in .edgewright/arm64 and 4 minutes the first time, 1 the second.
set -eu
cd "$(dirname "$0")/.."
ROOT=.edgewright/arm64
SUITE=bookworm # its Python 3.11 is a Raspberry Pi's

[ "$(id -u)" = 0 ] || { echo "test-arm64 needs root for chroot and binfmt_misc: sudo make test-arm64" >&2; exit 2; }
for need in debootstrap qemu-aarch64-static; do
    command -v $need >/dev/null || {
        env DEBIAN_FRONTEND=noninteractive apt-get -qq update
        env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends debootstrap qemu-user-static >/dev/null
    }
done

BINFMT=/proc/sys/fs/binfmt_misc
[ -e $BINFMT/register ] || mount -t binfmt_misc binfmt_misc $BINFMT
ours=""
if [ ! -e $BINFMT/qemu-aarch64 ]; then
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >$BINFMT/register
    ours=1
fi
finish() {
    umount "$ROOT/proc" "$ROOT/dev" 2>/dev/null || true
    [ -z "$ours" ] || echo -1 >$BINFMT/qemu-aarch64
}
trap finish EXIT INT TERM

if [ ! -e $ROOT/done ]; then
    rm -rf $ROOT
    mkdir -p $ROOT
    echo "Making a Debian $SUITE arm64 root"
    nice debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,python3-venv $SUITE $ROOT >/dev/null
    nice chroot $ROOT /debootstrap/debootstrap --second-stage >/dev/null
    touch $ROOT/done
fi
mount -t proc proc $ROOT/proc
mount --bind /dev $ROOT/dev

# Wheels are fetched here, so that the root needs no network; edgewright is built from this checkout.
mkdir -p $ROOT/wheels $ROOT/tmp
rm -f $ROOT/wheels/edgewright-*
[ -e $ROOT/wheels/.fetched ] || {
    echo "Fetching aarch64 wheels"
    .venv/bin/python -m pip download --quiet --dest $ROOT/wheels --constraint constraints.txt --only-binary=:all: \
        --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
        $(.venv/bin/python scripts/test_arm64.py requirements)
    touch $ROOT/wheels/.fetched
}
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $ROOT/wheels .
[ -x $ROOT/device/bin/python ] || nice chroot $ROOT /usr/bin/python3 -m venv /device
nice chroot $ROOT /usr/bin/env -u PIP_CERT -u PIP_FIND_LINKS /device/bin/python -m pip install --quiet --no-index \
    --find-links /wheels --force-reinstall --no-deps edgewright
nice chroot $ROOT /usr/bin/env -u PIP_CERT -u PIP_FIND_LINKS /device/bin/python -m pip install --quiet --no-index \
    --find-links /wheels 'edgewright[agent,agent-tflite,agent-onnx,agent-delta]'

.venv/bin/python scripts/test_arm64.py run $ROOT
