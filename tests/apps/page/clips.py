"""Uploads as people send them, good and bad, small and quickly made."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, frames: int = 8, height: int = 48, width: int = 64, rate: Fraction | int = 8) -> Path:
    """A square that moves to the right, as MPEG-4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            picture = np.full((height, width, 3), 40, np.uint8)
            picture[16:32, 4 * i : 4 * i + 16] = (220, 60, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_bad(folder: Path) -> dict[Path, str]:
    """Bad uploads, each with words of what a visitor must be told."""
    text = folder / "notes.mp4"
    text.write_text("These are my notes, and no video.\n" * 100)
    empty = folder / "empty.mp4"
    empty.touch()
    return {
        text: "cannot open notes.mp4 as a video",
        empty: "empty.mp4 is empty (0 bytes)",
        write_clip(folder / "still.mp4", frames=1): "still.mp4 has 1 frame, so there is no motion to take",
        write_clip(folder / "cinema.mp4", frames=2, height=4320, width=7680): "cinema.mp4 is 7680x4320, at most 4096",
        write_clip(folder / "lecture.mkv", frames=3, rate=Fraction(1, 600)): "minutes long, at most 60 seconds",
    }
