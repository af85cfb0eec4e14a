"""LoRA files on a loaded pipeline: applied exactly, or refused in one line that says what the file is.

Read are LoRA and DoRA under the names of diffusers (new and old), peft and kohya, and MotionLoRA also under
AnimateDiff's. Anything else (LoHa, LoKr, a textual inversion, another model's LoRA) is refused by name.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel

from animatediff.errors import UserError, one_line
from animatediff.files import parse_object, read_json
from animatediff.models.key_names import describe_contents, original_name, shown
from animatediff.models.weight_files import Checkpoint, StateDict, read_checkpoint

FILE_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_model.safetensors")
_ENDS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

# How a key ends -> what it is of its layer. A layer's change is scale * alpha / rank * up @ down.
_PARTS = {
    **{
        f"{end}.weight": part
        for part, names in {"down": ("A", "down"), "up": ("B", "up")}.items()
        for end in (
            *(f".lora_{names[0]}", f".lora_{names[0]}.default", f".lora_{names[1]}", f".lora.{names[1]}"),
            *(f"_lora.{names[1]}", f".lora_linear_layer.{names[1]}"),
        )
    },
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
}
# A pipeline's components that LoRA files speak of -> kohya's names for them; the first two are denoisers.
_COMPONENTS = {"unet": ("unet",), "transformer": ("unet", "transformer"), "text_encoder": ("te", "te1")}
_DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Layer:
    """One layer's change, in the shapes of peft: down (rank in ...), up (out rank ...), magnitude (out,) of a DoRA."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    magnitude: torch.Tensor | None = None


@dataclass(frozen=True)
class Lora:
    """What a LoRA file changes: component -> path of a layer -> its change; and the layers that found no place."""

    path: Path
    layers: dict[str, dict[str, Layer]]
    misfits: list[str]

    @property
    def warning(self) -> str | None:
        """One line where a part of the file found no place, else None."""
        if not self.misfits:
            return None
        fitted = sum(map(len, self.layers.values()))
        return (
            f"{self.path}: {fitted} of {fitted + len(self.misfits)} layers of this LoRA fitted and are used; "
            f"this model has no {shown(self.misfits)}"
        )


