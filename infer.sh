#!/usr/bin/env bash
# Sets up what is needed, then makes videos; any arguments go to inference.py.
#   bash infer.sh                                                            the bundled jobs on the miniature
#   bash infer.sh --config configs/inference/efficientmt/sd15.yaml --jobs my.jsonl       your jobs on the published weights
# Paths are looked up in the current folder first, then here; results go to outputs/ in the current folder.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$here/scripts/setup.sh"
if [ $# -eq 0 ]; then
    set -- --jobs assets/jobs.jsonl
fi
exec "$here/.venv/bin/python" "$here/inference.py" "$@"
