"""What is to be evaluated: outputs and their sidecars in folders, lists in JSON Lines, benchmarks of frame folders."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from animatediff.data.decode import VIDEO_SUFFIXES, Recounted, open_source
from animatediff.data.images import natural_key
from animatediff.data.video import FITS, fit_frames, read_frames, to_levels
from animatediff.errors import UserError, one_line, shown
from animatediff.files import (
    Keys,
    check_object,
    check_readable,
    check_value,
    is_file,
    is_folder,
    is_there,
    load_json,
    parse_json,
    read_json,
    read_jsonl,
    read_lines,
    to_path,
    wrong_keys,
)
from animatediff.inference.run import OTHER_PROGRAMS

BESIDE = "-beside"  # inference.py ends so the names of its side-by-side videos
RECORD: Keys = {
    "method": str | None,
    "prompt": str | None,
    "reference": str | None,
    "ref_video_path": str | None,
    "seed": int | None,
    "fit": Literal[FITS] | None,
    "num_frames": int | None,
    "width": int | None,
    "height": int | None,
    "start": float | None,
    "duration": float | None,
    "seconds": float | None,
    "peak_memory_bytes": float | None,
    "fingerprint": str | None,
    "reference_frames": {"indices": list[int] | None, "of": int | None},
    "config": {"start": float | None, "duration": float | None},
}
COUNTS = ("num_frames", "width", "height", "start", "duration", "seconds", "peak_memory_bytes")  # none is negative
OUTPUT: Keys = {"output": str, "label": str}  # without which there is no item
JOB: Keys = {"ref_video_path": str, "reference": str, "prompt": str}
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One generated video with what is known of it."""

    method: str  # its column in a comparison: the folder, or the label of a JSON Lines file
    name: str  # unique within the method: the path below the folder, without suffix
    output: Path
    record: dict[str, Any] = field(default_factory=dict)  # the sidecar, or the line of the list
    base: Path = Path()  # the folder that relative paths in the record may start from
    problem: str | None = None  # why nothing can be measured, or that the sidecar is missing

    @property
    def prompt(self) -> str | None:
        prompt = self.record.get("prompt")
        return None if prompt is None else str(prompt)

    @property
    def reference(self) -> str | None:
        reference = self.record.get("reference") or self.record.get("ref_video_path")
        return None if reference is None else str(reference)

    @property
    def seed(self) -> int | None:
        return self.record.get("seed")

    @property
    def key(self) -> str:
        """The same for the same job done by another method: reference, prompt and seed, or else the name."""
        if self.reference is None or self.prompt is None:
            return self.name
        return json.dumps([str(Path(self.reference)), self.prompt, self.seed], ensure_ascii=False)


# ---------------------------------------------------------------------------------------------- lists of items


def find_items(path: str | Path, method: str) -> list[Item]:
    """The items of an output folder (searched through) or a JSON Lines file. UserError where there are none."""
    path = to_path(path, "what is to be evaluated")
    if is_folder(path):
        items = _items_of_folder(path, method)
        hint = "videos with the JSON files that inference.py writes beside them"
    elif is_file(path):
        items = [_item_of_line(path, number, line, method) for number, line in read_lines(path)]
        hint = 'lines such as {"output": "a.mp4", "reference": "clip.mp4", "prompt": "a red star"}'
    else:
        raise UserError(f"nothing to evaluate at {path}; give a folder of outputs or a JSON Lines file")
    if not items:
        raise UserError(f"{path} holds nothing to evaluate; expected {hint}")
    return items


