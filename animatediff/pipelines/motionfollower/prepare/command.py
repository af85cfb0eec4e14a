"""Prepare two clips for MotionFollower: skeletons, alignment and masks, in one folder.

python scripts/prepare.py --source dancer.mp4 --driving jump.mp4 --output prepared/jump
python scripts/prepare.py --source a.mp4 --driving b.mp4 --output prepared/b root=source num_frames=48
python scripts/prepare.py ... source_subject=220,140               who is meant: a point of the first frame, or a box
python scripts/prepare.py ... source_masks=masks/                  your own masks instead of found ones
python scripts/prepare.py ... aligned_keypoints=mine.npz           your own alignment

Repeat the command to finish what was interrupted; a stage whose clips or options have changed is made anew. Look at
sheet.html in the folder, then: python inference.py --config configs/inference/motionfollower/sd15.yaml prepared=FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from animatediff.config import describe_range, override_config
from animatediff.console import Parser
from animatediff.errors import UserError, nearest
from animatediff.pipelines.motionfollower.prepare import PrepareOptions, prepare
from animatediff.pipelines.motionfollower.prepare.writer import SHEET
from animatediff.project import as_called


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = _parse(arguments)
    options = read_options(given.options)
    with tqdm(leave=False, disable=None) as bar:

        def on_progress(stage: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(stage, refresh=False)
            bar.update(done - bar.n)

        folder = prepare(
            given.source,
            given.driving,
            given.output,
            options,
            on_progress=on_progress,
            say=lambda line: tqdm.write(line),
            make_environment=True,
        )
    print(f"prepared: {folder}; look at {Path(folder) / SHEET}")
    print(as_called(f"next: python inference.py --config configs/inference/motionfollower/sd15.yaml prepared={folder}"))
    return 0


def read_options(overrides: Sequence[str]) -> PrepareOptions:
    """The options from `key=value` texts. UserError for unknown keys and values that none takes."""
    names = [entry.name for entry in fields(PrepareOptions)]
    for text in overrides:
        name, equals, _ = text.partition("=")
        if not equals:
            raise UserError(f"'{text}' is no option; write key=value, or --source, --driving, --output before a path")
        if name not in names:
            raise UserError(f"unknown option '{name}'; {nearest(name, names)}")
    return override_config(PrepareOptions(), list(overrides))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("prepare", __doc__, epilog=_described())
    parser.add_argument("--source", required=True, help="the video to edit, or a folder of frames")
    parser.add_argument("--driving", required=True, help="the video whose motion is wanted, likewise")
    parser.add_argument("--output", required=True, help="the folder to make")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options, listed below")
    return parser.parse_args(arguments)


def _described() -> str:
    """All options, a line each."""
    lines = []
    for entry in fields(PrepareOptions):
        meta, default = entry.metadata, entry.default
        kinds = "|".join(meta["choices"]) if meta["choices"] else ""
        if not kinds and meta["least"] is not None:
            kinds = describe_range(meta["least"], meta["most"])
        shown = str(default).lower() if isinstance(default, bool) else default
        told = f" [{kinds}]" if kinds else ""
        lines.append(f"  {entry.name}={shown}\n      {meta['help']}{told}")
    return "options:\n" + "\n".join(lines)
