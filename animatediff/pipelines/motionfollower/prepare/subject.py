"""Whom a clip is about: people's boxes become tracks, and one of them is the subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.poses import positions

SAME_PERSON = 0.3  # IoU of boxes in neighbouring frames
LONGEST_GAP = 8  # frames that a person may not be found in, and is still the same
RIVAL = 0.5  # share of the subject's size and presence from which another person is told of
MARGIN = 0.1  # of a box around joints, by its longer side


@dataclass
class Track:
    """One person over a clip: frame -> box (x0 y0 x1 y1)."""

    boxes: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Size and continuity: the sum over frames of the box's area."""
        return float(sum(_area(box) for box in self.boxes.values()))


@dataclass(frozen=True)
class Subject:
    """The person chosen: a box in each frame (f 4), NaN where there is none, and how many others rival it."""

    boxes: np.ndarray
    found: int  # frames in which it was found; gaps between them are bridged
    rivals: int


def choose_subject(people: np.ndarray, count: int, wish: tuple[float, ...] | None, clip: str) -> Subject:
    """The subject among boxes of people (n 6): frame, x0, y0, x1, y1, score; `count` frames.

    wish: a click (x, y) or a box (x0 y0 x1 y1) in the first frame that shows people; without it the biggest, most
    continuous person is taken. UserError, naming the `clip`, where nobody is found, or nobody where wished.
    """
    tracks = follow(people)
    if not tracks:
        raise UserError(f"no person was found in the {clip} clip; give a clip that shows one, or its keypoints")
    tracks.sort(key=lambda track: -track.weight)
    chosen = tracks[0] if wish is None else _wished(tracks, wish, clip)
    rivals = sum(track is not chosen and track.weight >= RIVAL * chosen.weight for track in tracks)
    return Subject(bridged(chosen.boxes, count), len(chosen.boxes), rivals)


def follow(people: np.ndarray) -> list[Track]:
    """Tracks of boxes (n 6) that overlap from frame to frame, the best pairs first."""
    tracks: list[Track] = []
    for frame in np.unique(people[:, 0]).astype(int):
        boxes = people[people[:, 0] == frame, 1:5]
        open_tracks = [track for track in tracks if frame - max(track.boxes) <= LONGEST_GAP]
        pairs = [
            (_iou(track.boxes[max(track.boxes)], box), i, track) for i, box in enumerate(boxes) for track in open_tracks
        ]
        left = set(range(len(boxes)))
        for overlap, i, track in sorted(pairs, key=lambda pair: -pair[0]):
            if overlap >= SAME_PERSON and i in left and frame not in track.boxes:
                track.boxes[frame] = boxes[i]
                left.discard(i)
        tracks += [Track({frame: boxes[i]}) for i in sorted(left)]
    return tracks


def bridged(boxes: dict[int, np.ndarray], count: int) -> np.ndarray:
    """A box for each of `count` frames (f 4): gaps of up to LONGEST_GAP frames bridged, NaN elsewhere."""
    known = sorted(boxes)
    every = np.stack(
        [np.interp(np.arange(count), known, [boxes[k][side] for k in known]) for side in range(4)], axis=-1
    )
    far = np.array([min(abs(frame - k) for k in known) > LONGEST_GAP for frame in range(count)])
    return np.where(far[:, None], np.nan, every)


def boxes_of(keypoints: np.ndarray) -> np.ndarray:
    """Boxes (f 4) around the joints seen of keypoints (f 60 3), with a margin; NaN where none is seen."""
    joints = positions(keypoints)
    boxes = np.full((len(joints), 4), np.nan)
    for i, frame in enumerate(joints):
        seen = frame[np.isfinite(frame).all(axis=-1)]
        if len(seen) > 1:
            low, high = seen.min(axis=0), seen.max(axis=0)
            boxes[i] = [*(low - MARGIN * (high - low).max()), *(high + MARGIN * (high - low).max())]
    return boxes


def _wished(tracks: Sequence[Track], wish: tuple[float, ...], clip: str) -> Track:
    first = min(min(track.boxes) for track in tracks)
    there = [track for track in tracks if first in track.boxes]
    box = np.array(wish if len(wish) == 4 else (*wish, *wish))
    middle = (box[:2] + box[2:]) / 2
    if len(wish) == 4:
        found = [track for track in there if _iou(track.boxes[first], box) > 0 or _holds(track.boxes[first], middle)]
    else:
        found = [track for track in there if _holds(track.boxes[first], middle)]
    if not found:
        where = "; ".join(",".join(f"{side:.0f}" for side in track.boxes[first]) for track in there)
        raise UserError(
            f"nobody is at {','.join(f'{side:g}' for side in wish)} in frame {first} of the {clip} clip; "
            f"people are in the boxes {where}"
        )
    return min(found, key=lambda track: float(np.linalg.norm(_middle(track.boxes[first]) - middle)))


def _middle(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2


def _holds(box: np.ndarray, point: np.ndarray) -> bool:
    return bool((box[:2] <= point).all() and (point <= box[2:]).all())


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.clip(box[2:] - box[:2], 0, None)))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    both = _area(a) + _area(b) - shared
    return shared / both if both else 0.0
