"""CLIP and DINO embeddings of frames and prompts, through transformers. Any model by key or folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import model_info
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPTokenizer

from animatediff.errors import UserError, one_line

NONE = "none"
BATCH = 32  # frames in one forward pass
ANSWER_WITHIN = 10.0  # seconds given to the hub to answer

T = TypeVar("T")


@dataclass(frozen=True)
class ClipEmbeddings:
    """A CLIP model with its preprocessing."""

    model: Any
    processor: Any
    tokenizer: Any

    @torch.no_grad()
    def frames(self, frames: NDArray[np.uint8]) -> Tensor:
        """Frames uint8 [f, h, w, 3] -> image embeddings [f, d], not normalised, on the CPU."""
        pixels = _preprocess(self.processor, frames).to(self.model.device)
        return torch.cat([self.model.get_image_features(part).pooler_output for part in pixels.split(BATCH)]).cpu()

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """A prompt -> its text embedding [d], on the CPU; what is past CLIP's 77 tokens is cut, as when generating."""
        tokens = self.tokenizer(prompt, truncation=True, max_length=self.limit, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self.model.device)).pooler_output[0].cpu()

    @property
    def limit(self) -> int:
        return self.model.config.text_config.max_position_embeddings


@dataclass(frozen=True)
class DinoEmbeddings:
    """A DINO model (DINO, DINOv2, or any image model with a pooled output) with its preprocessing."""

    model: Any
    processor: Any

    @torch.no_grad()
    def frames(self, frames: NDArray[np.uint8]) -> Tensor:
        """Frames uint8 [f, h, w, 3] -> embeddings of the class token [f, d], on the CPU."""
        pixels = _preprocess(self.processor, frames).to(self.model.device)
        outputs = [self.model(part).last_hidden_state[:, 0] for part in pixels.split(BATCH)]
        return torch.cat(outputs).cpu()


def load_clip(key: str, device: str = "cpu") -> ClipEmbeddings:
    """The CLIP of a hub key or a folder; UserError (one line, why) where it cannot be had or `key` is "none"."""

    def build(local: bool) -> ClipEmbeddings:
        model = CLIPModel.from_pretrained(key, local_files_only=local).to(device).eval()
        return ClipEmbeddings(model, _processor(key, local), CLIPTokenizer.from_pretrained(key, local_files_only=local))

    return _fetch("clip", key, build)


def load_dino(key: str, device: str = "cpu") -> DinoEmbeddings:
    """The DINO of a hub key or a folder; UserError as load_clip."""

    def build(local: bool) -> DinoEmbeddings:
        return DinoEmbeddings(
            AutoModel.from_pretrained(key, local_files_only=local).to(device).eval(), _processor(key, local)
        )

    return _fetch("dino", key, build)


def _fetch(name: str, key: str, build: Callable[[bool], T]) -> T:
    """`build` from what is on this machine, or else from the hub, if that answers: asked once, without retries."""
    if key == NONE:
        raise UserError(f"{name} is {NONE}")
    try:
        with contextlib.suppress(OSError):
            return build(True)
        if Path(key).exists():
            raise UserError(f"{key} holds no whole model with its preprocessing")
        model_info(key, timeout=ANSWER_WITHIN)
        return build(False)
    except Exception as error:  # the hub's client raises those of its HTTP library, transformers almost any
        raise UserError(f"{name}={key} cannot be loaded ({one_line(error).split('. ')[0][:160]})") from error


def _processor(key: str, local: bool) -> Any:
    return AutoImageProcessor.from_pretrained(key, backend="pil", local_files_only=local)


def _preprocess(processor: Any, frames: NDArray[np.uint8]) -> Tensor:
    """uint8 [f, h, w, 3] -> the model's input, float32 [f, 3, h', w']."""
    return processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt").pixel_values
