"""Still images as frames: one file, or a folder in natural order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from animatediff.errors import UserError, one_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
IMAGE_FPS = 8.0  # a folder of images states no rate; this is the rate of the published output


def list_images(folder: Path) -> list[Path]:
    """The images of `folder` in natural order (2 before 10), hidden files left out."""
    images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); give a video or a folder of frames")
    return sorted((p for p in images if p.is_file()), key=lambda p: natural_key(p.name))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), p) if p.isdecimal() else (0, 0, p.casefold()) for p in parts if p]


def read_image(path: Path) -> np.ndarray:
    """One image as uint8 [h, w, 3] RGB: upright, grey repeated, 16 bits scaled to 8, alpha laid over black."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                grey = np.asarray(image).astype(np.uint32) >> 8
                return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path} ({one_line(error)})") from error


class ImageSource:
    """Image files, one frame each, all of one size."""

    def __init__(self, images: list[Path]) -> None:
        self.images = images
        self.fps = IMAGE_FPS
        self.times = [i / IMAGE_FPS for i in range(len(images))]
        self.warnings: list[str] = []

    def read(self, indices: Sequence[int]) -> np.ndarray:
        shape = read_image(self.images[0]).shape
        frames: dict[int, np.ndarray] = {}
        for i in sorted(set(indices)):
            frames[i] = read_image(self.images[i])
            if frames[i].shape != shape:
                raise UserError(
                    f"{self.images[i]} is {frames[i].shape[1]}x{frames[i].shape[0]}, but {self.images[0].name} is "
                    f"{shape[1]}x{shape[0]}; all frames of a folder must have one size"
                )
        return np.stack([frames[i] for i in indices])
