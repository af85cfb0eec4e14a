"""A prepared folder while it is made: which stages it holds, and what of them is still good."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.files import is_file, read_json, remove_stale_parts, write_json
from animatediff.pipelines.motionfollower.prepare.writer import (
    KEYPOINTS,
    LOG,
    POSES,
    SHEET,
    check_folder,
    draw_poses,
    read_keypoints,
    write_keypoints,
    write_sequence,
)

FORMAT = 1  # of log.json, and of what the stages make


@dataclass(frozen=True)
class Stage:
    """What a stage writes (sequences, keypoints by their name, the sheet), and the stages that it goes on from."""

    writes: tuple[str, ...]
    after: tuple[str, ...] = ()


STAGES: Mapping[str, Stage] = {
    "source frames": Stage(("source_images",)),
    "driving frames": Stage(("target_images",)),
    "source keypoints": Stage(("source_poses", "source"), ("source frames",)),
    "source masks": Stage(("source_masks",), ("source keypoints",)),
    "driving keypoints": Stage(("target_poses", "target"), ("driving frames",)),
    "alignment": Stage(("target_aligned_poses", "aligned"), ("source keypoints", "driving keypoints")),
    "target masks": Stage(("predicted_masks",), ("source masks", "alignment")),
    "sheet": Stage((SHEET,), ("target masks",)),
}


class PreparedFolder:
    """The folder of one preparation. `count`: frames of each sequence."""

    def __init__(self, path: Path, count: int) -> None:
        """UserError where something else lies at `path`."""
        check_folder(path)
        self.path, self.count = path, count
        remove_stale_parts(path)
        self.log: dict[str, Any] = {"format": FORMAT, "stages": {}}
        if is_file(path / LOG):
            try:
                old = read_json(path / LOG, {"format": int, "stages": dict[str, Any]})
            except UserError:
                old = {}
            if old.get("format") == FORMAT:
                self.log["stages"] = old["stages"]

    def holds(self, name: str, key: str) -> bool:
        """Whether a stage is there, made with this very key."""
        entry = self.log["stages"].get(name)
        same = isinstance(entry, dict) and entry.get("key") == key
        return same and all(self._is_there(part) for part in STAGES[name].writes)

    def forget(self, name: str) -> None:
        """Remove what a stage and all that go on from it have left: it does not belong to what comes now."""
        gone = {name}
        for later, stage in STAGES.items():
            if gone.intersection(stage.after):
                gone.add(later)
        for each in gone:
            self.log["stages"].pop(each, None)
        if is_file(self.path / LOG):
            self.write_log()
        parts = [part for each in gone for part in STAGES[each].writes]
        for part in parts:
            if part == SHEET:
                (self.path / part).unlink(missing_ok=True)
            elif part not in POSES.values():
                shutil.rmtree(self.path / part, ignore_errors=True)
        kept = {key: found for key, found in self._all_keypoints().items() if key not in parts}
        if kept:
            write_keypoints(self.path / KEYPOINTS, kept)
        else:
            (self.path / KEYPOINTS).unlink(missing_ok=True)

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        """Write into the log that a stage is there."""
        self.log["stages"][name] = entry
        self.write_log()

    def write_log(self) -> None:
        """Write log.json."""
        write_json(self.path / LOG, self.log)

    def write_keypoints(self, name: str, keypoints: np.ndarray, size: tuple[int, int]) -> None:
        """Write one person's keypoints (f 60 3), and the skeletons drawn from them at (H, W)."""
        folder = next(folder for folder, key in POSES.items() if key == name)
        write_sequence(self.path / folder, draw_poses(keypoints, size))
        write_keypoints(self.path / KEYPOINTS, self._all_keypoints() | {name: keypoints})

    def keypoints(self, name: str) -> np.ndarray:
        """Keypoints (f 60 3) that a stage has written."""
        return read_keypoints(self.path / KEYPOINTS, [name])[name]

    def masks(self, name: str) -> np.ndarray:
        """Masks uint8 (f h w) that a stage has written."""
        return read_frames(self.path / name, None).frames[..., 0]

    def _all_keypoints(self) -> dict[str, np.ndarray]:
        if not is_file(self.path / KEYPOINTS):
            return {}
        try:
            with np.load(self.path / KEYPOINTS, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if name in POSES.values()}
        except Exception:  # whatever it is, it is no keypoints of ours
            return {}

    def _is_there(self, part: str) -> bool:
        if part == SHEET:
            return is_file(self.path / part)
        if part in POSES.values():
            return len(self._all_keypoints().get(part, ())) == self.count
        return all(is_file(self.path / part / f"frame_{i}.png") for i in range(self.count))


def digest(value: Any) -> str:
    """Sixteen digits that tell one JSON value from another."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
