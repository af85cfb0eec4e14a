"""Published files and key names <-> ours. Nothing here runs a network, and no pickle is ever executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import UNetMotionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from animatediff.errors import UserError, describe_os_error, one_line
from animatediff.models.adapter import Adapter, EfficientMT

StateDict = dict[str, torch.Tensor]

# AnimateDiff's names inside a motion module -> diffusers' names; one table, read in both directions.
_MOTION_NAMES = (
    ("temporal_transformer.", ""),
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)
WRAPPERS = ("state_dict", "controlnet")  # keys under which published files hold their tensors
_MOTION_KEY = re.compile(r"^(?P<module>.+\.motion_modules\.\d+\.)(?P<rest>.+)$")
_BLOCK_REST = re.compile(r"^(?P<block>transformer_blocks\.\d+\.)(?P<rest>.+)$")
_POSITION_TABLES = ("pos_encoder.pe", "interleaved_pe", "pos_embed.pe")  # constants, computed rather than loaded


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a .safetensors or torch checkpoint, on the CPU, without executing pickled code.

    A {"state_dict": ...} wrapper and a "module." prefix are taken off. UserError names the file when it is missing,
    truncated, corrupt, holds code instead of tensors, or holds NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}; see models/README.md for what goes there")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds pickled code or is corrupt and was not executed; expected plain tensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} is truncated or corrupt ({one_line(error)[:120]}); download it again") from error
    state = unwrap(loaded, str(path))
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path} holds NaN or infinite values (first in {key}); download or export it again")
    return state


def unwrap(loaded: Mapping[str, object], source: str = "the checkpoint") -> StateDict:
    """The tensors of a loaded checkpoint, without a "state_dict" or "controlnet" wrapper and a "module." prefix."""
    wrapper = next((key for key in WRAPPERS if isinstance(loaded, Mapping) and key in loaded), None)
    inner = loaded[wrapper] if wrapper else loaded
    if not isinstance(inner, Mapping):
        raise UserError(f"{source} holds {type(inner).__name__}, expected a dictionary of tensors")
    state = {str(key).removeprefix("module."): value for key, value in inner.items() if torch.is_tensor(value)}
    if not state:
        raise UserError(f"{source} holds no tensors, expected a state dictionary")
    return state


def original_name(name: str) -> str:
    """AnimateDiff's key for our parameter name (the inverse of `our_name`)."""
    match = _MOTION_KEY.match(name)
    if match is None:
        return name
    rest = match["rest"]
    block = _BLOCK_REST.match(rest)
    if block is not None:
        rest = block["block"] + _renamed(block["rest"], {ours: theirs for theirs, ours in _MOTION_NAMES[1:]})
    return f"{match['module']}temporal_transformer.{rest}"


def our_name(key: str) -> str:
    """Our parameter name for AnimateDiff's key: only names inside motion modules differ."""
    match = _MOTION_KEY.match(key)
    if match is None:
        return key
    rest = match["rest"].removeprefix("temporal_transformer.")
    block = _BLOCK_REST.match(rest)
    if block is not None:
        rest = block["block"] + _renamed(block["rest"], dict(_MOTION_NAMES[1:]))
    return match["module"] + rest


def load_original_unet(unet: UNetMotionModel, state_dict: Mapping[str, object], source: str = "state_dict") -> None:
    """Fill the whole backbone from AnimateDiff's key names (2D UNet + motion modules), every key in its place."""
    load_exactly(unet, our_state(state_dict, source), source, expected="a UNet with motion modules (AnimateDiff names)")


def load_original_motion_modules(unet: UNetMotionModel, state_dict: Mapping[str, object], source: str) -> None:
    """Fill the backbone's motion modules from a published motion-module file (v3_sd15_mm.ckpt)."""
    names = [name for name in _loadable(unet) if ".motion_modules." in name]
    load_exactly(unet, our_state(state_dict, source), source, expected="motion modules (AnimateDiff names)", only=names)


def load_original_adapter(model: EfficientMT, state_dict: Mapping[str, object], source: str = "state_dict") -> None:
    """Fill `model.adapter` from a published checkpoint: the adapter alone, with more, or a whole UNet.

    Keys at the adapter's sites (to_q, to_k, to_v, scaler) are its weights. Any other key must be a parameter of the
    backbone: dropped where it equals the backbone's, kept as an override of generation where it differs.
    """
    state = unwrap(state_dict, source)
    wanted = original_adapter_state(model.adapter, with_overrides=False)
    looks = describe_contents(state)
    _refuse(source, "an adapter (to_q, to_k, to_v, scaler at its sites)", wanted.keys() - state.keys(), looks=looks)
    own, rest = split_adapter(model.adapter, state)
    load_exactly(model.adapter.sites, own, source, expected="an adapter (to_q, to_k, to_v, scaler at its sites)")
    parameters = dict(model.unet.named_parameters())
    _refuse(source, "the backbone's parameters", unexpected=[key for key in rest if key not in parameters])
    wrong = [(key, value, parameters[key]) for key, value in rest.items() if value.shape != parameters[key].shape]
    _refuse(source, "the backbone's parameters", shapes=wrong)
    differing = {_owner(key) for key, value in rest.items() if not _equal(value, parameters[key])}
    model.adapter.set_overrides({key: value for key, value in rest.items() if _owner(key) in differing})


