"""A stand-in of ComfyUI's public API, for machines without one: no ComfyUI, no code of it.

It has what the nodes ask for, by the names and signatures of ComfyUI 0.3.64: `comfy_api.latest` (io, ui, InputImpl,
Types), `folder_paths`, `comfy.utils.ProgressBar`, and of `comfy.model_management` and `comfy.model_patcher` what loads
and unloads. `Server` runs workflows of the API format as ComfyUI does: in inference mode, each node once, outputs kept
for inputs that have not changed. What it leaves out is tested by a real ComfyUI (test_real.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

WIDGETS = {"Int": "INT", "Float": "FLOAT", "String": "STRING", "Boolean": "BOOLEAN", "Combo": "COMBO"}
LINKS = {"Image": "IMAGE", "Mask": "MASK", "Video": "VIDEO"}


class Interrupted(Exception):
    """Stands for InterruptProcessingException."""


@dataclass
class Slot:
    """An input or an output: its id, its type, and everything else that was said of it."""

    id: str
    type: str
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def optional(self) -> bool:
        return bool(self.said.get("optional"))


def comfy_type(name: str) -> type:
    def make(_cls: Any, id: str, **said: Any) -> Slot:
        return Slot(id, name, said)

    inner = {"Input": classmethod(make), "Output": classmethod(make)}
    made = type(name, (), {})
    for kind, method in inner.items():
        setattr(made, kind, types.MethodType(method.__func__, made))
    return made


@dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = ""
    description: str = ""
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Slot] = field(default_factory=list)
    is_output_node: bool = False


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **given: Any) -> Any:
        raise NotImplementedError


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyExtension:
    async def get_node_list(self) -> list[type]:
        raise NotImplementedError


@dataclass
class VideoComponents:
    images: torch.Tensor
    frame_rate: Any
    audio: Any = None


class VideoFromComponents:
    def __init__(self, components: VideoComponents) -> None:
        self.components = components

    def get_components(self) -> VideoComponents:
        return self.components

    def get_stream_source(self) -> object:
        return b"encoded"

    def get_duration(self) -> float:
        return len(self.components.images) / self.components.frame_rate


class VideoFromFile(VideoFromComponents):
    """`seconds`: how long it is, where it was cut."""

    def __init__(self, path: str, seconds: float | None = None) -> None:
        self.path, self.seconds = path, seconds

    def get_stream_source(self) -> str:
        return self.path

    def get_duration(self) -> float:
        return 2.0 if self.seconds is None else self.seconds


class PreviewText:
    def __init__(self, value: str) -> None:
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


class PreviewVideo:
    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.values, "animated": (True,)}


def saved_result(filename: str, subfolder: str, type: str) -> dict[str, str]:
    return {"filename": filename, "subfolder": subfolder, "type": type}


class ModelPatcher:
    """Moves a whole model, as ComfyUI's does one that holds no layers of its own."""

    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = 0) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size


