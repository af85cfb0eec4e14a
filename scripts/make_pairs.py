"""Make training pairs; see animatediff/curation/pairs.py."""

from animatediff.console import run_command
from animatediff.curation.pairs import main

if __name__ == "__main__":
    run_command(main)
