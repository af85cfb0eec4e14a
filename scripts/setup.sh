#!/usr/bin/env bash
# Makes the virtual environment .venv beside this folder, installs the requirements and the project itself, as a path to
# this folder (.venv/bin/efficientmt is then its command). Quick when already done.
#   bash scripts/setup.sh                        what the commands need
#   bash scripts/setup.sh requirements-dev.txt   the checks' tools too
# PYTHON names the interpreter to use (default: the first of python3, python3.13, ... that is 3.11 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

requirements=${1:-requirements.txt}
python=.venv/bin/python

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if new_enough "$name"; then
            echo "$name"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed, found $(python3 --version 2>/dev/null || echo none);" \
        "install one, or name it: PYTHON=/path/to/python3.12 bash scripts/setup.sh" >&2
    return 2
}

if ! { new_enough "$python" && "$python" -m pip --version >/dev/null 2>&1; }; then
    base=$(find_python)
    echo "setting up .venv with $("$base" --version), once; this takes some minutes"
    if ! "$base" -m venv --clear .venv; then
        echo "error: '$base -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 2
    fi
fi

stamp=.venv/.installed-$requirements
wanted=$("$python" --version; pwd; cat requirements*.txt pyproject.toml | cksum)
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
    exit 0
fi
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }
install "$(grep '^torch==' requirements.txt)"
install -r "$requirements"
install --no-deps --no-build-isolation --editable . # built by the hatchling of requirements.txt: nothing more is fetched
echo "$wanted" >"$stamp"
