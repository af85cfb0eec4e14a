"""What one inference run is: its configuration, what no run can take, and what decides the pixels."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml

from animatediff.config import Layer, default_of, fill, items_of, last_said, read_layers, update_config
from animatediff.errors import UserError
from animatediff.files import check_readable, content_hash, is_there, to_path, to_text
from animatediff.hub import PUBLISHED
from animatediff.pipelines import METHODS, method_named
from animatediff.pipelines.method import INPUT_KINDS, Method, Run, WeightFile, attribute
from animatediff.project import PROJECT, as_called, locate, weights_guide

FORMAT = 2  # of fingerprints: what is in them, and how
OTHER_PROGRAMS = {"video_path": "ref_video_path", "new_prompt": "prompt"}  # names of other programs' job lists
COMMON = tuple(entry.name for entry in fields(Run))

_schemas: dict[str, tuple[Method, type[Run]]] = {}


class _MethodsRun(Run):
    """The run of one method; travels between processes by the method's name."""

    def __reduce__(self) -> Any:
        return _rebuilt, (self.method, dict(self.__dict__))


def _rebuilt(method: str, values: dict[str, Any]) -> Run:
    return run_schema(method)(**values)


def run_schema(name: str) -> type[Run]:
    """The dataclass of a method's run: Run with the method's defaults, its Files, its inputs, and its section."""
    method = method_named(name)
    known = _schemas.get(name)
    if known is not None and known[0] is method:
        return known[1]
    limits = attribute(method, "limits", {})
    own = []
    for entry in fields(Run):
        default = name if entry.name == "method" else method.defaults.get(entry.name, default_of(entry))
        metadata = dict(entry.metadata)
        if entry.name in limits:
            metadata["least"], metadata["most"] = limits[entry.name]
        metadata["choices"] = attribute(method, "choices", {}).get(entry.name, metadata["choices"])
        own.append((entry.name, get_type_hints(Run)[entry.name], field(default=default, metadata=metadata)))
    hints = get_type_hints(method.Files)
    for entry in fields(method.Files):
        metadata = dict(entry.metadata) | {"once": True}
        own.append((entry.name, hints[entry.name], field(default_factory=_maker(entry), metadata=metadata)))
    for given in method.inputs:
        if given.kind not in INPUT_KINDS:
            raise ValueError(f"input {given.key} of {name} has kind {given.kind}, expected one of {INPUT_KINDS}")
        metadata = {"help": given.help, "pixels": False}
        kind: Any = list[str] if given.kind == "images" else str
        own.append((given.key, kind, field(default_factory=list if given.kind == "images" else str, metadata=metadata)))
    own.append((name, method.Settings, field(default_factory=method.Settings)))
    schema = make_dataclass(f"{method.Settings.__name__}Run", own, bases=(_MethodsRun,))
    _schemas[name] = method, schema
    return schema


def _maker(entry: Any) -> Callable[[], Any]:
    return lambda: default_of(entry)


def settings_of(run: Run) -> Any:
    """The section of a run's own method."""
    return getattr(run, run.method)


