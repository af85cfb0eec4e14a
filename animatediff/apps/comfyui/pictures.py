"""IMAGE, MASK and VIDEO of ComfyUI as the files that a job names: read through the same door as everyone's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from animatediff.apps.comfyui import host
from animatediff.data.export import save_frames
from animatediff.data.video import sample_indices
from animatediff.errors import UserError
from animatediff.files import is_there
from animatediff.pipelines.method import Run


def clip_of_images(images: torch.Tensor, run: Run) -> str:
    """A folder that holds the frames which `run` takes of a batch of images (f h w c) in [0, 1]."""
    return frames_folder(levels(taken(images, run)))


def clip_of_video(video: Any, run: Run) -> str:
    """The file of a VIDEO where it has one, whole; else a folder of its frames, as `clip_of_images`."""
    source = video.get_stream_source()
    if isinstance(source, str) and abs(type(video)(source).get_duration() - video.get_duration()) < 1e-3:
        return source
    return clip_of_images(video.get_components().images, run)


def clip_of_masks(masks: torch.Tensor, run: Run) -> str:
    """As `clip_of_images`, of masks (f h w) in [0, 1]: above a half is white."""
    chosen = taken(masks if masks.ndim == 3 else masks[None], run) > 0.5
    return frames_folder(np.repeat(chosen.cpu().numpy()[..., None], 3, axis=-1).astype(np.uint8) * 255)


def picture_files(images: torch.Tensor) -> list[str]:
    """The files of a batch of images, one each."""
    return [str(path) for path in sorted(Path(frames_folder(levels(images))).iterdir())]


def taken(batch: torch.Tensor, run: Run) -> torch.Tensor:
    """Of a batch, the frames that a run takes: by the rule that files are read by."""
    if not len(batch):
        raise UserError("the batch is empty; give at least one image")
    if len(batch) <= run.num_frames:
        return batch
    return batch[: run.num_frames] if run.take == "first" else batch[sample_indices(len(batch), run.num_frames)]


def levels(images: torch.Tensor) -> np.ndarray:
    """Images (f h w c) in [0, 1] as uint8 (f h w 3): grey becomes RGB, alpha lies over black."""
    pixels = images.detach().float().cpu().clamp(0, 1)
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3, 4):
        raise UserError(f"the batch is {list(images.shape)}, expected images (b h w c) of 1, 3 or 4 channels")
    if pixels.shape[-1] == 4:
        pixels = pixels[..., :3] * pixels[..., 3:]
    return np.ascontiguousarray((pixels.expand(-1, -1, -1, 3) * 255).round().byte().numpy())


def frames_folder(frames: np.ndarray) -> str:
    """A folder in ComfyUI's temporary one that holds frames uint8 (f h w 3); the same frames have the same folder."""
    digest = hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).hexdigest()[:24]
    folder = host.temp_folder() / digest
    if not is_there(folder):
        save_frames(folder, frames)
    return str(folder)