def load_loras(pipeline: DiffusionPipeline, paths: Sequence[str], scale: float | Sequence[float] = 1.0) -> list[str]:
    """Load LoRA files onto `pipeline` side by side, without gradient; returns warnings of one line each.

    scale: one number for all, or one for each file. All files are read and compared with the pipeline's networks
    before any network changes. A file that fits in part is used so far, with a warning. UserError for everything that
    cannot be applied exactly.
    """
    scales = lora_scales(scale, len(paths))
    targets = {name: _targets(pipeline.components[name]) for name in _COMPONENTS if pipeline.components.get(name)}
    loras = [read_lora(path, targets) for path in paths]
    names = [f"lora_{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        for component, layers in lora.layers.items():
            _apply(pipeline.components[component], layers, name)
    if names:
        pipeline.set_adapters(names, scales)
    for component in targets if names else ():
        pipeline.components[component].requires_grad_(False)
    return [lora.warning for lora in loras if lora.warning]


def lora_scales(scale: float | Sequence[float], count: int) -> list[float]:
    """One scale for each of `count` LoRAs, from one for all or as many; UserError for any other number of them."""
    scales = [scale] if isinstance(scale, int | float) else list(scale)
    scales = scales * count if len(scales) == 1 else scales
    if len(scales) != count:
        raise UserError(f"lora_scale has {len(scales)} numbers for {count} LoRAs; give one, or one for each")
    wrong = [value for value in scales if not isinstance(value, int | float) or not math.isfinite(value)]
    if wrong:
        raise UserError(f"lora_scale is {wrong[0]}, expected a number")
    return [float(value) for value in scales]


def lora_file(path: str | Path) -> Path:
    """The weight file of a LoRA given by itself or by its folder; UserError where the folder does not tell."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no LoRA at {path}")
    if not path.is_dir():
        return path
    named = [path / name for name in FILE_NAMES if (path / name).is_file()]
    found = named or sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in _ENDS)
    if not found or (len(found) > 1 and not named):
        held = f"{len(found)} weight files ({shown([file.name for file in found])})" if found else "no weight file"
        raise UserError(f"the folder {path} holds {held}; name the LoRA's own file")
    return found[0]


def read_lora(path: str | Path, targets: Mapping[str, Mapping[str, nn.Module]]) -> Lora:
    """The LoRA at `path`, fitted to `targets`: component -> path -> nn.Linear or nn.Conv2d.

    UserError where it is no LoRA, is incomplete, or has layers of other shapes: another model's.
    """
    path = lora_file(path)
    checkpoint = read_checkpoint(path)
    modules, rest = _by_layer(checkpoint.tensors)
    looks = describe_contents(checkpoint.tensors)
    if rest:
        count = len(checkpoint.tensors)
        raise UserError(
            f"{path} looks like {looks}, expected LoRA or DoRA: {count - len(rest)} of {count} keys are down, up, "
            f"alpha or magnitude, not {shown(rest)}"
        )
    table = _names(targets)
    configs = {component: _peft_config(checkpoint, path, component) for component in targets}
    layers: dict[str, dict[str, Layer]] = {component: {} for component in targets}
    misfits, shapes = [], []
    for name, parts in modules.items():
        if _normal(name) not in table:
            misfits.append(name)
            continue
        component, place = table[_normal(name)]
        if "down" not in parts or "up" not in parts:
            lacking = "up" if "down" in parts else "down"
            raise UserError(f"{path} lacks the {lacking} weight of {shown([name])}; download it again")
        if place in layers[component]:
            raise UserError(f"{path} changes {place} twice, under two names; expected one name for a layer")
        module = targets[component][place]
        layer = _layer(parts, module, configs[component], place)
        if layer is None:
            found = f"{list(parts['up'].shape)} @ {list(parts['down'].shape)}"
            shapes.append(f"{shown([name])} is {found}, expected the product to be {list(_weight(module).shape)}")
        else:
            layers[component][place] = layer
    fitted = sum(map(len, layers.values()))
    if shapes or not fitted:
        why = shapes[0] if shapes else f"this model has no {shown(misfits)}"
        raise UserError(
            f"{path} looks like {looks}, made for another model: {fitted} of {len(modules)} layers fit; {why}"
        )
    for changes in layers.values():
        plain = [place for place, layer in changes.items() if layer.magnitude is None]
        if plain and len(plain) < len(changes):
            raise UserError(f"{path} is a DoRA without magnitudes for {shown(plain)}, expected one for every layer")
    return Lora(path, {component: changes for component, changes in layers.items() if changes}, misfits)


def _by_layer(state: StateDict) -> tuple[dict[str, StateDict], list[str]]:
    """The file's name of a layer -> its parts (down, up, alpha, magnitude); and the keys that are none of these."""
    modules: dict[str, StateDict] = {}
    rest = []
    for key, value in state.items():
        end = next((end for end in _PARTS if key.endswith(end) and key != end), None)
        if end is None:
            rest.append(key)
        else:
            modules.setdefault(key.removesuffix(end), {})[_PARTS[end]] = value
    return modules, rest


def _layer(parts: StateDict, module: nn.Module, config: Mapping[str, Any], place: str) -> Layer | None:
    """The parts in the shapes that `module` needs; None where they do not fit it."""
    down, up = parts["down"], parts["up"]
    weight = _weight(module)
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0] or not down.numel() or not up.numel():
        return None
    rank = down.shape[0]
    wanted_down = (rank, *weight.shape[1:])
    wanted_up = (weight.shape[0], rank, *[1] * (weight.ndim - 2))
    for tensor, wanted in ((down, wanted_down), (up, wanted_up)):
        if tuple(tensor.shape[:2]) != wanted[:2] or tensor.numel() != math.prod(wanted):  # a 1x1 convolution is linear
            return None
    magnitude = parts.get("magnitude")
    if magnitude is not None:  # one number for each output
        if magnitude.numel() != weight.shape[0] or magnitude.shape[0] != weight.shape[0]:
            return None
        magnitude = magnitude.reshape(-1, *[1] * (weight.ndim - 2))
        magnitude = magnitude[None] if weight.ndim > 2 else magnitude
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        return None
    number = float(alpha) if alpha is not None else _configured_alpha(config, place, rank)
    return Layer(down.reshape(wanted_down), up.reshape(wanted_up), number, magnitude)


