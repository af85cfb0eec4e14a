"""The moving-shape world as training pairs: one motion, several contents, rendered when they are read."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from animatediff.data.pairs import ClipShape, Group, TrainingClip
from animatediff.data.sources import Frames, Measure
from animatediff.data.video import fit_frames
from animatediff.errors import UserError, nearest
from animatediff.miniature import motions, world
from animatediff.miniature.heldout import Job, score


@dataclass(frozen=True)
class SyntheticClip:
    """A clip of the moving-shape world, rendered when it is read."""

    content: world.Content
    split: str
    motion_seed: int

    @property
    def name(self) -> str:
        return f"motion {self.motion_seed} ({self.split}) with {self.caption}"

    @property
    def caption(self) -> str:
        return self.content.caption

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(f"{_world_source()} {self!r}".encode()).hexdigest()

    def clip(self, shape: ClipShape) -> world.Clip:
        """The clip with its ground truth."""
        motion = world.sample_motion(self.motion_seed, self.split, frames=shape.num_frames)
        return world.Clip(self.content, motion, (shape.height, shape.width))

    def pixels(self, shape: ClipShape) -> torch.Tensor:
        return fit_frames(self.clip(shape).frames(), shape.height, shape.width)


def synthetic_groups(
    count: int, clips: int, seed: int, split: str = "train", camera_share: float | None = None
) -> list[Group]:
    """`count` motions of the moving-shape world, each with `clips` different contents; all follow from `seed`.

    camera_share: share of the motions that are the camera's; as they are drawn, a quarter, where None.
    """
    groups = []
    for motion_seed in _motion_seeds(count, seed, split, camera_share):
        contents: dict[str, world.Content] = {}
        draws = (world.sample_content(motion_seed * 1009 + attempt, split) for attempt in range(64 * clips))
        for content in draws:
            contents.setdefault(content.caption, content)
            if len(contents) == clips:
                break
        chosen = tuple(SyntheticClip(content, split, motion_seed) for content in contents.values())
        groups.append(Group(f"motion {motion_seed}", chosen))
    return groups


def world_measure(shape: ClipShape) -> Measure:
    """The measures of the moving-shape world: the generated track and content against their ground truth."""

    def measure(frames: Frames, reference: TrainingClip, target: TrainingClip) -> dict[str, float]:
        assert isinstance(reference, SyntheticClip)  # this source makes no others
        assert isinstance(target, SyntheticClip)
        job = Job(reference.name, reference.clip(shape), target.content, seed=0)
        values = {name: float(value) for name, value in score(frames, job).items() if name != "job"}
        if reference.content.colour == target.content.colour:
            del values["leak"]  # the reference's colour is the one asked for
        return {name: value for name, value in values.items() if not math.isnan(value)}

    return measure


class SyntheticSource:
    """Pairs of the moving-shape world, as many as are asked for."""

    measures: Mapping[str, Any] = {"world": world_measure}

    def find(self, data: Any, seed: int) -> tuple[list[Group], list[Group]]:
        drawn = (data.synthetic_groups, data.synthetic_clips, data.synthetic_seed)
        held_out = (data.synthetic_validation_groups, 2, data.synthetic_seed + 1)
        train = synthetic_groups(*drawn, camera_share=data.synthetic_camera_share)
        return train, synthetic_groups(*held_out, split="heldout")

    def draw(self, count: int, clips: int, seed: int, split: str) -> list[Group]:
        if split not in motions.SPLITS:
            raise UserError(f"synthetic_split is '{split}'; {nearest(split, motions.SPLITS)}")
        return synthetic_groups(count, clips, seed, split)


def _motion_seeds(count: int, seed: int, split: str, camera_share: float | None) -> list[int]:
    """The first seeds from seed * 1000003 on that make up `count` motions, `camera_share` of them the camera's."""
    seeds = itertools.count(seed * 1_000_003)
    if camera_share is None:
        return list(itertools.islice(seeds, count))
    missing = {True: round(camera_share * count), False: count - round(camera_share * count)}
    chosen: list[int] = []
    while len(chosen) < count:
        candidate = next(seeds)
        kind = world.sample_motion(candidate, split).moves_camera
        if missing[kind]:
            missing[kind] -= 1
            chosen.append(candidate)
    return chosen


@cache
def _world_source() -> str:
    """Changes when the world's code does, so that nothing rendered before is mistaken for the present."""
    return hashlib.sha256((inspect.getsource(world) + inspect.getsource(motions)).encode()).hexdigest()


SOURCE = SyntheticSource()
