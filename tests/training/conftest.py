"""A tiny training run: the published layout at a tiny size, three frames of 32x32 pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import train as program
from animatediff.miniature.text import build_text_encoder, build_tokenizer
from animatediff.models import build_unet
from animatediff.training.config import read_config
from tests.disk import small_disk  # noqa: F401

Settings = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model with random weights in the published layout, well conditioned at 8x8 latents."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    spatial = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    tokenizer = build_tokenizer()
    for name, part in (("unet", spatial), ("vae", vae), ("text_encoder", build_text_encoder(tokenizer))):
        part.save_pretrained(folder / "sd" / name)
    tokenizer.save_pretrained(folder / "sd" / "tokenizer")
    state = build_unet(spatial.config).state_dict()
    motion = {key: value for key, value in state.items() if ".motion_modules." in key and ".pos_embed." not in key}
    save_file(motion, folder / "motion.safetensors")
    return {"pretrained_model_path": folder / "sd", "motion_module_path": folder / "motion.safetensors"}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of latents for all runs on the same clips."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(tiny_base: dict[str, Path], cache: Path, tmp_path: Path) -> Settings:
    """settings(key=value, ...) -> overrides of a run in tmp_path / "run"; `data__root` stands for data.root."""
    base: dict[str, object] = {f"weights.{key}": path for key, path in tiny_base.items()} | {
        "weights.dreambooth_path": "",
        "output": tmp_path / "run",
        "data.source": "synthetic",
        "data.num_frames": 3,
        "data.height": 32,
        "data.width": 32,
        "data.cache": cache,
        "data.synthetic_groups": 3,
        "data.synthetic_clips": 2,
        "data.synthetic_validation_groups": 1,
        "validation.every": 0,
        "mixed_precision": "fp32",
        "learning_rate": 1e-3,
        "scaler_bias": 3,
        "log_with": "[]",
        "sites": "up_1",
    }

    def make(**changes: object) -> list[str]:
        values = base | {key.replace("__", "."): value for key, value in changes.items()}
        return [f"{key}={value}" for key, value in values.items()]

    return make


def run(overrides: list[str]) -> Path:
    config = read_config([], overrides)
    program.train(config)
    return Path(config.output)


def final(output: Path) -> Mapping[str, torch.Tensor]:
    return load_file(output / "adapter" / "diffusion_pytorch_model.safetensors")


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
