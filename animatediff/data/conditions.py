"""Condition images of the image- and sketch-to-video modes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from animatediff.data.images import read_image
from animatediff.data.video import FITS
from animatediff.errors import UserError

_ASPECT_SLACK = 0.02  # relative; below it a stretch does not show


def read_conditions(
    paths: Sequence[str | Path], height: int, width: int, fit: str = "stretch"
) -> tuple[torch.Tensor, list[str]]:
    """Images as float32 (n 3 height width) in [0, 1], and one line for each that is visibly stretched.

    Images of any size are taken: `stretch` scales both sides freely (bilinear, as the published program does), `crop`
    and `auto` cut the centre to the video's aspect ratio first, `pad` keeps the whole image on black. UserError names
    an image that is missing or cannot be read.
    """
    if fit not in FITS:
        raise UserError(f"fit is '{fit}', expected one of {', '.join(FITS)}")
    images: list[np.ndarray] = []
    warnings: list[str] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"no condition image at {path}; check condition_image_paths")
        image = Image.fromarray(read_image(path, warnings))
        if fit == "stretch" and abs(image.width * height / (image.height * width) - 1) > _ASPECT_SLACK:
            warnings.append(
                f"condition image {path} is {image.width}x{image.height} and is stretched to {width}x{height}; "
                "fit=crop or fit=pad keeps its shape"
            )
        images.append(np.asarray(_fitted(image, (width, height), fit), dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), warnings  # n h w 3 -> n 3 h w


def _fitted(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """`image` at `size` = (width, height)."""
    if fit == "stretch":
        return image.resize(size, Image.Resampling.BILINEAR)
    if fit == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
