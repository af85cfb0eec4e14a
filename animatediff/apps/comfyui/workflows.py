"""Example workflows, one for each method that can run at once: in ComfyUI's API format and in that of its page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from animatediff.apps.comfyui import running
from animatediff.apps.comfyui.nodes import (
    PREFIX,
    evaluate_node,
    extract_node,
    generate_node,
    load_node,
    save_node,
    settings_node,
)
from animatediff.apps.comfyui.slots import NONE, Node, Outcome, Slot, settings_of, widget_value
from animatediff.apps.forms import Preset, values_of
from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.files import parse_object, read_lines
from animatediff.inference.run import completed
from animatediff.pipelines import METHODS
from animatediff.project import PROJECT

JOBS = "assets/jobs.jsonl"  # clips with prompts that suit them
_ROW, _HEAD, _WIDE, _GAP = 26, 50, 330, 60  # pixels of ComfyUI's page
_TALL = 120  # a text of several lines


@dataclass(frozen=True)
class Step:
    """A node of a workflow. links: input -> (number of a step before it, number of its output)."""

    node: Node
    values: Mapping[str, Any]
    links: Mapping[str, tuple[int, int]]
    column: int


def example_workflows() -> Iterator[tuple[str, list[Step]]]:
    """(name, steps) of every preset that needs no download and brings its inputs, or finds them under assets/."""
    for preset in running.presets().values():
        example = example_of(preset)
        if not preset.missing and example is not None:
            yield f"{preset.method}_{preset.name}", steps_of(preset, *example)


def example_of(preset: Preset) -> tuple[str, str] | None:
    """The example clip or folder and the prompt that a preset's workflow starts from; None where there is none."""
    method, run = METHODS[preset.method], completed(preset.run)
    required = [each.key for each in method.inputs if each.required and not getattr(run, each.key)]
    if not required and run.ref_video_path:
        return NONE, run.prompt or ""
    if required:
        folders = [name for name, methods in running.examples().items() if methods == {preset.method}]
        return (folders[0], "") if folders else None
    for number, line in read_lines(PROJECT / JOBS):
        job = parse_object(line, f"{JOBS} line {number}")
        name = str(job["ref_video_path"]).removeprefix("assets/")
        if name in running.examples():
            return name, str(job["prompt"]) if method.needs_prompt else ""
    return None


def steps_of(preset: Preset, example: str, prompt: str) -> list[Step]:
    """Load and settings, extract, generate, evaluate and save; the settings are the preset's."""

    def files(_key: str) -> list[str]:
        return []

    values = values_of(preset.run)
    settings = {slot.id: widget_value(field, values[field.key]) for slot, field in settings_of(preset.method, files)}
    link = {"model": (0, 0), "settings": (1, 0)}
    show = Node("PreviewImage", "Preview Image", "", lambda: [Slot("images", "IMAGE")], (), _by_comfy)
    name = f"{PREFIX}/{preset.method}_{preset.name}"
    return [
        Step(load_node(files), {"preset": preset.key}, {}, 0),
        Step(settings_node(preset.method, files), settings, {}, 0),
        Step(extract_node(), {"example": example}, link, 1),
        Step(
            generate_node(),
            {"prompt": prompt, "seed": preset.run.seed},
            {"reference": (2, 0), "settings": (1, 0)},
            2,
        ),
        Step(evaluate_node(), {}, {"images": (3, 0), "reference": (2, 0)}, 3),
        Step(save_node(), {"filename_prefix": name}, {"result": (3, 2)}, 3),
        Step(show, {}, {"images": (4, 0)}, 4),
    ]


def _by_comfy(**_: Any) -> Outcome:
    raise UserError("this node is ComfyUI's own")


def api_format(steps: list[Step]) -> dict[str, Any]:
    """As `POST /prompt` takes it."""
    return {
        str(number): {
            "class_type": step.node.id,
            "inputs": {
                **{slot.id: step.values.get(slot.id, slot.default) for slot in step.node.inputs() if slot.is_widget},
                **{name: [str(source + 1), output] for name, (source, output) in step.links.items()},
            },
            "_meta": {"title": step.node.title},
        }
        for number, step in enumerate(steps, 1)
    }


