"""What pipelines share: one request at a time; and, around one VideoUNet, diffusers' AnimateDiffPipeline."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AnimateDiffPipeline, DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from einops import rearrange
from huggingface_hub import HfApi
from torch import nn

from animatediff.errors import UserError
from animatediff.files import write_text
from animatediff.models.free_noise import is_split, remove_split_inference, split_by_name
from animatediff.models.motion_module import set_temporal_processors, use_xformers
from animatediff.models.unet import MAX_FRAMES, VideoUNet
from animatediff.pipelines.hub_layout import installed_modules, write_custom_code
from animatediff.pipelines.model_card import model_card

# The noise schedule of all published weights: betas linear over this many steps, as diffusers' schedulers take them.
NUM_TRAIN_TIMESTEPS = 1000
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
PREDICTIONS = ("epsilon", "v_prediction")  # what a backbone may predict, in diffusers' words
CARD_NAME = "README.md"
UPLOAD = ("repo_id", "commit_message", "private", "token", "create_pr")  # what save_pretrained hands to an upload
REFERENCE_TIMESTEP = 400  # the published runs' noise level of the reference pass


class OneAtATime(DiffusionPipeline):
    """A pipeline that is one resource: what runs its networks does so inside `exclusive`. `_lock` is made with it."""

    _lock: threading.RLock
    lora_warnings: Sequence[str] = ()  # of the LoRAs that were loaded onto it, one line each
    recipe: Mapping[str, Any] = MappingProxyType({})  # what it was loaded for, see `inference.run.recipe`

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One request at a time, in whatever threads they come; a thread may enter again what it is in.

        Modules that offloading has moved are back in their place when the block ends, also by an exception.
        """
        with self._lock:
            try:
                yield
            finally:
                self.maybe_free_model_hooks()

    # ------------------------------------------------------------------------------------------ Save and load

    def save_pretrained(self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """DiffusionPipeline's, in the layout of a custom pipeline (see `hub_layout`), with a model card.

        push_to_hub: also upload it, as `push_to_hub` does, by its arguments; repo_id is the folder's name by default.
        """
        upload = {key: kwargs.pop(key) for key in UPLOAD if key in kwargs} if push_to_hub else {}
        super().save_pretrained(str(save_directory), *args, **kwargs)
        self._write_card(Path(save_directory), str(upload.get("repo_id", Path(save_directory).name)))
        if push_to_hub:
            self._upload(Path(save_directory), **{"repo_id": Path(save_directory).name, **upload})

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """DiffusionPipeline's, with a model card made of the recipe; a card that is there already stays."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            self._write_card(Path(folder), repo_id)
            return self._upload(Path(folder), repo_id, commit_message, private, token, create_pr, subfolder)

    def _write_card(self, folder: Path, place: str) -> None:
        write_text(folder / CARD_NAME, model_card(self, place, self.recipe))

    def _upload(
        self,
        folder: Path,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> str:
        hub = HfApi(token=token)
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        kept = [CARD_NAME] if subfolder or hub.file_exists(repo_id, CARD_NAME) else []
        return hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=subfolder,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
            ignore_patterns=kept,
        )

    def save_config(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """DiffusionPipeline's model_index.json, and the code files that it names."""
        super().save_config(save_directory, *args, **kwargs)
        write_custom_code(Path(save_directory), type(self))

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """DiffusionPipeline's. A class that is here already runs no code from the folder: see `installed_modules`."""
        loaded = super().load_config(*args, **kwargs)
        return installed_modules(loaded) if isinstance(loaded, dict) else (installed_modules(loaded[0]), *loaded[1:])


class VideoPipeline(OneAtATime, AnimateDiffPipeline):
    """diffusers' AnimateDiffPipeline whose motion modules live in `unet` only: encoding, decoding, text, offloading."""

    def _set_up(self, **components: Any) -> None:
        """Stands for AnimateDiffPipeline's __init__, which would ask for a MotionAdapter. A component may be None."""
        super(AnimateDiffPipeline, self).__init__()
        self._lock = threading.RLock()
        self.register_modules(**components)
        self.vae_scale_factor = 8 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(do_resize=False, vae_scale_factor=self.vae_scale_factor)

    @property
    def size_multiple(self) -> int:
        """What height and width in pixels must be multiples of."""
        return size_multiple(self.vae_scale_factor)

    @torch.no_grad()
    def encode_video(
        self, video: torch.Tensor, generator: torch.Generator | None = None, chunk_size: int = 16
    ) -> torch.Tensor:
        """Scaled latents (1 4 f h/8 w/8) of a video (f 3 h w) in [-1, 1], sampled from the VAE's posterior."""
        with self._lock:
            device, dtype = self._execution_device, self.vae.dtype
            samples = [
                self.vae.encode(frames.to(device, dtype)).latent_dist.sample(generator)
                for frames in video.split(chunk_size)
            ]
            return rearrange(torch.cat(samples), "f c h w -> 1 c f h w") * self.vae.config.scaling_factor

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """As DiffusionPipeline's, for every attention but the temporal ones (see `use_xformers`)."""
        for component in self.components.values():
            if isinstance(component, nn.Module):
                use_xformers(component, valid, attention_op)

    # ------------------------------------------------------------------ FreeNoise, whose mixin expects other networks

    @property
    def motion_adapter(self) -> VideoUNet:
        """Where FreeNoise looks for the motion modules' config."""
        return self.unet

    def enable_free_noise(
        self,
        context_length: int | None = 16,
        context_stride: int = 4,
        weighting_scheme: str = "pyramid",
        noise_type: str = "shuffle_context",
        prompt_interpolation_callback: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        """AnimateDiffPipeline's: temporal attention in windows of `context_length` frames (None: the most there are).

        UserError for windows that the motion modules lack positions for, while split inference is on, and where a
        LoRA is loaded into the motion modules, whose blocks are made anew.
        """
        length = context_length or self.unet.config.motion_max_seq_length
        check_frames(length, "context_length")
        if context_stride < 1:
            raise UserError(f"context_stride is {context_stride}, expected 1 or more frames")
        if is_split(self.unet):
            raise UserError("FreeNoise's split inference is on; call disable_free_noise first")
        if any("motion_modules" in name and hasattr(m, "base_layer") for name, m in self.unet.named_modules()):
            raise UserError("a LoRA is loaded into the motion modules; call fuse_lora and unload_lora_weights first")
        with self._lock:
            super().enable_free_noise(
                length, context_stride, weighting_scheme, noise_type, prompt_interpolation_callback
            )

    def enable_free_noise_split_inference(self, spatial_split_size: int = 256, temporal_split_size: int = 16) -> None:
        """AnimateDiffPipeline's, until disable_free_noise; called again it takes the new sizes."""
        with self._lock:
            remove_split_inference(self.unet)
            super().enable_free_noise_split_inference(spatial_split_size, temporal_split_size)
            split_by_name(self.unet.mid_block)

    def disable_free_noise(self) -> None:
        """The backbone as it was: no windows, no split inference."""
        with self._lock:
            remove_split_inference(self.unet)
            super().disable_free_noise()

    def _enable_free_noise_in_block(self, block: nn.Module) -> None:
        with _as_before(block):
            super()._enable_free_noise_in_block(block)

    def _disable_free_noise_in_block(self, block: nn.Module) -> None:
        if hasattr(block, "motion_modules"):
            with _as_before(block):
                super()._disable_free_noise_in_block(block)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """OneAtATime's. UserError while split inference, which renames weights, is on."""
        if self.unet is not None and is_split(self.unet):
            raise UserError("FreeNoise's split inference is on; call disable_free_noise before saving")
        super().save_pretrained(save_directory, *args, **kwargs)


@contextmanager
def _as_before(block: nn.Module) -> Iterator[None]:
    """The motion modules of `block`, made anew meanwhile, are as frozen and in the same mode as those before."""
    modules = block.get_submodule("motion_modules")
    frozen, training = not any(p.requires_grad for p in modules.parameters()), modules.training
    yield
    modules.train(training)
    if frozen:
        modules.requires_grad_(False)
    set_temporal_processors(modules)


def size_multiple(vae_scale: int) -> int:
    """What height and width in pixels must be multiples of: the VAE's scale, and 8, which diffusers asks for."""
    return math.lcm(8, vae_scale)


def check_frames(num_frames: int, name: str = "num_frames") -> None:
    """UserError where the motion modules lack positions for so many frames."""
    if not 1 <= num_frames <= MAX_FRAMES:
        raise UserError(f"{name} is {num_frames}, expected 1 to {MAX_FRAMES} (the motion modules' positions)")
