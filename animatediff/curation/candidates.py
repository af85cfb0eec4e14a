"""What may become pairs: one candidate for every clip, prompt and seed, as jobs of inference.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from animatediff.data.decode import VIDEO_SUFFIXES
from animatediff.data.export import safe_name, save_video
from animatediff.data.images import natural_key
from animatediff.data.pairs import MANIFEST, FileClip, folder_groups
from animatediff.data.video import read_frames
from animatediff.errors import UserError, one_line
from animatediff.files import is_file, is_folder, to_path, write_jsonl
from animatediff.inference.jobs import Job, plan, read_jobs
from animatediff.pipelines.method import Run

JOBS = "jobs.jsonl"


@dataclass(frozen=True)
class Source:
    """A clip that gives its motion: a video file, or a folder of frames; `problem` says why it cannot be used."""

    path: Path
    group: str
    caption: str
    problem: str | None = None


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a YAML list, without repetitions. UserError for anything else."""
    path = to_path(path, "--prompts")
    if not is_file(path):
        raise UserError(f"no prompts at {path}; expected a YAML list of sentences")
    try:
        prompts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # such as a date that does not exist
        raise UserError(f"{path} is not valid YAML ({one_line(error)})") from error
    if not prompts:
        raise UserError(f"{path} holds no prompts; expected a YAML list of sentences")
    if not isinstance(prompts, list):
        raise UserError(f"{path} holds {type(prompts).__name__}, expected a YAML list of sentences")
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{path} has {prompt!r} as prompt {number}, expected a sentence")
    return list(dict.fromkeys(prompt.strip() for prompt in prompts))


def find_sources(clips: str | Path, frames: int) -> list[Source]:
    """The clips of a folder in natural order, each read once; one that cannot be read is kept with its problem.

    A clip's caption stands in a .txt file of its name beside it, else in its name. `clips` may also be a manifest.jsonl
    as train.py reads it: the first clip of every group, with its caption. UserError where there is no clip, or none
    that can be read.
    """
    clips = to_path(clips, "--clips")
    found = _grouped_clips(clips) if clips.name == MANIFEST else _loose_clips(clips)
    sources: list[Source] = []
    for path, name, caption in found:
        taken = {source.group for source in sources}
        numbered = (f"{name}-{i}" for i in itertools.count(2))
        group = next(other for other in itertools.chain([name], numbered) if other not in taken)
        sources.append(Source(path, group, caption, _problem(path, frames)))
    if all(source.problem for source in sources):
        raise UserError(f"no clip in {clips} can be read; the first: {sources[0].problem}")
    return sources


def _loose_clips(folder: Path) -> list[tuple[Path, str, str]]:
    """(path, group, caption) of every clip in `folder`."""
    if not is_folder(folder):
        raise UserError(f"no folder of clips at {folder}")
    paths = [p for p in folder.iterdir() if not p.name.startswith(".") and (p.is_dir() or _is_video(p))]
    if not paths:
        raise UserError(f"no clips in {folder}; expected videos ({', '.join(sorted(VIDEO_SUFFIXES))}) or frame folders")
    return [(p, safe_name(p.stem), _caption(p)) for p in sorted(paths, key=lambda p: natural_key(p.name))]


def _grouped_clips(manifest: Path) -> list[tuple[Path, str, str]]:
    """(path, group, caption) of the first clip of every group in `manifest`."""
    if not is_file(manifest):
        raise UserError(f"no manifest at {manifest}")
    found = []
    for group in folder_groups(manifest.parent):
        first = group.clips[0]
        assert isinstance(first, FileClip)  # as all are that come from a folder
        found.append((first.path, safe_name(group.name), first.caption))
    return found


def write_jobs(out: Path, sources: Sequence[Source], prompts: Sequence[str], config: Run, seeds: int) -> list[Job]:
    """Write the job list of all candidates into `out` and return it planned: outputs, and what is already there."""
    rows = [
        {"ref_video_path": str(source.path), "prompt": prompt, "seed": config.seed + i}
        for source in sources
        if source.problem is None
        for prompt in prompts
        for i in range(seeds)
    ]
    write_jsonl(out / JOBS, rows)
    jobs = read_jobs(out / JOBS, config)
    plan(jobs)
    return jobs


def reference_frames(source: Source, config: Run) -> np.ndarray:
    """The frames of a clip that a candidate's frames belong to one by one, in the clip's own size (f h w 3)."""
    return read_frames(source.path, config.num_frames, start=config.start, duration=config.duration).frames


def save_even(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write frames as a video, an odd last row or column left out: H.264 takes even sides only."""
    height, width = (side - side % 2 for side in frames.shape[1:3])
    save_video(path, frames[:, :height, :width], fps)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    if is_file(text):
        return one_line(text.read_bytes().decode("utf-8-sig", errors="replace"))
    return one_line(path.stem.replace("_", " ").replace("-", " "))


def _problem(path: Path, frames: int) -> str | None:
    try:
        clip = read_frames(path, frames)
    except UserError as error:
        return one_line(error)
    return f"{path} holds 1 frame, so there is no motion to take" if clip.total < 2 else None
