"""EfficientMT as a diffusers pipeline: extract a clip's motion once, then generate from any number of prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, SchedulerMixin
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.animatediff import AnimateDiffPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from animatediff.errors import UserError
from animatediff.models.adapter import Adapter, Reference, extract, integrated
from animatediff.models.hooks import guidance_interval as guided_in
from animatediff.models.unet import VideoUNet
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS, REFERENCE_TIMESTEP, VideoPipeline, check_frames

EVERY_TIMESTEP = (0, NUM_TRAIN_TIMESTEPS)
DEFAULT_FRAMES = 16


class EfficientMTPipeline(VideoPipeline):
    """diffusers' AnimateDiffPipeline whose generation can follow a Reference.

    Schedulers, callbacks, negative prompts, FreeInit, FreeNoise, LoRA, IP-Adapter, offloading, layerwise casting and
    VAE slicing are diffusers'. The motion modules live in `unet` only. Any thread may call; calls run one by one.
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
        with self.exclusive():
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
            return extract(self.unet, self.adapter, noisy, timestep, text)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | dict[int, str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | dict[int, str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        decode_chunk_size: int = 16,
        *,
        reference: Reference | None = None,
        guidance_interval: tuple[float, float] = EVERY_TIMESTEP,
    ) -> AnimateDiffPipelineOutput | tuple[Any]:
        """AnimateDiffPipeline's call and result, following `reference` where one is given.

        num_frames, height and width (pixels): the reference's, else those of `latents` (b 4 f h w), else 16 frames of
        the size that the backbone was made for. num_videos_per_prompt: that many for each prompt, side by side.
        prompt: {frame: text} with FreeNoise. guidance_interval: the timesteps (low inclusive, high exclusive) at which
        guidance acts; all of them, as published. Everything else is AnimateDiffPipeline's. UserError for sizes that
        contradict each other or the reference, and for an argument that would have no effect.
        """
        with self.exclusive(), ExitStack() as stack:
            self._refuse_without_effect(
                eta, guidance_scale, negative_prompt, negative_prompt_embeds, prompt_embeds, clip_skip
            )
            self._check_image_prompt(ip_adapter_image, ip_adapter_image_embeds)
            _check_interval(guidance_interval)
            if isinstance(prompt, dict) and not self.free_noise_enabled:
                raise UserError("prompts over time ({frame: text}) need FreeNoise; call enable_free_noise first")
            num_frames, height, width = self._resolve_size(num_frames, height, width, latents, reference)
            if num_videos_per_prompt != 1:
                if num_videos_per_prompt < 1 or self.free_noise_enabled:
                    limit = "1 (FreeNoise makes one at a time)" if self.free_noise_enabled else "1 or more"
                    raise UserError(f"num_videos_per_prompt is {num_videos_per_prompt}, expected {limit}")
                prompt, negative_prompt = (_repeat(text, num_videos_per_prompt) for text in (prompt, negative_prompt))
                prompt_embeds, negative_prompt_embeds = (
                    embeds if embeds is None else embeds.repeat_interleave(num_videos_per_prompt, dim=0)
                    for embeds in (prompt_embeds, negative_prompt_embeds)
                )
            if guidance_scale > 1 and tuple(guidance_interval) != EVERY_TIMESTEP:
                stack.enter_context(guided_in(self.unet, *guidance_interval))
            if reference is not None:
                device = self._execution_device
                self.adapter.to(device)
                stack.enter_context(integrated(self.unet, self.adapter, reference.to(device, self.unet.dtype)))
            return super().__call__(
                prompt,
                num_frames,
                height,
                width,
                num_inference_steps,
                guidance_scale,
                negative_prompt,
                eta=eta,
                generator=generator,
                latents=latents,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                ip_adapter_image=ip_adapter_image,
                ip_adapter_image_embeds=ip_adapter_image_embeds,
                output_type=output_type,
                return_dict=return_dict,
                cross_attention_kwargs=cross_attention_kwargs,
                clip_skip=clip_skip,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
                decode_chunk_size=decode_chunk_size,
            )

    def _resolve_size(
        self,
        num_frames: int | None,
        height: int | None,
        width: int | None,
        latents: torch.Tensor | None,
        reference: Reference | None,
    ) -> tuple[int, int, int]:
        """Frames, height and width in pixels; UserError where what is given contradicts itself."""
        scale = self.vae_scale_factor
        given = {"num_frames": num_frames, "height": height, "width": width}
        size: dict[str, int]
        if reference is not None:
            rows, columns = reference.latent_size
            size = {"num_frames": reference.num_frames, "height": scale * rows, "width": scale * columns}
            source, remedy = "the reference was extracted with", "extract it again"
        elif latents is not None:
            frames, rows, columns = latents.shape[2:]
            # FreeNoise makes its latents from those of one window, or takes all of them.
            frames = frames if num_frames is None or not self.free_noise_enabled else num_frames
            size = {"num_frames": frames, "height": scale * rows, "width": scale * columns}
            source, remedy = "the latents have", "leave it out"
        else:
            side = scale * self.unet.config.sample_size
            size = {"num_frames": DEFAULT_FRAMES, "height": side, "width": side}
            size |= {name: value for name, value in given.items() if value is not None}
            source, remedy = "", ""
        for name, value in given.items():
            if value is not None and value != size[name]:
                raise UserError(f"{name} is {value}, but {source} {size[name]}; {remedy}")
        self._check_length(size["num_frames"])
        if latents is not None and not self.free_noise_enabled:
            expected = (size["num_frames"], size["height"] // scale, size["width"] // scale)
            if tuple(latents.shape[2:]) != expected:
                raise UserError(f"latents are {list(latents.shape)}, expected [b, 4, {str(list(expected))[1:]}")
        return size["num_frames"], size["height"], size["width"]

    def _check_length(self, num_frames: int) -> None:
        if not self.free_noise_enabled:
            check_frames(num_frames)
        elif num_frames < self._free_noise_context_length:
            raise UserError(
                f"num_frames is {num_frames}, less than FreeNoise's window of {self._free_noise_context_length}; "
                "call enable_free_noise with a smaller context_length"
            )

    def _refuse_without_effect(
        self,
        eta: float,
        guidance_scale: float,
        negative_prompt: str | list[str] | dict[int, str] | None,
        negative_prompt_embeds: torch.Tensor | None,
        prompt_embeds: torch.Tensor | None,
        clip_skip: int | None,
    ) -> None:
        """UserError for what AnimateDiffPipeline would ignore."""
        if eta and "eta" not in inspect.signature(self.scheduler.step).parameters:
            raise UserError(f"eta is {eta}, which {type(self.scheduler).__name__} does not take; leave it out")
        negative = negative_prompt_embeds is not None or any(_texts(negative_prompt))
        if negative and guidance_scale <= 1:
            raise UserError(f"a negative prompt has no effect at guidance_scale {guidance_scale}; expected more than 1")
        if clip_skip is not None and prompt_embeds is not None:
            raise UserError(f"clip_skip is {clip_skip}, which has no effect on prompt_embeds; leave it out")

    def _check_image_prompt(self, image: object, embeds: object) -> None:
        """UserError for an image prompt without an IP-Adapter, and the other way about."""
        loaded = self.unet.encoder_hid_proj is not None
        if loaded and image is None and embeds is None:
            raise UserError("an IP-Adapter is loaded; give ip_adapter_image, or call unload_ip_adapter")
        if not loaded and (image is not None or embeds is not None):
            raise UserError("an image prompt is given, but no IP-Adapter is loaded; call load_ip_adapter first")


def _check_interval(interval: tuple[float, float]) -> None:
    low, high = interval
    if not 0 <= low < high <= NUM_TRAIN_TIMESTEPS:
        raise UserError(
            f"guidance_interval is {low} to {high}, expected two rising timesteps from 0 to {NUM_TRAIN_TIMESTEPS}"
        )


def _texts(prompt: str | list[str] | dict[int, str] | None) -> list[str]:
    """The texts of a prompt in any of its forms."""
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    return list(prompt.values()) if isinstance(prompt, dict) else list(prompt)


def _repeat(prompt: str | list[str] | dict[int, str] | None, times: int) -> list[str] | None:
    """Each text `times` times, in place; None stays."""
    return None if prompt is None else [text for text in _texts(prompt) for _ in range(times)]
