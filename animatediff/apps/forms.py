"""What a form asks of a run, derived from the methods: fields with kind, range, default and help, and presets.

The page and the nodes are made of this; a method that comes into METHODS appears in both by itself. A value travels as
the text that `key=value` takes, so that what a form says is what the command line would say.
"""

from __future__ import annotations

import json
import re
import shlex
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from animatediff.config import BASE, default_of, items_of, read_layers
from animatediff.inference.run import missing_weights, run_of, run_schema
from animatediff.pipelines import METHODS, method_named
from animatediff.pipelines.method import Input, Method, Run, ShownPreparation, attribute
from animatediff.project import PROJECT, as_called

KINDS = ("text", "choice", "switch", "whole", "number", "list")
PLACES = ("common", "files", "inputs", "settings")
PRESETS = "configs/inference"  # <method>/<preset>.yaml
_PATH = re.compile(r"(^|_)(path|paths|dir)$")


@dataclass(frozen=True)
class FormField:
    """One key of a method's run, as a form asks for it.

    kind: one of KINDS; `of` is that of a list's elements. choices: what a choice may be; of a number, texts that it may
    be besides. optional: null is a value, too. place: one of PLACES. once: fixed when models are loaded.
    names_file: its text names a file or a folder.
    """

    key: str  # as in key=value: "seed", "<method>.<setting>"
    kind: str
    default: Any
    help: str
    place: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    of: str = ""
    optional: bool = False
    once: bool = False
    pixels: bool = True
    names_file: bool = False

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


@dataclass(frozen=True, eq=False)
class Preset:
    """One YAML that runs a method by itself: the run it stands for, and what is missing for it."""

    method: str
    name: str
    path: Path
    run: Run
    about: str  # the YAML's first comment
    missing: tuple[str, ...]  # a line for each weight file that is not there: where it lies, how to get it

    @property
    def key(self) -> str:
        """What forms call it: "<method>/<name>"."""
        return f"{self.method}/{self.name}"

    @property
    def config(self) -> str:
        """Its path as `--config` takes it."""
        inside = self.path.is_relative_to(PROJECT)
        return self.path.relative_to(PROJECT).as_posix() if inside else str(self.path)


def fields_of(method: str) -> tuple[FormField, ...]:
    """Every key of a method's run but the method itself: common keys, files, inputs, settings, in that order."""
    chosen = method_named(method)
    schema = run_schema(method)
    hints = get_type_hints(schema)
    files = {entry.name for entry in fields(chosen.Files)}
    inputs = {given.key for given in chosen.inputs}
    unused = attribute(chosen, "unused", frozenset())
    found = []
    for entry in fields(schema):
        if entry.name in ("method", method) or entry.name in unused:
            continue
        place = "files" if entry.name in files else "inputs" if entry.name in inputs else "common"
        found.append(_field(entry.name, hints[entry.name], default_of(entry), entry.metadata, place))
    return (*found, *settings_fields(method))


def settings_fields(method: str) -> tuple[FormField, ...]:
    """The keys of a method's own section."""
    settings = method_named(method).Settings
    hints = get_type_hints(settings)
    return tuple(
        _field(f"{method}.{entry.name}", hints[entry.name], default_of(entry), entry.metadata, "settings")
        for entry in fields(settings)
    )


def preparations() -> dict[str, ShownPreparation]:
    """Method -> how it makes one of its inputs, a folder; methods that make none are left out."""
    found = {name: attribute(METHODS[name], "shown_preparation", None) for name in METHODS}
    return {name: preparation for name, preparation in found.items() if preparation is not None}


def inputs_of(method: str) -> tuple[Input, ...]:
    """What a job of the method brings beside clip and prompt."""
    return tuple(method_named(method).inputs)


def title_of(method: Method) -> str:
    """What a person calls the method: its `title`, or the name in the first letters of its class."""
    return str(attribute(method, "title", type(method).__name__.removesuffix("Method") or method.name))


def presets() -> list[Preset]:
    """The YAMLs under configs/inference/<method>/ that run by themselves, those that can run first.

    One that only changes settings, to be laid over another, is none.
    """
    found = [
        preset
        for method in METHODS
        for path in sorted((PROJECT / PRESETS / method).glob("*.yaml"))
        if (preset := read_preset(path)) is not None
    ]
    return sorted(found, key=lambda preset: bool(preset.missing))


