"""Reading a reference clip: which frames are taken, at which size, in which range.

The published rule: frames by linspace over the whole clip, truncated to whole numbers, then a bilinear resize on
uint8 with aligned corners (Cai et al., arXiv 2503.19369, released preprocessing). It counts frames, so where a clip's
rate varies it would distort the motion: there the same linspace goes over seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from animatediff.data.decode import Recounted, Source, open_source
from animatediff.errors import UserError

FITS = ("stretch", "crop", "pad", "auto")
TAKES = ("spread", "first")
RESAMPLES = ("bilinear", "bicubic")
_SLACK = 1e-4  # seconds by which a time may miss a frame's border and still count as on it
_STEADY = 1.1  # long steps between frames by short ones, up to which the rate is constant
_SAME = 8.0  # levels: the mean of 8 pixels up to which two pictures are one drawing, coded twice


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """Frames taken from a video, with where they came from."""

    frames: np.ndarray  # uint8 [f, h, w, 3] RGB, upright, square pixels
    fps: float  # frames per second of the source (the average, where the rate varies)
    indices: tuple[int, ...]  # number of each frame in the source, in presentation order
    times: tuple[float, ...]  # seconds of each frame in the source, its first frame at 0
    total: int  # frames in the source
    warnings: tuple[str, ...] = ()  # what a user should be told, one line each, damage first

    @property
    def pace(self) -> float:
        """Frames per second at which `frames` show the motion as fast as the source does."""
        span = self.times[-1] - self.times[0]
        return (len(self.times) - 1) / span if span > 0 else self.fps


def read_frames(
    path: str | Path,
    num_frames: int | None = 16,
    *,
    start: float | None = None,
    duration: float | None = None,
    take: str = "spread",
) -> DecodedClip:
    """Read frames of a video file, an animated picture, one image, or a folder of images (natural order, 8 fps).

    `num_frames` frames are spread over the clip, or over the part on screen from `start` for `duration` (seconds):
    by the published rule, or evenly in time where the rate varies by more than 10 %. None takes every frame,
    `take="first"` the first ones there, one after the other. With fewer frames than asked, frames repeat and a warning
    says so. Frames are as a player shows them: turned and
    mirrored by the file's flags, square pixels, one field of interlaced ones, PQ and HLG tone mapped, grey as RGB,
    alpha over black; what was changed on the way is in the warnings. Damage past the first frame stops nothing: what
    decodes is used, with a warning. UserError for everything else.
    """
    path = Path(path)
    if num_frames is not None and num_frames < 1:
        raise UserError(f"num_frames is {num_frames}, expected 1 or more")
    with open_source(path) as source:
        try:
            numbers = _choose(path, source, num_frames, start, duration, take)
            frames = source.read(numbers)
        except Recounted:
            numbers = _choose(path, source, num_frames, start, duration, take)
            frames = source.read(numbers)
        times = tuple(source.times[i] for i in numbers)
        warnings = [*source.warnings, *_repeats(path, numbers, frames, num_frames)]
        return DecodedClip(frames, source.fps, tuple(numbers), times, len(source.times), tuple(warnings))


def sample_indices(total: int, num_frames: int) -> np.ndarray:
    """The published sampling: int64 [num_frames], linspace over 0..total-1 truncated (60, 16 -> 0, 3, 7, 11, ...)."""
    return np.linspace(0, total - 1, num_frames, dtype=int)


def sample_times(times: Sequence[float], begin: float, num_frames: int) -> np.ndarray:
    """The same by seconds: int64 [num_frames], the frames on screen at a linspace over `begin`..times[-1]."""
    wanted = np.linspace(max(begin, times[0]), times[-1], num_frames) + _SLACK
    return np.searchsorted(times, wanted, side="right") - 1


def is_steady(times: Sequence[float], tick: float = 0.0) -> bool:
    """Whether frames come at one rate: equal steps within 10 %, or as equal as whole ticks (seconds) allow.

    One step in twenty may differ, as where a frame was dropped, if no frame is then 1.5 frames from its place.
    """
    if len(times) < 3:
        return True
    steps = np.diff(times)
    away = np.abs(np.asarray(times) - np.linspace(times[0], times[-1], len(times))).max()
    short, long = np.percentile(steps, [5, 95])
    return bool(away <= 1.01 * tick or (long <= _STEADY * short + 1e-9 and away <= 1.5 * steps.mean()))


def _choose(
    path: Path, source: Source, num_frames: int | None, start: float | None, duration: float | None, take: str
) -> list[int]:
    """Numbers of the frames to read, ascending."""
    times, end = source.times, source.end
    begin = 0.0 if start is None else float(start)
    if not math.isfinite(begin) or begin < 0:
        raise UserError(f"start is {start}, expected seconds from the beginning of the clip, 0 or more")
    if start is not None and begin >= end - _SLACK:
        raise UserError(f"start is {start} s, but {path} is {end:.2f} s long; give a smaller start")
    if duration is not None and not duration > 0:
        raise UserError(f"duration is {duration}, expected seconds above 0; leave it out for the whole clip")
    stop = math.inf if duration is None else begin + duration
    # A frame is on screen from its own time until the next frame's.
    first = max(i for i, time in enumerate(times) if time <= begin + _SLACK)
    last = max(first, max(i for i, time in enumerate(times) if time < stop - _SLACK or i == 0))
    if num_frames is None:
        return list(range(first, last + 1))
    if take == "first":
        return [min(first + i, last) for i in range(num_frames)]
    window = times[first : last + 1]
    if is_steady(window, source.tick):
        return [first + int(i) for i in sample_indices(len(window), num_frames)]
    return [first + int(i) for i in sample_times(window, begin, num_frames)]


def _repeats(path: Path, numbers: list[int], frames: np.ndarray, num_frames: int | None) -> list[str]:
    """What to say of frames that are taken twice, or are held over several frames, as drawings on twos are."""
    distinct = len(set(numbers))
    if distinct == 1:
        if num_frames == 1:
            return []
        return [f"{path} gives 1 frame, so there is no motion to take" + (", it is repeated" * bool(num_frames))]
    lines = []
    if num_frames is not None and distinct < num_frames:
        lines.append(f"{path} gives {distinct} frames where {num_frames} were asked for; frames are repeated")
    away = [_difference(earlier, later) for earlier, later in pairwise(frames)]
    same = min(_SAME, max(away) / 8)  # slow motion makes small differences, too, but no large ones between them
    shown = 1 + sum(difference > same for difference in away)
    if max(away) > _SAME and shown <= 0.9 * distinct:  # where nothing moves, nothing is held either
        lines.append(f"{path} shows frames several times: {shown} of the {distinct} taken are distinct")
    return lines


def _difference(frame: np.ndarray, other: np.ndarray) -> float:
    """How far two frames uint8 [h, w, 3] are apart: levels, the mean of the 8 pixels side by side that differ most."""
    lines, others = frame[::4], other[::4]  # every fourth line tells
    away = (np.maximum(lines, others) - np.minimum(lines, others)).reshape(len(lines), -1)  # h w 3 -> h (w 3)
    if away.shape[1] >= 24:
        away = away[:, : away.shape[1] // 24 * 24].reshape(len(lines), -1, 24)  # h (x 8 3) -> h x (8 3)
    return float(away.mean(axis=-1, dtype=np.float32).max())


def resolve_size(
    frame_height: int, frame_width: int, height: int, width: int, fit: str = "stretch", multiple: int = 8
) -> tuple[int, int]:
    """The (height, width) to work at, for frames of the given size and the configured `height` and `width`.

    `auto` takes the frames' aspect ratio at the configured area, each side rounded to the nearest `multiple`. The
    other fits take the configured size as it is; UserError where that is no multiple of what the network takes.
    """
    if fit not in FITS:
        raise UserError(f"fit is '{fit}', expected one of {', '.join(FITS)}")

    def nearest(side: float) -> int:
        return max(multiple, math.floor(side / multiple + 0.5) * multiple)

    if height < 1 or width < 1:
        raise UserError(f"height x width is {height}x{width}, expected multiples of {multiple}")
    if fit == "auto":
        scale = math.sqrt(height * width / (frame_height * frame_width))
        return nearest(frame_height * scale), nearest(frame_width * scale)
    if height % multiple or width % multiple:
        raise UserError(
            f"height x width is {height}x{width}, expected multiples of {multiple}; "
            f"the nearest are {nearest(height)}x{nearest(width)}"
        )
    return height, width


def fit_frames(
    frames: np.ndarray | torch.Tensor, height: int, width: int, fit: str = "stretch", resample: str = "bilinear"
) -> torch.Tensor:
    """Frames uint8 [f, h, w, 3] as the VAE takes them: float32 [f, 3, height, width] in [-1, 1].

    `stretch` is the published preprocessing: both sides are scaled freely. `crop` cuts the centre to the asked
    aspect ratio first; `pad` keeps the whole frame, centred on black. `auto` crops: with the size that
    `resolve_size` gives there is less than one `multiple` to cut. resample: see `_resize`.
    """
    if fit not in FITS:
        raise UserError(f"fit is '{fit}', expected one of {', '.join(FITS)}")
    pixels = torch.as_tensor(frames).permute(0, 3, 1, 2)  # f h w 3 -> f 3 h w
    h, w = pixels.shape[-2:]
    if fit == "stretch":
        return _normalise(_resize(pixels, height, width, resample))
    if fit == "pad":
        scale = min(height / h, width / w)
        inner_h, inner_w = (max(1, min(side, round(own * scale))) for own, side in ((h, height), (w, width)))
        top, left = (height - inner_h) // 2, (width - inner_w) // 2
        margins = (left, width - inner_w - left, top, height - inner_h - top)
        return _normalise(F.pad(_resize(pixels, inner_h, inner_w, resample), margins))
    cut_h, cut_w = max(1, min(h, round(w * height / width))), max(1, min(w, round(h * width / height)))
    top, left = (h - cut_h) // 2, (w - cut_w) // 2
    return _normalise(_resize(pixels[..., top : top + cut_h, left : left + cut_w], height, width, resample))


def to_levels(video: torch.Tensor) -> np.ndarray:
    """The inverse of `fit_frames` without its resizing: float32 [f, 3, h, w] in [-1, 1] to uint8 [f, h, w, 3]."""
    return ((video + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # f 3 h w -> f h w 3


def _resize(pixels: torch.Tensor, height: int, width: int, resample: str) -> torch.Tensor:
    """uint8 [f, 3, h, w] -> uint8 [f, 3, height, width].

    bilinear: corners aligned, rounded to whole levels, as EfficientMT's published program; bicubic: Pillow's, as
    DiTFlow's.
    """
    if pixels.shape[-2:] == (height, width):
        return pixels
    if resample == "bicubic":
        images = (Image.fromarray(frame.permute(1, 2, 0).cpu().numpy()) for frame in pixels)  # 3 h w -> h w 3
        resized = [np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)  # f h w 3 -> f 3 h w
    return F.interpolate(pixels.cpu().contiguous(), (height, width), mode="bilinear", align_corners=True)


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels / 127.5 - 1
