"""Speed and memory as ratios, side by side; see animatediff/benchmarks/command.py."""

from animatediff.benchmarks.command import main
from animatediff.console import run_command

if __name__ == "__main__":
    run_command(main)
