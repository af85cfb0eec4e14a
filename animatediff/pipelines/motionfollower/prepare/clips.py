"""Both videos as one number of frames at one rate: as they are written, and in their own shape for the detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from animatediff.data.decode import Recounted, Source, open_source
from animatediff.data.video import resolve_size
from animatediff.errors import UserError
from animatediff.files import is_folder
from animatediff.pipelines.motionfollower.prepare.options import MULTIPLE, PrepareOptions

Resize = Callable[[np.ndarray], np.ndarray]

DETECTED = 768  # pixels of the longer side at which people are looked for
AT_ONCE = 16  # frames held at the clip's own size
SLACK = 1e-4  # seconds by which a time may miss a frame's border


@dataclass(frozen=True)
class Window:
    """Which frames of a clip are taken, and which part of them."""

    path: Path
    numbers: tuple[int, ...]
    frame: tuple[int, int]  # (H, W) of the clip
    box: tuple[int, int, int, int]  # left, top, right, bottom of what is kept; beyond the clip it is black
    size: tuple[int, int]  # (H, W) written

    @property
    def stretch(self) -> float:
        """How many pixels of square shape one written pixel is wide, its height being 1."""
        left, top, right, bottom = self.box
        return (right - left) / (bottom - top) * self.size[0] / self.size[1]

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y): written pixels per pixel of the clip."""
        left, top, right, bottom = self.box
        return self.size[1] / (right - left), self.size[0] / (bottom - top)

    def detected_size(self) -> tuple[int, int]:
        """(H, W) at which detectors see it: pixels are square."""
        left, top, right, bottom = self.box
        scale = min(1.0, DETECTED / max(right - left, bottom - top))
        return max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))


def choose(source: Path, driving: Path, options: PrepareOptions) -> tuple[Window, Window]:
    """What is taken of both clips: as many frames of each, frame j at the same time in both.

    UserError where one of them gives a single frame.
    """
    taken = [
        _numbers(path, options, start)
        for path, start in ((source, options.source_start), (driving, options.driving_start))
    ]
    for what, path, (numbers, _) in zip(("source", "driving"), (source, driving), taken, strict=True):
        if len(set(numbers)) < 2:
            raise UserError(f"{path} gives 1 frame, and {what} is to be a clip of 2 or more; give another, or more fps")
    count = min(len(numbers) for numbers, _ in taken)
    size = options.height, options.width
    if options.fit == "auto":
        size = resolve_size(*taken[0][1], *size, "auto", MULTIPLE)
    windows = [
        Window(path, tuple(numbers[:count]), frame, _box(frame, size, fit), size)
        for path, (numbers, frame), fit in zip((source, driving), taken, (options.fit, "stretch"), strict=True)
    ]
    return windows[0], windows[1]


def read_written(window: Window) -> np.ndarray:
    """The frames as they are written, uint8 (f H W 3): lanczos, as the published program resizes."""
    height, width = window.size

    def resize(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))

    return _read(window, resize)


def read_detected(window: Window) -> np.ndarray:
    """The frames as detectors see them: uint8 (f h w 3), square pixels."""
    height, width = window.detected_size()
    return _read(window, lambda frame: np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)))


def scaled(keypoints: np.ndarray, x: float, y: float) -> np.ndarray:
    """Keypoints (f 60 3) with positions multiplied."""
    return np.asarray(keypoints * np.array([x, y, 1]), np.float32)


def resized_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks uint8 (f h w) at (H, W): smoothly, then 0 or 255."""
    if masks.shape[1:] == size:
        return np.where(masks > 127, 255, 0).astype(np.uint8)
    levels = [cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR) for mask in masks]
    return np.where(np.stack(levels) > 127, 255, 0).astype(np.uint8)


def _numbers(path: Path, options: PrepareOptions, start: float) -> tuple[list[int], tuple[int, int]]:
    """The numbers of the frames taken, and (H, W) of the clip."""
    with open_source(path) as source:
        height, width = _first(source).shape[1:3]
        times, end = source.times, source.end
    if start >= end - SLACK:
        raise UserError(
            f"a start of {start:g} s is past the end of {path}, which is {end:.2f} s long; give a smaller one"
        )
    if is_folder(path):
        rate = len(times) / end  # a folder states no rate: every image is a frame
    else:
        rate = options.fps
    wanted = [start + i / rate for i in range(options.num_frames)]
    numbers = [int(np.searchsorted(times, time + SLACK, side="right")) - 1 for time in wanted if time < end - SLACK]
    return numbers, (height, width)


def _first(source: Source) -> np.ndarray:
    try:
        return source.read([0])
    except Recounted:
        return source.read([0])


def _box(frame: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[int, int, int, int]:
    height, width = frame
    if fit == "stretch" or fit == "auto":
        return 0, 0, width, height
    tall, wide = height * size[1] > width * size[0], height * size[1] < width * size[0]
    if (fit == "crop" and tall) or (fit == "pad" and wide):
        height = max(1, round(width * size[0] / size[1]))
    elif (fit == "crop" and wide) or (fit == "pad" and tall):
        width = max(1, round(height * size[1] / size[0]))
    left, top = (frame[1] - width) // 2, (frame[0] - height) // 2
    return left, top, left + width, top + height


def _read(window: Window, resize: Resize) -> np.ndarray:
    frames: list[np.ndarray] = []
    with open_source(window.path) as source:
        try:
            _collect(source, window, resize, frames)
        except Recounted:
            frames.clear()
            _collect(source, window, resize, frames)
    return np.stack(frames)


def _collect(source: Source, window: Window, resize: Resize, frames: list[np.ndarray]) -> None:
    for first in range(0, len(window.numbers), AT_ONCE):
        numbers: Sequence[int] = window.numbers[first : first + AT_ONCE]
        frames.extend(resize(_cut(frame, window.box)) for frame in source.read(numbers))


def _cut(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part of a frame (h w 3) in a box, black where the box goes beyond it."""
    left, top, right, bottom = box
    height, width = frame.shape[:2]
    margins = (max(0, -top), max(0, bottom - height)), (max(0, -left), max(0, right - width)), (0, 0)
    inner = frame[max(0, top) : bottom, max(0, left) : right]
    return np.ascontiguousarray(np.pad(inner, margins) if any(map(sum, margins)) else inner)


def square(size: tuple[int, int], stretch: float) -> tuple[int, int]:
    """(H, W) at which pixels of a picture of `size` are square."""
    return size[0], max(1, round(size[1] * stretch))