def read_run(
    paths: Sequence[str | Path] = (), overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Run:
    """A run from YAML files (a later one laid over an earlier one), then `key=value` overrides, then `given` keys.

    The method decides which keys there are. UserError names a key of another method, an old name, an unknown one.
    """
    layers = [layer for path in paths for layer in read_layers(path)]
    return run_of(layers, overrides, given)


def run_of(layers: Sequence[Layer], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> Run:
    """As `read_run`, from layers that were read before."""
    flags: Layer = ("the command line", dict(given or {}))
    method = last_said("method", [*layers, flags], overrides) or next(iter(METHODS))
    schema = run_schema(method)
    said = [{name for name, _ in items_of(layer)} for layer in [*layers, flags]]
    later = {text.partition("=")[0] for text in overrides}
    own = [text for text in (_translated_override(method, override) for override in overrides) if text is not None]
    translated: list[Layer] = []
    for number, (source, values) in enumerate(layers):
        translated.append((source, translate(method, values, source, later.union(*said[number + 1 :]))))
    run = fill(schema, translated, own)
    return located(update_config(run, translate(method, flags[1], flags[0]), flags[0]) if given else run)


def lay_over(run: Run, values: Mapping[str, Any], source: str) -> Run:
    """A copy of `run` with a job's keys over it; UserError for one that is fixed when models are loaded."""
    renamed = {OTHER_PROGRAMS.get(name, name): value for name, value in values.items()}
    if len(renamed) < len(values):
        raise UserError(f"{source} gives one key by two names ({', '.join(values)}); keep one")
    own = translate(run.method, renamed, source)
    assert isinstance(own, dict)
    for name in _fixed(run, own):
        raise UserError(
            f"{source} sets '{name}', which is loaded once for all jobs; set it in the YAML or on the command line"
        )
    return located(update_config(run, own, source))


def _fixed(run: Run, values: Mapping[str, Any]) -> list[str]:
    """The keys of `values` that jobs of one list cannot differ in."""
    once = {entry.name for entry in fields(run) if entry.metadata.get("once")}
    found = [name for name in values if name in once]
    section = values.get(run.method)
    if isinstance(section, Mapping):
        inner = {entry.name for entry in fields(settings_of(run)) if entry.metadata.get("once")}
        found += [f"{run.method}.{name}" for name in section if name in inner]
    return sorted(found)


def translate(
    method: str, values: Mapping[str, Any] | yaml.MappingNode, source: str, later: Collection[str] = ()
) -> dict[str, Any]:
    """`values` under this method's names: aliases resolved, what other methods leave off left out.

    later: keys that are said again above `values`; only the last word on another method's key counts.
    """
    result: dict[str, Any] = {}
    aliased: dict[str, dict[str, Any]] = {}  # section -> its keys that stand at the top level
    for name, value in items_of((source, values)):
        if name == method and (inner := _section_items(value)) is not None:
            for part, _ in inner:
                _refuse_renamed(method, f"{name}.{part}", source)
        own = name in get_type_hints(run_schema(method)) or name in attribute(METHODS[method], "aliases", {})
        target = None if not own and name in later else _resolve(method, name, value, source)
        if target is None:
            continue
        head, _, rest = target.partition(".")
        place, key = (aliased.setdefault(head, {}), rest) if rest else (result, head)
        if key in place:
            raise UserError(f"'{target}' stands twice in {source}; keep one")
        place[key] = value
    for head, parts in aliased.items():
        section = _section(result[head], source, head) if head in result else {}
        for key in section.keys() & parts:
            raise UserError(f"'{head}.{key}' stands twice in {source}; keep one")
        result[head] = section | parts
    return result


def _section(value: Any, source: str, name: str) -> dict[str, Any]:
    """A method's section as keys with their values; UserError where it is none, or a key stands twice in it."""
    items = _section_items(value)
    if items is None:
        raise UserError(f"bad value in {source}: {name} is one value, expected keys of its own")
    if len(dict(items)) < len(items):
        raise UserError(f"a key of '{name}' stands twice in {source}; keep one")
    return dict(items)


def _section_items(value: Any) -> list[tuple[str, Any]] | None:
    return items_of(("", value)) if isinstance(value, Mapping | yaml.MappingNode) else None


def _translated_override(method: str, override: str) -> str | None:
    path, equals, text = override.partition("=")
    if not equals:
        return override
    _refuse_renamed(method, path, override)
    head, dot, rest = path.partition(".")
    target = _resolve(method, head, override, override)
    return None if target is None else f"{target}{dot}{rest}={text}"


def _refuse_renamed(method: str, path: str, source: str) -> None:
    for name in [method, *METHODS]:
        new = attribute(METHODS[name], "renamed", {}).get(path)
        if new is not None:
            raise UserError(f"'{path}' in {source} is an old name; write {new}")


def _resolve(method: str, name: str, value: Any, source: str) -> str | None:
    """Where a top-level key belongs: a path of this method's run; None where another method's key is off."""
    _refuse_renamed(method, name, source)
    aliases = attribute(METHODS[method], "aliases", {})
    if name in aliases:
        return aliases[name]
    if name in get_type_hints(run_schema(method)):
        return name
    for other in METHODS:
        path = attribute(METHODS[other], "aliases", {}).get(name, name)
        head, _, rest = path.partition(".")
        if other == method or head not in get_type_hints(run_schema(other)):
            continue
        layer: Layer = (source, {head: {rest: value} if rest else value})
        if isinstance(value, str) and value == source:  # key=value
            if _is_off(other, head, [], [f"{path}{source.removeprefix(name)}"]):
                return None
        elif _is_off(other, head, [layer], []):
            return None
        if name == other and isinstance(value, yaml.MappingNode):
            fill(run_schema(other), [(source, {name: value})])  # a YAML may hold a section for each method
            return None
        raise UserError(
            f"'{name}' in {source} is a key of method={other}, and this run's is {method}; leave it out, or choose that"
        )
    return name


def _is_off(method: str, name: str, layers: Sequence[Layer], overrides: Sequence[str]) -> bool:
    """Whether a key of `method` has its default, or is empty: then it changes nothing of a run by another method."""
    schema = run_schema(method)
    try:
        found = getattr(fill(schema, layers, overrides), name)
    except UserError:
        return False
    return not found or found == getattr(schema(), name)


def located(run: Run) -> Run:
    """A copy of `run` with every path of a file to read found by `locate`."""
    method = METHODS[run.method]
    changes: dict[str, Any] = {"ref_video_path": locate(run.ref_video_path)}
    names = [entry.name for entry in fields(method.Files) if entry.name.endswith(("_path", "_paths"))]
    for name in [*names, *(given.key for given in method.inputs)]:
        value = getattr(run, name)
        changes[name] = [locate(path) for path in value] if isinstance(value, list) else locate(value)
    copy = type(run)(**{entry.name: getattr(run, entry.name) for entry in fields(run)})
    for name, value in changes.items():
        setattr(copy, name, value)
    return copy


def weight_files(run: Run) -> list[WeightFile]:
    """Every file that loading this run's method reads, there or not."""
    method = METHODS[run.method]
    return method.weights(run.part(method.Files))


def missing_weights(run: Run) -> dict[str, str]:
    """For each weight file that is missing: what it is -> one line on where it should lie and how to get it."""
    return {
        file.what: f"no weights at {file.path} ({file.what}); {_where_from(file.path)}"
        for file in weight_files(run)
        if not file.optional and not is_there(to_path(file.path, file.what))
    }


def _where_from(path: Path) -> str:
    place = Path(os.path.normpath(PROJECT / path))
    for model in PUBLISHED:
        if any((PROJECT / "models" / file).is_relative_to(place) for file, _ in model.files):
            return as_called(f"fetch it with python scripts/download_models.py --only {model.name}")
    return weights_guide()


def completed(run: Run) -> Run:
    """The run with the keys that its method derives from others. UserError where those lead nowhere."""
    return attribute(METHODS[run.method], "complete", lambda same: same)(run)


def check(run: Run, clip: bool = True) -> None:
    """UserError for the first thing that no run can take. Ranges were checked with the configuration.

    clip: whether the reference is to be read; it is not where it was extracted before.
    """
    method = METHODS[run.method]
    if clip and not run.ref_video_path:
        raise UserError("no reference video; give --ref_video_path (a video file or a folder of frames)")
    if clip and not is_there(to_path(run.ref_video_path, "ref_video_path")):
        raise UserError(f"no reference video at {run.ref_video_path}")
    if clip:
        check_readable(run.ref_video_path, "ref_video_path")
    if run.prompt is None and method.needs_prompt:
        raise UserError('no prompt; give --prompt (an empty one is --prompt "")')
    for name in ("prompt", "negative_prompt", "ref_prompt"):
        to_text(getattr(run, name) or "", name)
    for name in sorted(attribute(method, "unused", frozenset())):
        if getattr(run, name) != getattr(type(run)(), name):
            raise UserError(f"{name} is {getattr(run, name)!r}, which method={run.method} has no use for; leave it out")
    method.check(run, settings_of(run))
    for given in method.inputs:
        value = getattr(run, given.key)
        if given.required and not value:
            raise UserError(f"{given.key} is empty, and method={run.method} needs it: {given.help}")
        for path in value if isinstance(value, list) else [value] if value else []:
            if not is_there(to_path(path, given.key)):
                raise UserError(f"nothing at {path}; check {given.key}")
            check_readable(path, given.key)


def reference_key(run: Run) -> str:
    """Jobs with equal keys share one reference pass."""
    method = METHODS[run.method]
    names = {"ref_video_path", "num_frames", "height", "width", "fit", "resample", "take", "start", "duration"}
    settings = settings_of(run)
    values = [getattr(run if name in COMMON else settings, name) for name in sorted(names | method.reference_keys)]
    return json.dumps([run.method, run.seed_of_reference, *values])


def fingerprint(run: Run, sha256: Callable[[Path], str] = content_hash) -> str:
    """Of everything that decides the pixels: keys that differ from their defaults, weights, and what is read.

    Keys and methods that come to the project later leave it as it is. Weights count by content (`sha256`) or, the
    large ones, by place, name and size (see WeightFile); clips and other inputs by content.
    """
    method = METHODS[run.method]
    weight_paths = {entry.name for entry in fields(method.Files) if entry.name.endswith(("_path", "_paths"))}
    settings = {name: value for name, value in _changed(run).items() if name not in weight_paths | {"method", "dtype"}}
    weights = [
        [file.what, sha256(file.path) if file.by_content else _portable(file.path), _size(file.path)]
        for file in weight_files(run)
        if is_there(file.path) or not file.optional
    ]
    given = {given.key: getattr(run, given.key) for given in method.inputs}
    read = {
        name: [sha256(Path(path)) for path in (value if isinstance(value, list) else [value])]
        for name, value in given.items()
        if value
    }
    everything = [FORMAT, run.method, resolved_dtype(run), settings, weights, sha256(Path(run.ref_video_path)), read]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _changed(config: Any) -> dict[str, Any]:
    """The keys that decide pixels and differ from their defaults, nested ones too."""
    changed: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if not entry.metadata.get("pixels", True):
            continue
        if is_dataclass(value):
            inner = _changed(value)
            changed |= {entry.name: inner} if inner else {}
        elif value != default_of(entry):
            changed[entry.name] = value
    return changed


def recipe(run: Run) -> dict[str, Any]:
    """What a model card says of the run that a pipeline was loaded for: method, weights, keys off their defaults."""
    method = METHODS[run.method]
    others = {"prompt", "seed", "ref_video_path", *(entry.name for entry in fields(method.Files))}
    others |= {given.key for given in method.inputs}
    weights = {file.what: _portable(file.path) for file in weight_files(run) if is_there(file.path)}
    changed = {name: value for name, value in _changed(run).items() if name not in others | {"method"}}
    return {"method": run.method, "dtype": resolved_dtype(run), "weights": weights, "settings": changed}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def resolved_dtype(run: Run) -> str:
    """fp32, fp16 or bf16; auto is fp16 on CUDA, fp32 elsewhere."""
    if run.dtype != "auto":
        return run.dtype
    cuda = run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available())
    return "fp16" if cuda else "fp32"


def _portable(path: Path) -> str:
    """`path` as seen from this project's folder where it lies inside: the same from any current directory."""
    absolute = path.absolute()
    return absolute.relative_to(PROJECT).as_posix() if absolute.is_relative_to(PROJECT) else str(path)
