"""Pairs for training: groups of clips that share a motion, and which clips make up sample n of a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from animatediff.data.decode import VIDEO_SUFFIXES
from animatediff.data.video import fit_frames, read_frames
from animatediff.errors import UserError, describe_os_error
from animatediff.files import Keys, is_file, is_folder, read_jsonl, to_path, to_text

MANIFEST = "manifest.jsonl"
ROW: Keys = {"path": str | None, "group": str | int | None, "caption": str | None}  # of its lines


@dataclass(frozen=True)
class ClipShape:
    """How clips are read: `num_frames` spread over the clip, brought to height x width by `fit`."""

    num_frames: int
    height: int
    width: int
    fit: str = "stretch"


class TrainingClip(Protocol):
    """One clip of a group."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def caption(self) -> str:
        """What the clip shows."""

    @property
    def content_hash(self) -> str:
        """Equal for equal clips, whatever their names."""

    def pixels(self, shape: ClipShape) -> torch.Tensor:
        """float32 (f 3 h w) in [-1, 1]; UserError where the clip cannot be read."""


@dataclass(frozen=True)
class Group:
    """Clips with one motion and different contents."""

    name: str
    clips: tuple[TrainingClip, ...]


@dataclass(frozen=True)
class FileClip:
    """A video file."""

    path: Path
    caption: str

    @property
    def name(self) -> str:
        return str(self.path)

    @cached_property
    def content_hash(self) -> str:
        try:
            with open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise describe_os_error(error, f"reading {self.path}") from error

    def pixels(self, shape: ClipShape) -> torch.Tensor:
        clip = read_frames(self.path, shape.num_frames)
        if clip.total < 2:
            raise UserError(f"{self.path} holds {clip.total} frame, so there is no motion to learn")
        return fit_frames(clip.frames, shape.height, shape.width, shape.fit)


def folder_groups(root: str | Path) -> list[Group]:
    """The groups in `root`: those of its manifest.jsonl, or `<root>/<group>/*.mp4` with captions from file names.

    UserError for a missing or empty root, a manifest that points to missing files, lacks captions or lists a clip
    twice, and a group of one clip.
    """
    root = to_path(root, "data.root")
    if not is_folder(root):
        raise UserError(f"no data folder at {root}; expected {root}/<group>/*.mp4, where a group shares one motion")
    manifest = root / MANIFEST
    clips = _manifest_clips(root) if is_file(manifest) else _named_clips(root)
    if not clips:
        raise UserError(f"no clips in {root}; expected {root}/<group>/*.mp4, where a group shares one motion")
    members: dict[str, list[FileClip]] = {}
    for group, clip in sorted(clips, key=lambda entry: (entry[0], str(entry[1].path))):
        members.setdefault(group, []).append(clip)
    for name, group_clips in members.items():
        if len({clip.content_hash for clip in group_clips}) < 2:
            only = "holds one clip" if len(group_clips) == 1 else "holds copies of one clip"
            raise UserError(
                f"group '{name}' {only}, {group_clips[0].path}; a reference is drawn among the others, so give it "
                "two or more or take it out"
            )
    return [Group(name, tuple(group_clips)) for name, group_clips in members.items()]


class Named(Protocol):
    """What is split by its name."""

    @property
    def name(self) -> str:
        """Different from all others'."""


Part = TypeVar("Part", bound=Named)


def split_groups(groups: Sequence[Part], validation_share: float, seed: int) -> tuple[list[Part], list[Part]]:
    """(training, validation) groups. A group's side depends on its name and `seed`, as far as the counts allow.

    With a share above 0 and two groups or more, both sides get at least one.
    """
    count = round(validation_share * len(groups))
    if validation_share > 0 and len(groups) > 1:
        count = min(max(count, 1), len(groups) - 1)
    ranked = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}/{group.name}".encode()).digest())
    held = {group.name for group in ranked[:count]}
    return [g for g in groups if g.name not in held], [g for g in groups if g.name in held]


@dataclass(frozen=True)
class Readable:
    """What is left of the groups after every clip was tried."""

    groups: list[Group]
    problems: list[str]  # one line for each clip, and each group, that is left out


def keep_readable(groups: Sequence[Group], broken: dict[str, str]) -> Readable:
    """The groups without `broken` clips (name -> what is wrong); a group left with one clip goes too."""
    kept, problems = [], [f"skipped {name}: {why}" for name, why in broken.items()]
    for group in groups:
        clips = tuple(clip for clip in group.clips if clip.name not in broken)
        if len({clip.content_hash for clip in clips}) >= 2:
            kept.append(Group(group.name, clips))
        else:
            problems.append(f"skipped group '{group.name}': fewer than two of its clips can be read")
    return Readable(kept, problems)


class PairOrder:
    """Which clips make up sample n of a run: clip and references follow from (seed, n) alone.

    Every clip is a target once per epoch, in an order drawn per epoch.
    """

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        self.clips = [(group, clip) for group in groups for clip in group.clips]
        self.seed = seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    def draw(self, number: int, targets: int, generator: torch.Generator) -> tuple[TrainingClip, list[TrainingClip]]:
        """(reference, `targets` clips to predict) of sample `number`; no target equals the reference."""
        epoch, place = divmod(number, len(self.clips))
        if self._epoch[0] != epoch:
            order = torch.randperm(len(self.clips), generator=torch.Generator().manual_seed(self.seed + epoch))
            self._epoch = (epoch, order.tolist())
        group, target = self.clips[self._epoch[1][place]]
        reference = _choose([c for c in group.clips if c.content_hash != target.content_hash], generator)
        others = [c for c in group.clips if c.content_hash != reference.content_hash]
        return reference, [target, *(_choose(others, generator) for _ in range(targets - 1))]


def all_clips(groups: Sequence[Group]) -> Iterator[TrainingClip]:
    """Every clip of every group, in order."""
    for group in groups:
        yield from group.clips


def _choose(clips: Sequence[TrainingClip], generator: torch.Generator) -> TrainingClip:
    return clips[int(torch.randint(len(clips), (), generator=generator))]


def _manifest_clips(root: Path) -> list[tuple[str, FileClip]]:
    manifest = root / MANIFEST
    clips, missing, seen = [], [], set()
    for line, row in read_jsonl(manifest, ROW, others=False):
        for key in ("path", "caption"):
            if not (row.get(key) or "").strip():
                named = f" ({row['path']})" if key == "caption" else ""
                raise UserError(f"{manifest} line {line}{named} has no {key}; every clip needs one")
        path = root / to_path(row["path"], f"{manifest} line {line}: path")
        caption = to_text(row["caption"], f"{manifest} line {line}: caption").strip()
        if path in seen:
            raise UserError(f"{manifest} line {line} lists {row['path']} a second time; list every clip once")
        seen.add(path)
        if not is_file(path):
            missing.append(f"line {line} {row['path']}")
        clips.append((str(row.get("group") or path.parent.name), FileClip(path, caption)))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{manifest} points to missing files: {', '.join(missing[:3])}{more}")
    return clips


def _named_clips(root: Path) -> list[tuple[str, FileClip]]:
    clips = []
    for path in root.glob("*/*"):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            continue
        caption = " ".join(re.split(r"[\s_\-]+", path.stem)).strip()
        if not any(character.isalpha() for character in caption):
            raise UserError(f"{path} has no caption in its name, and {root} no {MANIFEST}; name it by what it shows")
        clips.append((path.parent.name, FileClip(path, caption)))
    return clips
