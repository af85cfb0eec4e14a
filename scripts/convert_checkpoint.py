"""Convert a published adapter; see animatediff/pipelines/efficientmt/convert.py."""

from animatediff.console import run_command
from animatediff.pipelines.efficientmt.convert import main

if __name__ == "__main__":
    run_command(main)