class Server:
    """One ComfyUI: its folders, what is loaded, the outputs that it keeps. `interrupt_at`: a step, to stop there."""

    def __init__(self, base: Path, device: str = "cpu") -> None:
        self.base, self.device = base, torch.device(device)
        self.loaded: list[ModelPatcher] = []
        self.asked: list[int] = []  # memory, at each loading
        self.progress: list[tuple[int, int]] = []
        self.previews: list[Any] = []
        self.kept: dict[str, NodeOutput] = {}
        self.ran: list[str] = []  # node ids of the last workflow that were not kept
        self.interrupt_at: int | None = None
        self.nodes: dict[str, type] = {}
        self.folders: dict[str, tuple[list[str], set[str]]] = {}
        for name in ("checkpoints", "loras", "controlnet", "vae", "diffusers", "diffusion_models"):
            (base / "models" / name).mkdir(parents=True)
            self.folders[name] = ([str(base / "models" / name)], set())

    # ------------------------------------------------------------------------------------------------ its modules

    def modules(self) -> dict[str, types.ModuleType]:
        """What a pack imports, by name."""
        io = {name: comfy_type(value) for name, value in {**WIDGETS, **LINKS}.items()}
        io |= {"Schema": Schema, "ComfyNode": ComfyNode, "NodeOutput": NodeOutput, "Custom": comfy_type}
        io["FolderType"] = types.SimpleNamespace(output="output")
        ui = {"PreviewText": PreviewText, "PreviewVideo": PreviewVideo, "SavedResult": saved_result}
        contents = {
            "comfy_api": {},
            "comfy_api.latest": {
                "io": types.SimpleNamespace(**io),
                "ui": types.SimpleNamespace(**ui),
                "ComfyExtension": ComfyExtension,
                "InputImpl": types.SimpleNamespace(
                    VideoFromComponents=VideoFromComponents, VideoFromFile=VideoFromFile
                ),
                "Types": types.SimpleNamespace(VideoComponents=VideoComponents),
            },
            "comfy": {},
            "comfy.utils": {"ProgressBar": self._bar},
            "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
            "comfy.model_management": {
                "get_torch_device": lambda: self.device,
                "unet_offload_device": lambda: torch.device("cpu"),
                "unet_dtype": lambda device, supported_dtypes: torch.float32,
                "load_models_gpu": self._load,
                "unload_all_models": self.unload,
                "throw_exception_if_processing_interrupted": self._stop,
                "InterruptProcessingException": Interrupted,
            },
            "folder_paths": {
                "models_dir": str(self.base / "models"),
                "folder_names_and_paths": self.folders,
                "supported_pt_extensions": {".ckpt", ".pt", ".bin", ".pth", ".safetensors"},
                "add_model_folder_path": lambda name, path: self.folders.setdefault(name, ([], set()))[0].append(path),
                "get_folder_paths": lambda name: list(self.folders[name][0]),
                "get_temp_directory": lambda: str(self.base / "temp"),
                "get_output_directory": lambda: str(self.base / "output"),
                "get_save_image_path": self._save_path,
            },
        }
        made = {}
        for name, values in contents.items():
            made[name] = types.ModuleType(name)
            vars(made[name]).update(values)
        for name, module in made.items():
            above, _, own = name.rpartition(".")
            if above:
                setattr(made[above], own, module)
        return made

    def _bar(self, total: int) -> Any:
        def update(value: int, total: int, preview: Any = None) -> None:
            self.progress.append((value, total))
            self.previews += [] if preview is None else [preview]

        return types.SimpleNamespace(update_absolute=update)

    def _load(self, models: list[ModelPatcher], memory_required: int, force_full_load: bool) -> None:
        assert force_full_load
        self.asked.append(memory_required)
        for held in models:
            if held not in self.loaded:
                held.model.to(held.load_device)
                self.loaded.append(held)

    def unload(self) -> None:
        """`POST /free {"unload_models": true}`: in inference mode, as anything that ComfyUI moves."""
        with torch.inference_mode():
            for held in self.loaded:
                held.model.to(held.offload_device)
        self.loaded.clear()

    def _stop(self) -> None:
        if self.interrupt_at is not None and self.progress and self.progress[-1][0] >= self.interrupt_at:
            self.interrupt_at = None
            raise Interrupted

    def _save_path(self, prefix: str, output: str, _width: int, _height: int) -> tuple[str, str, int, str, str]:
        inside, name = os.path.split(prefix)
        folder = os.path.join(output, inside)
        os.makedirs(folder, exist_ok=True)
        return folder, name, 1 + sum(file.endswith(".json") for file in os.listdir(folder)), inside, prefix

    # ---------------------------------------------------------------------------------------------- its workflows

    def start(self, entrypoint: Any) -> None:
        """Take a pack's nodes."""

        async def nodes() -> list[type]:
            return await (await entrypoint()).get_node_list()

        self.nodes = {node.define_schema().node_id: node for node in asyncio.run(nodes())}

    def execute(self, node_id: str, **given: Any) -> NodeOutput:
        """One node, in inference mode; its widgets hold their defaults where nothing is given."""
        schema = self.nodes[node_id].define_schema()
        known = {slot.id: slot for slot in schema.inputs}
        assert set(given) <= set(known), set(given) - set(known)
        values = {slot.id: slot.said["default"] for slot in schema.inputs if "default" in slot.said} | given
        for name, slot in known.items():
            assert name in values or slot.optional, f"{node_id} lacks {name}"
            if slot.type == "COMBO" and name in given:
                assert given[name] in slot.said["options"], f"{name} is {given[name]!r}"
        with torch.inference_mode():
            output = self.nodes[node_id].execute(**values)
        assert len(output.args) == len(schema.outputs)
        return output

    def run(self, prompt: Mapping[str, Any]) -> dict[str, NodeOutput]:
        """A workflow of the API format: number -> what the node gave. Nodes of the pack only; others are passed by."""
        self.ran, self.progress = [], []
        done: dict[str, NodeOutput] = {}
        keys: dict[str, str] = {}
        for number, node in sorted(prompt.items(), key=lambda item: int(item[0])):
            if node["class_type"] not in self.nodes:
                continue
            links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
            widgets = {name: value for name, value in node["inputs"].items() if name not in links}
            above = {name: [keys[source], output] for name, (source, output) in links.items()}
            keys[number] = json.dumps([node["class_type"], widgets, above], sort_keys=True)
            if keys[number] not in self.kept:
                inputs = {name: done[source].args[output] for name, (source, output) in links.items()}
                self.kept[keys[number]] = self.execute(node["class_type"], **widgets, **inputs)
                self.ran.append(node["class_type"])
            done[number] = self.kept[keys[number]]
        return done
