#!/bin/sh
# .venv-legacy: the agent with tflite-runtime 2.14, which has no wheel for Python 3.12 and fails beside numpy 2.
set -eu
for python in python3.11 .venv/bin/python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        test -x .venv-legacy/bin/python || "$python" -m venv .venv-legacy
        .venv-legacy/bin/python -m pip install --quiet --upgrade pip
        .venv-legacy/bin/python -m pip install --quiet --constraint constraints-legacy.txt --editable '.[agent,agent-tflite-legacy]'
        exit 0
    fi
done
mkdir -p .venv-legacy
echo "No Python 3.11 here: the tests of tflite-runtime will be skipped." >&2
