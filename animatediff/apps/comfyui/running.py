"""What the nodes do, over `inference.Engine`: load, extract, generate, measure, save."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from animatediff.apps import forms
from animatediff.apps.comfyui import host, pictures
from animatediff.apps.comfyui.overlay import draw_tracks
from animatediff.apps.comfyui.slots import AS_PRESET, LISTED, NONE, Outcome, condition_slots, key_text, loaded_once
from animatediff.apps.comfyui.slots import settings_of as settings_slots
from animatediff.apps.preview import preview
from animatediff.config import override_config, update_config
from animatediff.data.export import save_frames
from animatediff.data.video import fit_frames, read_frames, to_levels
from animatediff.errors import UserError
from animatediff.evaluation import LucasKanade
from animatediff.evaluation.measures import MotionFidelity, Sample
from animatediff.inference import Engine
from animatediff.inference.engine import Extracted, Result
from animatediff.inference.jobs import Job
from animatediff.inference.outputs import frames_per_second, write
from animatediff.inference.run import (
    content_hash,
    fingerprint,
    located,
    missing_weights,
    reference_key,
    run_schema,
)
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import UNTRAINED, Run
from animatediff.project import PROJECT

ASSETS = PROJECT / "assets"
BYTES_PER_PIXEL = 1024  # of a frame, in half precision, that sampling works in: a rough upper mean of the methods
PREVIEWS = 8  # in a run, at most
MEASURE = MotionFidelity(static=0.5)


@dataclass(frozen=True, eq=False)
class Model:
    """One method's networks, under ComfyUI's model management."""

    engine: Engine
    held: Any

    def ready(self, run: Run) -> None:
        """Have the networks where they run, with room for this run. Stops where someone pressed Cancel."""
        host.stop_if_asked()
        wide = 2 if run.dtype == "fp32" else 1
        host.bring(self.held, wide * BYTES_PER_PIXEL * run.num_frames * run.height * run.width)


@dataclass(frozen=True)
class Settings:
    """What a Settings node holds: texts as `key=value` takes them."""

    method: str
    texts: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Reference:
    """The motion of a clip, the run that it was extracted for, and the model that it was extracted with."""

    model: Model
    run: Run
    extracted: Extracted


@dataclass(frozen=True, eq=False)
class Made:
    """One generated video, with all that its sidecar tells."""

    run: Run
    result: Result


@functools.cache
def presets() -> dict[str, forms.Preset]:
    """The presets by what forms call them, those that can run at once first."""
    return {preset.key: preset for preset in forms.presets()}


@functools.cache
def examples() -> Mapping[str, frozenset[str]]:
    """What comes with this project under assets/: clips, and folders that a method's preparation would make.

    Name -> the methods that it is for.
    """
    found = {path: frozenset(METHODS) for path in sorted((ASSETS / "references").glob("*.mp4"))}
    for method, preparation in forms.preparations().items():
        found |= {folder: found.get(folder, frozenset()) | {method} for folder in preparation.examples}
    return {path.relative_to(ASSETS).as_posix(): methods for path, methods in found.items()}


def with_example(run: Run, example: str) -> Run:
    """The run on something that comes with this project."""
    path = str(ASSETS / example)
    if run.method not in examples()[example]:
        fitting = next((name for name, methods in examples().items() if run.method in methods), NONE)
        raise UserError(f"example is '{example}', which is none for method={run.method}; choose '{fitting}'")
    is_folder = Path(path).is_dir()
    return _changed(run, {forms.preparations()[run.method].key if is_folder else "ref_video_path": path})


def _changed(run: Run, values: Mapping[str, Any]) -> Run:
    return replace(run, **values)


def load(preset: str, **chosen: str) -> Outcome:
    """The model of a preset, with other files and options where they are chosen."""
    if preset not in presets():
        raise UserError(f"preset is '{preset}', expected one of {', '.join(presets())}")
    start = presets()[preset]
    run = forms.run_with(start, _load_texts(start.method, chosen))
    run = _found(run)
    if run.dtype == "auto":
        run = replace(run, dtype=host.dtype())
    missing = missing_weights(run)
    if missing:
        raise UserError(f"{next(iter(missing.values()))}; or choose a file of ComfyUI's folders on this node")
    with torch.inference_mode(False):
        engine = Engine(run, device=host.device())
        engine.load()
        untrained = [f"{UNTRAINED}: {engine.facts()[UNTRAINED]}"] if UNTRAINED in engine.facts() else []
        said = "\n".join([*engine.notes, *untrained])
        return Outcome((Model(engine, host.hold(engine)),), text=said or None)


def _load_texts(method: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """What was chosen on the Load node, as `key=value` takes it."""
    texts: dict[str, str] = {}
    for name, by_method in loaded_once().items():
        field = next(iter(by_method.values()))
        if field.names_file and field.kind == "list":
            given = [chosen.get(f"{name}_{i + 1}", AS_PRESET) for i in range(LISTED)]
            value: Any = [_path(name, each) for each in given if each not in (AS_PRESET, NONE)]
            if all(each == AS_PRESET for each in given):
                continue
        else:
            value = chosen.get(name, AS_PRESET)
            if value in (AS_PRESET, ""):
                continue
            if field.names_file:
                value = "" if value == NONE else _path(name, value)
        if method not in by_method:
            raise UserError(f"{name} is {value!r}, which method={method} has no use for; set it to '{AS_PRESET}'")
        texts[by_method[method].key] = key_text(by_method[method], forms.text_of(value))
    return texts


def _path(key: str, name: str) -> str:
    path = host.model_path(key, name)
    if path is None:
        raise UserError(f"{key} is '{name}', which is in none of ComfyUI's model folders; choose another")
    return path


def _found(run: Run) -> Run:
    """The run with files that are not where its preset has them, and lie in ComfyUI's folders under the same name."""
    changes: dict[str, Any] = {}
    for field in forms.fields_of(run.method):
        value = getattr(run, field.key) if field.place == "files" and field.names_file else None
        if isinstance(value, str) and value and not Path(value).exists():
            changes[field.key] = host.find_model(field.key, Path(value).name) or value
    return _changed(run, changes)


