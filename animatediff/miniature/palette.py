"""What a clip of the moving-shape world shows, read from its pixels alone: colour, shape, background, track.

Every function takes RGB frames [f, h, w, 3] of 0 to 255 and knows only the world's palette, so it serves rendered,
compressed and generated clips alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from animatediff.miniature.motions import Array
from animatediff.miniature.world import BACKGROUNDS, COLOURS, CONTRAST, SHADE, SHAPES, WAVES, shape_distance

Frames = NDArray[np.uint8]

MIN_SHARE = 0.003  # of the frame's pixels: fewer in one colour are not a subject
CROP = 32  # side of the normalised masks that shapes are compared in
STRETCHES = np.geomspace(1 / 1.62, 1 / 0.77, 22)  # how far the camera's zoom stretches a pattern's waves
# Waves that explain less of the background's variance than this are not there, and the background is cloudy: rendered,
# they explain 0.88 or more of a regular pattern and 0.68 or less of a cloudy one.
REGULAR = 0.78
ONE_SIDED = 0.63  # the larger diagonal's share of both: 0.75 for stripes, 0.5 for dots and checks
DOTS = 0.07  # the share of waves along the axes: 0.15 to 0.18 for dots, 0 for stripes and checks


@dataclass(frozen=True)
class Reading:
    """What was read: names (None where nothing fits), the subject's covers [f, h, w] (see `subject_cover`) and
    its track [f, 2] in pixels (nan where unseen)."""

    colour: str | None
    shape: str | None
    pattern: str
    background: str
    covers: Array
    track: Array


def read_clip(frames: Frames) -> Reading:
    """Everything at once."""
    colour = subject_colour(frames)
    covers = subject_cover(frames, colour)
    shape = None if colour is None else subject_shape(covers)
    pattern, background = background_pattern(frames, covers), background_colour(frames)
    return Reading(colour, shape, pattern, background, covers, centroids(covers))


def colour_counts(frames: Frames) -> dict[str, Array]:
    """Pixels of each frame that are nearer to a subject colour (in any shade) than to all else: name -> [f]."""
    pixels = frames.astype(np.float32)
    subjects = np.stack([_distance_to_segment(pixels, (1 - SHADE) * c, c) for c in _table(COLOURS)])
    backgrounds = np.stack([_distance_to_segment(pixels, g - CONTRAST, g + CONTRAST) for g in _table(BACKGROUNDS)])
    nearest = subjects.argmin(axis=0)
    clear = subjects.min(axis=0) * 1.5 < backgrounds.min(axis=0)
    return {name: ((nearest == i) & clear).sum(axis=(1, 2)).astype(float) for i, name in enumerate(COLOURS)}


def subject_colour(frames: Frames) -> str | None:
    """The subject colour with most pixels over the clip; None where none is there."""
    totals = {name: counts.mean() for name, counts in colour_counts(frames).items()}
    best = max(totals, key=totals.__getitem__)
    return best if totals[best] >= MIN_SHARE * frames[0, ..., 0].size else None


def shows_colour(frames: Frames, colour: str) -> bool:
    """Whether `colour` covers as much as a small subject would in a quarter of the frames or more."""
    seen = colour_counts(frames)[colour] >= MIN_SHARE * frames[0, ..., 0].size
    return bool(seen.mean() >= 0.25)


def subject_cover(frames: Frames, colour: str | None) -> Array:
    """How much of each pixel the subject of `colour` covers, [f, h, w] in [0, 1]; only its largest piece counts.

    Zeros where there is no subject, None.
    """
    if colour is None:
        return np.zeros(frames.shape[:3])
    pixels = frames.astype(np.float32)
    subject = np.asarray(COLOURS[colour], np.float32)
    background = np.asarray(BACKGROUNDS[background_colour(frames)], np.float32)
    from_subject = _distance_to_segment(pixels, (1 - SHADE) * subject, subject)
    from_background = _distance_to_segment(pixels, background - CONTRAST, background + CONTRAST)
    away = _distance_to_segment(pixels, background, subject)
    cover = np.clip((from_background / (from_background + from_subject + 1e-6) - 0.25) / 0.5, 0, 1) * (away < 110)
    return np.stack([_largest_piece(frame) for frame in cover])


def centroids(covers: Array) -> Array:
    """Centres of mass of `covers` [f, h, w] as (x, y) in pixels, [f, 2]; nan where nothing is covered."""
    height, width = covers.shape[1:]
    mass = covers.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.where(mass > 0, covers.sum(axis=1) @ np.arange(width) / mass, np.nan)
        y = np.where(mass > 0, covers.sum(axis=2) @ np.arange(height) / mass, np.nan)
    return np.stack([x, y], axis=1)


def subject_shape(covers: Array) -> str | None:
    """The shape whose outline, turned and scaled at best, overlaps the covers [f, h, w] most over the clip."""
    names, bank = _templates()
    scores = np.zeros(len(SHAPES))
    for cover in covers:
        if cover.sum() < MIN_SHARE * cover.size:
            continue
        mask = _normalised(cover).reshape(1, -1)
        overlap = np.minimum(mask, bank).sum(axis=1) / np.maximum(mask, bank).sum(axis=1)
        scores += [overlap[names == i].max() for i in range(len(SHAPES))]
    return SHAPES[int(scores.argmax())] if scores.any() else None


def background_colour(frames: Frames) -> str:
    """The background colour that most of the clip's pixels are nearest to, in any of its shades."""
    pixels = frames.reshape(-1, 3).astype(np.float32)
    distances = np.stack([_distance_to_segment(pixels, g - CONTRAST, g + CONTRAST) for g in _table(BACKGROUNDS)])
    return list(BACKGROUNDS)[int(np.bincount(distances.argmin(axis=0), minlength=len(BACKGROUNDS)).argmax())]


