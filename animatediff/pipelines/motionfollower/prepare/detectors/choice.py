"""The table of detectors, and the choice among them.

A poser finds people and reads their joints, a masker finds one person's outline. `auto` takes the first of the table
that can work here; where one cannot, it says why in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.prepare.detectors import mediapipe, rtmlib, sam2

Told = Callable[[int, int], None]  # (frames done, of how many)


class Poser(Protocol):
    """Finds people and their joints in frames uint8 (f h w 3) of square pixels."""

    name: str  # with its version, as the log has it

    def people(self, frames: np.ndarray, told: Told) -> np.ndarray:
        """Boxes (n 6): frame, x0, y0, x1, y1, score."""

    def keypoints(self, frames: np.ndarray, boxes: np.ndarray, told: Told) -> np.ndarray:
        """Keypoints (f 60 3) of the person in each frame's box (f 4); zeros where the box is NaN."""


class Masker(Protocol):
    """Finds a person's outline."""

    name: str

    def outline(self, frames: np.ndarray, boxes: np.ndarray, told: Told) -> np.ndarray:
        """Masks uint8 (f h w), 0 or 255, of the person in the boxes (f 4)."""


@dataclass(frozen=True)
class Tools:
    """What detectors may do: where networks run, and whether an environment may be made for one."""

    device: str = "auto"
    make_environment: bool = False
    say: Callable[[str], None] = lambda line: None


POSERS: Mapping[str, Callable[[Tools], Poser]] = {"rtmlib": rtmlib.build, "mediapipe": mediapipe.build}
MASKERS: Mapping[str, Callable[[Tools], Masker]] = {"sam2": sam2.build, "mediapipe": mediapipe.build}


@dataclass(frozen=True)
class Found:
    """The detector that was taken, and why the ones before it in the table were not: one line each."""

    tool: Any
    passed_over: tuple[str, ...] = ()


def choose_poser(name: str, tools: Tools) -> Found:
    """The poser of that name, or the first that works for `auto`. UserError where none does."""
    return _choose(POSERS, name, tools)


def choose_masker(name: str, tools: Tools) -> Found:
    """The masker of that name, or the first that works for `auto`. UserError where none does."""
    return _choose(MASKERS, name, tools)


def _choose(table: Mapping[str, Callable[[Tools], Any]], name: str, tools: Tools) -> Found:
    if name != "auto":
        return Found(table[name](tools))
    why: list[str] = []
    for build in table.values():
        try:
            return Found(build(tools), tuple(why))
        except UserError as error:
            why.append(str(error))
    raise UserError("; ".join(why))
