"""The moving-shape world: clips of textured shapes on textured backgrounds, with exact ground truth.

Any motion (animatediff/miniature/motions.py) can be rendered with any content, at any size and number of frames, so
exact pairs of clips with one motion and two contents are unlimited. Everything follows from integer seeds.
Pixel coordinates: x right, y down, the centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from animatediff.miniature.motions import RADIUS, SPLITS, Array, Motion, sample_motion

Pixels = NDArray[np.floating]

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (228, 38, 38),
    "yellow": (245, 220, 40),
    "green": (45, 205, 60),
    "blue": (45, 75, 245),
    "pink": (245, 75, 205),
    "white": (248, 248, 248),
}
PATTERNS = ("striped", "dotted", "checkered", "cloudy")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (112, 112, 112),
    "brown": (128, 92, 60),
    "teal": (52, 118, 112),
    "navy": (62, 66, 118),
}
CONTRAST = 40.0  # half the range of a background's texture, in grey levels
WAVES = 1.9  # of a background's texture per unit of length, along both axes
SWELL = 0.36  # of a stripe's texture: at each mark, so that sliding along the stripe shows
PUFFS, HAZE = 0.6, 0.22  # of a cloudy background's texture: its marks, and each of three waves of its own
BEND = 0.25  # of each of three slow waves that displace the marks of a cloudy background, in radians
SHADE = 0.24  # depth of the subject's own texture, as a share of its colour
LAYOUTS = ("shared", "turned", "scattered")  # of a background's marks
HELD_OUT_CONTENT = 6  # one combination in six is kept for evaluation


@dataclass(frozen=True)
class Content:
    """What a clip shows: names from SHAPES, COLOURS, PATTERNS and BACKGROUNDS, and a seed for clouds and shading."""

    shape: str
    colour: str
    pattern: str
    background: str
    texture: int = 0

    @property
    def caption(self) -> str:
        """Names the content and never the motion: "a red star on a striped grey background"."""
        return f"a {self.colour} {self.shape} on a {self.pattern} {self.background} background"

    @property
    def split(self) -> str:
        """`heldout` for every sixth combination of (shape, colour, pattern, background), `train` otherwise.

        Combinations are held out, not parts: each pair of names still occurs in training.
        """
        subject = SHAPES.index(self.shape) + list(COLOURS).index(self.colour)
        background = PATTERNS.index(self.pattern) + list(BACKGROUNDS).index(self.background)
        return SPLITS[(subject + background) % HELD_OUT_CONTENT == 0]


def contents(split: str) -> list[Content]:
    """Every combination of names that belongs to `split`, in a fixed order."""
    every = (Content(*names) for names in itertools.product(SHAPES, COLOURS, PATTERNS, BACKGROUNDS))
    return [content for content in every if content.split == split]


def sample_content(seed: int, split: str = "train") -> Content:
    """A content drawn from `seed`, with a seed of its own for clouds and shading."""
    if split not in SPLITS:
        raise ValueError(f"split is '{split}', expected one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, 2, SPLITS.index(split)])
    choices = contents(split)
    chosen = choices[rng.integers(len(choices))]
    names = (chosen.shape, chosen.colour, chosen.pattern, chosen.background)
    return Content(*names, texture=int(rng.integers(2**31)))


@dataclass(frozen=True)
class Clip:
    """A content in motion at a size (height, width) in pixels; frames and ground truth are computed on demand.

    `anchored`: the motion's origin places the background's marks, so clips that share a motion share those places.
    Otherwise the content's own seed places them, and two clips of one motion share nothing but the motion.
    `layout`, one of LAYOUTS: shared, the grid of marks that all training clips have; turned, the same grid turned by
    an angle of the content's own; scattered, marks at random places, as many as the grid has.
    """

    content: Content
    motion: Motion
    size: tuple[int, int] = (64, 64)
    anchored: bool = True
    layout: str = "shared"

    @property
    def caption(self) -> str:
        return self.content.caption

    @property
    def unit(self) -> int:
        """Pixels per unit of length: the shorter side."""
        return min(self.size)

    @property
    def origin(self) -> Array:
        """Where on the background world point 0 lies: [2]."""
        return self.motion.origin if self.anchored else np.random.default_rng([self.content.texture, 7]).random(2)

    def frames(self) -> NDArray[np.uint8]:
        """The clip as RGB: [f, h, w, 3], 0 to 255."""
        return render(self)

    def track(self) -> Array:
        """The subject's centre on screen, in pixels: [f, 2] as (x, y)."""
        motion = self.motion
        return self._to_pixels(motion.zoom[:, None] * motion.centre + motion.shift)

    def radii(self) -> Array:
        """The subject's radius (of the circle around its shape) on screen, in pixels: [f]."""
        return RADIUS * self.motion.scale * self.motion.zoom * self.unit

    def camera(self) -> Array:
        """The camera as similarities [f, 2, 3] in pixels: world (x, y, 1) to screen; the identity when it is still."""
        motion = self.motion
        middle = self._to_pixels(np.zeros(2))
        matrices = np.zeros((motion.frames, 2, 3))
        matrices[:, 0, 0] = matrices[:, 1, 1] = motion.zoom
        matrices[:, :, 2] = middle * (1 - motion.zoom[:, None]) + motion.shift * self.unit
        return matrices

    def camera_steps(self) -> Array:
        """The camera's move from each frame to the next as similarities in pixels: [f - 1, 2, 3]."""
        full = np.concatenate([self.camera(), np.tile([[[0.0, 0.0, 1.0]]], (self.motion.frames, 1, 1))], axis=1)
        return (full[1:] @ np.linalg.inv(full[:-1]))[:, :2]

    def points_on_subject(self, count: int, seed: int = 0) -> Array:
        """Tracks of `count` points fixed to the subject, well inside its outline: [count, f, 2] in pixels."""
        rng = np.random.default_rng([seed, 3])
        drawn = rng.uniform(-1, 1, (count * 64, 2))
        local = drawn[shape_distance(self.content.shape, drawn) < -0.12][:count]
        motion = self.motion
        cos, sin = np.cos(motion.angle), np.sin(motion.angle)
        turn = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)  # f 2 2
        offsets = np.einsum("fij,nj->nfi", turn, local) * (RADIUS * motion.scale)[None, :, None]
        world = motion.centre[None] + offsets
        return self._to_pixels(motion.zoom[None, :, None] * world + motion.shift[None])

    def points_on_background(self, count: int, seed: int = 0, margin: float = 3.0) -> Array:
        """Tracks of `count` points fixed to the background: [count, f, 2] in pixels.

        Every point stays `margin` pixels inside the frame and clear of the subject throughout. ValueError where the
        motion leaves too few such points.
        """
        height, width = self.size
        rng = np.random.default_rng([seed, 4])
        start = rng.uniform(0, 1, (count * 256, 2)) * (width - 1, height - 1)
        camera = self.camera()
        world = (start - camera[0, :, 2]) / camera[0, 0, 0]
        tracks = np.einsum("fij,nj->nfi", camera[:, :, :2], world) + camera[None, :, :, 2]
        inside = ((tracks >= margin) & (tracks <= np.array([width, height]) - 1 - margin)).all(axis=(1, 2))
        clear = np.linalg.norm(tracks - self.track()[None], axis=-1) > self.radii()[None] + margin
        kept = tracks[inside & clear.all(axis=1)][:count]
        if len(kept) < count:
            raise ValueError(f"only {len(kept)} background points stay visible through this clip, asked for {count}")
        return kept

    def _to_pixels(self, points: Array) -> Array:
        height, width = self.size
        return np.array([(width - 1) / 2, (height - 1) / 2]) + points * self.unit


