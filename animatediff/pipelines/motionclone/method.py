"""MotionClone behind the commands: its files, and one run of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.models.sparsectrl import check_image_index, load_original_sparsectrl, merge_domain_adapter
from animatediff.models.unet import MAX_FRAMES
from animatediff.models.weight_files import read_state_dict
from animatediff.pipelines.backbones.lora import load_loras
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.backbones.sd15 import SD15Files, check_files, load_components, unread_text, weight_files
from animatediff.pipelines.method import Input, OnStep, Run, WeightFile
from animatediff.pipelines.motionclone.pipeline import MotionClonePipeline, MotionCloneSettings, MotionReference
from animatediff.pipelines.motionclone.sampling import check_steps
from animatediff.project import located

IMAGES = "condition_image_paths"


@dataclass
class MotionCloneFiles(SD15Files):
    """A Stable Diffusion 1.5 base, and what the image modes add."""

    sparsectrl_path: str = option("", "the image modes: a published SparseCtrl file, rgb or scribble", once=True)
    domain_adapter_path: str = option("", "v3_sd15_adapter.ckpt, merged into the backbone for good", once=True)
    domain_adapter_scale: float = option(1.0, "of the domain adapter", least=-10, most=10, once=True)


class MotionCloneMethod:
    """One reference pass, then sampling guided by the reference's temporal attention maps."""

    name = "motionclone"
    Files = MotionCloneFiles
    Settings = MotionCloneSettings
    defaults: Mapping[str, Any] = {"num_inference_steps": 100, "guidance_scale": 8.5, "reference_seed": None}
    limits: Mapping[str, tuple[float, float]] = {"num_frames": (1, MAX_FRAMES)}
    inputs = (Input(IMAGES, "images", help="with sparsectrl_path: the images that the video starts from or passes"),)
    needs_prompt = True
    reference_keys = frozenset(
        {"ref_prompt", "reference_timestep", "motion_guidance_blocks", "k", "image_index", "controlnet_scale"}
    )
    aliases: Mapping[str, str] = {
        "image_index": "motionclone.image_index",
        "controlnet_scale": "motionclone.controlnet_scale",
    }
    renamed: Mapping[str, str] = {"motionclone.guided_share": "motionclone.guidance_range"}
    objective = None

    def check(self, run: Run, settings: MotionCloneSettings) -> None:
        check_files(run.part(SD15Files))
        if not run.use_reference:
            raise UserError("use_reference is false, which MotionClone has no use for; choose another method")
        names = ("motionclone.guidance_steps", "motionclone.guidance_range")
        check_steps(run.num_inference_steps, settings.guidance_steps, settings.guidance_range, names)
        if run.scheduler != "ddim":
            raise UserError(
                f"scheduler is '{run.scheduler}', but MotionClone has timesteps of its own; give scheduler=ddim"
            )
        if settings.k > run.num_frames:
            raise UserError(f"motionclone.k is {settings.k}, expected 1 to num_frames, {run.num_frames}")
        images = getattr(run, IMAGES)
        if not run.part(MotionCloneFiles).sparsectrl_path:
            if images:
                raise UserError(f"{IMAGES} is given without sparsectrl_path, the weights that read the images")
            return
        check_image_index(len(images), settings.image_index, run.num_frames)

    def weights(self, files: MotionCloneFiles) -> list[WeightFile]:
        named = {"SparseCtrl": files.sparsectrl_path, "domain adapter": files.domain_adapter_path}
        return weight_files(files) + [WeightFile(what, Path(path)) for what, path in named.items() if path]

    def load(
        self, files: MotionCloneFiles, settings: MotionCloneSettings, device: torch.device | str, dtype: torch.dtype
    ) -> MotionClonePipeline:
        return load_motionclone(files, settings, device, dtype)

    def extract(
        self,
        pipe: MotionClonePipeline,
        video: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: MotionCloneSettings,
        rng: torch.Generator,
    ) -> MotionReference:
        return pipe.extract(
            video,
            timestep=run.reference_timestep,
            prompt=run.ref_prompt,
            generator=rng,
            image_index=settings.image_index,
            controlnet_scale=settings.controlnet_scale,
            settings=settings,
        )

    def generate(
        self,
        pipe: MotionClonePipeline,
        reference: MotionReference,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: MotionCloneSettings,
        rng: torch.Generator,
        on_step: OnStep,
    ) -> np.ndarray:
        def stepped(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step, run.num_inference_steps, tensors["latents"])
            return {}

        frames, *_ = pipe(
            run.prompt or "",
            reference=reference,
            negative_prompt=run.negative_prompt,
            num_inference_steps=run.num_inference_steps,
            guidance_scale=run.guidance_scale,
            generator=rng,
            condition_images=inputs.get(IMAGES),
            callback_on_step_end=stepped,
            output_type="np",
            settings=settings,
            return_dict=False,
        )
        return frames[0]

    def facts(self, pipe: MotionClonePipeline, reference: MotionReference | None) -> dict[str, Any]:
        return {}

    def notes(self, pipe: MotionClonePipeline, run: Run, reference: Any) -> list[str]:
        return [*pipe.lora_warnings, *unread_text(pipe.tokenizer, run)]


def load_motionclone(
    files: MotionCloneFiles | None = None,
    settings: MotionCloneSettings | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MotionClonePipeline:
    """MotionClone from published files (the bundled miniature without `files`), SparseCtrl and domain adapter where
    named, on `device` in `dtype`."""
    files = located(files or MotionCloneFiles())
    base = load_components(files, dtype)
    if files.domain_adapter_path:
        state = read_state_dict(files.domain_adapter_path)
        merge_domain_adapter(base.unet, state, files.domain_adapter_scale, files.domain_adapter_path)
    controlnet = None
    if files.sparsectrl_path:
        state = read_state_dict(files.sparsectrl_path)
        controlnet = load_original_sparsectrl(base.unet, state, files.sparsectrl_path)
    parts = (base.vae, base.text_encoder, base.tokenizer, base.unet)
    pipeline = MotionClonePipeline(*parts, build_scheduler("ddim", base.prediction_type), controlnet, settings)
    pipeline.lora_warnings = load_loras(pipeline, files.lora_paths, files.lora_scale)
    return pipeline.to(device)


METHOD = MotionCloneMethod()
