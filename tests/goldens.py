"""Golden numbers and the weights they were made with: see tests/golden/README.md."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from animatediff.models import VideoUNet, build_unet
from animatediff.models.checkpoints import load_original_unet, original_unet_state

GOLDEN = Path(__file__).parent / "golden"
EFFICIENTMT = GOLDEN / "efficientmt"
MOTIONCLONE = GOLDEN / "motionclone"
MOTIONFOLLOWER = GOLDEN / "motionfollower"
TINY = {
    "block_out_channels": [32, 64, 128, 128],
    "layers_per_block": 2,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "sample_size": 16,
}


def fill(name: str, shape: tuple[int, ...], seed_name: str | None = None) -> torch.Tensor:
    """The value every golden run gave the parameter `name`."""
    seed = zlib.crc32((seed_name or name).encode("utf-8")) & 0x7FFFFFFF
    values = np.random.RandomState(seed).standard_normal(size=shape).astype(np.float32)
    if name.endswith(".bias"):
        values = np.float32(0.02) * values
    elif len(shape) == 1:
        values = np.float32(1) + np.float32(0.05) * values
    else:
        values = values / np.float32(math.sqrt(math.prod(shape[1:])))
    return torch.from_numpy(values)


def golden(name: str, folder: Path = EFFICIENTMT) -> torch.Tensor:
    """One stored tensor."""
    with safe_open(folder / "golden.safetensors", "pt") as file:
        return file.get_tensor(name)


def golden_names(start: str) -> list[str]:
    with safe_open(EFFICIENTMT / "golden.safetensors", "pt") as file:
        return [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118


def relative_error(out: torch.Tensor, name: str, folder: Path = EFFICIENTMT) -> float:
    """||out - golden|| / ||golden||, over the stored values."""
    want = golden(name, folder).double()
    have = out.detach().flatten()[:: int(name.rpartition("@")[2])] if "@" in name else out.detach()
    assert have.numel() == want.numel(), f"{name}: {have.numel()} values, stored {want.numel()}"
    return ((have.double().reshape(want.shape) - want).norm() / want.norm()).item()


def keys(name: str, folder: Path = EFFICIENTMT) -> dict[str, list[int]]:
    """Key -> shape of a published file."""
    with gzip.open(folder / f"{name}.json.gz") as file:
        return json.load(file)


def write_tiny_layout(folder: Path) -> dict[str, str]:
    """Write every file of the published layout at a tiny size; returns the `Files` paths. Values differ by file."""
    with gzip.open(EFFICIENTMT / "tiny_layout.json.gz") as file:
        layout = json.load(file)
    base = folder / "StableDiffusion" / "stable-diffusion-v1-5"
    shutil.copytree(EFFICIENTMT / "tiny_sd15", base)
    states = {part: {key: _value(*entry) for key, entry in entries.items()} for part, entries in layout.items()}
    states["vae"] = {key: value.float() for key, value in states["vae"].items()}
    states["text_encoder"]["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for key in [key for key in states["motion_module"] if key.endswith("attention_blocks.0.to_q.weight")]:
        table = torch.zeros(1, 32, len(states["motion_module"][key]))  # the published file holds one; nobody reads it
        states["motion_module"][key.replace("to_q.weight", "pos_encoder.pe")] = table
    files = {part: folder / f"{part}.ckpt" for part in ("motion_module", "adapter")}
    save_file(states["unet"], base / "unet" / "diffusion_pytorch_model.safetensors")
    torch.save(states["vae"], base / "vae" / "diffusion_pytorch_model.bin")
    torch.save(states["text_encoder"], base / "text_encoder" / "pytorch_model.bin")
    torch.save(states["motion_module"], files["motion_module"])
    torch.save({"global_step": 1, "state_dict": states["adapter"]}, files["adapter"])
    save_file(states["dreambooth"] | {"betas": torch.zeros(1000)}, folder / "dreambooth.safetensors")
    return {
        "pretrained_model_path": str(base),
        "motion_module_path": str(files["motion_module"]),
        "dreambooth_path": str(folder / "dreambooth.safetensors"),
        "ckpt_path": str(files["adapter"]),
    }


def _value(shape: list[int], seed_name: str, name: str, factor: int | str) -> torch.Tensor:
    """Half precision, as the golden files were saved."""
    values = fill(name, tuple(shape), seed_name)
    if factor == "+5":
        return (values + 5).half()
    return values.half() * factor


def filled_unet() -> VideoUNet:
    """The small backbone of the golden runs, every weight by `fill`, frozen."""
    unet = build_unet(TINY)
    load_original_unet(unet, {key: fill(key, tuple(v.shape)) for key, v in original_unet_state(unet).items()})
    return unet.requires_grad_(False).eval()
