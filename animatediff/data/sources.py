"""Where training pairs come from, by name: the one table. A world that renders its own pairs is one more line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from animatediff.data.pairs import ClipShape, Group, TrainingClip, folder_groups, split_groups
from animatediff.errors import UserError
from animatediff.tables import Table

Frames = NDArray[np.uint8]
Measure = Callable[[Frames, TrainingClip, TrainingClip], dict[str, float]]  # (generated, reference, target)


class Source(Protocol):
    """One kind of pairs."""

    measures: Mapping[str, Callable[[ClipShape], Measure]]  # by name, against the exact truth where it is known

    def find(self, data: Any, seed: int) -> tuple[list[Group], list[Group]]:
        """(training, validation) groups, none of them read yet. `data`: its own keys of the section `data`."""

    def draw(self, count: int, clips: int, seed: int, split: str) -> list[Group]:
        """`count` groups of `clips` clips made to order; all follow from `seed`. UserError where none can be made."""


class Folder:
    """Clips that lie in a folder."""

    measures: Mapping[str, Callable[[ClipShape], Measure]] = {}

    def find(self, data: Any, seed: int) -> tuple[list[Group], list[Group]]:
        if not data.root:
            raise UserError("data.source is folder, but data.root is empty; say where the groups of clips lie")
        return split_groups(folder_groups(data.root), data.validation_share, seed)

    def draw(self, count: int, clips: int, seed: int, split: str) -> list[Group]:
        raise UserError("clips in a folder are not made to order; use synthetic")


FOLDER = Folder()
SOURCES: Table[Source] = Table(
    {"folder": "animatediff.data.sources:FOLDER", "synthetic": "animatediff.miniature.pairs:SOURCE"}
)
