"""Measure transfers; see animatediff/evaluation/command.py."""

from animatediff.console import run_command
from animatediff.evaluation.command import main

if __name__ == "__main__":
    run_command(main)
