"""A prepared folder on disk: which sequences it holds, how they are called, and how they are written and read.

    source_images  source_poses  source_masks  target_images  target_poses  target_aligned_poses  predicted_masks
    keypoints.npz (source, target, aligned: each (f 60 3): x, y in pixels, score)  log.json  sheet.html

Each sequence is a folder of frame_0.png, frame_1.png, ...
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from animatediff.errors import UserError, describe_os_error
from animatediff.files import atomic_folder, atomic_path, final_path, is_file, is_folder, is_there, write_json
from animatediff.pipelines.motionfollower.poses import draw_pose, positions

IMAGES = ("source_images", "target_images")
POSES = {"source_poses": "source", "target_poses": "target", "target_aligned_poses": "aligned"}  # -> in KEYPOINTS
MASKS = ("source_masks", "predicted_masks")
SEQUENCES = (*IMAGES, *POSES, *MASKS)
KEYPOINTS, LOG, SHEET = "keypoints.npz", "log.json", "sheet.html"
PNG_EFFORT = 3  # of 9: a third of the time of 9, files a tenth larger


def write_prepared(
    folder: str | Path,
    *,
    source_images: np.ndarray,
    target_images: np.ndarray,
    source_masks: np.ndarray,
    predicted_masks: np.ndarray,
    keypoints: Mapping[str, np.ndarray],
    log: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole prepared folder, or nothing; an older one at its place is replaced.

    source_images, target_images: uint8 (f h w 3); masks: uint8 (f h w), white on the person, or bool; keypoints:
    source, target and aligned, each (f 60 3), in pixels of source_images, target_images and source_images, from which
    the skeletons are drawn. log: what log.json says. UserError where counts or shapes differ, and where `folder` holds
    anything else.
    """
    images = {"source_images": source_images, "target_images": target_images}
    masks = {"source_masks": source_masks, "predicted_masks": predicted_masks}
    missing = [name for name in POSES.values() if name not in keypoints]
    if missing:
        raise UserError(f"keypoints lack '{missing[0]}'; give {', '.join(POSES.values())}")
    counts = {name: len(found) for name, found in [*images.items(), *masks.items(), *keypoints.items()]}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"the numbers of frames differ ({listed}); give as many of each")
    for name, mask in masks.items():
        if mask.shape[1:] != source_images.shape[1:3]:
            raise UserError(
                f"{name} are {mask.shape[2]}x{mask.shape[1]} and source_images "
                f"{source_images.shape[2]}x{source_images.shape[1]}; give both in one size"
            )
    check_folder(folder)
    with atomic_folder(folder) as part:
        for name, frames in images.items():
            write_sequence(part / name, frames)
        for name, frames in masks.items():
            write_sequence(part / name, as_mask(frames))
        for name, key in POSES.items():
            write_sequence(part / name, draw_poses(keypoints[key], size_of(name, images)))
        write_keypoints(part / KEYPOINTS, keypoints)
        write_json(part / LOG, dict(log or {}))


def size_of(name: str, images: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(H, W) of the frames that sequence `name` of skeletons is drawn over."""
    height, width = images["target_images" if name == "target_poses" else "source_images"].shape[1:3]
    return height, width


def draw_poses(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Keypoints (f 60 3) as the networks see them: (f H W 3) uint8. UserError for another shape."""
    positions(keypoints)
    return np.stack([draw_pose(frame, size) for frame in keypoints])


def as_mask(masks: np.ndarray) -> np.ndarray:
    """Masks (f h w), bool or uint8, as 0 and 255."""
    return np.where(masks if masks.dtype == bool else masks > 127, 255, 0).astype(np.uint8)


def write_sequence(folder: str | Path, frames: np.ndarray) -> None:
    """Write uint8 frames (f h w 3) or masks (f h w) as `folder`/frame_0.png, ..., all of them or nothing."""
    with atomic_folder(folder) as part:
        for i, frame in enumerate(frames):
            pixels = frame[..., ::-1] if frame.ndim == 3 else frame  # OpenCV's order is blue, green, red
            _, png = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, PNG_EFFORT])
            (part / f"frame_{i}.png").write_bytes(png.tobytes())


def write_keypoints(path: str | Path, keypoints: Mapping[str, np.ndarray]) -> None:
    """Write named keypoints, each (f 60 3), as one .npz."""
    with atomic_path(path) as part, open(part, "wb") as file:
        arrays: dict[str, Any] = {name: np.asarray(found, np.float32) for name, found in keypoints.items()}
        np.savez_compressed(file, **arrays)


def read_keypoints(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The keypoints of these names in an .npz, each (f 60 3). UserError where it holds none, or others."""
    path = Path(path)
    if not is_file(path):
        kind = "a folder, as drawings of skeletons are" if is_folder(path) else "nothing"
        raise UserError(f"expected keypoints at {path}, where {kind} lies; give an .npz of arrays (frames, 60, 3)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array without a name")
            absent = [name for name in names if name not in archive.files]
            if absent:
                raise UserError(f"{path} lacks '{absent[0]}'; it holds {', '.join(archive.files) or 'nothing'}")
            found = {name: archive[name] for name in names}
    except UserError:
        raise
    except OSError as error:
        if error.errno:
            raise describe_os_error(error, f"reading {path}") from error
        raise UserError(f"{path} is no file of keypoints; give an .npz of arrays (frames, 60, 3)") from error
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UserError(f"{path} is no file of keypoints; give an .npz of arrays (frames, 60, 3)") from error
    for name, keypoints in found.items():
        if keypoints.dtype.kind != "f":
            raise UserError(f"'{name}' in {path} is {keypoints.dtype}, expected numbers (frames, 60, 3)")
        positions(keypoints)
    return found


def check_folder(folder: str | Path) -> None:
    """UserError where a prepared folder cannot be put at `folder`: a file, or a folder that holds anything else."""
    folder = final_path(Path(folder))
    if not is_there(folder):
        return
    known = {*SEQUENCES, KEYPOINTS, LOG, SHEET}
    try:
        others = [entry.name for entry in folder.iterdir() if entry.name not in known and entry.name[0] != "."]
    except OSError as error:
        raise describe_os_error(error, f"reading {folder}") from error
    if others:
        raise UserError(f"{folder} holds {others[0]}, which no prepared folder does; choose another")
