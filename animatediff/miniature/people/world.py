"""Stick people in front of the toy world's backgrounds, rendered with exact skeletons and masks.

A scene is a person, their clothes, a background and a camera; any motion can be rendered in it, so the exact answer of
an edit is known: the same scene with another motion. Everything follows from integer seeds. Pixel coordinates: x
right, y down, the centre of the top-left pixel is (0, 0). Lengths are in units of the frame's shorter side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from animatediff.miniature.people.motions import BONES, CLIP_FRAMES, FAMILIES, Array, Motion, sample_motion
from animatediff.miniature.world import BACKGROUNDS, CONTRAST, PATTERNS, background_texture
from animatediff.pipelines.motionfollower.skeleton import BODY_JOINTS, JOINTS

Image = NDArray[np.uint8]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (245, 230, 60),
    "green": (40, 190, 50),
    "cyan": (60, 230, 235),
    "blue": (35, 70, 245),
    "purple": (130, 30, 190),
    "pink": (250, 110, 215),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
SPLITS = ("train", "heldout")
FOLDS = 5  # a fifth of the combinations of person, clothes and motion is kept for evaluation
GROUND = 0.42  # height of the soles
NECK, NOSE = 1, 0
# Part -> joints at its ends, as OpenPose numbers them (18: the middle of the hips), and its half width. Later parts
# cover earlier ones.
PARTS: dict[str, tuple[int, int, float]] = {
    "right_thigh": (8, 9, 0.036),
    "right_shin": (9, 10, 0.033),
    "left_thigh": (11, 12, 0.036),
    "left_shin": (12, 13, 0.033),
    "torso": (1, 18, 0.066),
    "head": (0, 0, 0.078),
    "right_arm": (2, 3, 0.033),
    "right_forearm": (3, 4, 0.031),
    "left_arm": (5, 6, 0.033),
    "left_forearm": (6, 7, 0.031),
}
CAMERAS = ("still", "still", "pan", "zoom")  # drawn from with equal chance


@dataclass(frozen=True)
class Build:
    """Lengths of a body: of torso, arm, forearm, thigh and shin, half the width of shoulders and of hips."""

    torso: float
    arm: float
    forearm: float
    thigh: float
    shin: float
    shoulders: float = 0.09
    hips: float = 0.05


BUILDS = (
    Build(0.22, 0.130, 0.125, 0.150, 0.150),
    Build(0.20, 0.135, 0.130, 0.165, 0.160, shoulders=0.083),
    Build(0.24, 0.130, 0.120, 0.135, 0.135, shoulders=0.098, hips=0.055),
    Build(0.19, 0.115, 0.110, 0.135, 0.130, shoulders=0.083, hips=0.045),
    Build(0.21, 0.140, 0.135, 0.145, 0.155, shoulders=0.095),
)


@dataclass(frozen=True)
class Scene:
    """A person (number in BUILDS), clothes (a colour's name for each of PARTS), a background and a camera."""

    build: int
    clothes: tuple[str, ...]
    pattern: str
    background: str
    camera: str
    texture: int  # seed of the background's place and clouds, and of the camera's way

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Which families of motions this person in these clothes is seen in, by split."""
        start = self.build + list(COLOURS).index(self.clothes[list(PARTS).index("torso")])
        held = [(start + number) % FOLDS == 0 for number in range(len(FAMILIES))]
        return {
            name: tuple(family for family, kept in zip(FAMILIES, held, strict=True) if kept == (name == "heldout"))
            for name in SPLITS
        }

    def view(self, frames: int) -> tuple[Array, Array]:
        """The camera, which shows world point p at zoom p + shift: zoom [f] and shift [f, 2]."""
        rng = np.random.default_rng([self.texture, 23])
        time = np.arange(frames) / CLIP_FRAMES
        turn = 2 * np.pi * (rng.uniform(0.4, 0.8) * time + rng.random())
        zoom, shift = np.ones(frames), np.zeros((frames, 2))
        if self.camera == "pan":
            shift = np.stack([0.09 * np.sin(turn), 0.03 * np.cos(turn)], axis=1)
        elif self.camera == "zoom":
            zoom = 1 + 0.12 * np.sin(turn)
        return zoom, shift


@dataclass(frozen=True)
class Clip:
    """A scene in motion, at a square size in pixels; frames, masks and keypoints are computed when asked for."""

    scene: Scene
    motion: Motion
    size: int = 64

    @cached_property
    def joints(self) -> Array:
        """Joints of the body, the middle of the hips appended: [f, 19, 2] in pixels."""
        return self._to_pixels(body_joints(BUILDS[self.scene.build], self.motion))

    @property
    def keypoints(self) -> NDArray[np.float32]:
        """The exact skeleton [f, 60, 3]: x, y in pixels and score; hands are not seen (NaN, score 0)."""
        found = np.full((self.motion.frames, JOINTS, 3), np.nan, np.float32)
        found[..., 2] = 0
        body = self.joints[:, :BODY_JOINTS]
        inside = np.all((body >= 0) & (body <= self.size - 1), axis=-1)
        found[:, :BODY_JOINTS, :2] = np.where(inside[..., None], body, np.nan)
        found[:, :BODY_JOINTS, 2] = inside
        return found

    def render(self, chosen: Sequence[int] | None = None) -> tuple[Image, NDArray[np.int8]]:
        """The frames of these numbers (all): RGB [n, h, w, 3] of 0 to 255, anti-aliased, and parts [n, h, w].

        Parts: which of PARTS a pixel is painted by at all, the foremost where several; -1 where by none, so that the
        person's exact mask is `parts >= 0`.
        """
        frames = np.arange(self.motion.frames) if chosen is None else np.asarray(chosen)
        rows, columns = np.mgrid[: self.size, : self.size].astype(np.float32)
        grid = np.stack([columns, rows], axis=-1)
        picture = self._background(grid, frames)
        parts = np.full(picture.shape[:3], -1, np.int8)
        zoom = self.scene.view(self.motion.frames)[0][frames] * self.size
        joints = self.joints[frames].astype(np.float32)
        for number, ((start, end, width), colour) in enumerate(zip(PARTS.values(), self.scene.clothes, strict=True)):
            ends = joints[:, [start, end]]
            distance = _to_segment(grid, ends[:, 0], ends[:, 1]) - (width * zoom).astype(np.float32)[:, None, None]
            cover = np.clip(0.5 - distance, 0, 1)
            parts[cover > 0] = number
            picture += cover[..., None] * (np.asarray(COLOURS[colour], np.float32) - picture)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8), parts

    def frames(self) -> Image:
        """The clip as RGB [f, h, w, 3], 0 to 255."""
        return self.render()[0]

    def masks(self) -> NDArray[np.bool_]:
        """Where the person is painted at all: [f, h, w]."""
        return self.render()[1] >= 0

    def _background(self, grid: NDArray[np.float32], frames: NDArray[np.int64]) -> NDArray[np.float32]:
        scene = self.scene
        zoom, shift = (part[frames].astype(np.float32) for part in scene.view(self.motion.frames))
        screen = (grid - np.float32((self.size - 1) / 2)) / self.size  # h w 2
        if scene.camera == "still":
            zoom, shift = zoom[:1], shift[:1]
        world = (screen[None] - shift[:, None, None]) / zoom[:, None, None, None]
        rng = np.random.default_rng([scene.texture, 5])
        texture = background_texture(scene.pattern, world + rng.random(2).astype(np.float32), rng)
        picture = np.asarray(BACKGROUNDS[scene.background], np.float32) + np.float32(CONTRAST) * texture[..., None]
        return np.broadcast_to(picture, (len(frames), *picture.shape[1:])).astype(np.float32)  # a copy of its own

    def _to_pixels(self, points: Array) -> Array:
        zoom, shift = self.scene.view(self.motion.frames)
        return (self.size - 1) / 2 + self.size * (zoom[:, None, None] * points + shift[:, None])


def body_joints(build: Build, motion: Motion) -> Array:
    """OpenPose's 18 joints and the middle of the hips [f, 19, 2]: feet on the ground, or `hop` above it."""
    angle = {bone: motion.angles[:, number] for number, bone in enumerate(BONES)}
    down = {bone: np.stack([np.sin(a), np.cos(a)], axis=-1) for bone, a in angle.items()}  # along each bone
    upright = {bone: np.stack([np.sin(angle[bone]), -np.cos(angle[bone])], axis=-1) for bone in ("torso", "head")}
    across = {bone: np.stack([-up[:, 1], up[:, 0]], axis=-1) for bone, up in upright.items()}  # to the person's left
    joints = np.zeros((motion.frames, BODY_JOINTS + 1, 2))
    joints[:, 1] = build.torso * upright["torso"]
    joints[:, 0] = joints[:, 1] + 0.115 * upright["head"]
    for joint, side, height in ((14, -0.03, 0.025), (15, 0.03, 0.025), (16, -0.062, 0.01), (17, 0.062, 0.01)):
        joints[:, joint] = joints[:, 0] + side * across["head"] + height * upright["head"]
    for name, first, sign in (("right", 2, -1), ("left", 5, 1)):
        joints[:, first] = joints[:, 1] + sign * build.shoulders * across["torso"]
        joints[:, first + 1] = joints[:, first] + build.arm * down[f"{name}_arm"]
        joints[:, first + 2] = joints[:, first + 1] + build.forearm * down[f"{name}_forearm"]
    for name, first, sign in (("right", 8, -1), ("left", 11, 1)):
        joints[:, first] = (sign * build.hips, 0)
        joints[:, first + 1] = joints[:, first] + build.thigh * down[f"{name}_thigh"]
        joints[:, first + 2] = joints[:, first + 1] + build.shin * down[f"{name}_shin"]
    sole = joints[:, [10, 13], 1].max(axis=1)
    return joints + np.stack([motion.side, GROUND - motion.hop - sole], axis=-1)[:, None]


def _to_segment(grid: NDArray[np.float32], start: NDArray[np.float32], end: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance of points [h, w, 2] from the lines between `start` and `end` [n, 2]: [n, h, w]."""
    line = end - start
    square = np.maximum((line**2).sum(axis=-1), np.float32(1e-6))[:, None, None]
    x, y = (grid[None, ..., axis] - start[:, axis, None, None] for axis in (0, 1))
    along = np.clip((x * line[:, 0, None, None] + y * line[:, 1, None, None]) / square, 0, 1)
    return np.hypot(x - along * line[:, 0, None, None], y - along * line[:, 1, None, None])


def sample_scene(seed: int) -> Scene:
    """A scene drawn from `seed`: clothes are the ten colours in any order, one for each part."""
    rng = np.random.default_rng([seed, 22])
    colours = tuple(str(name) for name in rng.permutation(list(COLOURS)))
    return Scene(
        build=int(rng.integers(len(BUILDS))),
        clothes=colours,
        pattern=str(rng.choice(PATTERNS)),
        background=str(rng.choice(list(BACKGROUNDS))),
        camera=str(rng.choice(CAMERAS)),
        texture=int(rng.integers(2**31)),
    )


def sample_twins(seed: int, split: str = "train", frames: int = CLIP_FRAMES) -> tuple[Clip, Clip]:
    """Two clips of one scene with motions of two families, all of `split`: each the exact edit of the other."""
    if split not in SPLITS:
        raise ValueError(f"split is '{split}', expected one of {', '.join(SPLITS)}")
    scene = sample_scene(2 * seed + SPLITS.index(split))
    rng = np.random.default_rng([seed, 24, SPLITS.index(split)])
    chosen = rng.permutation(scene.families[split])[:2]
    one, other = (Clip(scene, sample_motion(int(rng.integers(2**31)), str(family), frames)) for family in chosen)
    return one, other