def settings(method: str, **given: Any) -> Outcome:
    """A method's settings, checked."""
    by_id = {slot.id: field for slot, field in settings_slots(method, host.model_files)}
    texts = {}
    for name, value in given.items():
        field = by_id[name]
        if field.names_file:
            value = "" if value == NONE else _path(field.name, value)
        texts[field.key] = key_text(field, value)
    made = Settings(method, texts)
    _with(run_schema(method)(), made)
    return Outcome((made,))


def _with(run: Run, settings: Settings | None) -> Run:
    """A copy of `run` with settings laid over it."""
    if settings is None:
        return run
    if settings.method != run.method:
        raise UserError(
            f"the settings are for method={settings.method}, the model is method={run.method}; "
            f"use the node EfficientMT_Settings_{run.method}"
        )
    return located(override_config(run, [f"{key}={text}" for key, text in settings.texts.items()]))


def extract(
    model: Model,
    images: torch.Tensor | None = None,
    video: Any = None,
    example: str = NONE,
    settings: Settings | None = None,
) -> Outcome:
    """The motion of one clip: of images, of a video, or of what comes with this project."""
    run = _with(model.engine.run, settings)
    given = [images is not None, video is not None, example != NONE]
    if sum(given) > 1:
        raise UserError("more than one of images, video and example is given; keep one")
    if images is not None:
        run = replace(run, ref_video_path=pictures.clip_of_images(images, run))
    elif video is not None:
        run = replace(run, ref_video_path=pictures.clip_of_video(video, run))
    elif example != NONE:
        run = with_example(run, example)
    run = model.engine.resolve(run)
    if not run.ref_video_path:
        raise UserError("no reference; connect images or a video, or choose an example")
    progress = host.Progress(1)
    with torch.inference_mode(False):
        model.ready(run)
        extracted = model.engine.extract(run)
    progress.at(1, 1)
    extracted = replace(extracted, motion=to_cpu(extracted.motion))
    return Outcome((Reference(model, run, extracted),), text="\n".join(extracted.warnings) or None)


def generate(
    reference: Reference, prompt: str, seed: int, settings: Settings | None = None, **given: torch.Tensor | None
) -> Outcome:
    """A video of the prompt that moves like the reference: images, video, and what the sidecar needs."""
    model = reference.model
    run = _with(reference.run, settings)
    wishes: dict[str, Any] = {"seed": seed}
    if prompt or METHODS[run.method].needs_prompt:
        wishes["prompt"] = prompt
    run = update_config(run, wishes | _conditions(run, given), "the Generate node")
    with torch.inference_mode(False):
        model.ready(run)
        result = model.engine.make(run, _same_clip(reference, run), _stepped(model))
    images = torch.from_numpy(np.ascontiguousarray(result.frames, dtype=np.float32))
    made = Made(run, result)
    text = "\n".join(result.warnings) or None
    return Outcome((images, host.video(images, frames_per_second(run, result)), made), text=text)


def _conditions(run: Run, given: Mapping[str, torch.Tensor | None]) -> dict[str, Any]:
    """Linked images and masks as the files that the method's inputs name."""
    kinds = {each.key: each.kind for each in METHODS[run.method].inputs}
    found: dict[str, Any] = {}
    for name, (_, keys) in condition_slots().items():
        batch = given.get(name)
        if batch is None:
            continue
        if run.method not in keys:
            raise UserError(f"{name} is connected, which method={run.method} has no use for; disconnect it")
        key = keys[run.method]
        if kinds[key] == "images":
            found[key] = pictures.picture_files(batch)
        else:
            found[key] = (pictures.clip_of_masks if kinds[key] == "masks" else pictures.clip_of_images)(batch, run)
    return found


