"""Component folders as the hub has them: config.json beside safetensors in one file, or in shards with an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from animatediff.config import option
from animatediff.errors import UserError, one_line
from animatediff.files import check_object, keys_of, read_json
from animatediff.models.weight_files import read_state_dict
from animatediff.project import weights_guide

Network = TypeVar("Network", bound=nn.Module)

DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model", "model"
_WIDE = torch.float32  # of the layers that a network's class wants kept so


@dataclass
class VideoTransformerFiles:
    """Where the files of a video transformer lie: CogVideoX or Wan, and LoRAs for it."""

    pretrained_model_path: str = option(
        "models/CogVideoX/CogVideoX-5b", "diffusers folder: transformer, vae, text_encoder, tokenizer", once=True
    )
    lora_paths: list[str] = option([], "LoRA and DoRA: files, or folders that hold one", once=True)
    lora_scale: list[float] = option([1.0], "of all LoRAs, or one for each", least=-10, most=10, once=True)


@dataclass(frozen=True)
class Part:
    """One component folder: where, of which class its config must be, and how its weights are called."""

    name: str  # the folder, as model_index.json names it
    network: type[nn.Module]  # of `_class_name`, or of `architectures`, in its config
    stem: str = DIFFUSERS_WEIGHTS


def read_config(folder: Path, part: Part, whose: str) -> dict[str, Any]:
    """The config of a component; UserError where the folder is missing or another network's.

    whose: whose folder is expected, "CogVideoX", for messages.
    """
    if not folder.is_dir():
        raise UserError(f"no base model folder at {folder}; {weights_guide()}")
    place = folder / part.name
    if not (place / "config.json").is_file():
        others = sorted(path.parent.name for path in folder.glob("*/config.json"))
        held = f"it holds {', '.join(others)}" if others else "it holds no component"
        if (folder / "config.json").is_file():
            held = f"it is the folder of a single {_class_of(read_json(folder / 'config.json'))}"
        elif "unet" in others:
            held += ": a Stable Diffusion model"
        raise UserError(f"{folder} has no {part.name}/config.json, expected a {whose} folder; {held}")
    config = read_json(place / "config.json")
    found, expected = _class_of(config), part.network.__name__
    if found != expected:
        raise UserError(f"{place} is a {found}, expected a {expected}, as a {whose} folder has it")
    if part.name == "transformer":  # the VAEs' annotations are not all right (force_upcast: float)
        check_object(config, str(place / "config.json"), keys_of(part.network.__init__))
    return config


def build(make: Callable[[], Network], source: Path) -> Network:
    """The network that `make` builds from a config, without memory for its weights; UserError where it cannot."""
    try:
        with init_empty_weights():
            return make().eval()
    except Exception as error:  # diffusers and transformers raise unrelated classes for configs that make no sense
        raise UserError(f"{source} describes no network that can be built ({one_line(error)[:160]})") from error


def load_weights(network: ModelMixin | PreTrainedModel, folder: Path, part: Part, dtype: torch.dtype) -> None:
    """Fill `network`, made by `build`, from the safetensors in its folder, shard by shard; frozen, in `dtype`.

    Layers that the network's class wants in float32 stay so. UserError before anything is read where keys or shapes
    are not the network's, and where only pickles lie there.
    """
    place = folder / part.name
    shards = weight_files(folder, part)
    tied: Mapping[str, str] = getattr(network, "all_tied_weights_keys", None) or {}
    own = {name: tensor for name, tensor in network.state_dict().items() if name not in tied}
    found = {shard: _shapes(shard) for shard in shards}
    _check_keys(place, own, {key: shape for shapes in found.values() for key, shape in shapes.items()}, tied)
    for shard in shards:
        state = read_state_dict(shard)
        state |= {tied[key]: value for key, value in state.items() if key in tied and tied[key] not in state}
        values = {key: value.to(_dtype_of(network, key, dtype)) for key, value in state.items() if key in own}
        network.load_state_dict(values, strict=False, assign=True)
    if tied:
        network.tie_weights()
    network.requires_grad_(False)


def weight_files(folder: Path, part: Part) -> list[Path]:
    """The safetensors of a component: one file, or the shards that its index names; UserError where there are none.

    Full precision before a half-precision variant.
    """
    place = folder / part.name
    for variant in ("", ".fp16", ".bf16"):
        single, index = (place / f"{part.stem}{name}" for name in _names(variant))
        if single.is_file():
            return [single]
        if index.is_file():
            return _shards(index)
    pickles = sorted(path.name for path in place.glob("*.bin"))
    if pickles:
        raise UserError(f"{place} holds pickles alone ({pickles[0]}), which are not read; get its .safetensors files")
    raise UserError(f"no weights in {place}; expected {part.stem}.safetensors or its shards with their index")


def expected_files(folder: Path, parts: Sequence[Part]) -> dict[str, Path]:
    """Every file that loading reads, there or not, by what it is; of the tokenizer its folder."""
    files = {}
    for part in parts:
        place = folder / part.name
        try:
            shards = weight_files(folder, part)
        except UserError:
            shards = [place / f"{part.stem}.safetensors"]
        for shard in shards:
            files[f"base model: {part.name}" if len(shards) == 1 else f"base model: {part.name} {shard.name}"] = shard
    files["base model: tokenizer"] = folder / "tokenizer"
    return files


def load_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`/tokenizer; UserError where it is broken or knows words that the text encoder lacks."""
    place = folder / "tokenizer"
    if not place.is_dir():
        raise UserError(f"no tokenizer folder at {place}; {weights_guide()}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        tokenizer("a")
    except Exception as error:  # transformers raises unrelated classes for broken folders
        raise UserError(f"{place} is not a tokenizer ({one_line(error)[:160]})") from error
    words = max(tokenizer.get_vocab().values()) + 1
    if words > vocabulary:
        raise UserError(
            f"{place} has {words} words, the text encoder {vocabulary} (vocab_size); take both from one base"
        )
    return tokenizer


def check_fit(folder: Path, pairs: Sequence[tuple[str, str, int, str, str, int]]) -> None:
    """UserError for the first of (part, key, value, other part, its key, its value) whose two values differ."""
    for part, key, value, other, other_key, other_value in pairs:
        if value != other_value:
            raise UserError(
                f"{folder / part} has {key} {value}, {other} has {other_key} {other_value}; take both from one base"
            )


def _class_of(config: Mapping[str, Any]) -> str:
    """The class that a config.json names, as diffusers or as transformers writes it."""
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    return str(config.get("_class_name") or named or "config of no named class")


def _names(variant: str) -> tuple[str, str]:
    return f"{variant}.safetensors", f".safetensors.index{variant}.json"


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map of names of files; download it again")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside or not names:
        raise UserError(f"{index} names {outside[0] if outside else 'no file'}, expected .safetensors files beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {missing[0]}, one of {len(names)} shards; download it again")
    return [index.parent / name for name in names]


def _shapes(shard: Path) -> dict[str, list[int]]:
    """Key -> shape of a safetensors file, from its header."""
    try:
        with safe_open(shard, "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{shard} is truncated or corrupt ({one_line(error)[:120]}); download it again") from error


def _check_keys(
    place: Path, own: Mapping[str, torch.Tensor], found: Mapping[str, list[int]], tied: Mapping[str, str]
) -> None:
    found = {key: shape for key, shape in found.items() if not (key in tied and tied[key] in found)}
    found = {tied.get(key, key): shape for key, shape in found.items()}
    wrong = [
        f"{key} {found[key]} (expected {list(value.shape)})"
        for key, value in own.items()
        if key in found and found[key] != list(value.shape)
    ]
    complaints = [
        f"{label} {_some(keys)}"
        for label, keys in (
            ("lack", [key for key in own if key not in found]),
            ("have unknown", [key for key in found if key not in own]),
            ("have shapes", wrong),
        )
        if keys
    ]
    if complaints:
        raise UserError(
            f"the weights in {place} {'; '.join(complaints)}; expected those that its config.json describes"
        )


def _some(keys: Sequence[str], shown: int = 3) -> str:
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + rest


def _dtype_of(network: nn.Module, key: str, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 where the network's class wants that: diffusers' for both halves, transformers' for fp16."""
    kept = getattr(network, "_keep_in_fp32_modules", None) or ()
    halves = (torch.float16,) if hasattr(network, "all_tied_weights_keys") else (torch.float16, torch.bfloat16)
    return _WIDE if dtype in halves and any(name in key.split(".") for name in kept) else dtype
