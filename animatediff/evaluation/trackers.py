"""Point trackers behind one small interface: frames in, tracks and visibility out.

A tracker is a callable `tracker(frames, queries=None) -> Tracks`: frames uint8 [T, H, W, 3] RGB; queries [N, 2] are
(x, y) pixels in the first frame, chosen by the tracker where None.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from animatediff.config import nearest
from animatediff.errors import UserError, one_line

Frames = NDArray[np.uint8]
Points = NDArray[np.float32]


class Tracks(NamedTuple):
    """Paths of N points through T frames."""

    tracks: Points  # [N, T, 2] (x, y) in pixels, the centre of the top left pixel at (0, 0)
    visibility: NDArray[np.bool_]  # [N, T] false where the point is lost, hidden or outside the frame


class Tracker(Protocol):
    """What every tracker can be called with."""

    def __call__(self, frames: Frames, queries: Points | None = None) -> Tracks: ...


@dataclass(frozen=True)
class LucasKanade:
    """Pyramidal Lucas-Kanade (Bouguet 2001, OpenCV) with a forward-backward check (Kalal et al. 2010). No weights.

    Without queries, one point is taken in each cell of a grid x grid division of the first frame: the pixel with the
    greatest smaller eigenvalue of the gradient matrix (Shi and Tomasi 1994), so that points are spread evenly and
    lie where there is something to follow; cells without texture give none. Each point is followed from frame to
    frame in colour, and back: first with a small window, which is exact near edges, and where that fails with larger
    ones, which find fast and smooth things. It is lost for good, and invisible from there on, where with every window
    the flow finds no texture, the way back misses by more than `check`, the colour jumps, or it leaves the frame.
    """

    grid: int = 24
    windows: tuple[float, ...] = (0.07, 0.12, 0.2)  # sides of the squares that are matched, of the shorter side
    levels: int = 3  # halvings of the picture: displacements up to about half the window * 2**levels
    check: float = 0.008  # of the shorter side: 1 pixel at 128
    colour: float = 30.0  # grey levels, mean over channels of the change of a 3 x 3 blurred pixel in one frame
    texture: float = 1e-5  # smallest accepted minimal eigenvalue of the window's gradient matrix (OpenCV's scale)

    def __call__(self, frames: Frames, queries: Points | None = None) -> Tracks:
        frames = np.ascontiguousarray(frames)
        start = self._choose(frames[0]) if queries is None else np.asarray(queries, np.float32).reshape(-1, 2)
        tracks = np.repeat(start[:, None], len(frames), axis=1)  # [N, T, 2]
        visible = np.ones(tracks.shape[:2], dtype=bool)
        for k in range(1, len(frames)):
            ahead, believed = self._step(frames[k - 1], frames[k], tracks[:, k - 1])
            visible[:, k] = visible[:, k - 1] & believed
            tracks[:, k] = np.where(visible[:, k, None], ahead, tracks[:, k - 1])
        return Tracks(tracks, visible)

    def _step(self, old: Frames, new: Frames, points: Points) -> tuple[Points, NDArray[np.bool_]]:
        """Points [N, 2] of one frame followed into the next: positions [N, 2] and which of them to believe [N]."""
        moved, believed = points.copy(), np.zeros(len(points), dtype=bool)
        for window in self.windows:
            left = np.flatnonzero(~believed)
            if not len(left):
                break
            moved[left], believed[left] = self._there_and_back(old, new, points[left], window)
        return moved, believed

    def _there_and_back(
        self, old: Frames, new: Frames, points: Points, window: float
    ) -> tuple[Points, NDArray[np.bool_]]:
        height, width = new.shape[:2]
        ahead, found = self._flow(old, new, points, window)
        back, returned = self._flow(new, old, ahead, window)
        inside = ((ahead >= 0) & (ahead <= (width - 1, height - 1))).all(axis=1)
        close = np.linalg.norm(back - points, axis=1) <= self.check * min(height, width)
        alike = np.abs(_colour_at(new, ahead) - _colour_at(old, points)).mean(axis=1) <= self.colour
        return ahead, found & returned & inside & close & alike

    def _flow(self, old: Frames, new: Frames, points: Points, window: float) -> tuple[Points, NDArray[np.bool_]]:
        side = max(7, round(window * min(new.shape[:2]))) | 1
        start = np.ascontiguousarray(points)
        moved, status, _ = cv2.calcOpticalFlowPyrLK(
            old,
            new,
            start,
            np.empty_like(start),  # filled
            winSize=(side, side),
            maxLevel=self.levels,
            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
            minEigThreshold=self.texture,
        )
        return np.asarray(moved, np.float32), np.asarray(status)[:, 0] == 1

    def _choose(self, frame: Frames) -> Points:
        """One well textured point per grid cell: [N, 2], N at most grid * grid."""
        strength = cv2.cornerMinEigenVal(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), blockSize=5)
        height, width = strength.shape
        rows = np.linspace(0, height, min(self.grid, height) + 1).astype(int)
        columns = np.linspace(0, width, min(self.grid, width) + 1).astype(int)
        points = []
        for top, bottom in itertools.pairwise(rows):
            for left, right in itertools.pairwise(columns):
                cell = strength[top:bottom, left:right]
                y, x = np.unravel_index(cell.argmax(), cell.shape)
                if cell[y, x] > self.texture:
                    points.append((left + x, top + y))
        return np.asarray(points, np.float32).reshape(-1, 2)


def _colour_at(frame: Frames, points: Points) -> Points:
    """The colour of the 3 x 3 blurred frame at points [N, 2], between pixels: [N, 3]."""
    blurred = cv2.blur(frame, (3, 3)).astype(np.float32)
    x, y = (np.ascontiguousarray(points[:, None, axis]) for axis in (0, 1))
    return np.asarray(cv2.remap(blurred, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0], np.float32)


class CoTracker:
    """CoTracker 3, offline (Karaev et al. 2024), if the user has installed it. Its licence forbids commercial use.

    The package `cotracker` (github.com/facebookresearch/co-tracker) and the weights `scaled_offline.pth`
    (huggingface.co/facebook/cotracker3) are under CC BY-NC 4.0; neither is part of this project. Without queries, a
    regular grid x grid set of points of the first frame is followed.
    """

    WINDOW = 60  # frames, of the published scaled_offline.pth

    def __init__(self, checkpoint: str | Path, grid: int = 24, device: str = "cpu") -> None:
        try:
            predictor = importlib.import_module("cotracker.predictor")
        except ImportError as error:
            raise UserError(
                "tracker is cotracker, but its package is not installed; pip install "
                "git+https://github.com/facebookresearch/co-tracker (CC BY-NC 4.0), or take tracker=lucas_kanade"
            ) from error
        if not Path(checkpoint).is_file():
            raise UserError(
                f"no CoTracker weights at {checkpoint}: get scaled_offline.pth of huggingface.co/facebook/cotracker3"
            )
        self.predictor = predictor.CoTrackerPredictor(checkpoint=None, offline=True, window_len=self.WINDOW)
        self.predictor.model.load_state_dict(_read_weights(checkpoint))
        self.predictor = self.predictor.to(device).eval()
        self.grid, self.device = grid, device

    @torch.no_grad()
    def __call__(self, frames: Frames, queries: Points | None = None) -> Tracks:
        video = torch.as_tensor(frames).permute(0, 3, 1, 2)[None].float().to(self.device)  # 1 T 3 H W, 0..255
        if queries is None:
            tracks, visible = self.predictor(video, grid_size=self.grid)
        else:
            points = torch.as_tensor(queries, dtype=torch.float32, device=self.device).reshape(-1, 2)
            timed = torch.cat([torch.zeros_like(points[:, :1]), points], dim=1)[None]  # 1 N (frame, x, y)
            tracks, visible = self.predictor(video, queries=timed)
        # 1 T N 2 -> N T 2, 1 T N -> N T
        return Tracks(tracks[0].transpose(0, 1).cpu().numpy(), visible[0].transpose(0, 1).bool().cpu().numpy())


def _read_weights(path: str | Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a family of unrelated classes on a damaged file
        raise UserError(f"{path} cannot be read as weights ({one_line(error)})") from error
    return state.get("model", state)


TRACKERS = ("lucas_kanade", "cotracker")


def build_tracker(name: str, grid: int, checkpoint: str | Path, device: str) -> Tracker:
    """The tracker of that name; UserError on an unknown name or one whose parts are not there."""
    if name == "lucas_kanade":
        return LucasKanade(grid=grid)
    if name == "cotracker":
        return CoTracker(checkpoint, grid=grid, device=device)
    raise UserError(f"tracker is '{name}'; {nearest(name, TRACKERS)}")
