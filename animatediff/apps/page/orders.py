"""From what a visitor sends to a run: only keys that a form offers, only clips by id, only so much work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from animatediff.apps.forms import FormField, Preset, fields_of, inputs_of, preparations, run_with
from animatediff.apps.page.clips import Clip, Clips
from animatediff.apps.page.options import Options
from animatediff.errors import UserError, nearest, shown
from animatediff.files import check_object
from animatediff.inference.jobs import WISHES
from animatediff.inference.run import check, completed
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Run

KEYS: dict[str, Any] = {
    "preset": str,
    "clip": str,
    "prompt": str,
    "start": float | None,
    "duration": float | None,
    "settings": dict[str, str],
    "inputs": dict[str, list[str]],
}
PREPARATION_KEYS: dict[str, Any] = {
    "preset": str,
    "clip": str,
    "clips": dict[str, str],
    "subjects": dict[str, list[float]],
}
OnProgress = Callable[[str, int, int], None]  # (stage, done, of how many)
ASKED_APART = ("prompt", "start", "duration")  # by the page itself
LONGEST_TEXT = 2000  # characters


@dataclass(frozen=True)
class Order:
    """One job as a visitor asked for it."""

    run: Run
    clips: tuple[str, ...]  # ids of what it reads
    prepare: Callable[[OnProgress], Clip] | None = None  # what is to be made of clips first, in place of a video


def offered(method: str) -> list[FormField]:
    """The keys that a visitor may set: none that names a file, adds files, or is fixed when models are loaded."""
    return [field for field in fields_of(method) if not (field.once or field.names_file or field.name in WISHES)]


def read_order(body: Mapping[str, Any], presets: Mapping[str, Preset], clips: Clips, options: Options) -> Order:
    """The order that a JSON object stands for; UserError for the first thing in it that is not to be had."""
    body = check_object(dict(body), "the request", KEYS, required=["preset"])
    preset = presets.get(body["preset"])
    if preset is None:
        raise UserError(f"there is no preset {shown(body['preset'])}; {nearest(body['preset'], list(presets))}")
    if preset.missing:
        raise UserError(preset.missing[0])
    known = {field.key for field in offered(preset.method)} - set(ASKED_APART)
    texts = dict(options.overrides)
    for key, text in body.get("settings", {}).items():
        if key not in known:
            raise UserError(f"there is no setting {shown(key)}; {nearest(key, sorted(known))}")
        texts[key] = text
    given: dict[str, Any] = {"output_dir": str(options.output)}
    method, used = METHODS[preset.method], []
    allowed = {field.key for field in offered(preset.method)}
    given |= {key: body[key] for key in ASKED_APART if body.get(key) is not None and key in allowed}
    for text in (given.get("prompt", ""), *texts.values()):
        if len(text) > LONGEST_TEXT:
            raise UserError(f"a text of {len(text)} characters is too long; write at most {LONGEST_TEXT}")
    if method.needs_prompt and not given.get("prompt", "").strip():
        raise UserError("the prompt is empty; say what the new video shows")
    sent = body.get("inputs", {})
    if "clip" in body:
        clip = clips.get(body["clip"])
        used.append(clip.id)
        given["ref_video_path"] = clip.path
    elif not any(sent.get(wanted.key) for wanted in inputs_of(preset.method) if wanted.kind == "folder"):
        raise UserError("the request lacks clip; choose a clip, or a prepared folder that holds one")
    for wanted in inputs_of(preset.method):
        found = [clips.get(id) for id in sent.get(wanted.key, [])]
        used += [one.id for one in found]
        if found:
            paths = [one.path for one in found]
            given[wanted.key] = paths if wanted.kind == "images" else paths[0]
    run = run_with(preset, texts, given)
    _check_work(run, preset.run, options.max_work)
    check(completed(run))
    return Order(run, tuple(used))


def read_preparation(body: Mapping[str, Any], presets: Mapping[str, Preset], clips: Clips, options: Options) -> Order:
    """The order for a method's preparation: {"preset", "clip", "clips": {key: id}, "subjects": {key: [x, y]}}."""
    body = check_object(dict(body), "the request", PREPARATION_KEYS, required=["preset", "clip", "clips"])
    preset = presets.get(body["preset"])
    preparation = None if preset is None else preparations().get(preset.method)
    if preset is None or preparation is None:
        raise UserError(f"preset {shown(body['preset'])} has nothing to prepare")
    driving = clips.get(body["clip"])
    found = {}
    for wanted in preparation.clips:
        if wanted.key not in body["clips"]:
            raise UserError(f"{wanted.key} is missing: {wanted.help}")
        found[wanted.key] = clips.get(body["clips"][wanted.key])
    subjects = {}
    for key, point in body.get("subjects", {}).items():
        if key not in ("ref_video_path", *found) or len(point) != 2 or not all(0 <= side <= 1 for side in point):
            raise UserError(f"the subject of {shown(key)} is {shown(point)}, expected x and y, each from 0 to 1")
        subjects[key] = (float(point[0]), float(point[1]))
    run = run_with(preset, dict(options.overrides), {"ref_video_path": driving.path})
    paths = {key: Path(clip.path) for key, clip in found.items()}
    title = " ".join(Path(clip.title).stem for clip in (*found.values(), driving))

    def prepare(on_progress: OnProgress) -> Clip:
        def make(folder: Path) -> None:
            preparation.make(run, paths, subjects, folder, on_progress)

        return clips.prepare(title, make, preparation.views)

    return Order(run, (driving.id, *(clip.id for clip in found.values())), prepare)


def _check_work(run: Run, usual: Run, most: float) -> None:
    """UserError where a run asks for more than `most` times the work of its preset's."""
    times = _work(run) / _work(usual)
    if times > most:
        raise UserError(
            f"{run.num_frames} frames of {run.width}x{run.height} in {run.num_inference_steps} steps are {times:.0f} "
            f"times the preset's work, at most {most:g} here; lower one of them"
        )


def _work(run: Run) -> float:
    return float(run.num_frames * run.height * run.width * run.num_inference_steps)