def make_clip(
    seed: int, split: str = "train", frames: int = 16, size: tuple[int, int] = (64, 64), anchored: bool = True
) -> Clip:
    """A clip drawn from `seed`: motion and content both of `split`. For `anchored` see `Clip`."""
    return Clip(sample_content(seed, split), sample_motion(seed, split, frames=frames), size, anchored)


def render(clip: Clip) -> NDArray[np.uint8]:
    """The clip's frames, anti-aliased: [f, h, w, 3], RGB, 0 to 255."""
    motion, content = clip.motion, clip.content
    height, width = clip.size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    screen = np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], axis=-1) / clip.unit  # h w 2
    shift, zoom = (part.astype(np.float32) for part in (motion.shift, motion.zoom))
    world = (screen[None] - shift[:, None, None]) / zoom[:, None, None, None]  # f h w 2
    rng = np.random.default_rng([content.texture, 5])
    still = not motion.moves_camera
    marked = (world[:1] if still else world) + clip.origin.astype(np.float32)
    texture = background_texture(
        content.pattern, _laid_out(marked, clip), rng, clip.layout == "scattered"
    )  # f or 1, h w
    background = np.asarray(BACKGROUNDS[content.background], np.float32) + CONTRAST * texture[..., None]
    local = _to_local(world, motion)  # f h w 2
    pixel = 1 / (RADIUS * motion.scale * motion.zoom * clip.unit)
    distance = shape_distance(content.shape, local) / pixel.astype(np.float32)[:, None, None]  # in pixels
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    shade = 1 - SHADE * (0.5 + 0.5 * np.sin(4.2 * local[..., 0] + 2.1 * local[..., 1] + rng.uniform(0, 2 * np.pi)))
    subject = np.asarray(COLOURS[content.colour], np.float32) * shade[..., None].astype(np.float32)
    return np.clip(np.rint(background + cover * (subject - background)), 0, 255).astype(np.uint8)


