"""From a configuration to videos: `Engine` for programs, `cli` for the command line."""

from animatediff.inference.engine import Engine

__all__ = ["Engine"]
