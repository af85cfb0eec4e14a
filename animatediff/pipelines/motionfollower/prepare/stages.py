"""The stages of a preparation: each is made once, checked, written whole, and found again by what it depends on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.files import content_hash
from animatediff.pipelines.motionfollower.masks import predict_masks
from animatediff.pipelines.motionfollower.poses import LEFT_HIP, RIGHT_HIP, align, positions
from animatediff.pipelines.motionfollower.prepare import clips, detectors
from animatediff.pipelines.motionfollower.prepare.checks import Figure, masks_hold, person_found, whole_enough
from animatediff.pipelines.motionfollower.prepare.folder import FORMAT, STAGES, PreparedFolder, digest
from animatediff.pipelines.motionfollower.prepare.options import OWN, OnProgress, PrepareOptions, parse_subject
from animatediff.pipelines.motionfollower.prepare.sheet import write_sheet
from animatediff.pipelines.motionfollower.prepare.subject import boxes_of, choose_subject
from animatediff.pipelines.motionfollower.prepare.writer import as_mask, read_keypoints, write_sequence
from animatediff.pipelines.motionfollower.selfcheck import FEWEST_JOINTS
from animatediff.pipelines.motionfollower.skeleton import BODY_JOINTS, NECK

NAMES = {"source": "source", "driving": "target"}  # clip -> what the folder calls it
KEYS_OF_OWN = {"source_keypoints": "source", "driving_keypoints": "target", "aligned_keypoints": "aligned"}
SETTINGS = {  # stage -> the options that it depends on
    "source keypoints": ("poses", "source_subject", "source_keypoints"),
    "driving keypoints": ("poses", "driving_subject", "driving_keypoints"),
    "source masks": ("masks", "source_masks"),
    "alignment": ("root", "proportions", "aligned_keypoints"),
    "target masks": ("predicted_masks",),
}


@dataclass(frozen=True)
class Made:
    """What a stage gives: how it is written, who made it, its figures, and what a user should be told."""

    write: Callable[[], None]
    made_by: str
    figures: tuple[Figure, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a user may like to know
    facts: Mapping[str, Any] | None = None


class Preparation:
    """One folder on its way from two clips to everything that the method needs."""

    def __init__(
        self,
        folder: Path,
        clip_paths: Mapping[str, Path],
        options: PrepareOptions,
        tools: detectors.Tools,
        on_progress: OnProgress,
    ) -> None:
        """clip_paths: source and driving. UserError for clips and files of the user's own that do not fit."""
        self.options, self.tools, self.on_progress = options, tools, on_progress
        self.windows = dict(zip(NAMES, clips.choose(clip_paths["source"], clip_paths["driving"], options), strict=True))
        self.count, self.size = len(self.windows["source"].numbers), self.windows["source"].size
        self.own = self._read_own()
        self.folder = PreparedFolder(folder, self.count)
        self.hashes = {clip: content_hash(path) for clip, path in clip_paths.items()}
        self.folder.log |= {
            "clips": {clip: {"path": str(clip_paths[clip]), "sha256": self.hashes[clip]} for clip in NAMES},
            "options": asdict(options),
            "frames": self.count,
            "size": list(self.size),
        }
        self._boxes: dict[str, np.ndarray] = {}
        self._seen: dict[str, np.ndarray] = {}

    def run(self) -> None:
        """Make what is missing, stage by stage. UserError where one cannot be made; those before it stay."""
        makers: dict[str, Callable[[], Made]] = {
            "source frames": lambda: self._frames("source"),
            "driving frames": lambda: self._frames("driving"),
            "source keypoints": lambda: self._keypoints("source"),
            "source masks": self._source_masks,
            "driving keypoints": lambda: self._keypoints("driving"),
            "alignment": self._alignment,
            "target masks": self._target_masks,
            "sheet": lambda: Made(lambda: write_sheet(self.folder.path, self.folder.log), "the sequences"),
        }
        for name, make in makers.items():
            self._stage(name, make)

    # ------------------------------------------------------------------------------------------ the stages

    def _frames(self, clip: str) -> Made:
        window = self.windows[clip]
        frames = clips.read_written(window)
        few = self.count < self.options.num_frames and clip == "source"
        told = f"the clips give {self.count} frames where {self.options.num_frames} were asked for"
        return Made(
            lambda: write_sequence(self.folder.path / f"{NAMES[clip]}_images", frames),
            window.path.name,
            warnings=(told,) if few else (),
            facts={"numbers": list(window.numbers)},
        )

    def _keypoints(self, clip: str) -> Made:
        keypoints, made_by = self.own.get(f"{clip}_keypoints"), "your own"
        warnings: tuple[str, ...] = ()
        notes: tuple[str, ...] = ()
        if keypoints is None:
            keypoints, made_by, warnings, notes = self._detect(clip)
        figure = person_found(keypoints, clip)
        if clip == "driving":
            whole_enough(self.folder.keypoints("source"), keypoints)
        keypoints = filled(keypoints)
        return Made(
            lambda: self.folder.write_keypoints(NAMES[clip], keypoints, self.windows[clip].size),
            made_by,
            (figure,),
            warnings,
            notes,
        )

    def _detect(self, clip: str) -> tuple[np.ndarray, str, tuple[str, ...], tuple[str, ...]]:
        """Keypoints (f 60 3) in pixels of what is written, who found them, warnings and notes."""
        window, frames = self.windows[clip], self._detected(clip)
        found = self.poser
        wish = parse_subject(getattr(self.options, f"{clip}_subject"), f"{clip}_subject")
        if wish is not None:
            per_pixel = frames.shape[2] / (window.box[2] - window.box[0])
            corner = np.tile(window.box[:2], len(wish) // 2)
            wish = tuple((np.array(wish) - corner) * per_pixel)
        people = found.tool.people(frames, self._told(f"{clip} people"))
        subject = choose_subject(people, self.count, wish, clip)
        self._boxes[clip] = subject.boxes
        keypoints = found.tool.keypoints(frames, subject.boxes, self._told(f"{clip} keypoints"))
        warnings: tuple[str, ...] = ()
        if subject.rivals and wish is None:
            who = "another person" if subject.rivals == 1 else f"{subject.rivals} other people"
            warnings += (
                f"the {clip} clip shows {who} nearly as big; the biggest, most continuous one was taken: "
                f"{clip}_subject=x,y (in its first frame) takes another",
            )
        written = clips.scaled(keypoints, *np.divide(self.size[::-1], frames.shape[2:0:-1]))
        return written, found.tool.name, warnings, found.passed_over

    def _source_masks(self) -> Made:
        keypoints, masks, made_by = self.folder.keypoints("source"), self.own.get("source_masks"), "your own"
        notes: tuple[str, ...] = ()
        if masks is None:
            frames = self._detected("source")
            found = detectors.choose_masker(self.options.masks, self.tools)
            tool, notes = found.tool, found.passed_over
            if "poser" in self.__dict__ and type(self.poser.tool) is type(tool):
                tool = self.poser.tool  # which has found outlines with the joints
            boxes = self._boxes.get("source")
            if boxes is None:
                boxes = boxes_of(clips.scaled(keypoints, *np.divide(frames.shape[2:0:-1], self.size[::-1])))
            masks = clips.resized_masks(held(tool.outline(frames, boxes, self._told("source masks"))), self.size)
            made_by = tool.name
        figure = masks_hold(masks, keypoints, "source_masks")
        return Made(lambda: write_sequence(self.folder.path / "source_masks", masks), made_by, (figure,), notes=notes)

    def _alignment(self) -> Made:
        keypoints, made_by = self.own.get("aligned_keypoints"), "your own"
        stretch = {clip: window.stretch for clip, window in self.windows.items()}
        source, driving = (
            clips.scaled(self.folder.keypoints(NAMES[clip]), stretch[clip], 1) for clip in NAMES
        )  # in square pixels
        facts: dict[str, Any] = {}
        if keypoints is None:
            found = align(
                source,
                driving,
                clips.square(self.size, stretch["source"]),
                clips.square(self.size, stretch["driving"]),
                root=self.options.root,
                proportions=self.options.proportions,
            )
            keypoints = clips.scaled(found.keypoints, 1 / stretch["source"], 1)
            made_by = "bone by bone" if self.options.proportions else "one similarity"
            facts = {"scale": round(found.scale, 4), "without_legs": found.without_legs}
        ratio = torso(clips.scaled(keypoints, stretch["source"], 1)) / torso(source)
        return Made(
            lambda: self.folder.write_keypoints("aligned", keypoints, self.size),
            made_by,
            facts=facts | {"torso": round(ratio, 3)},
        )

    def _target_masks(self) -> Made:
        aligned, masks, made_by = self.folder.keypoints("aligned"), self.own.get("predicted_masks"), "your own"
        if masks is None:
            stretch = self.windows["source"].stretch
            wide = clips.resized_masks(self.folder.masks("source_masks"), clips.square(self.size, stretch))
            poses = [clips.scaled(found, stretch, 1) for found in (self.folder.keypoints("source"), aligned)]
            moved = as_mask(predict_masks(wide > 127, *poses))
            masks, made_by = clips.resized_masks(moved, self.size), "the source's masks, part by part"
        figure = masks_hold(masks, aligned, "predicted_masks")
        return Made(lambda: write_sequence(self.folder.path / "predicted_masks", masks), made_by, (figure,))

    # ------------------------------------------------------------------------------------------ around them

    def _stage(self, name: str, make: Callable[[], Made]) -> None:
        """Make and write one stage, unless it is there, made from the same."""
        key = self._key(name)
        if self.folder.holds(name, key):
            self.tools.say(f"{name}: there")
            return
        self.folder.forget(name)
        self.on_progress(name, 0, self.count)
        started = time.perf_counter()
        made = make()
        made.write()
        warnings = [*made.warnings, *(f"{f.line}; look at the sheet" for f in made.figures if not f.good)]
        seconds = round(time.perf_counter() - started, 2)
        entry = {"key": key, "made_by": made.made_by, "seconds": seconds, **(made.facts or {})}
        checks = [asdict(figure) | {"good": figure.good} for figure in made.figures]
        self.folder.keep(name, entry | {"checks": checks, "warnings": warnings, "notes": list(made.notes)})
        self.on_progress(name, self.count, self.count)
        self.tools.say("; ".join([f"{name}: {made.made_by}, {seconds:.1f} s", *(f.line for f in made.figures)]))
        for kind, lines in (("warning", warnings), ("note", made.notes)):
            for line in lines:
                self.tools.say(f"{kind}: {line}")

    def _key(self, name: str) -> str:
        """Of everything that decides what a stage makes."""
        parts: list[Any] = [FORMAT, name, *(self._key(before) for before in STAGES[name].after)]
        for setting in SETTINGS.get(name, ()):
            value = getattr(self.options, setting)
            parts.append(content_hash(Path(value)) if setting in OWN and value else value)
        if name.endswith("frames"):
            window = self.windows[name.split()[0]]
            parts += [self.hashes[name.split()[0]], window.numbers, window.box, window.size]
        return digest(parts)

    def _read_own(self) -> dict[str, np.ndarray]:
        """The user's own keypoints (f 60 3) and masks (f H W), by option. UserError where they do not fit the clips."""
        own: dict[str, np.ndarray] = {}
        for option in OWN:
            path = getattr(self.options, option)
            if not path:
                continue
            if option in KEYS_OF_OWN:
                own[option] = read_keypoints(path, [KEYS_OF_OWN[option]])[KEYS_OF_OWN[option]]
            elif Path(path).suffix.lower() in (".npz", ".npy"):
                raise UserError(
                    f"{option} is {path}, a file of arrays; expected masks as a folder of images or a video"
                )
            else:
                own[option] = read_frames(path, None).frames[..., 0]
            if len(own[option]) != self.count:
                raise UserError(
                    f"{option} has {len(own[option])} frames and the clips give {self.count}; give as many, or set "
                    "num_frames"
                )
            if option not in KEYS_OF_OWN:
                own[option] = clips.resized_masks(own[option], self.size)
        return own

    @cached_property
    def poser(self) -> detectors.Found:
        """What finds people, chosen once."""
        return detectors.choose_poser(self.options.poses, self.tools)

    def _detected(self, clip: str) -> np.ndarray:
        """The clip's frames as detectors see them; those of the clip read last are kept."""
        if clip not in self._seen:
            self._seen = {clip: clips.read_detected(self.windows[clip])}
        return self._seen[clip]

    def _told(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.on_progress(stage, done, total)


def filled(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints (f 60 3), those of frames without a person bridged from the frames before and after."""
    seen = np.isfinite(positions(keypoints)[:, :BODY_JOINTS]).all(axis=-1).sum(axis=1) >= FEWEST_JOINTS
    if seen.all():
        return keypoints
    bridged, known = keypoints.copy(), np.flatnonzero(seen)
    for frame in np.flatnonzero(~seen):
        before = known[known < frame][-1] if (known < frame).any() else known[0]
        after = known[known > frame][0] if (known > frame).any() else known[-1]
        share = (frame - before) / (after - before) if after != before else 0.0
        bridged[frame] = (1 - share) * keypoints[before] + share * keypoints[after]
        bridged[frame, :, 2] = np.minimum(keypoints[before, :, 2], keypoints[after, :, 2])
    return bridged


def held(masks: np.ndarray) -> np.ndarray:
    """Masks (f h w), empty ones replaced by the nearest that is not."""
    there = np.flatnonzero(masks.any(axis=(1, 2)))
    if not len(there):
        return masks
    return masks[[int(there[np.abs(there - frame).argmin()]) for frame in range(len(masks))]]


def torso(keypoints: np.ndarray) -> float:
    """The median length from neck to mid-hip of keypoints (f 60 3)."""
    joints = positions(keypoints)
    return float(np.nanmedian(np.linalg.norm(joints[:, NECK] - joints[:, [RIGHT_HIP, LEFT_HIP]].mean(axis=1), axis=-1)))
