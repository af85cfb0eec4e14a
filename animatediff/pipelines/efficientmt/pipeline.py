"""EfficientMT as a diffusers pipeline: extract a clip's motion once, then generate from any number of prompts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from animatediff.errors import UserError
from animatediff.models.adapter import Adapter, Reference, extract, integrated
from animatediff.models.hooks import guided_below
from animatediff.models.unet import VideoUNet
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS, REFERENCE_TIMESTEP, VideoPipeline, check_frames


class EfficientMTPipeline(VideoPipeline):
    """diffusers' AnimateDiffPipeline whose generation can follow a Reference.

    Schedulers, callbacks, negative prompts, FreeInit, LoRA, IP-Adapter, offloading and VAE slicing are diffusers'.
    The motion modules live in `unet` only.
    """

    _optional_components = ["feature_extractor", "image_encoder"]  # noqa: RUF012
    _exclude_from_cpu_offload = ["adapter"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: VideoUNet,
        adapter: Adapter,
        scheduler: SchedulerMixin,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
    ) -> None:
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            adapter=adapter,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )

    @torch.no_grad()
    def extract(
        self,
        video: torch.Tensor | None = None,
        *,
        timestep: int = REFERENCE_TIMESTEP,
        prompt: str = "",
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> Reference:
        """The motion of a reference clip, once for all prompts, seeds and steps (EfficientMT, section 3.1).

        video: (f 3 h w) in [-1, 1], as `animatediff.data.video.fit_frames` gives it. timestep and prompt: noise
        level and text of the reference pass. latents: (1 4 f h w) clean and scaled, instead of `video`. noise: as
        latents; drawn from `generator` if not given. UserError for more frames than the motion modules have positions.
        """
        if latents is None:
            if video is None:
                raise UserError("extract needs a video or its latents")
            latents = self.encode_video(video, generator)
        check_frames(latents.shape[2])
        device, dtype = self._execution_device, self.unet.dtype
        latents = latents.to(device, dtype)
        if noise is None:
            noise = randn_tensor(latents.shape, generator=generator, device=device, dtype=dtype)
        schedule = DDPMScheduler.from_config(self.scheduler.config)
        noisy = schedule.add_noise(latents, noise.to(device, dtype), torch.tensor([timestep], device=device))
        text, _ = self.encode_prompt(prompt, device, 1, do_classifier_free_guidance=False)
        reference = extract(self.unet, self.adapter, noisy, timestep, text)
        self.maybe_free_model_hooks()
        return reference

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        reference: Reference | None = None,
        guidance_scale: float = 7.5,
        guidance_below: int = NUM_TRAIN_TIMESTEPS,
        **kwargs: Any,
    ) -> Any:
        """AnimateDiffPipeline's call, following `reference` where one is given.

        Size and number of frames are the reference's; any other argument and the result are AnimateDiffPipeline's.
        guidance_below: the timesteps at which guidance acts, 1 to NUM_TRAIN_TIMESTEPS (all of them, as published).
        UserError where height, width or num_frames contradict the reference.
        """
        if not 0 < guidance_below <= NUM_TRAIN_TIMESTEPS:
            raise UserError(f"guidance_below is {guidance_below}, expected a timestep from 1 to {NUM_TRAIN_TIMESTEPS}")
        with ExitStack() as stack:
            if guidance_scale > 1 and guidance_below < NUM_TRAIN_TIMESTEPS:
                stack.enter_context(guided_below(self.unet, guidance_below))
            if reference is None:
                check_frames(kwargs.get("num_frames", 16))
            else:
                _take_size(kwargs, reference, self.vae_scale_factor)
                self.adapter.to(self._execution_device)
                reference = reference.to(self._execution_device)
                stack.enter_context(integrated(self.unet, self.adapter, reference))
            return super().__call__(prompt, guidance_scale=guidance_scale, **kwargs)


def _take_size(arguments: dict[str, Any], reference: Reference, scale: int) -> None:
    """Set num_frames, height and width to the reference's; UserError where they are given and differ."""
    height, width = (scale * side for side in reference.latent_size)
    for name, value in (("num_frames", reference.num_frames), ("height", height), ("width", width)):
        if arguments.setdefault(name, value) != value:
            raise UserError(
                f"{name} is {arguments[name]}, but the reference was extracted with {value}; extract it again"
            )
