"""What a node asks for and gives, before any ComfyUI is there: slots, made of the forms' fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from animatediff.apps.forms import FormField, fields_of, text_of
from animatediff.inference.jobs import WISHES
from animatediff.pipelines import METHODS

WIDGETS = {"choice": "COMBO", "switch": "BOOLEAN", "whole": "INT", "number": "FLOAT", "text": "STRING"}
AS_PRESET, NONE = "as the preset", "none"
LISTED = 3  # files that a key which is a list of files can be given
_NULL = -1  # stands for null where a whole number may be null
# Keys with an input of their own, what trims clips elsewhere in ComfyUI, and what the Save node asks for.
_ELSEWHERE = {"ref_video_path", "prompt", "seed", "start", "duration", "output_dir", *WISHES}
_COMFY_DECIDES = {"device", "offload"}  # its model management does


@dataclass(frozen=True)
class Slot:
    """One input or output. kind: a widget (see WIDGETS), or a type of ComfyUI's that is linked: IMAGE, MASK, ..."""

    id: str
    kind: str
    help: str = ""
    default: Any = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    lines: bool = False  # a text of several lines
    drawn: bool = False  # the page may draw a new value after each run

    @property
    def type(self) -> str:
        """As ComfyUI calls it."""
        return WIDGETS.get(self.kind, self.kind)

    @property
    def is_widget(self) -> bool:
        """Whether it is filled in on the node itself."""
        return self.kind in WIDGETS


@dataclass(frozen=True)
class Node:
    """One node. inputs: a function, since files come and go; run: gets them by id and gives an Outcome."""

    id: str
    title: str
    about: str
    inputs: Callable[[], Sequence[Slot]]
    outputs: tuple[Slot, ...]
    run: Callable[..., Outcome]
    shows: bool = False  # it ends a workflow and shows something

    def input(self, name: str) -> Slot:
        """The input of that id."""
        return next(slot for slot in self.inputs() if slot.id == name)


@dataclass(frozen=True)
class Outcome:
    """What a node gives, by its outputs' order, and what it shows."""

    values: tuple[Any, ...] = ()
    text: str | None = None
    video: tuple[str, str] | None = None  # (file, its folder in ComfyUI's output folder)


# ------------------------------------------------------------------------------------------------------ Settings


def settings_of(method: str, files: Callable[[str], Sequence[str]]) -> Iterator[tuple[Slot, FormField]]:
    """Every key of a method's run that may differ between its jobs, with its widget.

    files: what ComfyUI's folders hold for a key; no widget takes a path.
    """
    taken = set()
    for field in fields_of(method):
        if field.place in ("files", "inputs") or field.once or field.name in _ELSEWHERE:
            continue
        name = field.name if field.name not in taken else field.key.replace(".", "_")
        taken.add(name)
        if field.names_file:
            yield Slot(name, "choice", field.help, NONE, choices=(NONE, *files(field.name))), field
        else:
            yield _widget(field, name), field


def _widget(field: FormField, name: str) -> Slot:
    least, most = field.least, field.most
    default = widget_value(field, field.default)
    if field.kind == "switch":
        return Slot(name, "switch", field.help, default)
    if field.kind == "choice":
        return Slot(name, "choice", field.help, default, choices=field.choices)
    if field.kind == "whole":
        if not field.optional:
            return Slot(name, "whole", field.help, default, least, most)
        return Slot(name, "whole", f"{field.help} ({_NULL} stands for null)", default, _NULL, most)
    if field.kind == "number" and not field.choices and not field.optional:
        return Slot(name, "number", field.help, default, least, most)
    besides = f" (a number, or {', '.join(field.choices)})" if field.choices else ""
    return Slot(name, "text", field.help + besides, default, lines=field.kind == "text" and "prompt" in name)


def widget_value(field: FormField, value: Any) -> Any:
    """A value of the key as its widget shows it; a file is none of ComfyUI's."""
    if field.names_file:
        return NONE
    if field.kind == "whole" and field.optional:
        return _NULL if value is None else value
    if field.kind in ("switch", "whole") or (field.kind == "number" and not field.choices and not field.optional):
        return value
    return text_of(value)


def key_text(field: FormField, value: Any) -> str:
    """What a widget holds, as `key=value` takes it."""
    if field.kind == "whole" and field.optional and value == _NULL:
        return text_of(None)
    if field.kind == "list" and not str(value).strip().startswith("["):
        return f"[{value}]"
    return text_of(value)


# ---------------------------------------------------------------------------------------------------------- Load


def loaded_once() -> dict[str, dict[str, FormField]]:
    """What is fixed when models are loaded: name -> {method: its field}. Files come first."""
    found: dict[str, dict[str, FormField]] = {}
    for method in METHODS:
        for field in fields_of(method):
            if field.once and field.name not in _COMFY_DECIDES:
                found.setdefault(field.name, {})[method] = field
    return dict(sorted(found.items(), key=lambda item: next(iter(item[1].values())).place != "files"))


def load_slots(name: str, fields: dict[str, FormField], files: Callable[[str], Sequence[str]]) -> list[Slot]:
    """The widgets of one thing that is fixed when models are loaded; each may stay as the preset has it.

    files: what ComfyUI's folders hold for a key.
    """
    field = next(iter(fields.values()))
    about = field.help if len(fields) == len(METHODS) else f"{field.help} ({', '.join(fields)})"
    if field.names_file:
        choices = (AS_PRESET, NONE, *files(name))
        names = [name] if field.kind != "list" else [f"{name}_{i + 1}" for i in range(LISTED)]
        return [Slot(each, "choice", about, AS_PRESET, choices=choices, optional=True) for each in names]
    if field.kind in ("choice", "switch"):
        known = ("true", "false") if field.kind == "switch" else ()
        choices = tuple(dict.fromkeys(c for each in fields.values() for c in each.choices)) or known
        return [Slot(name, "choice", about, AS_PRESET, choices=(AS_PRESET, *choices), optional=True)]
    return [Slot(name, "text", f"{about} (empty: as the preset)", "", optional=True)]


# --------------------------------------------------------------------------------------------------------- Generate


def condition_slots() -> dict[str, tuple[Slot, dict[str, str]]]:
    """What jobs bring beside clip and prompt, over all methods: id -> (its input, {method: the key it fills})."""
    types = {"images": "IMAGE", "video": "IMAGE", "masks": "MASK"}
    found: dict[str, tuple[Slot, dict[str, str]]] = {}
    for method in METHODS:
        for given in METHODS[method].inputs:
            if given.kind not in types:
                continue
            name = given.key.removesuffix("s").removesuffix("_path")
            slot = Slot(name, types[given.kind], f"{given.help} ({method})", optional=True)
            found.setdefault(name, (slot, {}))[1][method] = given.key
    return found


def step_of(slot: Slot) -> float:
    """By how much a press on the arrow changes a number: a thousandth of its range, as a power of ten."""
    if slot.least is None or slot.most is None:
        return 0.001
    return min(0.1, max(0.001, 10.0 ** math.floor(math.log10(max(slot.most - slot.least, 1e-3) / 1000))))
