"""How long the reader takes: 16 frames of a one-hour clip, and 1,000 short clips in a row."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np

from animatediff.benchmarks.timing import spread, stopwatch
from animatediff.data.video import read_frames
from animatediff.errors import UserError

RATE = 25


def measure_reading(rounds: int = 3, seconds: int = 3600, clips: int = 1000) -> dict[str, Any]:
    """Seconds, on the clock and of processor time: 16 frames of a clip of `seconds`, 16 of each of `clips` clips.

    The long clip is 320x240 with a key frame every 10 s, the short ones are 2 s of 128x128, H.264 all of them; they
    are made here, so they are in the system's file cache. Medians over `rounds`, the long clip's in as many reads.
    """
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder) / "long.mp4"
        write_repeated(long, seconds // 10, frames=10 * RATE, height=240, width=320)
        first = Path(folder) / "0.mp4"
        write_repeated(first, 1, frames=2 * RATE, height=128, width=128)
        short = [first] + [Path(shutil.copy(first, first.with_name(f"{i}.mp4"))) for i in range(1, clips)]

        def read_short() -> None:
            for path in short:
                read_frames(path, 16)

        total = read_frames(long, 16).total
        if total != seconds // 10 * 10 * RATE:
            raise UserError(f"the clip of {seconds} s was read as {total} frames, expected {seconds * RATE}")
        times = {
            "long": [stopwatch(lambda: read_frames(long, 16), "cpu") for _ in range(rounds)],
            "short": [stopwatch(read_short, "cpu") for _ in range(rounds)],
        }
    found: dict[str, Any] = {"seconds": seconds, "clips": clips, "rounds": rounds}
    for name, runs in times.items():
        found[name] = {clock: spread([run[clock] for run in runs]) for clock in ("wall", "cpu")}
    found["short"]["each"] = median(run["cpu"] for run in times["short"]) / clips
    return found


def write_repeated(path: Path, times: int, *, frames: int, height: int, width: int) -> None:
    """An H.264 clip whose `frames` pictures are coded once, as one group of pictures, and come `times` over."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "g": str(frames)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        packets = [packet for picture in _pictures(frames, height, width) for packet in stream.encode(picture)]
        packets += stream.encode()
        step = Fraction(1, RATE)
        coded = [(bytes(p), p.pts, p.dts, p.is_keyframe, p.time_base) for p in packets]
        for i in range(times):
            for data, pts, dts, key, base in coded:
                packet = av.Packet(data)
                moved = int(i * frames * step / base)
                packet.pts, packet.dts, packet.time_base = (pts or 0) + moved, (dts or 0) + moved, base
                packet.stream, packet.is_keyframe = stream, key
                container.mux_one(packet)


def _pictures(frames: int, height: int, width: int) -> Iterator[av.VideoFrame]:
    """A square that moves over a gradient with a little grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.int16)
    for i in range(frames):
        picture = ground + rng.integers(-3, 4, ground.shape, dtype=np.int16)
        left = i * (width - height // 4) // frames
        picture[height // 2 : height * 3 // 4, left : left + height // 4] = (250, 30, 200)
        yield av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")
