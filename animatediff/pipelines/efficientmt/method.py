"""EfficientMT behind the commands: its files, its settings, and one run of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.models.adapter import Reference
from animatediff.models.unet import MAX_FRAMES
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.backbones.sd15 import (
    DIFFUSERS,
    SD15Files,
    check_files,
    unread_text,
    weight_files,
    weights_in,
)
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles, load_pipeline
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from animatediff.pipelines.method import UNTRAINED, Input, OnStep, Run, WeightFile
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS


@dataclass
class EfficientMTSettings:
    """The method's own settings; the defaults are the published run's."""

    guidance_interval: list[int] = option(
        [0, NUM_TRAIN_TIMESTEPS],
        "guidance acts at timesteps from the first to below the second (Kynkaanniemi et al. 2024)",
        least=0,
        most=NUM_TRAIN_TIMESTEPS,
    )


class EfficientMTMethod:
    """One reference pass, then one ordinary sampling run with integrated temporal attention."""

    name = "efficientmt"
    Files = EfficientMTFiles
    Settings = EfficientMTSettings
    defaults: Mapping[str, Any] = {}
    limits: Mapping[str, tuple[float, float]] = {"num_frames": (1, MAX_FRAMES)}
    inputs: tuple[Input, ...] = ()
    needs_prompt = True
    reference_keys = frozenset({"use_reference", "ref_prompt", "reference_timestep"})
    renamed: Mapping[str, str] = {"guidance_below": "efficientmt.guidance_interval=[0, TIMESTEP]"}
    objective = "animatediff.pipelines.efficientmt.objective:Objective"

    def check(self, run: Run, settings: EfficientMTSettings) -> None:
        check_files(run.part(SD15Files))
        interval = settings.guidance_interval
        if len(interval) != 2 or interval[0] >= interval[1]:
            raise UserError(
                f"efficientmt.guidance_interval is {interval}, expected two timesteps, the lower one first, "
                f"within 0 to {NUM_TRAIN_TIMESTEPS}"
            )

    def weights(self, files: EfficientMTFiles) -> list[WeightFile]:
        found = weight_files(files)
        if files.ckpt_path:
            path = Path(files.ckpt_path)
            file = weights_in(path, *DIFFUSERS) if path.is_dir() else path
            found.append(WeightFile("adapter", file, by_content=True))
        return found

    def load(
        self, files: EfficientMTFiles, settings: EfficientMTSettings, device: torch.device | str, dtype: torch.dtype
    ) -> EfficientMTPipeline:
        return load_pipeline(files, device=device, dtype=dtype)

    def extract(
        self,
        pipe: EfficientMTPipeline,
        video: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: EfficientMTSettings,
        rng: torch.Generator,
    ) -> Reference | None:
        if not run.use_reference:
            return None
        return pipe.extract(video, timestep=run.reference_timestep, prompt=run.ref_prompt, generator=rng)

    def generate(
        self,
        pipe: EfficientMTPipeline,
        reference: Reference | None,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: EfficientMTSettings,
        rng: torch.Generator,
        on_step: OnStep,
    ) -> np.ndarray:
        pipe.scheduler = build_scheduler(run.scheduler, pipe.scheduler.config.prediction_type)

        def stepped(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step, run.num_inference_steps, tensors["latents"])
            return {}

        size: dict[str, Any] = (
            {} if reference else {"num_frames": run.num_frames, "height": run.height, "width": run.width}
        )
        low, high = settings.guidance_interval
        frames, *_ = pipe(
            run.prompt,
            reference=reference,
            negative_prompt=run.negative_prompt,
            num_inference_steps=run.num_inference_steps,
            guidance_scale=run.guidance_scale,
            guidance_interval=(low, high),
            generator=rng,
            output_type="np",
            callback_on_step_end=stepped,
            **size,
            return_dict=False,
        )
        return frames[0]

    def facts(self, pipe: EfficientMTPipeline, reference: Reference | None) -> dict[str, Any]:
        if pipe.adapter.config.trained_steps == 0:
            return {UNTRAINED: "the adapter has random weights, so no motion is transferred"}
        return {}

    def notes(self, pipe: EfficientMTPipeline, run: Run, reference: Any) -> list[str]:
        return [*pipe.lora_warnings, *unread_text(pipe.tokenizer, run)]


METHOD = EfficientMTMethod()