def _same_clip(reference: Reference, run: Run) -> Extracted:
    """What was extracted, where it serves `run`, too; extracted anew where the noise of its pass follows the seed."""
    key = reference_key(reference.run)
    if reference_key(run) == key:
        return reference.extracted
    if reference_key(replace(run, seed=reference.run.seed)) == key:
        return reference.model.engine.extract(run)
    own = forms.values_of(reference.run)
    for name, value in forms.changes(run, reference.run).items():
        changed = override_config(reference.run, [f"{name}={forms.text_of(value)}"])
        if name != "seed" and reference_key(changed) != key:
            raise UserError(
                f"{name} is {value!r}, and the reference was extracted with {own[name]!r}; "
                "connect the same settings to the Extract node"
            )
    raise UserError("the settings are not those of the reference; connect the same ones to the Extract node")


def _stepped(model: Model) -> Any:
    """Shows each step on the node, with a picture of the latents now and then, and stops where Cancel was pressed."""
    progress, pipe = host.Progress(1), model.engine.load()

    def on_step(step: int, steps: int, latents: torch.Tensor) -> None:
        host.stop_if_asked()
        wanted = step % max(1, steps // PREVIEWS) == 0
        progress.at(step + 1, steps, preview(pipe, latents) if wanted else None)

    return on_step


def evaluate(images: torch.Tensor, reference: Reference) -> Outcome:
    """How well images move like a reference: both with their tracks drawn over them, and the measures."""
    frames = pictures.levels(images)
    height, width = frames.shape[1:3]
    clip = to_levels(fit_frames(reference.extracted.pixels, height, width, "crop"))
    track = LucasKanade()
    own, far = track(frames), track(clip)
    measured = MEASURE(Sample(frames, reference=clip, tracks=own, reference_tracks=far)).values
    drawn = np.concatenate([draw_tracks(clip, far), draw_tracks(frames[: len(clip)], own)], axis=2)[: len(frames)]
    lines = [
        f"{column.title}: {_number(measured.get(column.key, math.nan), column.digits)} {column.unit}".rstrip()
        + (f" ({column.better} is better)" if column.better else "")
        for column in MEASURE.columns
    ]
    numbers = tuple(float(measured.get(column.key, math.nan)) for column in MEASURE.columns)
    overlay = torch.from_numpy(drawn).float() / 255
    return Outcome((overlay, *numbers, "\n".join(lines)), text="\n".join(lines))


def _number(value: float, digits: int) -> str:
    return "not to be had" if math.isnan(value) else f"{value:.{digits}f}"


def save(result: Made, filename_prefix: str, **wishes: bool) -> Outcome:
    """The video and its sidecar in ComfyUI's output folder; what came as images is kept beside it."""
    height, width = result.result.frames.shape[1:3]
    stem, inside = host.next_output(filename_prefix, width, height)
    run = _changed(_kept(result.run, stem), wishes)
    job = Job(run, "ComfyUI", output=stem.with_name(f"{stem.name}.mp4"))
    job.reference_sha256, job.fingerprint = _hash(Path(run.ref_video_path)), fingerprint(run, _hash)
    write(job, result.result)
    return Outcome((str(job.output),), video=(job.output.name, inside))


def _kept(run: Run, stem: Path) -> Run:
    """The run with every sequence that lies in the temporary folder copied beside the output, and named there."""
    temporary = host.temp_folder()
    changes: dict[str, Any] = {}
    for key in ("ref_video_path", *(given.key for given in METHODS[run.method].inputs)):
        value = getattr(run, key)
        paths = [Path(path) for path in (value if isinstance(value, list) else [value]) if path]
        if not any(path.is_relative_to(temporary) for path in paths):
            continue
        folder = stem.with_name(f"{stem.name}{key.removesuffix('s').removesuffix('_path')}")
        save_frames(folder, np.concatenate([read_frames(path, None).frames for path in paths]))
        kept = [str(path) for path in sorted(folder.iterdir())]
        changes[key] = kept if isinstance(value, list) else str(folder)
    return _changed(run, changes)


@functools.cache
def _hash_of(path: Path, _state: tuple[int, int]) -> str:
    return content_hash(path)


def _hash(path: Path) -> str:
    """`content_hash`, once for a file as it is now."""
    state = path.stat()
    return _hash_of(path, (state.st_mtime_ns, state.st_size))


def to_cpu(value: Any) -> Any:
    """`value` with every tensor inside it on the CPU: in containers, dataclasses, and what has a `to` of its own."""
    if isinstance(value, torch.Tensor) or hasattr(value, "to"):
        return value.to("cpu")
    if isinstance(value, dict):
        return {key: to_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        parts = [to_cpu(inner) for inner in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{entry.name: to_cpu(getattr(value, entry.name)) for entry in fields(value)})
    return value