def background_pattern(frames: Frames, covers: Array, looks: int = 4) -> str:
    """The pattern that the waves in the background of `looks` frames, outside `covers` [f, h, w], tell of."""
    chosen = np.linspace(0, len(frames) - 1, min(looks, len(frames))).round().astype(int)
    shares = np.zeros(4)
    for number in chosen:
        away = cv2.dilate(covers[number], np.ones((5, 5))) == 0
        shares += wave_shares(frames[number].astype(np.float64).mean(axis=-1), away) / len(chosen)
    explained, falling, rising, along_axes = shares
    if explained < REGULAR:
        return "cloudy"
    if max(falling, rising) > ONE_SIDED * (falling + rising):
        return "striped"
    return "dotted" if along_axes > DOTS * explained else "checkered"


def _table(colours: dict[str, tuple[int, int, int]]) -> NDArray[np.float32]:
    return np.asarray(list(colours.values()), np.float32)


def _distance_to_segment(pixels: NDArray, start: NDArray, end: NDArray) -> NDArray:
    """Distance of colours [..., 3] to the segment between two colours: [...]."""
    direction = end - start
    along = np.clip((pixels - start) @ direction / (direction @ direction), 0, 1)
    return np.linalg.norm(pixels - start - along[..., None] * direction, axis=-1)


def _largest_piece(cover: NDArray) -> Array:
    count, labels, stats, _ = cv2.connectedComponentsWithStats((cover > 0.3).astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros(cover.shape)
    biggest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return np.where(cv2.dilate((labels == biggest).astype(np.uint8), np.ones((3, 3))) > 0, cover, 0).astype(float)


def _normalised(cover: Array) -> NDArray[np.float32]:
    """`cover` moved and scaled so that its centre is the middle and its area a fifth of a CROP x CROP image."""
    scale = CROP * np.sqrt(0.2 / cover.sum())
    x, y = centroids(cover[None])[0]
    middle = (CROP - 1) / 2
    matrix = np.array([[scale, 0, middle - scale * x], [0, scale, middle - scale * y]])
    return np.asarray(
        cv2.warpAffine(cover.astype(np.float32), matrix, (CROP, CROP), flags=cv2.INTER_LINEAR), np.float32
    )


@functools.cache
def _templates(turns: int = 24) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Every shape in `turns` orientations: (index of the shape [n], masks [n, CROP * CROP])."""
    rows, columns = np.mgrid[:64, :64] - 31.5
    names, bank = [], []
    for index, shape in enumerate(SHAPES):
        for angle in 2 * np.pi * np.arange(turns) / turns:
            x, y = np.cos(angle) * columns + np.sin(angle) * rows, np.cos(angle) * rows - np.sin(angle) * columns
            distance = 11 * shape_distance(shape, np.stack([x, y], axis=-1) / 11)
            names.append(index)
            bank.append(_normalised(np.clip(0.5 - distance, 0, 1)).ravel())
    return np.array(names), np.stack(bank)


def wave_shares(grey: Array, away: NDArray[np.bool_]) -> Array:
    """Shares of the variance of `grey` [h, w] where `away` that a pattern's waves explain at the best stretch: [4].

    All of them; those along either diagonal; those along the axes, twice as short. Zeros where nothing varies.
    """
    unit = min(grey.shape)
    rows, columns = np.nonzero(away)
    rows, columns = rows[::3], columns[::3]
    best = np.zeros(4)
    if not len(rows):
        return best
    values = grey[rows, columns] - grey[rows, columns].mean()
    variance = float((values**2).sum())
    if variance < len(values):  # less than a grey level: flat
        return best
    for stretch in STRETCHES:
        wave = 2j * np.pi * WAVES * stretch / unit
        across, down = np.exp(wave * columns), np.exp(wave * rows)
        waves = (across * down, across * down.conj(), across * across, down * down)
        basis = np.stack([part for z in waves for part in (z.real, z.imag)] + [np.ones(len(rows))], axis=1)
        weights = np.linalg.lstsq(basis, values, rcond=None)[0]
        explained = 1 - float(((values - basis @ weights) ** 2).sum()) / variance
        if explained > best[0]:
            parts = [float((basis[:, k : k + 2] @ weights[k : k + 2]).var()) for k in (0, 2, 4, 6)]
            best = np.array([explained, *np.array([parts[0], parts[1], parts[2] + parts[3]]) * len(values) / variance])
    return best
