"""The motions of the moving-shape world: parametric paths with exact ground truth, split into train and held-out.

Lengths are in units of the frame's shorter side, origin at the frame's centre, x to the right, y down. Time runs from
0 (first frame) to 1 (last frame). A motion says nothing of content: the same one can be rendered with any subject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RADIUS = 0.17  # of the subject at scale 1
LIMIT = 0.48  # the subject's outline stays within +-LIMIT of the centre on both axes
SECTORS = 24  # the primary parameter's range is cut into this many equal sectors ...
HELD_OUT_EVERY = 6  # ... and every sixth is kept for evaluation
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Motion:
    """One motion over f frames: the subject's pose in the world and the camera's view of the world.

    centre [f, 2], scale [f] and angle [f] (radians, clockwise on screen) describe the subject before the camera;
    the camera shows world point p at zoom * p + shift, with zoom [f] and shift [f, 2]. `origin` [2] is where on the
    background world point 0 lies: as a track says where the subject is and not only how it moves, so a camera's motion
    says where it looks, and the marks of any background (animatediff/miniature/world.py) pass it at the same places.
    """

    family: str
    phase: float
    centre: Array
    scale: Array
    angle: Array
    zoom: Array
    shift: Array
    origin: Array = field(default_factory=lambda: np.zeros(2))

    @property
    def frames(self) -> int:
        return len(self.scale)

    @property
    def moves_camera(self) -> bool:
        return self.family in CAMERA_FAMILIES

    def reversed(self) -> Motion:
        """The same motion played backwards."""
        names = ("centre", "scale", "angle", "zoom", "shift")
        return replace(self, **{name: getattr(self, name)[::-1].copy() for name in names})


Path = tuple[Array, Array, Array]  # centre [f, 2], scale [f], angle [f]
Maker = Callable[[Array, float, np.random.Generator], Path]


def _direction(phase: float) -> Array:
    return np.array([np.cos(2 * np.pi * phase), np.sin(2 * np.pi * phase)])


def _along(direction: Array, distance: Array) -> Array:
    """Points at `distance` [f] along `direction` [2]: [f, 2]."""
    return distance[:, None] * direction[None, :]


def _still(time: Array) -> tuple[Array, Array]:
    return np.ones_like(time), np.zeros_like(time)


def _line(time: Array, phase: float, rng: np.random.Generator) -> Path:
    return _along(_direction(phase), time * rng.uniform(0.36, 0.62)), *_still(time)


def _accelerate(time: Array, phase: float, rng: np.random.Generator) -> Path:
    power = rng.uniform(1.6, 2.4)
    eased = time**power if rng.random() < 0.5 else 1 - (1 - time) ** power
    return _along(_direction(phase), eased * rng.uniform(0.42, 0.62)), *_still(time)


def _turn(time: Array, phase: float, rng: np.random.Generator, sweep: float, radius: float) -> Path:
    around = 2 * np.pi * phase + rng.choice([-1.0, 1.0]) * sweep * time
    return radius * np.stack([np.cos(around), np.sin(around)], axis=1), *_still(time)


def _arc(time: Array, phase: float, rng: np.random.Generator) -> Path:
    return _turn(time, phase, rng, rng.uniform(1.4, 3.6), rng.uniform(0.18, 0.3))


def _orbit(time: Array, phase: float, rng: np.random.Generator) -> Path:
    return _turn(time, phase, rng, 2 * np.pi, rng.uniform(0.14, 0.25))


def _zigzag(time: Array, phase: float, rng: np.random.Generator) -> Path:
    forward, teeth = _direction(phase), rng.integers(2, 4)
    sideways = np.array([-forward[1], forward[0]]) * rng.choice([-1.0, 1.0])
    wave = 2 * np.abs((time * teeth / 2) % 1 - 0.5)  # a triangle wave between 0 and 1
    path = _along(forward, time * rng.uniform(0.36, 0.55)) + _along(sideways, wave * rng.uniform(0.16, 0.28))
    return path, *_still(time)


def _bounce(time: Array, phase: float, rng: np.random.Generator) -> Path:
    hops, height = rng.integers(1, 3), rng.uniform(0.25, 0.45)
    flight = (time * hops) % 1
    rise = height * 4 * flight * (1 - flight)
    across = np.cos(2 * np.pi * phase) * 0.55 * time
    return np.stack([across, -rise], axis=1), *_still(time)


def _drift(time: Array, phase: float, rng: np.random.Generator) -> Array:
    return _along(_direction(phase), time * rng.uniform(0.18, 0.3))


def _grow(time: Array, phase: float, rng: np.random.Generator) -> Path:
    scale = rng.uniform(0.8, 0.9) * rng.uniform(1.5, 1.75) ** time
    return _drift(time, phase, rng), scale, np.zeros_like(time)


def _shrink(time: Array, phase: float, rng: np.random.Generator) -> Path:
    centre, scale, angle = _grow(time, phase, rng)
    return centre, scale[::-1].copy(), angle


def _rotate(time: Array, phase: float, rng: np.random.Generator) -> Path:
    angle = rng.choice([-1.0, 1.0]) * rng.uniform(np.pi, 2 * np.pi) * time
    return _drift(time, phase, rng), np.ones_like(time), angle


SUBJECT_FAMILIES: dict[str, Maker] = {
    "line": _line,
    "arc": _arc,
    "orbit": _orbit,
    "zigzag": _zigzag,
    "bounce": _bounce,
    "accelerate": _accelerate,
    "grow": _grow,
    "shrink": _shrink,
    "rotate": _rotate,
}
CAMERA_FAMILIES = ("pan", "zoom_in", "zoom_out")
FAMILIES = (*SUBJECT_FAMILIES, *CAMERA_FAMILIES)


def sector_is_held_out(phase: float) -> bool:
    """True where the primary parameter lies in a sector kept for evaluation (every sixth of 24)."""
    return int(phase * SECTORS) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _draw_phase(split: str, rng: np.random.Generator) -> float:
    sectors = [s for s in range(SECTORS) if sector_is_held_out((s + 0.5) / SECTORS) == (split == "heldout")]
    return float((rng.choice(sectors) + rng.random()) / SECTORS)


def sample_motion(seed: int, split: str = "train", family: str | None = None, frames: int = 16) -> Motion:
    """A motion drawn from `seed`: the same in every process, on every machine.

    The primary parameter, `phase` in [0, 1), is the direction of a line, pan, zigzag or drift, the starting point of
    an arc or orbit (a full circle), the horizontal speed of a bounce, the side of the focus for a zoom. Phases in
    every sixth of 24 equal sectors belong to `split="heldout"`, the others to `split="train"`: directions 75 to 90
    degrees, for example, are never trained on. `family` is drawn too where None.
    """
    if split not in SPLITS:
        raise ValueError(f"split is '{split}', expected one of {', '.join(SPLITS)}")
    if frames < 1:
        raise ValueError(f"frames is {frames}, expected at least 1")
    rng = np.random.default_rng([seed, 1, SPLITS.index(split)])
    drawn = str(rng.choice(FAMILIES))
    family = family or drawn
    if family not in FAMILIES:
        raise ValueError(f"motion family is '{family}', expected one of {', '.join(FAMILIES)}")
    time = np.linspace(0.0, 1.0, frames)
    phase = _draw_phase(split, rng)
    origin = np.random.default_rng([seed, 6, SPLITS.index(split)]).random(2)
    if family in CAMERA_FAMILIES:
        return _camera_motion(family, time, phase, origin, rng)
    centre, scale, angle = SUBJECT_FAMILIES[family](time, phase, rng)
    centre = _place(centre, LIMIT - RADIUS * scale, rng)
    return Motion(family, phase, centre, scale, angle, np.ones(frames), np.zeros((frames, 2)), origin)


def _camera_motion(family: str, time: Array, phase: float, origin: Array, rng: np.random.Generator) -> Motion:
    """A still subject seen by a moving camera."""
    scale, angle = _still(time)
    zoom, shift = np.ones_like(time), np.zeros((len(time), 2))
    if family == "pan":
        shift = _place(_along(_direction(phase), time * rng.uniform(0.36, 0.62)), LIMIT - RADIUS * scale, rng)
        centre = np.zeros((len(time), 2))
    else:
        zoom = rng.uniform(0.8, 0.9) * rng.uniform(1.5, 1.75) ** time
        zoom = zoom if family == "zoom_in" else zoom[::-1].copy()
        centre = np.repeat(_direction(phase)[None] * rng.uniform(0.08, 0.14), len(time), axis=0)
    return Motion(family, phase, centre, scale, angle, zoom, shift, origin)


def _place(path: Array, room: Array, rng: np.random.Generator) -> Array:
    """`path` [f, 2] moved (and shortened if need be) to a random place where every |point| <= `room` [f]."""
    for _ in range(8):
        low = (-room[:, None] - path).max(axis=0)
        high = (room[:, None] - path).min(axis=0)
        if (low <= high).all():
            break
        path = path * 0.9
    low, high = np.minimum(low, high), np.maximum(low, high)
    return path + low + rng.random(2) * (high - low)
