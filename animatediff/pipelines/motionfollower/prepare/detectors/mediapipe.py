"""mediapipe 0.10.21, the last release that ships its models: runs without any download but its own installation.

It asks for NumPy 1 and an old protobuf, so it lives in an environment of its own, and is called as a program.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from animatediff.errors import UserError, describe_os_error, one_line
from animatediff.pipelines.motionfollower.prepare.detectors.environment import VERSION, find_environment

SCRIPT = Path(__file__).with_name("mediapipe_script.py")
PERSON = 0.6  # probability from which a pixel is the person's
_FRAME = re.compile(r"frame (\d+) of (\d+)")


def build(tools: Any) -> MediapipeDetector:
    """Poser and masker in one. UserError where its environment is not there and may not, or cannot, be made."""
    return MediapipeDetector(find_environment(tools.make_environment, tools.say))


class MediapipeDetector:
    """The program in its environment. What it reads of frames is kept: joints and outlines come together."""

    name = f"mediapipe {VERSION}"

    def __init__(self, python: Path) -> None:
        self.python = python
        self._kept: tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]] | None = None

    def people(self, frames: np.ndarray, told: Callable[[int, int], None]) -> np.ndarray:
        return self._run("find", told, frames=frames)["boxes"]

    def keypoints(self, frames: np.ndarray, boxes: np.ndarray, told: Callable[[int, int], None]) -> np.ndarray:
        return self._read(frames, boxes, told)["keypoints"]

    def outline(self, frames: np.ndarray, boxes: np.ndarray, told: Callable[[int, int], None]) -> np.ndarray:
        levels = self._read(frames, boxes, told)["masks"]
        return np.where(levels >= 255 * PERSON, 255, 0).astype(np.uint8)

    def _read(self, frames: np.ndarray, boxes: np.ndarray, told: Callable[[int, int], None]) -> dict[str, np.ndarray]:
        kept = self._kept
        if kept is None or kept[0] is not frames or not np.array_equal(kept[1], boxes, equal_nan=True):
            kept = self._kept = frames, boxes, self._run("read", told, frames=frames, boxes=boxes)
        return kept[2]

    def _run(self, task: str, told: Callable[[int, int], None], **request: np.ndarray) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="prepare-") as name:
            folder = Path(name)
            try:
                np.savez(folder / "request.npz", **request)  # type: ignore[arg-type]
                command = [self.python, "-I", SCRIPT, task, folder / "request.npz", folder / "answer.npz"]
                with open(folder / "errors.txt", "wb") as errors:
                    status = _follow(list(map(str, command)), errors, told)
            except OSError as error:
                raise describe_os_error(error, f"running {self.python}") from error
            if status or not (folder / "answer.npz").is_file():
                lines = (folder / "errors.txt").read_text(errors="replace").strip().splitlines() or ["no word"]
                raise UserError(
                    f"{self.name} ended with status {status} ({one_line(lines[-1])[:160]}); delete the folder "
                    f"{self.python.parent.parent} to have it made anew, or give your own keypoints and masks"
                )
            with np.load(folder / "answer.npz", allow_pickle=False) as answer:
                return {key: answer[key] for key in answer.files}


def _follow(command: list[str], errors: Any, told: Callable[[int, int], None]) -> int:
    """Run a program to its end, telling of its frames; it does not outlive an exception."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                frame = _FRAME.fullmatch(line.strip())
                if frame:
                    told(int(frame[1]), int(frame[2]))
            return process.wait()
        except BaseException:
            process.kill()
            raise
