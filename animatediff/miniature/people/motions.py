"""What stick people do: angles of limbs over time, drawn from a seed, in families.

Lengths are in units of the frame's shorter side. Angles are on screen, in radians from straight down, growing to the
right. Time runs in clips of CLIP_FRAMES frames, so a longer clip is the same motion gone on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CLIP_FRAMES = 16
BONES = (
    *("torso", "head", "right_arm", "right_forearm", "left_arm", "left_forearm"),
    *("right_thigh", "right_shin", "left_thigh", "left_shin"),
)
LEFT = 1.0  # a person faces the camera: their left is the picture's right


@dataclass(frozen=True)
class Motion:
    """Angles of BONES [f, 10] (torso and head: of the lean, from upright), way to the side and hop [f], upwards."""

    family: str
    angles: Array
    side: Array
    hop: Array

    @property
    def frames(self) -> int:
        return len(self.side)


@dataclass(frozen=True)
class Drawn:
    """What a family makes a motion of: time [f] in clips, a generator, and a size near 1."""

    time: Array
    rng: np.random.Generator
    size: float
    mirrored: bool
    phase: float = field(default=0.0)

    def wave(self, cycles: float, shift: float = 0.0) -> Array:
        """A sine of `cycles` a clip: [f]."""
        return np.sin(2 * np.pi * (cycles * self.time + self.phase + shift))

    def rise(self, cycles: float, shift: float = 0.0) -> Array:
        """From 0 to 1 and back, `cycles` times a clip: [f]."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * (cycles * self.time + self.phase + shift))


Angles = dict[str, Array | float]  # outward angles of limbs, by bone; torso and head: of the lean
Maker = Callable[[Drawn], tuple[Angles, Array | float, Array | float]]  # angles, way to the side, hop


def _standing(drawn: Drawn) -> Angles:
    """Arms a little away from the body, feet apart, with a breath of movement."""
    sway = 0.05 * drawn.wave(1)
    return {
        **{"right_arm": 0.3 + sway, "right_forearm": 0.15 + sway, "left_arm": 0.3 - sway, "left_forearm": 0.15 - sway},
        **{"right_thigh": 0.14, "right_shin": 0.06, "left_thigh": 0.14, "left_shin": 0.06},
    }


def _walk(drawn: Drawn) -> Angles:
    """Outward angles of opposite sign are the same way on screen: legs swing against each other, arms against legs."""
    swing, bend = 0.5 * drawn.size * drawn.wave(1.5), 0.6 * drawn.size
    ahead = 0.45
    return {
        **{"right_thigh": 0.1 + swing, "right_shin": 0.1 + swing - bend * drawn.rise(1.5, 0.1)},
        **{"left_thigh": 0.1 + swing, "left_shin": 0.1 + swing - bend * drawn.rise(1.5, 0.6)},
        **{"right_arm": 0.35 - swing, "right_forearm": 0.35 - swing - ahead},
        **{"left_arm": 0.35 - swing, "left_forearm": 0.35 - swing + ahead},
        "torso": 0.04 * drawn.wave(3),
    }