def name_methods(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each path that tells it from the others: as many of its last parts as that takes."""
    places = [Path(os.path.realpath(to_path(path, "what is to be evaluated"))) for path in paths]
    parts = [(*place.parent.parts, place.stem) for place in places]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _items_of_folder(folder: Path, method: str) -> list[Item]:
    items, claimed = [], set()
    for sidecar in _listed(folder, {".json"}):
        try:
            record = load_json(sidecar)
            if not isinstance(record, dict) or "output" not in record:
                continue  # some other JSON file
            check_object(record, str(sidecar), OUTPUT)
            output = sidecar.parent / _named(to_path(record["output"], f"{sidecar}: output"))
        except UserError as error:
            items.append(Item(method, _name(sidecar, folder), sidecar, problem=str(error)))
            continue
        record, problem = _check_types(record)
        claimed |= {output.with_suffix(""), output.with_suffix("").with_name(output.stem + BESIDE)}
        problem = problem if is_there(output) else f"its video {output} is missing"
        items.append(Item(method, _name(output, folder), output, record, sidecar.parent, problem))
    broken = {item.output.with_suffix("") for item in items if item.output.suffix == ".json"}
    for output in _listed(folder, VIDEO_SUFFIXES):
        if output.with_suffix("") in claimed | broken:
            continue
        problem = f"no sidecar {output.with_suffix('.json').name} beside it, so its prompt and reference are unknown"
        items.append(Item(method, _name(output, folder), output, base=output.parent, problem=problem))
    return items


def _item_of_line(path: Path, number: int, line: str, method: str) -> Item:
    label = f"{path} line {number}"
    try:
        row = check_object(parse_json(line, label), label, OUTPUT, required=["output"])
        given = _named(to_path(row["output"], f"{label}: output"))
    except UserError as error:
        return Item(method, f"line {number}", path.with_name(f"line {number}"), {}, path.parent, str(error))
    method = row.get("label", method)
    name = str(given.with_suffix(""))
    output = find_video(str(given), path.parent)
    sidecar = None if output is None else output.with_suffix(".json")
    if sidecar is not None and is_file(sidecar):
        try:
            row = {**read_json(sidecar), **row}
        except UserError as error:
            return Item(method, name, sidecar, row, path.parent, str(error))
    row, problem = _check_types(row)
    problem = problem if output is not None else f"its video {given} is missing"
    return Item(method, name, output or given, row, path.parent, problem)


def _check_types(record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The record without entries that are not what their names promise, and a line that names those."""
    wrong = wrong_keys(record, RECORD)
    wrong |= {key: f"{key} is {record[key]}, expected 0 or more" for key in COUNTS if _is_negative(record.get(key))}
    frames = record.get("reference_frames")
    if "reference_frames" not in wrong and any(map(_is_negative, (frames or {}).get("indices") or [])):
        wrong["reference_frames"] = "reference_frames has an index below 0"
    if not wrong:
        return record, None
    kept = {key: value for key, value in record.items() if key not in wrong}
    return kept, f"its record has unusable values: {'; '.join(wrong.values())}"


def _named(output: Path) -> Path:
    """`output`, where it could be the name of a video and not only of a folder ("." or "/")."""
    if not output.name:
        raise UserError(f"{output} names no video")
    return output


def _is_negative(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def _listed(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below `folder` with such a suffix, in natural order; nothing that is hidden or in a hidden folder."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: natural_key(str(path)))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


# ---------------------------------------------------------------------------------------------- their frames


def find_video(path: str, *bases: Path) -> Path | None:
    """The existing file or folder of that name: as given, below one of `bases`, or by its last part below one."""
    candidates = [Path(path), *(base / path for base in bases), *(base / Path(path).name for base in bases)]
    return next((candidate for candidate in candidates if is_there(candidate)), None)


def read_output(item: Item) -> tuple[Frames, float, list[str]]:
    """All frames uint8 [f, h, w, 3], frames per second, and in what they differ from the record (one line each).

    UserError where the video cannot be read.
    """
    clip = read_frames(item.output, None)
    frames, height, width = clip.frames.shape[:3]
    found = list(clip.warnings) if frames > 1 else ["the video has 1 frame, so its motion cannot be measured"]
    expected = item.record.get("num_frames")
    if expected is not None and expected != frames:
        found.append(f"the video has {frames} frames, its record says {expected}")
    said = [item.record.get("width") or width, item.record.get("height") or height]
    if [side + side % 2 for side in said] != [width + width % 2, height + height % 2]:  # H.264 has even sides only
        found.append(f"the video is {width}x{height}, its record says {said[0]}x{said[1]}")
    return clip.frames, clip.fps, found


def read_reference(item: Item, shape: tuple[int, int, int], folder: Path | None = None) -> Frames:
    """The frames of the reference that the output was made from, fitted to it: uint8 [f, h, w, 3] of `shape` f, h, w.

    The record's "reference_frames" and "fit" say which frames and how; without them, f frames are spread over the
    whole clip (or the record's start and duration) and stretched. The reference is looked for as it was given, beside
    the sidecar, and in `folder`. UserError says what is amiss.
    """
    frames, height, width = shape
    if item.reference is None:
        raise UserError("its record names no reference")
    bases = [item.base] if folder is None else [item.base, folder]
    path = find_video(item.reference, *bases)
    if path is None:
        raise UserError(f"its reference {item.reference} is missing; references=FOLDER says where to look")
    record = item.record
    config = record.get("config") or record
    indices = (record.get("reference_frames") or {}).get("indices")
    if indices is None:
        pixels = read_frames(path, frames, start=config.get("start"), duration=config.get("duration")).frames
    elif len(indices) != frames:
        raise UserError(f"the video has {frames} frames, but {len(indices)} of its reference were used")
    else:
        pixels = _read_indices(path, indices)
    fit, resample = record.get("fit", "stretch"), config.get("resample", "bilinear")
    fitted = fit_frames(pixels, height, width, fit, resample)  # f 3 h w, -1..1
    return to_levels(fitted)


def _read_indices(path: Path, indices: Sequence[int]) -> Frames:
    with open_source(path) as source:
        try:
            if max(indices) < len(source.times):
                return source.read(indices)
        except Recounted:
            pass
        if max(indices) >= len(source.times):
            raise UserError(f"its reference {path} has {len(source.times)} frames, but frame {max(indices)} was used")
        return source.read(indices)


# ---------------------------------------------------------------------------------------------- benchmarks


def benchmark_jobs(frames: str | Path, prompts: str | Path) -> list[dict[str, str]]:
    """The jobs of a benchmark: [{"ref_video_path": ..., "prompt": ...}], in the order of the prompt list.

    `frames` is a folder with one folder of images per sequence, as DAVIS has (JPEGImages/480p/<sequence>/00000.jpg),
    or one video per sequence. `prompts` is a text file with a line `sequence: prompt` for each job (# starts a
    comment), or JSON {"sequence": "prompt" or ["prompt", ...]}. UserError names every sequence that is not there.
    """
    frames, listed = to_path(frames, "--frames"), _read_prompts(to_path(prompts, "--prompts"))
    if not is_folder(frames):
        raise UserError(f"no folder of sequences at {frames}; for DAVIS give .../JPEGImages/480p")
    check_readable(frames, "--frames")
    sequences = {path.name if is_folder(path) else path.stem: path for path in sorted(frames.iterdir())}
    missing = sorted({name for name, _ in listed} - set(sequences))
    if missing:
        raise UserError(f"{prompts} names sequences that {frames} does not hold: {', '.join(missing)}")
    return [{"ref_video_path": str(sequences[name]), "prompt": prompt} for name, prompt in listed]


def read_job_list(path: str | Path) -> list[tuple[str, str]]:
    """(reference, prompt) of every job in a JSON Lines file, under any name that inference.py takes.

    UserError where a line has none.
    """
    jobs = []
    for number, row in read_jsonl(path):
        label = f"{path} line {number}"
        job = check_object({OTHER_PROGRAMS.get(key, key): value for key, value in row.items()}, label, JOB, ["prompt"])
        reference = job.get("ref_video_path") or job.get("reference")
        if not reference:
            raise UserError(f"{label} lacks 'ref_video_path', the clip that gives the motion")
        jobs.append((reference, job["prompt"]))
    return jobs


def missing_jobs(jobs: Sequence[tuple[str, str]], items: Sequence[Item]) -> list[str]:
    """Those of a benchmark's jobs (`read_job_list`) that none of one method's items has: "reference: prompt".

    References are compared by their names.
    """

    def key(reference: str, prompt: str) -> tuple[str, str]:
        return Path(reference).stem, one_line(prompt)

    done = {key(item.reference, item.prompt) for item in items if item.reference and item.prompt is not None}
    return [f"{Path(reference).name}: {prompt}" for reference, prompt in jobs if key(reference, prompt) not in done]


def _read_prompts(path: Path) -> list[tuple[str, str]]:
    if path.suffix.lower() == ".json":
        listed = load_json(path)
        check_value(listed, dict[str, str | list[str]], f"{path}")
        pairs = [(name, p) for name, ps in listed.items() for p in ([ps] if isinstance(ps, str) else ps)]
        blank = next((name for name, prompt in pairs if not prompt.strip()), None)
        if blank is not None:
            raise UserError(f"{path} has an empty prompt for {shown(blank)}, expected a sentence")
    else:
        pairs = []
        for number, line in read_lines(path):
            if line.lstrip().startswith("#"):
                continue
            name, colon, prompt = line.partition(":")
            if not colon or not name.strip() or not prompt.strip():
                raise UserError(f"{path} line {number} is '{line.strip()}'; expected 'sequence: prompt'")
            pairs.append((name.strip(), prompt.strip()))
    if not pairs:
        raise UserError(f"{path} holds no prompts; expected lines 'sequence: prompt'")
    return pairs
