"""The people world as training data: pictures and clips with their exact twins, and latents that are cached once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from animatediff.files import atomic_path
from animatediff.miniature.autoencoder import encode_mean
from animatediff.miniature.loop import processes, rank
from animatediff.miniature.people.motions import CLIP_FRAMES
from animatediff.miniature.people.networks import PATCH
from animatediff.miniature.people.world import COLOURS, PARTS, Image, Scene, sample_twins
from animatediff.miniature.stages import wait
from animatediff.pipelines.motionfollower.poses import draw_pose

AT_ONCE = 25  # scenes of a part of the cache
SHOWN = 0.05  # share of a patch's pixels from which it counts as showing a part
PERSON_WEIGHT, VACATED_WEIGHT = 4.0, 2.0  # see `importance`


class Part(TypedDict):
    """Scenes of the cache: each twice, in two motions of CLIP_FRAMES frames."""

    frames: Tensor  # uint8 [n, 2, f, 3, H, W]
    poses: Tensor  # uint8 [n, 2, f, 3, H, W]
    latents: Tensor  # float16 [n, 2, f, c, h, w], scaled
    covers: Tensor  # float16 [n, 2, f, h, w]: share of each latent's pixels that the person is painted on
    shown: Tensor  # bool [n, 2, f, patches, parts]: see `parts_shown`


@dataclass(frozen=True)
class Dataset:
    """All parts of the cache as memory-mapped tensors, one after the other."""

    parts: tuple[Part, ...]
    colours: Tensor  # int64 [scenes, 10], see `colours_of`

    def __len__(self) -> int:
        return sum(len(part["latents"]) for part in self.parts)

    def get(self, name: str, scene: int, twin: int, frames: slice | int) -> Tensor:
        """`frames` of one clip, of a name of Part."""
        number, place = divmod(scene, AT_ONCE)
        return self.parts[number][name][place, twin, frames]  # type: ignore[literal-required]


def frames_of(seeds: NDArray[np.int64]) -> tuple[Image, list[Scene], NDArray[np.int8]]:
    """One random training frame of each seed: RGB [n, h, w, 3], the scenes, and which part each pixel shows."""
    pictures, scenes, parts = [], [], []
    for seed in seeds.tolist():
        rng = np.random.default_rng([seed, 25])
        clip = sample_twins(seed)[int(rng.integers(2))]
        frames, shown = clip.render([int(rng.integers(CLIP_FRAMES))])
        pictures.append(frames[0])
        scenes.append(clip.scene)
        parts.append(shown[0])
    return np.stack(pictures), scenes, np.stack(parts)


def colours_of(scenes: list[Scene]) -> Tensor:
    """The number of each part's colour: int64 [n, 10]."""
    names = list(COLOURS)
    return torch.tensor([[names.index(colour) for colour in scene.clothes] for scene in scenes])


def cache(folder: Path, vae: AutoencoderKL, count: int) -> Dataset:
    """The first `count` training scenes with their latents, written into `folder` in parts that stay where they are.

    The processes of a distributed run share out what is missing.
    """
    starts = range(0, count, AT_ONCE)
    paths = [folder / f"{start:06d}-{min(count, start + AT_ONCE):06d}.pt" for start in starts]
    for start, path in list(zip(starts, paths, strict=True))[rank() :: processes().num_processes]:
        if not path.exists():
            part = _part(vae, range(start, min(count, start + AT_ONCE)))
            with atomic_path(path) as written:
                torch.save(part, written)
    wait()
    parts = tuple(torch.load(path, weights_only=True, mmap=True) for path in paths)
    return Dataset(parts, colours_of([sample_twins(seed)[0].scene for seed in range(count)]))


def _part(vae: AutoencoderKL, seeds: range) -> Part:
    """Rendered and encoded scenes."""
    frames, poses, covers, latents, seen = [], [], [], [], []
    for seed in seeds:
        for clip in sample_twins(seed):
            shown, parts = clip.render()
            frames.append(shown)
            poses.append(np.stack([draw_pose(points, shown.shape[1:3]) for points in clip.keypoints]))
            latents.append(encode_mean(vae, shown[None])[0] * vae.config.scaling_factor)
            scale = clip.size // latents[-1].shape[-1]
            covers.append(shares(parts >= 0, scale))
            seen.append(parts_shown(parts))
    return {
        "frames": _twins(torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3).contiguous()),  # n f 3 h w
        "poses": _twins(torch.from_numpy(np.stack(poses)).permute(0, 1, 4, 2, 3).contiguous()),
        "latents": _twins(torch.stack(latents).half()),
        "covers": _twins(torch.stack(covers).half()),
        "shown": _twins(torch.stack(seen)),
    }


def shares(masks: NDArray[np.bool_], scale: int) -> Tensor:
    """Of masks [f, h, w] the share that is set in every square of `scale` pixels a side: float32 [f, h', w']."""
    return F.avg_pool2d(torch.from_numpy(masks).float()[:, None], scale)[:, 0]


def parts_shown(parts: NDArray[np.int8]) -> Tensor:
    """Which parts every patch of the vision encoder shows, from parts [n, h, w]: bool [n, patches, 10]."""
    painted = F.one_hot(torch.from_numpy(parts).long() + 1, 1 + len(PARTS))[..., 1:].permute(0, 3, 1, 2)  # n p h w
    painted = F.avg_pool2d(painted.float(), PATCH) > SHOWN
    return painted.flatten(2).transpose(1, 2)  # n p rows columns -> n patches p


def importance(target: Tensor, source: Tensor) -> Tensor:
    """The weight of each latent in the loss, from the covers of target and source: of their shape.

    A person is a tenth of a frame, and the background that the source's person hid is a tenth too: with an even weight
    the rest is learnt long before them.
    """
    return 1 + PERSON_WEIGHT * (target > 0) + VACATED_WEIGHT * ((source > 0) & (target == 0))


def _twins(clips: Tensor) -> Tensor:
    """[2 n, ...] -> [n, 2, ...]."""
    return clips.unflatten(0, (-1, 2))