def _to_local(world: Pixels, motion: Motion) -> Pixels:
    """World points [f, h, w, 2] in the subject's own frame, where its radius is 1."""
    offset = (world - motion.centre[:, None, None].astype(np.float32)) / (
        RADIUS * motion.scale[:, None, None, None].astype(np.float32)
    )
    cos = np.cos(motion.angle).astype(np.float32)[:, None, None]
    sin = np.sin(motion.angle).astype(np.float32)[:, None, None]
    x, y = offset[..., 0], offset[..., 1]
    return np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)


def _laid_out(background: Pixels, clip: Clip) -> Pixels:
    """Points of the background [..., 2] where the clip's layout has the grid of marks straight: [..., 2]."""
    own = np.random.default_rng([clip.content.texture, 11])
    if clip.layout == "turned":
        angle = own.uniform(np.pi / 9, np.pi / 3.5)
        x, y = background[..., 0], background[..., 1]
        turned = [np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y]
        return np.stack(turned, axis=-1).astype(np.float32)
    return background


def background_texture(pattern: str, background: Pixels, rng: np.random.Generator, scattered: bool = False) -> Pixels:
    """The texture of a background at points of the background [..., 2]: values in [-1, 1], [...].

    Every pattern is made of light marks at the same points, the corners and centres of a grid WAVES to a unit: checks,
    dots, ridges that run through them, or puffs that lie near them in a haze. `scattered`: the marks, as large and as
    many, lie at random places; stripes stay where they are and swell there.
    """
    u, v = (np.float32(2 * np.pi * WAVES) * background[..., axis] for axis in (0, 1))
    anywhere = _scattered(background, rng) if scattered else None
    if pattern == "striped":  # diagonal
        return (1 - SWELL) * np.cos(u - v) + SWELL * (np.cos(u + v) if anywhere is None else 2 * anywhere)
    if pattern == "cloudy":
        haze = HAZE * _waves(background, rng, 0.7, 1.6)
        u, v = (angle + BEND * _waves(background, rng, 0.5, 1.1) for angle in (u, v))
        return np.clip(PUFFS * (np.cos(u) * np.cos(v) if anywhere is None else anywhere) + haze, -1, 1)
    marks = np.cos(u) * np.cos(v) if anywhere is None else anywhere
    return np.tanh(4 * marks) if pattern == "checkered" else 2 / (1 + np.exp(-9 * (marks - 0.3))) - 1


def _scattered(background: Pixels, rng: np.random.Generator) -> Pixels:
    """A random field of the grid's wave length and strength at points [..., 2]: about -1 to 1, [...]."""
    count, total = 12, np.zeros_like(background[..., 0])
    for heading in np.pi * (np.arange(count) + rng.random(count)) / count:
        along = np.cos(heading) * background[..., 0] + np.sin(heading) * background[..., 1]
        start = np.float32(rng.uniform(0, 2 * np.pi))
        total += np.cos(np.float32(2 * np.pi * WAVES * np.sqrt(2)) * along.astype(np.float32) + start)
    return np.clip(total / np.sqrt(2 * count), -1, 1)  # the deviation of cos u cos v: a half


def _waves(background: Pixels, rng: np.random.Generator, lowest: float, highest: float) -> Pixels:
    """The sum of three waves, of `lowest` to `highest` to a unit and every way, at points [..., 2]."""
    total = np.zeros_like(background[..., 0])
    for heading in np.pi * (np.arange(3) + rng.random(3)) / 3:
        wave, start = rng.uniform(lowest, highest), rng.uniform(0, 2 * np.pi)
        along = np.cos(heading) * background[..., 0] + np.sin(heading) * background[..., 1]
        total += np.sin(np.float32(2 * np.pi * wave) * along.astype(np.float32) + np.float32(start))
    return total


def shape_distance(shape: str, local: NDArray) -> NDArray:
    """Signed distance to the outline of `shape` at local points [..., 2], negative inside; radius about 1: [...]."""
    x, y = local[..., 0], local[..., 1]
    if shape == "circle":
        return np.hypot(x, y) - 0.86
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.76
    if shape == "triangle":  # corners on the unit circle, one pointing up
        return np.maximum(np.abs(x) * np.sqrt(0.75) - y * 0.5, y) - 0.5
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.maximum(np.maximum(x, y) - 0.92, np.minimum(x, y) - 0.3)
    return _star_distance(x, y)


def _star_distance(x: NDArray, y: NDArray, points: int = 5, inner: float = 0.42) -> NDArray:
    """Signed distance (exact near the edges) to a star with one point up: outer radius 1, inner radius `inner`."""
    sector = np.pi / points
    folded = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    u, v = radius * np.cos(folded), radius * np.sin(folded)
    edge = np.array([inner * np.cos(sector) - 1, inner * np.sin(sector)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (u - 1) * normal[0] + v * normal[1]
