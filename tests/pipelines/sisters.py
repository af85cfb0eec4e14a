"""Small pipelines of the methods beside EfficientMT, and one short run of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff.pipelines.backbones.folders import VideoTransformerFiles
from animatediff.pipelines.ditflow.method import load_ditflow
from animatediff.pipelines.motionclone.pipeline import MotionClonePipeline, MotionCloneSettings
from animatediff.pipelines.motionfollower import build_networks, build_scheduler
from animatediff.pipelines.motionfollower.pipeline import MotionFollowerPipeline
from tests.goldens import TINY
from tests.pipelines.motionfollower.layout import SIDE, waving
from tests.pipelines.small import small_components

GUIDED = MotionCloneSettings(
    guidance_steps=1, warm_up_steps=1, cool_down_steps=1, motion_guidance_blocks=["up_blocks.1"]
)


def motionclone() -> MotionClonePipeline:
    parts = small_components()
    del parts["adapter"]
    return MotionClonePipeline(**parts, settings=GUIDED)


def ditflow(layout: Path) -> Any:
    return load_ditflow(VideoTransformerFiles(str(layout)))


def motionfollower() -> MotionFollowerPipeline:
    torch.manual_seed(0)
    networks = build_networks(TINY, (16, 32, 48, 64))
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=64,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4, layers_per_block=1, sample_size=SIDE,
    )  # fmt: skip
    parts = (networks.unet, networks.pose_controller, networks.appearance_controller)
    return MotionFollowerPipeline(vae.eval(), CLIPVisionModelWithProjection(vision).eval(), *parts, build_scheduler())


def make(pipe: Any) -> torch.Tensor:
    """Latents of a short run, told by what the pipeline can do."""
    pipe.set_progress_bar_config(disable=True)
    runs: dict[str, Callable[[Any], torch.Tensor]] = {
        "MotionClonePipeline": _clone,
        "MotionFollowerPipeline": _follow,
        "DiTFlowPipeline": _flow,
        "DiTFlowWanPipeline": _flow,
    }
    return runs[type(pipe).__name__](pipe)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _clone(pipe: Any) -> torch.Tensor:
    reference = pipe.extract(torch.zeros(4, 3, 8, 8), generator=_seeded())
    short = {"num_inference_steps": 2, "output_type": "latent"}
    return pipe("a cat", reference=reference, generator=_seeded(), **short).frames


def _flow(pipe: Any) -> torch.Tensor:
    reference = pipe.extract(torch.rand(9, 3, 32, 48, generator=_seeded()) * 2 - 1, [1], generator=_seeded())
    short = {"num_inference_steps": 2, "guidance_steps": 1, "optimization_steps": 1, "output_type": "latent"}
    return pipe("a red star", reference, generator=_seeded(), **short).frames


def _follow(pipe: Any) -> torch.Tensor:
    from animatediff.pipelines.motionfollower import draw_skeleton

    drawn = np.stack([draw_skeleton(body, size=(SIDE, SIDE)) for body in waving(3)])
    masks = np.repeat(drawn.max(-1, keepdims=True) > 0, 3, axis=-1).astype(np.uint8) * 255
    frames = np.full_like(drawn, 90)
    size = {"height": 32, "width": 32, "num_inference_steps": 1, "output_type": "latent"}
    return pipe(frames, drawn, drawn, masks, masks, generator=_seeded(), **size).frames
