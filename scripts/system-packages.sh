#!/bin/sh
# Installs what pip cannot bring, only if it is missing: `venv` (Python's own venv module), `mosquitto`,
# `postgresql` or `openssh` (for tests; without an sshd those of `bench --ssh` are skipped).
set -eu

apt_install() {
    if [ "$(id -u)" = 0 ]; then sudo=""; else sudo="sudo"; fi
    if ! command -v apt-get >/dev/null; then
        echo "Please install $1 with this system's package manager, then repeat." >&2
        exit 1
    fi
    echo "Installing $1 with apt-get"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$1" >/dev/null
}

case "$1" in
venv)
    python="$2"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Edgewright needs Python 3.11 or newer; $python is $("$python" -V). Name another: make PYTHON=python3.12 …" >&2
        exit 1
    }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    ;;
mosquitto)
    command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || {
        apt_install mosquitto
        # Debian starts a broker on installation; the tests start their own.
        command -v systemctl >/dev/null && systemctl disable --now mosquitto >/dev/null 2>&1 || true
    }
    ;;
postgresql)
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || {
        apt_install postgresql
        # Debian starts a server on installation; the tests start their own.
        command -v systemctl >/dev/null && systemctl disable --now postgresql >/dev/null 2>&1 || true
    }
    ;;
openssh)
    command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || {
        apt_install openssh-server
        # Nobody shall log in here: the tests start an sshd of their own, with their own keys.
        command -v systemctl >/dev/null && systemctl disable --now ssh >/dev/null 2>&1 || true
    }
    command -v ssh >/dev/null || apt_install openssh-client
    ;;
esac