def page_format(steps: list[Step]) -> dict[str, Any]:
    """As ComfyUI's page opens and saves it."""
    wires = list(_wires(steps))
    nodes = []
    for number, ((left, top, width, height), step) in enumerate(zip(_places(steps), steps, strict=True), 1):
        inputs: list[dict[str, Any]] = []
        for slot in _ordered(step.node):
            wire = next((w[0] for w in wires if w[3] == number and _ordered(step.node)[w[4]].id == slot.id), None)
            inputs.append({"name": slot.id, "type": slot.type, "link": wire})
            if slot.is_widget:
                inputs[-1]["widget"] = {"name": slot.id}
        outputs = [
            {"name": slot.id, "type": slot.type, "links": [w[0] for w in wires if w[1] == number and w[2] == place]}
            for place, slot in enumerate(step.node.outputs)
        ]
        values: list[Any] = []
        for slot in _ordered(step.node):
            if slot.is_widget:
                values += [step.values.get(slot.id, slot.default), *(["fixed"] if slot.drawn else [])]
        nodes.append(
            {
                "id": number,
                "type": step.node.id,
                "pos": [left, top],
                "size": [width, height],
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": inputs,
                "outputs": outputs,
                "properties": {"Node name for S&R": step.node.id},
                "widgets_values": values,
            }
        )
    last = {"last_node_id": len(steps), "last_link_id": len(wires)}
    return {**last, "nodes": nodes, "links": wires, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def _ordered(node: Node) -> list[Slot]:
    """Inputs in ComfyUI's order: those that must be given first."""
    return sorted(node.inputs(), key=lambda slot: slot.optional)


def _wires(steps: list[Step]) -> Iterator[list[Any]]:
    """[its number, from node, from output, to node, to input, type] of every link."""
    number = 0
    for target, step in enumerate(steps, 1):
        names = [slot.id for slot in _ordered(step.node)]
        for name, (source, output) in step.links.items():
            number += 1
            yield [number, source + 1, output, target, names.index(name), steps[source].node.outputs[output].type]


def _places(steps: list[Step]) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of each node: a column beside the other, one below the other."""
    below: dict[int, int] = {}
    places = []
    for step in steps:
        slots = step.node.inputs()
        rows = sum(slot.is_widget for slot in slots)
        sockets = max(sum(not slot.is_widget for slot in slots), len(step.node.outputs))
        height = _HEAD + _ROW * (rows + sockets) + _TALL * sum(slot.lines for slot in slots)
        height += 260 * (step.node.shows or not step.node.outputs)  # what it shows
        top = below.get(step.column, 0)
        below[step.column] = top + height + _GAP
        places.append((step.column * (_WIDE + _GAP), top, _WIDE, height))
    return places


def picture(steps: list[Step]) -> bytes:
    """The workflow as a JPEG: its nodes and links, and the clip that it starts from."""
    scale, margin = 0.5, 20
    places = _places(steps)
    right = max(left + width for left, _, width, _ in places)
    bottom = max(top + height for _, top, _, height in places)
    board = Image.new("RGB", (int(right * scale) + 2 * margin, int(bottom * scale) + 2 * margin), (32, 32, 36))
    pen, small = ImageDraw.Draw(board), ImageFont.load_default(11)

    def at(x: float, y: float) -> tuple[int, int]:
        return int(x * scale) + margin, int(y * scale) + margin

    for _, source, output, target, place, _type in _wires(steps):
        (left, top, width, _), (other_left, other_top, _, _) = places[source - 1], places[target - 1]
        begin, end = at(left + width, top + _HEAD + output * _ROW), at(other_left, other_top + _HEAD + place * _ROW)
        middle = (begin[0] + end[0]) // 2
        pen.line([begin, (middle, begin[1]), (middle, end[1]), end], fill=(120, 150, 200), width=2)
    for (left, top, width, height), step in zip(places, steps, strict=True):
        pen.rounded_rectangle([at(left, top), at(left + width, top + height)], 6, (52, 52, 58), (96, 96, 104))
        pen.text(at(left + 14, top + 10), step.node.title, (235, 235, 235), ImageFont.load_default(13))
        for row, slot in enumerate(_ordered(step.node)):
            value = str(step.values.get(slot.id, slot.default)).replace("\n", " ") if slot.is_widget else ""
            pen.text(at(left + 14, top + _HEAD + row * _ROW), f"{slot.id}  {value}"[:44], (170, 170, 178), small)
    clip = next((step.values["example"] for step in steps if step.values.get("example", NONE) != NONE), None)
    if clip is not None and (running.ASSETS / clip).is_file():
        left, top, width, height = places[2]
        frames = read_frames(running.ASSETS / clip, 3).frames
        for number, frame in enumerate(frames):
            thumb = Image.fromarray(frame).resize((52, 52))
            board.paste(thumb, at(left + 8 + number * 110, top + height + 12))
    buffer = io.BytesIO()
    board.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def files_of(name: str, steps: list[Step]) -> dict[str, bytes]:
    """What a workflow is on disk: name.json with a picture, which ComfyUI's page lists, and api/name.json."""
    texts = {f"{name}.json": page_format(steps), f"api/{name}.json": api_format(steps)}
    found = {file: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for file, value in texts.items()}
    return {**found, f"{name}.jpg": picture(steps)}
