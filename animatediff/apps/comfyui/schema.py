"""The nodes as ComfyUI takes them: io.ComfyNode classes of its current schema, and its extension."""

from __future__ import annotations

from typing import Any

from animatediff.apps.comfyui import host
from animatediff.apps.comfyui.nodes import CATEGORY, all_nodes
from animatediff.apps.comfyui.slots import Node, Outcome, Slot, step_of


def extension() -> Any:
    """The ComfyExtension with all nodes. ImportError where there is no ComfyUI."""
    from comfy_api.latest import ComfyExtension

    host.register_folder()
    classes = [node_class(node) for node in all_nodes()]

    class Extension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return classes

    return Extension()


def node_class(node: Node) -> type:
    """The io.ComfyNode of a node."""
    from comfy_api.latest import io

    def define_schema(cls: type) -> Any:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category=CATEGORY,
            description=node.about,
            inputs=[_input(io, slot) for slot in node.inputs()],
            outputs=[_output(io, slot) for slot in node.outputs],
            is_output_node=node.shows,
        )

    def execute(cls: type, **given: Any) -> Any:
        return _given(io, node.run(**given))

    methods = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    return type(node.id, (io.ComfyNode,), {"__doc__": node.about, "__module__": __name__, **methods})


def _input(io: Any, slot: Slot) -> Any:
    shared: dict[str, Any] = {"optional": slot.optional, "tooltip": slot.help}
    if slot.kind == "choice":
        return io.Combo.Input(slot.id, options=list(slot.choices), default=slot.default, **shared)
    if slot.kind == "switch":
        return io.Boolean.Input(slot.id, default=slot.default, **shared)
    if slot.kind == "text":
        return io.String.Input(slot.id, default=slot.default, multiline=slot.lines, **shared)
    limits = {"min": slot.least, "max": slot.most}
    if slot.kind == "whole":
        whole = {name: value if value is None else int(value) for name, value in limits.items()}
        return io.Int.Input(slot.id, default=slot.default, control_after_generate=slot.drawn or None, **whole, **shared)
    if slot.kind == "number":
        return io.Float.Input(slot.id, default=slot.default, step=step_of(slot), round=False, **limits, **shared)
    return _type(io, slot).Input(slot.id, **shared)


def _type(io: Any, slot: Slot) -> Any:
    known = {"IMAGE": io.Image, "MASK": io.Mask, "VIDEO": io.Video, "FLOAT": io.Float, "STRING": io.String}
    return known.get(slot.type) or io.Custom(slot.type)


def _output(io: Any, slot: Slot) -> Any:
    own = f"{slot.id}_"  # inputs and outputs of a node may not share an id
    return _type(io, slot).Output(own, display_name=slot.id, tooltip=slot.help)


def _given(io: Any, outcome: Outcome) -> Any:
    from comfy_api.latest import ui

    shown: dict[str, Any] = {}
    if outcome.text is not None:
        shown |= ui.PreviewText(outcome.text).as_dict()
    if outcome.video is not None:
        name, folder = outcome.video
        shown |= ui.PreviewVideo([ui.SavedResult(name, folder, io.FolderType.output)]).as_dict()
    return io.NodeOutput(*outcome.values, ui=shown or None)
