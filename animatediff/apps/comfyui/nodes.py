"""The nodes: what each asks for, gives and does. Settings nodes come from METHODS, one for each method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from animatediff.apps.comfyui import host, running
from animatediff.apps.comfyui.slots import (
    NONE,
    Node,
    Slot,
    condition_slots,
    load_slots,
    loaded_once,
    settings_of,
)
from animatediff.apps.forms import fields_of, title_of
from animatediff.inference.jobs import WISHES
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import MAX_SEED

Files = Callable[[str], Sequence[str]]
PREFIX, CATEGORY = "EfficientMT", "EfficientMT"
MODEL, SETTINGS, REFERENCE, RESULT = f"{PREFIX}_MODEL".upper(), f"{PREFIX}_SETTINGS".upper(), "REFERENCE", "RESULT"


def all_nodes(files: Files = host.model_files) -> list[Node]:
    """Every node of the pack. files: what there is to choose for a key that names a file."""
    settings = [settings_node(method, files) for method in METHODS]
    return [load_node(files), *settings, extract_node(), generate_node(), evaluate_node(), save_node()]


def load_node(files: Files) -> Node:

    def inputs() -> list[Slot]:
        known = tuple(running.presets())
        about = "a method with its weights and settings; the first ones need no download"
        chosen = [slot for name, by_method in loaded_once().items() for slot in load_slots(name, by_method, files)]
        return [Slot("preset", "choice", about, known[0], choices=known), *chosen]

    return Node(
        f"{PREFIX}_Load",
        "Load motion transfer model",
        "Loads a method's networks. Files come from ComfyUI's own model folders and from models/efficientmt; what is "
        "left as the preset has it is looked up there by its name.",
        inputs,
        (Slot("model", MODEL, "for Extract motion"),),
        running.load,
    )


def settings_node(method: str, files: Files) -> Node:
    """Every setting of a method; its values replace the preset's, all of them."""
    name = title_of(METHODS[method])
    return Node(
        f"{PREFIX}_Settings_{method}",
        f"Settings of {name}",
        f"Everything that decides a video of {name} beside clip, prompt and seed. All its values count, whatever the "
        "preset says; without this node the preset's do. A new node holds the published run's.",
        lambda: [slot for slot, _ in settings_of(method, files)],
        (Slot("settings", SETTINGS, "for Extract motion, and for Generate"),),
        functools.partial(running.settings, method),
    )


def extract_node() -> Node:
    clips = (NONE, *running.examples())

    def inputs() -> list[Slot]:
        return [
            Slot("model", MODEL, "from Load motion transfer model"),
            Slot("images", "IMAGE", "the clip that gives the motion, frame by frame", optional=True),
            Slot("video", "VIDEO", "or the clip as a video", optional=True),
            Slot("example", "choice", "or a clip that comes with the nodes", NONE, choices=clips, optional=True),
            Slot("settings", SETTINGS, "the preset's where nothing is connected", optional=True),
        ]

    return Node(
        f"{PREFIX}_Extract",
        "Extract motion",
        "Reads the motion of one clip, once for any number of prompts and seeds. Give images, a video, or an example. "
        "Of a long clip the frames that the settings ask for are taken.",
        inputs,
        (Slot("reference", REFERENCE, "the motion"),),
        running.extract,
    )


def generate_node() -> Node:
    def inputs() -> list[Slot]:
        return [
            Slot("reference", REFERENCE, "from Extract motion"),
            Slot("prompt", "text", "what the new video shows", "", lines=True),
            Slot("seed", "whole", "of everything random", 42, 0, MAX_SEED, drawn=True),
            Slot("settings", SETTINGS, "those of the reference where nothing is connected", optional=True),
            *(slot for slot, _ in condition_slots().values()),
        ]

    return Node(
        f"{PREFIX}_Generate",
        "Generate by motion",
        "Makes a video of the prompt that moves like the reference. Cancel stops after the step that runs.",
        inputs,
        (
            Slot("images", "IMAGE", "the frames"),
            Slot("video", "VIDEO", "the same at the settings' rate"),
            Slot("result", RESULT, "the same with all that its sidecar tells, for Save"),
        ),
        running.generate,
    )


def evaluate_node() -> Node:
    def inputs() -> list[Slot]:
        return [
            Slot("images", "IMAGE", "frames to measure, as many as the reference has"),
            Slot("reference", REFERENCE, "what they should move like"),
        ]

    return Node(
        f"{PREFIX}_Evaluate",
        "Evaluate motion",
        "Follows points through both clips and compares how they move. No download is needed.",
        inputs,
        (
            Slot("overlay", "IMAGE", "reference and result beside each other, their tracks drawn over them"),
            *(Slot(column.key, "FLOAT", _told(column.better, column.unit)) for column in running.MEASURE.columns),
            Slot("text", "STRING", "the numbers, a line each"),
        ),
        running.evaluate,
        shows=True,
    )


def save_node() -> Node:
    def inputs() -> list[Slot]:
        field = {each.name: each for each in fields_of(next(iter(METHODS)))}
        wishes = [name for name in WISHES if name != "overwrite"]
        return [
            Slot("result", RESULT, "from Generate"),
            Slot("filename_prefix", "text", "below ComfyUI's output folder", f"{PREFIX}/video"),
            *(Slot(name, "switch", field[name].help, False) for name in wishes),
        ]

    return Node(
        f"{PREFIX}_Save",
        "Save with sidecar",
        "Writes the video and, beside it, a JSON with everything that is needed to make it again. A reference that "
        "came as images is kept beside it, too.",
        inputs,
        (Slot("path", "STRING", "the video's file"),),
        running.save,
        shows=True,
    )


def _told(better: str, unit: str) -> str:
    return ", ".join([text for text in (unit, f"{better} is better" if better else "") if text])
