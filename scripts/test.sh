#!/usr/bin/env bash
# Everything a change must pass: set-up, ruff, mypy, pytest. Arguments go to pytest: bash scripts/test.sh tests/models
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh requirements-dev.txt

if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then
    echo "no Chromium here, so the tests that open a page are skipped; on Debian and Ubuntu: apt-get install chromium"
fi

export OMP_NUM_THREADS=1 # one thread for each of the test processes
bin=.venv/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