def read_preset(path: Path) -> Preset | None:
    """The preset that a YAML holds; None where it names no weights, so that it is one to lay over another.

    UserError where it is no valid configuration.
    """
    layers = read_layers(path)
    run = run_of(layers)
    said = {name for layer in layers for name, _ in items_of(layer)}
    files = {entry.name for entry in fields(METHODS[run.method].Files)}
    if not said & files:
        return None
    missing = tuple(dict.fromkeys(missing_weights(run).values()))
    return Preset(run.method, path.stem, path, run, _first_comment(path), missing)


def values_of(run: Run) -> dict[str, Any]:
    """Every key of a run but the method, with its value; a setting's key is "<method>.<setting>"."""
    return dict(_flat(run, ""))


def changes(run: Run, base: Run) -> dict[str, Any]:
    """The keys whose values differ from those of `base`, a run of the same method."""
    before = values_of(base)
    return {key: value for key, value in values_of(run).items() if value != before[key]}


def run_with(preset: Preset, texts: Mapping[str, str], given: Mapping[str, Any] | None = None) -> Run:
    """The preset's run with `texts` laid over it as `key=value`, then `given` keys with the types JSON gives.

    UserError for an unknown key, or a value of the wrong type or outside its range.
    """
    overrides = [f"{key}={text}" for key, text in texts.items()]
    return run_of(read_layers(preset.path), overrides, given)


def text_of(value: Any) -> str:
    """A value as `key=value` takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False)
    return repr(value) if isinstance(value, float) else str(value)


def command_of(preset: Preset, run: Run) -> str:
    """The line that makes the run's video, for a POSIX shell."""
    words = ["--config", preset.config]
    for key, value in _told(preset, run):
        if key in ("ref_video_path", "prompt") and value is not None:
            words += [f"--{key}", str(value)]
        else:
            words.append(f"{key}={text_of(value)}")
    return as_called("python inference.py") + "".join(f" {shlex.quote(word)}" for word in words)


def yaml_of(preset: Preset, run: Run) -> str:
    """The same as a YAML laid over the preset's."""
    nested: dict[str, Any] = {BASE: preset.config}
    for key, value in _told(preset, run):
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


def _told(preset: Preset, run: Run) -> Iterator[tuple[str, Any]]:
    """The keys that make `run` of the preset; files of this project by their place in it, as `locate` finds them."""
    for key, value in changes(run, preset.run).items():
        if (
            isinstance(value, str)
            and _PATH.search(key)
            and Path(value).is_file()
            and Path(value).is_relative_to(PROJECT)
        ):
            value = Path(value).relative_to(PROJECT).as_posix()
        yield key, value


def _field(key: str, hint: Any, default: Any, metadata: Mapping[str, Any], place: str) -> FormField:
    optional, kinds = _alternatives(hint)
    choices = tuple(metadata.get("choices") or ())
    kind, of = _kind(kinds, choices), ""
    if kind == "list":
        of = _kind(get_args(next(k for k in kinds if get_origin(k) is list)), ())
    return FormField(
        key,
        kind,
        default,
        metadata.get("help", ""),
        place,
        metadata.get("least"),
        metadata.get("most"),
        choices,
        of,
        optional,
        bool(metadata.get("once")),
        bool(metadata.get("pixels", True)),
        place == "inputs" or _PATH.search(key) is not None,
    )


def _kind(kinds: tuple[Any, ...], choices: tuple[str, ...]) -> str:
    if any(get_origin(kind) in (list, tuple) for kind in kinds):
        return "list"
    if bool in kinds:
        return "switch"
    if float in kinds:
        return "number"
    if int in kinds:
        return "whole"
    return "choice" if choices else "text"


def _alternatives(hint: Any) -> tuple[bool, tuple[Any, ...]]:
    """Whether None is one of the types that `hint` admits, and the others."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return type(None) in kinds, tuple(kind for kind in kinds if kind is not type(None))


def _flat(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from _flat(value, f"{prefix}{entry.name}.")
        elif prefix or entry.name != "method":
            yield f"{prefix}{entry.name}", value


def _first_comment(path: Path) -> str:
    """The comment that a YAML begins with, as one sentence or two."""
    lines = path.read_text(encoding="utf-8").splitlines()
    taken = []
    for line in lines:
        if not line.startswith("# "):
            break
        taken.append(line[2:].strip())
    return " ".join(taken)
