"""Pictures as frames: a folder in natural order, one file, or an animated WebP, PNG or AVIF."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from animatediff.errors import UserError, one_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
IMAGE_FPS = 8.0  # a folder of images states no rate; this is the rate of the published output
_ANIMATED = ("PNG", "WEBP", "AVIF")
_UNSTATED = 0.1  # seconds of a picture whose file states none, as browsers show it


# ---------------------------------------------------------------------------------------------- files


def list_images(folder: Path, notes: list[str]) -> list[Path]:
    """The images of `folder` in natural order (2 before 10), hidden files left out. UserError where none is a file.

    A line is added to `notes` for what is named like an image and is no file.
    """
    try:
        found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        images = [p for p in found if p.is_file()]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {one_line(error.strerror or error)}") from error
    others = sorted(set(found) - set(images))
    if others:
        kind = f"{others[0].name} is {'a link to nothing' if others[0].is_symlink() else 'no file'}"
        if not images:
            raise UserError(f"{folder} holds no images: {kind}; give a video or a folder of frames")
        more = f" (and {len(others) - 1} more)" * (len(others) > 1)
        notes.append(f"{folder}: {kind}, so it is left out{more}")
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); give a video or a folder of frames")
    return sorted(images, key=lambda p: natural_key(p.name))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), p) if p.isdecimal() else (0, 0, p.casefold()) for p in parts if p]


def is_image(path: Path) -> bool:
    """Whether the file is to be read as a picture: by its suffix, or by its first bytes."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(16)
    magic = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
    return head.startswith(magic) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")


def is_animated(path: Path) -> bool:
    """Whether the file is an animated WebP, PNG or AVIF. UserError where it is no picture at all."""
    with _picture(path) as image:
        return image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1


@contextlib.contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """The opened picture. Whatever its bytes lead Pillow into is a UserError with the file's name, and not printed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"the image {path} needs more memory than there is; scale it down") from error
    except Exception as error:
        raise UserError(f"cannot read the image {path} ({one_line(error) or type(error).__name__})") from error


# ---------------------------------------------------------------------------------------------- pixels


def read_image(path: Path, notes: list[str]) -> np.ndarray:
    """One image as uint8 [h, w, 3] RGB: upright, grey repeated, 16 bits scaled to 8, alpha laid over black.

    A line is added to `notes` for what had to be guessed. UserError with the file's name where it cannot be read.
    """
    return read_images([path], notes)[0]


def read_images(paths: Sequence[Path], notes: list[str]) -> list[np.ndarray]:
    """`read_image` for pictures that belong together: levels without a stated white have one white for all."""
    images = [_load(path, notes) for path in paths]
    tops = [float(image.max()) for image in images if image.dtype == np.float32]
    if tops:
        white = next((top for top in (1.0, 255.0, 65535.0, 4294967295.0) if max(tops) <= top), max(tops))
        first = next(path for path, image in zip(paths, images, strict=True) if image.dtype == np.float32)
        notes.append(f"{first} holds 32-bit levels with no stated white; {white:g} is taken as white")
        images = [_to_bytes(image, white) if image.dtype == np.float32 else image for image in images]
    return images


def _load(path: Path, notes: list[str]) -> np.ndarray:
    """uint8 [h, w, 3] RGB, or float32 [h, w] of levels whose white is not known."""
    with _picture(path) as image:
        count = getattr(image, "n_frames", 1)
        if count > 1 and image.format in (*_ANIMATED, "TIFF"):
            notes.append(f"{path} holds {count} pictures; the first is used")
        image.load()
        return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF says. Broken EXIF turns nothing, whatever Pillow makes of it."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        return np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    if image.mode == "I":
        return np.asarray(image).astype(np.int32).view(np.uint32).astype(np.float32)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _to_bytes(levels: np.ndarray, white: float) -> np.ndarray:
    """float32 [h, w] -> uint8 [h, w, 3]."""
    grey = (levels * (255 / white) + 0.5).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


# ---------------------------------------------------------------------------------------------- sources


class ImageSource:
    """Image files, one frame each, all of one size."""

    def __init__(self, images: list[Path], notes: Sequence[str] = ()) -> None:
        self.images = images
        self.fps, self.tick = IMAGE_FPS, 0.0
        self.times = [i / IMAGE_FPS for i in range(len(images))]
        self.end = len(images) / IMAGE_FPS
        self.warnings: list[str] = list(notes)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        wanted = sorted(set(indices))
        frames = dict(zip(wanted, read_images([self.images[i] for i in wanted], self.warnings), strict=True))
        first, shape = self.images[wanted[0]], frames[wanted[0]].shape
        for i, frame in frames.items():
            if frame.shape != shape:
                raise UserError(
                    f"{self.images[i]} is {frame.shape[1]}x{frame.shape[0]}, but {first.name} is "
                    f"{shape[1]}x{shape[0]}; all frames of a folder must have one size"
                )
        return np.stack([frames[i] for i in indices])

    def close(self) -> None:
        """Nothing is held."""


class AnimatedSource:
    """An animated WebP, PNG or AVIF: its pictures as they are shown, each for its own time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tick = 0.001
        lengths: list[float] = []
        self.warnings: list[str] = []
        for _, length in self._pictures():
            lengths.append(length)
        ends = list(accumulate(lengths))
        self.times, self.end = [0.0, *ends[:-1]], ends[-1]
        self.fps = len(lengths) / self.end

    def read(self, indices: Sequence[int]) -> np.ndarray:
        wanted = set(indices)
        frames = {i: _to_rgb(image) for i, (image, _) in enumerate(self._pictures(max(wanted))) if i in wanted}
        if len(frames) < len(wanted):
            raise UserError(f"cannot read the image {self.path}; it is damaged")
        return np.stack([frames[i] for i in indices])

    def close(self) -> None:
        """Nothing is held."""

    def _pictures(self, last: int | None = None) -> Iterator[tuple[Image.Image, float]]:
        """Pictures as shown and their seconds, up to number `last`. Damage past the first ends them, with a warning."""
        with _picture(self.path) as image:
            skipped = int(bool(getattr(image, "default_image", False)))  # a PNG's still for programs without animation
            count: int = getattr(image, "n_frames", 1)
            for i in range(skipped, count):
                try:
                    image.seek(i)
                    image.load()
                except Exception as error:
                    if i == skipped:
                        raise
                    damage = f"{self.path} is damaged or truncated: {i - skipped} of {count - skipped} pictures"
                    if not self.warnings:
                        self.warnings.append(f"{damage} could be decoded ({one_line(error)})")
                    return
                yield image, float(image.info.get("duration") or 0) / 1000 or _UNSTATED
                if last is not None and i - skipped >= last:
                    return
