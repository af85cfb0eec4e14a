"""Two videos in, everything that MotionFollower needs out: frames, skeletons, alignment, masks, a sheet to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from animatediff.files import check_writable, to_path
from animatediff.pipelines.motionfollower.prepare.detectors import Tools
from animatediff.pipelines.motionfollower.prepare.options import (
    OnProgress,
    PrepareOptions,
    check_clip,
    check_options,
)
from animatediff.pipelines.motionfollower.prepare.stages import Preparation
from animatediff.pipelines.motionfollower.prepare.writer import write_prepared

__all__ = ["PrepareOptions", "check_options", "prepare", "write_prepared"]


def prepare(
    source: str | Path,
    driving: str | Path,
    output: str | Path,
    options: PrepareOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] | None = None,
    make_environment: bool = False,
) -> Path:
    """Make the prepared folder `output` from two clips, or what is missing of it; returns it.

    on_progress(stage, done, of how many): an exception raised in it ends the preparation, finished stages stay.
    say: takes one line for each stage. make_environment: whether an environment may be made for a detector that needs
    one. UserError for clips and options that no preparation can take, and for a stage that does not pass its checks.
    """
    options = options or PrepareOptions()
    check_options(options)
    clips = {name: check_clip(str(path), name) for name, path in (("source", source), ("driving", driving))}
    folder = check_writable(to_path(str(output), "output"), "output")
    tools = Tools(options.device, make_environment, say or _ignore)
    Preparation(folder, clips, options, tools, on_progress or _ignore).run()
    return folder


def _ignore(*_: object) -> None:
    return None
