"""All that is asked of ComfyUI, in one place: its folders, devices, model management, progress and own types.

Each function imports what it needs of ComfyUI when it is called, so this package can be read where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from animatediff.inference import Engine

OWN = "efficientmt"  # our folder of models, beside ComfyUI's; extra_model_paths.yaml may name more of them
# Which of ComfyUI's folders hold what a key names, besides our own, which may hold anything.
FOLDERS = {
    "pretrained_model_path": ("diffusers",),
    "dreambooth_path": ("checkpoints",),
    "lora_paths": ("loras",),
    "motion_module_path": ("animatediff_models",),
    "sparsectrl_path": ("controlnet",),
    "domain_adapter_path": ("loras",),
    "vae_path": ("diffusers", "vae"),
    "unet_path": ("diffusion_models",),
}
PREVIEW_SIDE = 512  # pixels


# ---------------------------------------------------------------------------------------------------------- Folders


def register_folder() -> None:
    """Make our folder of models known to ComfyUI, below those that extra_model_paths.yaml names."""
    import folder_paths

    folder_paths.add_model_folder_path(OWN, os.path.join(folder_paths.models_dir, OWN))


def model_files(key: str) -> list[str]:
    """What a key of Files can be given: "<ComfyUI's folder>/<path in it>", files, and folders in diffusers' layout."""
    return [f"{category}/{name}" for category in _categories(key) for name in sorted(_contents(category))]


def model_path(key: str, name: str) -> str | None:
    """Where a name of `model_files` lies; None where it is none."""
    category, _, inside = name.partition("/")
    return _contents(category).get(inside) if category in _categories(key) else None


def find_model(key: str, name: str) -> str | None:
    """The first file or folder of that bare name in ComfyUI's folders for `key`."""
    for category in _categories(key):
        for inside, path in _contents(category).items():
            if Path(inside).name == name:
                return path
    return None


def temp_folder() -> Path:
    """Where what lasts until ComfyUI ends is written."""
    import folder_paths

    return Path(folder_paths.get_temp_directory()) / OWN


def next_output(prefix: str, width: int, height: int) -> tuple[Path, str]:
    """The folder and the stem of the next free output of that prefix, in ComfyUI's output folder, and how it is
    called seen from there."""
    import folder_paths

    output = folder_paths.get_output_directory()
    folder, name, counter, inside, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    return Path(folder) / f"{name}_{counter:05}_", inside


def _categories(key: str) -> list[str]:
    import folder_paths

    return [name for name in (*FOLDERS.get(key, ()), OWN) if name in folder_paths.folder_names_and_paths]


def _contents(category: str) -> dict[str, str]:
    """Path inside the category -> whole path. A folder in diffusers' layout counts as one thing."""
    import folder_paths

    found: dict[str, str] = {}
    for root in folder_paths.get_folder_paths(category):
        for folder, inner, files in os.walk(root, followlinks=True):
            inner[:] = [name for name in inner if not name.startswith(".")]
            if folder != root and {"model_index.json", "config.json"} & set(files):
                inner.clear()
                paths = [folder]
            else:
                paths = [os.path.join(folder, name) for name in files if _holds_weights(name)]
            for path in paths:
                found.setdefault(Path(path).relative_to(root).as_posix(), path)
    return found


def _holds_weights(name: str) -> bool:
    import folder_paths

    return os.path.splitext(name)[1].lower() in folder_paths.supported_pt_extensions


# ------------------------------------------------------------------------------------------------- Model management


class Weights(nn.Module):
    """What ComfyUI's model management moves: the networks of one engine, as a whole. It holds no parameter itself."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        super().__init__()
        self.engine, self.runs_on = engine, device

    @property
    def networks(self) -> Iterator[nn.Module]:
        parts = getattr(self.engine.load(), "components", {})
        return (part for part in parts.values() if isinstance(part, nn.Module))

    def to(self, device: Any, *_: Any, **__: Any) -> Weights:  # type: ignore[override]
        """Move all networks; those that leave their device take the extracted references' cache with them."""
        device = torch.device(device)
        with torch.inference_mode(False):  # what is moved in inference mode could not be guided by a gradient later
            for network in self.networks:
                nn.Module.to(network, device)
        if device != self.runs_on:
            self.engine.forget()
        return self


def device() -> torch.device:
    """Where ComfyUI runs networks."""
    import comfy.model_management as management

    return management.get_torch_device()


def dtype() -> str:
    """What ComfyUI would run a network in, of those that ours can: fp32, fp16 or bf16."""
    import comfy.model_management as management

    known = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    return known.get(management.unet_dtype(device=device(), supported_dtypes=list(known)), "fp32")


def hold(engine: Engine) -> Any:
    """Put an engine's networks, loaded on the CPU, under ComfyUI's model management."""
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    weights = Weights(engine, device())
    size = sum(value.nbytes for part in weights.networks for value in (*part.parameters(), *part.buffers()))
    return ModelPatcher(weights, load_device=device(), offload_device=management.unet_offload_device(), size=size)


def bring(held: Any, memory: int) -> None:
    """Have the networks on their device, all of them, with `memory` bytes left to work in."""
    import comfy.model_management as management

    management.load_models_gpu([held], memory_required=memory, force_full_load=True)


# --------------------------------------------------------------------------------------------- While something runs


def stop_if_asked() -> None:
    """Raises ComfyUI's own exception where someone pressed Cancel."""
    import comfy.model_management as management

    management.throw_exception_if_processing_interrupted()


class Progress:
    """The bar of the node that runs."""

    def __init__(self, total: int) -> None:
        from comfy.utils import ProgressBar

        self.bar = ProgressBar(total)

    def at(self, done: int, total: int, picture: np.ndarray | None = None) -> None:
        """`done` of `total`; picture: uint8 (h w 3), shown on the node."""
        shown = None if picture is None else ("JPEG", Image.fromarray(picture), PREVIEW_SIDE)
        self.bar.update_absolute(done, total, shown)


def video(images: torch.Tensor, fps: float) -> Any:
    """ComfyUI's VIDEO of images (f h w 3) in [0, 1]."""
    from comfy_api.latest import InputImpl, Types

    rate = Fraction(fps).limit_denominator(1000)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=rate))