def original_adapter_state(adapter: Adapter, with_overrides: bool = True) -> StateDict:
    """The adapter under the published key names: what `load_original_adapter` reads."""
    state = {}
    for path, site in adapter.named_sites():
        for key, value in site.state_dict().items():
            state[original_name(f"{path}.{_site_to_block(key)}")] = value
    for path, value in adapter.named_overrides() if with_overrides else ():
        state[original_name(path)] = value.data
    return state


def original_unet_state(unet: UNetMotionModel) -> StateDict:
    """The whole backbone under AnimateDiff's key names."""
    state = unet.state_dict()
    return {original_name(name): state[name] for name in _loadable(unet)}


def split_adapter(adapter: Adapter, state: StateDict) -> tuple[StateDict, StateDict]:
    """Published keys -> (names inside `adapter.sites`, our names of everything else); position tables dropped."""
    places = {
        original_name(f"{path}.{_site_to_block(key)}"): f"{path.replace('.', '-')}.{key}"
        for path, site in adapter.named_sites()
        for key in site.state_dict()
    }
    kept = {key: value for key, value in state.items() if not key.endswith(_POSITION_TABLES)}
    own = {places[key]: value for key, value in kept.items() if key in places}
    return own, {our_name(key): value for key, value in kept.items() if key not in places}


def adapter_sites(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The sites of a published adapter, path -> channels, told by its scalers; empty where it is no adapter."""
    return {
        our_name(key).partition(".scaler.")[0]: value.shape[1] // 2
        for key, value in state.items()
        if key.endswith(".scaler.spatial_convs.0.weight")
    }


def load_exactly(
    module: nn.Module, state: StateDict, source: str, expected: str, only: Iterable[str] | None = None
) -> None:
    """Copy `state` into `module`'s parameters (all, or `only` some): every key must find its place and shape.

    UserError in one line: source, the first offending keys, what was expected and what the file looks like.
    """
    own = _loadable(module)
    wanted = set(own if only is None else only)
    _refuse(
        source,
        expected,
        missing=sorted(wanted - state.keys()),
        unexpected=sorted(state.keys() - wanted),
        shapes=[
            (key, state[key], own[key]) for key in sorted(wanted & state.keys()) if state[key].shape != own[key].shape
        ],
        looks=describe_contents(state),
    )
    on_meta = any(own[key].is_meta for key in wanted)
    values = {key: state[key].to(own[key].dtype) for key in wanted}
    module.load_state_dict(values, strict=False, assign=on_meta)


def describe_contents(keys: Iterable[str]) -> str:
    """What a state dictionary looks like, for error messages about swapped files."""
    keys = list(keys)
    traits = {
        "an original Stable Diffusion checkpoint (DreamBooth)": "model.diffusion_model.",
        "a LoRA": "lora",
        "an EfficientMT adapter": ".scaler.",
        "motion modules": "motion_modules.",
        "a text encoder": "text_model.",
        "a VAE": "decoder.conv_in",
        "a 2D UNet": "down_blocks.0.attentions",
    }
    for description, trait in traits.items():
        if any(trait in key for key in keys):
            return description
    return "something else"


def _read_torch(path: Path) -> Mapping[str, object]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _loadable(module: nn.Module) -> StateDict:
    """Parameters and persistent buffers by name, without position tables."""
    return {name: value for name, value in module.state_dict().items() if not name.endswith(_POSITION_TABLES)}


def our_state(state_dict: Mapping[str, object], source: str) -> StateDict:
    """A loaded checkpoint with AnimateDiff's key names under ours, position tables dropped."""
    state = unwrap(state_dict, source)
    return {our_name(key): value for key, value in state.items() if not key.endswith(_POSITION_TABLES)}


def _renamed(rest: str, table: Mapping[str, str]) -> str:
    for start, replacement in table.items():
        if rest.startswith(start):
            return replacement + rest[len(start) :]
    return rest


def _site_to_block(key: str) -> str:
    """A Site's own parameter name -> its name inside a temporal block (attentions.0. -> attn1.)."""
    return key.replace("attentions.0.", "attn1.").replace("attentions.1.", "attn2.")


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _equal(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Equality in the coarser of the two dtypes: a half-precision copy of the backbone is the backbone."""
    dtype = min(value.dtype, parameter.dtype, key=lambda d: d.itemsize)
    return torch.equal(value.to(dtype), parameter.detach().to("cpu", dtype))


def _refuse(
    source: str,
    expected: str,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    shapes: Iterable[tuple[str, torch.Tensor, torch.Tensor]] = (),
    looks: str | None = None,
) -> None:
    complaints = [
        f"{label} {_some(list(keys))}"
        for label, keys in (
            ("lacks", sorted(missing)),
            ("has unknown", sorted(unexpected)),
            ("has shapes", [f"{k} {list(found.shape)} (expected {list(want.shape)})" for k, found, want in shapes]),
        )
        if keys
    ]
    if complaints:
        found = f"; it looks like {looks}" if looks else ""
        raise UserError(f"{source} {'; '.join(complaints)}; expected {expected}{found}")


def _some(keys: list[str], shown: int = 3) -> str:
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + rest
