#!/usr/bin/env bash
# Everything a change must pass: set-up, ruff, mypy, pytest. Arguments go to pytest: bash scripts/test.sh tests/models
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh requirements-dev.txt

# The HTML reports are opened in a real browser; without one those tests say why they are skipped.
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 ||
            echo "chromium could not be installed; the tests that open a browser are skipped"
    else
        echo "no chromium here; the tests that open a browser are skipped"
    fi
fi

export OMP_NUM_THREADS=1 # one thread for each of the test processes
bin=.venv/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
