#!/bin/sh
# Installs what pip cannot bring, only if it is missing. `venv PYTHON`: Python's own venv module. Otherwise any of
# `mosquitto`, `postgresql`, `victoria-metrics` and `openssh`, for tests (without an sshd those of `bench --ssh` are
# skipped).
set -eu

apt_install() {
    if [ "$(id -u)" = 0 ]; then sudo=""; else sudo="sudo"; fi
    if ! command -v apt-get >/dev/null; then
        echo "Please install $* with this system's package manager, then repeat." >&2
        exit 1
    fi
    echo "Installing $* with apt-get"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
}

if [ "$1" = venv ]; then
    python="$2"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Edgewright needs Python 3.11 or newer; $python is $("$python" -V). Name another: make PYTHON=python3.12 …" >&2
        exit 1
    }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    exit
fi

missing=""
services="" # Debian starts them on installation; the tests start their own, and nobody shall log in here.
for name in "$@"; do
    case "$name" in
    mosquitto)
        command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || {
            missing="$missing mosquitto"
            services="$services mosquitto"
        }
        ;;
    postgresql)
        ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || {
            missing="$missing postgresql"
            services="$services postgresql"
        }
        ;;
    victoria-metrics)
        command -v victoria-metrics >/dev/null || {
            missing="$missing victoria-metrics"
            services="$services victoria-metrics"
        }
        ;;
    openssh)
        command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || {
            missing="$missing openssh-server"
            services="$services ssh"
        }
        command -v ssh >/dev/null || missing="$missing openssh-client"
        ;;
    *)
        echo "$0: expected venv, mosquitto, postgresql, victoria-metrics or openssh, got $name" >&2
        exit 2
        ;;
    esac
done
# shellcheck disable=SC2086 # names of packages, without spaces
[ -z "$missing" ] || apt_install $missing
for one in $services; do
    command -v systemctl >/dev/null && systemctl disable --now "$one" >/dev/null 2>&1 || true
done
