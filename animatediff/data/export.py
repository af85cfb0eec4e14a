"""Writing results: H.264, GIF, PNG frames, side-by-side, and file names made from what a user typed.

Frames are uint8 [f, h, w, 3] RGB everywhere. Every file appears whole or not at all; a full disk or a folder that
cannot be written is a UserError.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import imageio.v3 as imageio
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image

from animatediff.errors import UserError, describe_os_error
from animatediff.files import atomic_folder, atomic_path, final_path, is_folder, is_there

_BT709 = 1  # the number of BT.709 in H.264's tables of primaries, transfer and matrix
_LIMITED = 1
_VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")
# One thread, and none of the assembly that rounds by where its memory lies: the same frames give the same bytes.
_QUALITY = {"crf": "14", "preset": "slow", "threads": "1", "x264-params": "cpu-independent=1"}
_FRAME_NAME = re.compile(r"\d{5}\.png")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def save_video(path: str | Path, frames: np.ndarray, fps: float = 8) -> None:
    """Write H.264 (yuv420p, BT.709, index at the front) that a browser plays; the container follows the suffix.

    H.264 takes even sides only: an odd side gains one row or column, a copy of its last one. The same frames and
    rate give the same bytes.
    """
    frames, rate = _checked(frames), _rate(fps)
    if Path(path).suffix.lower() not in _VIDEO_SUFFIXES:
        raise UserError(f"cannot write a video as {path}; end the name in {', '.join(_VIDEO_SUFFIXES)}")
    height, width = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    smooth = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with atomic_path(path) as part:
        try:
            # By hand: imageio's pyav plugin takes no encoder options, so neither equal bytes nor an index at the front.
            with av.open(f"file:{part.absolute()}", "w", container_options=options) as container:
                stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
                stream.height, stream.width, stream.pix_fmt = padded.shape[1], padded.shape[2], "yuv420p"
                codec = stream.codec_context
                codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
                codec.color_range = _LIMITED
                for rgb in padded:
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
                    yuv = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=smooth)
                    container.mux(stream.encode(yuv))
                container.mux(stream.encode())
        except av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno:
                raise  # a full disk and its like: atomic_path tells it in one line
            raise UserError(f"writing {path} failed: {error.strerror}") from error


def save_gif(path: str | Path, frames: np.ndarray, fps: float = 8) -> None:
    """Write a GIF that loops for ever, 256 colours per frame.

    GIF counts in hundredths of a second, so delays alternate to keep the rate right on average; viewers play
    nothing faster than 50 fps. Frames equal to the one before become one longer frame.
    """
    frames, rate = _checked(frames), _rate(fps)
    ends = [round(100 * i / rate) for i in range(len(frames) + 1)]
    delays = [10 * max(2, later - earlier) for earlier, later in pairwise(ends)]
    duration = delays if len(delays) > 1 else delays[0]  # milliseconds
    with atomic_path(path) as part:
        _write_image(part, ".gif", frames, duration=duration, loop=0)


def save_frames(folder: str | Path, frames: np.ndarray) -> None:
    """Write `folder`/00000.png, 00001.png, ...; a folder of such frames is replaced, any other is refused."""
    frames, folder = _checked(frames), Path(folder)
    check_frames_folder(folder)
    with atomic_folder(folder) as part:
        for i, rgb in enumerate(frames):
            _write_image(part / f"{i:05d}.png", ".png", rgb)


def check_frames_folder(folder: str | Path) -> None:
    """UserError where `save_frames` could not take `folder`: a file, or a folder that holds anything but frames."""
    folder = final_path(Path(folder))
    if not is_there(folder):
        return
    try:
        ours = is_folder(folder) and all(_FRAME_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    except OSError as error:
        raise describe_os_error(error, f"reading {folder}") from error
    if not ours:
        raise UserError(f"{folder} holds other files than frames, so it is not replaced; move it or choose another")


def side_by_side(reference: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Reference left, output right, uint8 [f_out, h_out, w, 3].

    The reference is scaled to the output's height in its own aspect ratio, and of its frames the one nearest in
    relative time is shown (both clips run from start to end).
    """
    reference, output = _checked(reference), _checked(output)
    nearest = np.rint(np.linspace(0, len(reference) - 1, len(output))).astype(int)
    height = output.shape[1]
    size = max(1, round(reference.shape[2] * height / reference.shape[1])), height
    left = [np.asarray(Image.fromarray(reference[i]).resize(size, Image.Resampling.BILINEAR)) for i in nearest]
    return np.concatenate([np.stack(left), output], axis=2)  # joined on the width


def safe_name(text: str, max_length: int = 60, spaced: bool = True) -> str:
    """A file name for `text`: ASCII lower-case letters, digits, `_` and `-`, at most `max_length` (20 or more).

    Words are joined by `-`. Where that loses anything (capitals, accents, punctuation, length, a name Windows
    reserves), `--` and twelve digits of the text's SHA-256 follow. No other name holds `--`, so two texts share a
    name only if they are equal. `spaced` says whether `-` stands for the text's spaces or, as in the name of a file,
    for its own hyphens; names made with the one and the other do not belong in one folder.
    """
    if max_length < 20:
        raise ValueError(f"max_length is {max_length}, expected 20 or more")
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9_]+", "-", ascii_text.lower()).strip("-")
    told = slug.replace("-", " ") if spaced else slug
    if slug and told == text and len(slug) <= max_length and slug not in _RESERVED:
        return slug
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    words = slug[: max_length - len(digest) - 2].strip("-")
    return f"{words or 'untitled'}--{digest}"


def _write_image(path: Path, kind: str, pixels: np.ndarray, **options: Any) -> None:
    """Write an image [h, w, 3], or a moving one [f, h, w, 3], of the given `kind` (".png", ".gif")."""
    # Through memory: imageio gives some paths a meaning ("a.zip/b"), and writes once more after a full disk.
    path.write_bytes(imageio.imwrite("<bytes>", pixels, extension=kind, plugin="pillow", **options))


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 [f, h, w, 3]")
    return frames


def _rate(fps: float) -> Fraction:
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps is {fps}, expected 0.01 to 1000")
    return Fraction(fps).limit_denominator(1001)
