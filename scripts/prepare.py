"""Prepare two clips for MotionFollower; see animatediff/pipelines/motionfollower/prepare/command.py."""

from animatediff.console import run_command
from animatediff.pipelines.motionfollower.prepare.command import main

if __name__ == "__main__":
    run_command(main)
