"""Fetch the published weights from the Hugging Face hub; see animatediff/hub_download.py."""

from animatediff.console import run_command
from animatediff.hub_download import main

if __name__ == "__main__":
    run_command(main)