def _walk_in_place(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    return _walk(drawn), 0.0, 0.0


def _walk_across(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    way = 0.17 * drawn.size * (2 * drawn.rise(0.5) - 1)
    return _walk(drawn), way, 0.0


def _wave(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    waving = 0.6 * drawn.size * drawn.wave(2)
    angles = _standing(drawn)
    return angles | {"left_arm": 2.1 + 0.2 * drawn.wave(1), "left_forearm": 2.9 + waving, "torso": 0.06}, 0.0, 0.0


def _jumping_jack(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    open_ = drawn.rise(1.5)
    arms, legs = 0.25 + 2.4 * open_, 0.08 + 0.5 * drawn.size * open_
    sides = ("right", "left")
    angles: Angles = {f"{side}_{bone}": arms for side in sides for bone in ("arm", "forearm")}
    return angles | {f"{side}_{bone}": legs for side in sides for bone in ("thigh", "shin")}, 0.0, 0.04 * open_


def _squat(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    down = drawn.size * drawn.rise(1)
    angles: Angles = {}
    for side in ("right", "left"):
        angles |= {f"{side}_thigh": 0.15 + 0.95 * down, f"{side}_shin": 0.1 - 0.35 * down}
        angles |= {f"{side}_arm": 0.3 + 1.2 * down, f"{side}_forearm": 0.2 + 1.3 * down}
    return angles, 0.0, 0.0


def _stretch(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    up, bend = drawn.rise(1), 0.22 * drawn.size * drawn.wave(1, 0.25)
    angles = _standing(drawn)
    for side in ("right", "left"):
        angles |= {f"{side}_arm": 0.5 + 2.1 * up, f"{side}_forearm": 0.5 + 2.5 * up}
    return angles | {"torso": bend, "head": bend}, 0.0, 0.0


def _kick(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    up = drawn.rise(1.5)
    angles = _standing(drawn)
    angles |= {
        "left_thigh": 0.15 + 1.25 * drawn.size * up,
        "left_shin": 0.1 + 1.3 * drawn.size * up,
        "torso": -0.2 * up,
    }
    return angles | {"right_arm": 0.4 + 0.9 * up, "right_forearm": 0.3 + 1.1 * up, "left_arm": 0.3 + 0.6 * up}, 0.0, 0.0


def _lean(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    lean = 0.42 * drawn.size * drawn.wave(1)
    hips: Angles = {"right_arm": 0.8, "right_forearm": -0.7, "left_arm": 0.8, "left_forearm": -0.7}
    return _standing(drawn) | hips | {"torso": lean, "head": lean}, -0.1 * lean, 0.0


def _dance(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    rates = drawn.rng.choice([1.0, 1.5, 2.0], 4)
    shifts = drawn.rng.random(4)
    sway = drawn.wave(1)
    angles: Angles = {"torso": 0.15 * sway, "head": 0.25 * sway}
    for side, rate, shift in zip(("right", "left"), rates[:2], shifts[:2], strict=True):
        arm = 1.3 + 0.7 * drawn.size * drawn.wave(rate, shift)
        angles |= {f"{side}_arm": arm, f"{side}_forearm": arm + 0.9 + 0.6 * drawn.wave(rate, shift + 0.2)}
    for side, rate, shift in zip(("right", "left"), rates[2:], shifts[2:], strict=True):
        bent = drawn.size * drawn.rise(rate, shift)
        angles |= {f"{side}_thigh": 0.15 + 0.45 * bent, f"{side}_shin": 0.1 - 0.3 * bent}
    return angles, 0.05 * sway, 0.0


def _march(drawn: Drawn) -> tuple[Angles, Array | float, Array | float]:
    angles: Angles = {}
    for side, shift in (("right", 0.0), ("left", 0.5)):
        up = np.maximum(0, drawn.wave(1.5, shift))
        angles |= {f"{side}_thigh": 0.1 + 1.1 * drawn.size * up, f"{side}_shin": 0.05 - 0.3 * up}
        other = np.maximum(0, drawn.wave(1.5, shift + 0.5))
        angles |= {f"{side}_arm": 0.3 + 0.4 * other, f"{side}_forearm": 0.2 + 1.9 * other}
    return angles, 0.0, 0.0


MAKERS: dict[str, Maker] = {
    "walk_in_place": _walk_in_place,
    "walk_across": _walk_across,
    "wave": _wave,
    "jumping_jack": _jumping_jack,
    "squat": _squat,
    "stretch": _stretch,
    "kick": _kick,
    "lean": _lean,
    "dance": _dance,
    "march": _march,
}
FAMILIES = tuple(MAKERS)


def sample_motion(seed: int, family: str, frames: int = CLIP_FRAMES) -> Motion:
    """A motion of `family` drawn from `seed`: its size, tempo, phase, side and where the person stands."""
    rng = np.random.default_rng([seed, 21, FAMILIES.index(family)])
    time = np.arange(frames) / CLIP_FRAMES * rng.uniform(0.85, 1.15)
    drawn = Drawn(time, rng, rng.uniform(0.75, 1.15), bool(rng.random() < 0.5), rng.random())
    outward, way, hop = MAKERS[family](drawn)
    signs = {"right": -LEFT, "left": LEFT}
    angles = {bone: np.broadcast_to(outward.get(bone, 0.0), frames) for bone in BONES}
    angles = {bone: signs.get(bone.split("_")[0], 1.0) * angle for bone, angle in angles.items()}
    side = np.broadcast_to(way, frames)
    if drawn.mirrored:
        angles, side = {_other_side(bone): -angle for bone, angle in angles.items()}, -side
    stands = 0.0 if family == "walk_across" else rng.uniform(-0.07, 0.07)
    table = np.stack([angles[bone] for bone in BONES], axis=1)
    return Motion(family, table, side + stands, np.broadcast_to(hop, frames))


def _other_side(bone: str) -> str:
    side, _, rest = bone.partition("_")
    return {"right": f"left_{rest}", "left": f"right_{rest}"}.get(side, bone)
