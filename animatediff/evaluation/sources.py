"""What is to be evaluated: outputs and their sidecars in folders, lists in JSON Lines, benchmarks of frame folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animatediff.data.decode import VIDEO_SUFFIXES, Recounted, open_source
from animatediff.data.images import natural_key
from animatediff.data.video import fit_frames, read_frames
from animatediff.errors import UserError, one_line
from animatediff.files import read_json, read_jsonl

BESIDE = "-beside"  # inference.py ends so the names of its side-by-side videos
RECORD_TYPES: dict[str, Any] = {
    "prompt": str,
    "reference": str,
    "ref_video_path": str,
    "seed": int,
    "fit": str,
    "num_frames": int,
    "width": int,
    "height": int,
    "seconds": (int, float),
    "peak_memory_bytes": (int, float),
    "reference_frames": dict,
    "config": dict,
}
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
    path = Path(path)
    if path.is_dir():
        items = _items_of_folder(path, method)
        hint = "videos with the JSON files that inference.py writes beside them"
    elif path.is_file():
        items = [_item_of_line(path, number, row, method) for number, row in read_jsonl(path)]
        hint = 'lines such as {"output": "a.mp4", "reference": "clip.mp4", "prompt": "a red star"}'
    else:
        raise UserError(f"nothing to evaluate at {path}; give a folder of outputs or a JSON Lines file")
    if not items:
        raise UserError(f"{path} holds nothing to evaluate; expected {hint}")
    return items


def name_methods(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each path that tells it from the others: as many of its last parts as that takes."""
    parts = [Path(path).resolve().with_suffix("").parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _items_of_folder(folder: Path, method: str) -> list[Item]:
    items, claimed = [], set()
    for sidecar in _sorted(path for path in folder.rglob("*.json") if not path.name.startswith(".")):
        try:
            record = read_json(sidecar)
        except UserError as error:
            items.append(Item(method, _name(sidecar, folder), sidecar, problem=str(error)))
            continue
        if not isinstance(record, dict) or "output" not in record:
            continue  # some other JSON file
        record, problem = _check_types(record)
        output = sidecar.parent / str(record["output"])
        claimed |= {output.with_suffix(""), output.with_suffix("").with_name(output.stem + BESIDE)}
        problem = problem if output.exists() else f"its video {output} is missing"
        items.append(Item(method, _name(output, folder), output, record, sidecar.parent, problem))
    broken = {item.output.with_suffix("") for item in items if item.output.suffix == ".json"}
    for output in _sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES):
        if output.name.startswith(".") or output.with_suffix("") in claimed | broken:
            continue
        problem = f"no sidecar {output.with_suffix('.json').name} beside it, so its prompt and reference are unknown"
        items.append(Item(method, _name(output, folder), output, base=output.parent, problem=problem))
    return items


def _item_of_line(path: Path, number: int, row: dict[str, Any], method: str) -> Item:
    method = str(row.get("label", method))
    if "output" not in row:
        nowhere = path.with_name(f"line {number}")
        return Item(method, f"line {number}", nowhere, row, path.parent, f'{path} line {number} lacks "output"')
    output = locate(str(row["output"]), path.parent)
    name = str(Path(str(row["output"])).with_suffix(""))
    sidecar = None if output is None else output.with_suffix(".json")
    if sidecar is not None and sidecar.is_file():
        try:
            known = read_json(sidecar)
        except UserError as error:
            return Item(method, name, sidecar, row, path.parent, str(error))
        row = {**known, **row} if isinstance(known, dict) else row
    row, problem = _check_types(row)
    problem = problem if output is not None else f"its video {row['output']} is missing"
    return Item(method, name, output or Path(str(row["output"])), row, path.parent, problem)


def _check_types(record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The record without entries that are not what their names promise, and a line that names those."""
    wrong = {
        key: record[key]
        for key, kinds in RECORD_TYPES.items()
        if record.get(key) is not None and (not isinstance(record[key], kinds) or isinstance(record[key], bool))
    }
    frames = record.get("reference_frames") or {}
    indices = frames.get("indices") if isinstance(frames, dict) else frames
    if indices is not None and not (isinstance(indices, list) and all(type(i) is int and i >= 0 for i in indices)):
        wrong["reference_frames"] = frames
    if not wrong:
        return record, None
    shown = ", ".join(f"{key} ({str(value)[:40]})" for key, value in wrong.items())
    return {key: value for key, value in record.items() if key not in wrong}, f"its record has unusable values: {shown}"


def _sorted(paths: Any) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(str(path)))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


# ---------------------------------------------------------------------------------------------- their frames


def locate(path: str, *bases: Path) -> Path | None:
    """The existing file or folder of that name: as given, below one of `bases`, or by its last part below one."""
    candidates = [Path(path), *(base / path for base in bases), *(base / Path(path).name for base in bases)]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def read_output(item: Item) -> tuple[Frames, float, list[str]]:
    """All frames uint8 [f, h, w, 3], frames per second, and in what they differ from the record (one line each).

    UserError where the video cannot be read.
    """
    clip = read_frames(item.output, None)
    found = list(clip.warnings) if len(clip.frames) > 1 else []
    frames, height, width = clip.frames.shape[:3]
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
    path = locate(item.reference, *bases)
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
    return ((fitted + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # f h w 3


def _read_indices(path: Path, indices: Sequence[int]) -> Frames:
    source = open_source(path)
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
    frames, listed = Path(frames), _read_prompts(Path(prompts))
    if not frames.is_dir():
        raise UserError(f"no folder of sequences at {frames}; for DAVIS give .../JPEGImages/480p")
    sequences = {path.name if path.is_dir() else path.stem: path for path in sorted(frames.iterdir())}
    missing = sorted({name for name, _ in listed} - set(sequences))
    if missing:
        raise UserError(f"{prompts} names sequences that {frames} does not hold: {', '.join(missing)}")
    return [{"ref_video_path": str(sequences[name]), "prompt": prompt} for name, prompt in listed]


def missing_jobs(jobs: Sequence[dict[str, Any]], items: Sequence[Item]) -> list[str]:
    """Those of a benchmark's jobs that none of one method's items has: "reference: prompt".

    References are compared by their names.
    """

    def key(reference: str, prompt: str) -> tuple[str, str]:
        return Path(reference).stem, one_line(prompt)

    done = {key(item.reference, item.prompt) for item in items if item.reference and item.prompt is not None}
    wanted = [(str(job.get("ref_video_path") or job.get("reference")), str(job["prompt"])) for job in jobs]
    return [f"{Path(reference).name}: {prompt}" for reference, prompt in wanted if key(reference, prompt) not in done]


def _read_prompts(path: Path) -> list[tuple[str, str]]:
    if path.suffix.lower() == ".json":
        listed = read_json(path)
        if not isinstance(listed, dict):
            raise UserError(f'{path} holds a {type(listed).__name__}; expected {{"sequence": ["prompt", ...]}}')
        pairs = [(name, p) for name, ps in listed.items() for p in ([ps] if isinstance(ps, str) else ps)]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the prompts {path} ({one_line(error)})") from error
        pairs = []
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, colon, prompt = line.partition(":")
            if not colon or not name.strip() or not prompt.strip():
                raise UserError(f"{path} line {number} is '{line.strip()}'; expected 'sequence: prompt'")
            pairs.append((name.strip(), prompt.strip()))
    if not pairs:
        raise UserError(f"{path} holds no prompts; expected lines 'sequence: prompt'")
    return pairs
