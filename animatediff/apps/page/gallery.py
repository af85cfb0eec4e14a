"""Earlier results, found by their sidecars: what they show, their files and measures, how to repeat them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from animatediff.apps.forms import Preset, changes, command_of, yaml_of
from animatediff.apps.page.options import Options
from animatediff.apps.page.orders import Order
from animatediff.apps.page.words import describe
from animatediff.apps.page.work import REFERENCE
from animatediff.data.export import save_gif, save_video
from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.evaluation.sources import Item, read_output, read_reference
from animatediff.files import is_there, read_json
from animatediff.inference.run import check, completed, run_of
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import MAX_SEED, Run

FILES = ("video", "reference", "gif", "sidecar")  # that can be asked for


@dataclass(frozen=True, eq=False)
class Shown:
    """One finished result."""

    id: str
    output: Path
    record: Mapping[str, Any]
    changed: float  # seconds, when its sidecar was written

    def told(self) -> dict[str, Any]:
        """What a card of the gallery shows."""
        record = self.record
        wanted = ("method", "prompt", "seed", "num_frames", "height", "width", "fps", "seconds")
        reference = Path(str(record.get("reference", "")))
        return {name: record.get(name) for name in wanted} | {
            "id": self.id,
            "reference": self.output.parent.name,
            "when": self.changed,
            "warnings": [_without_folders(line) for line in record.get("warnings") or []],
            "steps": record["config"].get("num_inference_steps"),
            "has_reference": self._reference.is_file() or is_there(reference),
            "can_repeat": is_there(reference),
        }

    @property
    def _reference(self) -> Path:
        return self.output.with_name(self.output.stem + REFERENCE)


class Gallery:
    """The results in an output folder. A result is known by an id made of its place; no visitor names a path."""

    def __init__(self, options: Options, presets: Mapping[str, Preset]) -> None:
        self.options, self.presets = options, presets
        self._read: dict[Path, tuple[float, Shown | None]] = {}

    def all(self) -> list[Shown]:
        """Every result with a sidecar of ours and its video, the newest first."""
        found = []
        for sidecar in self.options.output.glob("*/*.json"):
            if not any(part.startswith(".") for part in sidecar.relative_to(self.options.output).parts):
                shown = self._shown(sidecar)
                found += [shown] if shown is not None and shown.output.is_file() else []
        return sorted(found, key=lambda shown: -shown.changed)

    def get(self, id: str) -> Shown:
        """The result of that id. UserError where there is none."""
        for shown in self.all():
            if shown.id == id:
                return shown
        raise UserError("that result is no longer here; it was moved or deleted")

    def id_of(self, output: Path) -> str:
        """What the result at `output` is called."""
        place = output.relative_to(self.options.output).as_posix()
        return hashlib.sha256(place.encode()).hexdigest()[:24]

    def file(self, shown: Shown, what: str) -> Path:
        """One of FILES of a result; what is not there is made in the uploads' folder."""
        if what == "sidecar":
            return shown.output.with_suffix(".json")
        if what == "video":
            return shown.output
        beside = shown.output.with_suffix(".gif") if what == "gif" else shown._reference
        if beside.is_file():
            return beside
        made = self.options.uploads / f"{shown.id}-{int(shown.changed)}{'.gif' if what == 'gif' else '.mp4'}"
        if not made.is_file():
            made.parent.mkdir(parents=True, exist_ok=True)
            frames, fps, _ = read_output(_item(shown))
            if what == "gif":
                save_gif(made, frames, fps)
            else:
                save_video(made, read_reference(_item(shown), frames.shape[:3]), fps)
        return made

    def measures(self, shown: Shown) -> dict[str, Any]:
        """See `describe`."""
        return _measured(self, shown)

    def repeat(self, shown: Shown, seed: int) -> Order:
        """The order that makes the result again, by another seed. UserError where what it read is gone."""
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed is {seed}, expected 0 to {MAX_SEED}")
        run = self._run(shown, {"seed": seed, "output_dir": str(self.options.output), "overwrite": False})
        check(completed(run))
        used = [Path(run.ref_video_path).parent.name]
        return Order(run, tuple(name for name in used if (self.options.uploads / name).is_dir()))

    def recipe(self, shown: Shown) -> dict[str, str]:
        """The command line and the YAML of a result."""
        run = self._run(shown, {})
        presets = [preset for preset in self.presets.values() if preset.method == run.method]
        if not presets:
            return {"command": "", "yaml": ""}
        nearest = min(presets, key=lambda preset: len(changes(run, preset.run)))
        return {"command": command_of(nearest, run), "yaml": yaml_of(nearest, run)}

    def _run(self, shown: Shown, given: dict[str, Any]) -> Run:
        return run_of([("its sidecar", shown.record["config"])], given=given)

    def _shown(self, sidecar: Path) -> Shown | None:
        changed = sidecar.stat().st_mtime
        if self._read.get(sidecar, (0.0, None))[0] != changed:
            self._read[sidecar] = changed, self._load(sidecar, changed)
        return self._read[sidecar][1]

    def _load(self, sidecar: Path, changed: float) -> Shown | None:
        try:
            record = read_json(sidecar)
        except UserError:
            return None
        if not isinstance(record.get("config"), dict) or record.get("method") not in METHODS:
            return None
        return Shown(self.id_of(sidecar.with_suffix(".mp4")), sidecar.with_suffix(".mp4"), record, changed)


@functools.lru_cache(maxsize=256)
def _measured(gallery: Gallery, shown: Shown) -> dict[str, Any]:
    frames = read_frames(shown.output, None).frames
    try:
        reference: np.ndarray | None = read_frames(gallery.file(shown, "reference"), None).frames
    except UserError:
        reference = None
    if reference is not None and reference.shape != frames.shape:
        reference = None
    return describe(frames, reference)


def _item(shown: Shown) -> Item:
    return Item("", "", shown.output, dict(shown.record), shown.output.parent)


def _without_folders(line: str) -> str:
    """A warning with the paths in it cut to the names of their files."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in line.split(" "))