def _apply(model: ModelMixin | PreTrainedModel, layers: Mapping[str, Layer], name: str) -> None:
    """Put `layers` onto `model` as peft's adapter `name`."""
    places = {path: f"^{re.escape(path)}" for path in layers}  # patterns: this path, and none that ends like it
    first = next(iter(layers.values()))
    state: StateDict = {}
    for path, layer in layers.items():
        state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"] = layer.down, layer.up
        if layer.magnitude is not None:
            state[f"{path}.lora_magnitude_vector"] = layer.magnitude
    config = LoraConfig(
        r=first.down.shape[0],
        target_modules=list(layers),
        rank_pattern={place: layers[path].down.shape[0] for path, place in places.items()},
        alpha_pattern={place: layers[path].alpha for path, place in places.items()},
        use_dora=first.magnitude is not None,
    )
    # peft draws values before it is given those of the file, and warns of a second LoRA
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        inject_adapter_in_model(config, model, adapter_name=name, state_dict=state)
    set_peft_model_state_dict(model, state, adapter_name=name)
    model._hf_peft_config_loaded = True


def _targets(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that LoRA can change."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def _weight(module: nn.Module) -> torch.Tensor:
    return module.get_parameter("weight")


def _names(targets: Mapping[str, Mapping[str, nn.Module]]) -> dict[str, tuple[str, str]]:
    """Every name that a LoRA file may have for a layer -> the component and the layer's path."""
    table = {}
    for component, modules in targets.items():
        for path in modules:
            for name in _spellings(path):
                table[f"{component}.{name}"] = (component, path)
                if component in _DENOISERS:
                    table[name] = (component, path)
                for short in _COMPONENTS[component]:
                    table[f"lora_{short}_{name.replace('.', '_')}"] = (component, path)
    return table


def _spellings(path: str) -> Iterator[str]:
    """The names of one layer: diffusers' new and old, AnimateDiff's, with and without transformers' "text_model."."""
    plain = path.removeprefix("text_model.")
    for name in dict.fromkeys((path, original_name(path), plain, f"text_model.{plain}")):
        yield name
        yield name.removesuffix(".0") if name.endswith(".to_out.0") else name
        yield re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", name)


def _normal(name: str) -> str:
    """A file's name of a layer without what trainers put around it."""
    return name.removeprefix("base_model.model.").replace(".processor.", ".")


def _peft_config(checkpoint: Checkpoint, path: Path, component: str) -> Mapping[str, Any]:
    """peft's settings of this component's layers: in the file's metadata, or in a file beside it; else none."""
    beside = path.with_name("adapter_config.json")
    if "lora_adapter_metadata" in checkpoint.facts:
        settings = parse_object(str(checkpoint.facts["lora_adapter_metadata"]), f"{path}: lora_adapter_metadata")
    elif path.stem == "adapter_model" and beside.is_file():
        settings = read_json(beside)
    else:
        return {}
    start = f"{component}." if any(key.startswith(f"{component}.") for key in settings) else ""
    return {key.removeprefix(start): value for key, value in settings.items() if key.startswith(start)}


def _configured_alpha(config: Mapping[str, Any], place: str, rank: int) -> float:
    """alpha as peft's settings have it for the layer at `place`; the rank, which changes nothing, without settings."""
    patterns = config.get("alpha_pattern") or {}
    try:
        alpha = float(patterns.get(get_pattern_key(list(patterns), place), config.get("lora_alpha", rank)))
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"a LoRA's settings have alphas that are no numbers ({one_line(error)[:80]})") from error
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
