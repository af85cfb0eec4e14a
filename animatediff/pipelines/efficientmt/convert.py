"""Turn a published EfficientMT checkpoint into this project's adapter folder, and back.

python scripts/convert_checkpoint.py models/Integrated_Attention/checkpoint.ckpt models/adapter
python scripts/convert_checkpoint.py models/adapter checkpoint.ckpt
python scripts/convert_checkpoint.py models/adapter checkpoint.safetensors

The folder holds config.json and safetensors, and `ckpt_path` takes every form. A published file may hold more than
the adapter: what equals the backbone is dropped, so such a file needs `--config`, which names the backbone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from animatediff.console import Parser
from animatediff.errors import UserError
from animatediff.files import atomic_folder
from animatediff.inference.run import read_run
from animatediff.models.adapter import Adapter
from animatediff.models.checkpoints import load_exactly, original_adapter_state, split_adapter
from animatediff.models.weight_files import (
    TORCH_SUFFIXES,
    StateDict,
    check_suffix,
    read_checkpoint,
    write_checkpoint,
)
from animatediff.pipelines.backbones.sd15 import load_components
from animatediff.pipelines.efficientmt.loading import (
    EfficientMTFiles,
    load_adapter,
    load_saved_adapter,
    published_sites,
)
from animatediff.project import locate


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("convert", __doc__)
    parser.add_argument("source", type=Path, help="a published .ckpt, or an adapter folder")
    parser.add_argument(
        "target", type=Path, help="the adapter folder to write, or the published form: a .ckpt or .safetensors"
    )
    parser.add_argument("--config", help="YAML that names the backbone, for files that hold more than the adapter")
    options = parser.parse_args(arguments)
    if options.target.exists():
        raise UserError(f"{options.target} is there already; remove it or choose another name")
    from_folder = options.source.is_dir()
    to_folder = not from_folder and options.target.suffix.lower() not in (".safetensors", *TORCH_SUFFIXES)
    if not to_folder:
        check_suffix(options.target)
    adapter = load_saved_adapter(options.source) if from_folder else read_published(options.source, options.config)
    (write_folder if to_folder else write_published)(adapter, options.target)
    print(f"wrote {options.target}")
    return 0


def read_published(path: Path, config: str | None) -> Adapter:
    """The adapter of a published file, in the widest dtype that the file holds."""
    file = read_checkpoint(path)
    adapter = Adapter(published_sites(file.tensors, path), trained_steps=_trained_steps(file.facts))
    own, rest = split_adapter(adapter, file.tensors)
    nn.Module.to(adapter, functools.reduce(torch.promote_types, {value.dtype for value in own.values()}))
    load_exactly(adapter.sites, own, str(path), expected="an adapter (to_q, to_k, to_v, scaler at its sites)")
    if rest:
        adapter.set_overrides(_overrides(path, rest, config))
    return adapter


def write_folder(adapter: Adapter, folder: Path) -> None:
    """Write config.json and safetensors, the whole folder or nothing."""
    with atomic_folder(folder) as part:
        adapter.save_pretrained(part)


def write_published(adapter: Adapter, path: Path) -> None:
    """Write the published key names: as {"global_step", "state_dict"}, or as safetensors where the suffix says so."""
    if not adapter.config.use_scaler:
        raise UserError("this adapter was trained without scalers, which the published form cannot express")
    facts = {"global_step": adapter.config.trained_steps or 0}
    write_checkpoint(path, original_adapter_state(adapter), facts)


def _overrides(path: Path, rest: StateDict, config: str | None) -> StateDict:
    """What differs from the backbone among the weights beyond the adapter."""
    if config is None:
        raise UserError(
            f"{path} holds {len(rest)} weights besides the adapter (first {next(iter(rest))}); give --config, which "
            "names the backbone, so that those equal to it can be dropped"
        )
    unet = load_components(read_run([locate(config)]).part(EfficientMTFiles)).unet
    return {key: value.data for key, value in load_adapter(unet, str(path)).named_overrides()}


def _trained_steps(facts: Mapping[str, Any]) -> int | None:
    """The training steps that a published file names (in safetensors as text); None where it does not."""
    try:
        steps = int(facts.get("global_step", 0))
    except (ValueError, OverflowError):
        return None
    return steps if 0 < steps < 2**63 else None
