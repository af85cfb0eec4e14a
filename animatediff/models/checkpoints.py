"""Published state dictionaries <-> the networks they fill: every key finds its place, or one line says which did not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from diffusers import UNetMotionModel
from torch import nn

from animatediff.errors import UserError
from animatediff.models.adapter import Adapter, EfficientMT
from animatediff.models.key_names import describe_contents, diffusers_name, is_position_table, original_name, shown
from animatediff.models.weight_files import StateDict, unwrap


def load_original_unet(unet: UNetMotionModel, state_dict: Mapping[str, object], source: str = "state_dict") -> None:
    """Fill the whole backbone from AnimateDiff's key names (2D UNet + motion modules), every key in its place."""
    load_exactly(unet, diffusers_state(state_dict, source), source, expected="a UNet with motion modules (AnimateDiff names)")


def load_original_motion_modules(unet: UNetMotionModel, state_dict: Mapping[str, object], source: str) -> None:
    """Fill the backbone's motion modules from a published motion-module file (v3_sd15_mm.ckpt)."""
    names = [name for name in _loadable(unet) if ".motion_modules." in name]
    load_exactly(unet, diffusers_state(state_dict, source), source, expected="motion modules (AnimateDiff names)", only=names)


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
    """Published keys -> (names inside `adapter.sites`, diffusers' names of everything else); position tables dropped."""
    places = {
        original_name(f"{path}.{_site_to_block(key)}"): f"{path.replace('.', '-')}.{key}"
        for path, site in adapter.named_sites()
        for key in site.state_dict()
    }
    kept = {key: value for key, value in state.items() if not is_position_table(key)}
    own = {places[key]: value for key, value in kept.items() if key in places}
    return own, {diffusers_name(key): value for key, value in kept.items() if key not in places}


def adapter_sites(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The sites of a published adapter, path -> channels, told by its scalers; empty where it is no adapter."""
    return {
        diffusers_name(key).partition(".scaler.")[0]: value.shape[1] // 2
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


def _loadable(module: nn.Module) -> StateDict:
    """Parameters and persistent buffers by name, without position tables."""
    return {name: value for name, value in module.state_dict().items() if not is_position_table(name)}


def diffusers_state(state_dict: Mapping[str, object], source: str) -> StateDict:
    """A loaded checkpoint with AnimateDiff's key names under diffusers', position tables dropped."""
    state = unwrap(state_dict, source)
    return {diffusers_name(key): value for key, value in state.items() if not is_position_table(key)}


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
        f"{label} {shown(keys)}"
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
