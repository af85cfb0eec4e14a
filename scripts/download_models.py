"""Fetch the published weights from the Hugging Face hub to their places under models/ (animatediff/hub_download.py)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from animatediff.console import run_command
from animatediff.hub_download import main

if __name__ == "__main__":
    run_command(main)
