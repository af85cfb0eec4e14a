"""VAE moments and text embeddings for training: computed once into safetensors shards, or on demand.

Every entry is keyed by the SHA-256 of what it was made from (the clip's content, how it was read, the weights of the
encoder), so a changed clip, size or VAE is encoded anew and everything else is reused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from animatediff.data.pairs import ClipShape, TrainingClip
from animatediff.errors import UserError, one_line
from animatediff.files import atomic_path, remove_stale_parts

SHARD = 64  # entries per file: what an interruption can lose
Job = TypeVar("Job")


@dataclass(frozen=True)
class LatentEncoder:
    """The frozen VAE, one clip at a time, so that no result depends on its batch."""

    vae: AutoencoderKL
    chunk_size: int = field(default=16, kw_only=True)  # frames in the VAE at once

    @torch.no_grad()
    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mean and standard deviation of the VAE's posterior, float32 (2 c f h w), of pixels (f 3 H W) in [-1, 1]."""
        parts = []
        for frames in pixels.split(self.chunk_size):
            posterior = self.vae.encode(frames.to(self.vae.device, self.vae.dtype).contiguous()).latent_dist
            parts.append(torch.stack([posterior.mean, posterior.std]).float())
        return rearrange(torch.cat(parts, dim=1), "moment f c h w -> moment c f h w").contiguous()

    def latents(self, moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """A scaled sample of the posterior (b c f h w): moments (b 2 c f h w), standard normal noise (b c f h w)."""
        mean, deviation = moments.unbind(1)
        return (mean + deviation * noise) * self.vae.config.scaling_factor

    @cached_property
    def vae_hash(self) -> str:
        return weights_hash(self.vae)


@dataclass(frozen=True)
class Encoder(LatentEncoder):
    """The frozen VAE and text encoder, one clip or one caption at a time."""

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def text(self, caption: str) -> torch.Tensor:
        """The embedding of a caption, float32 (tokens dim); cut at the encoder's length."""
        tokens = torch.tensor([self._tokens(caption)], device=self.text_encoder.device)
        return self.text_encoder(tokens)[0][0].float()

    @cached_property
    def text_hash(self) -> str:
        return weights_hash(self.text_encoder)

    def clip_key(self, clip: TrainingClip, shape: ClipShape) -> str:
        """The cache's name for a clip's moments."""
        return name_of("moments", clip.content_hash, json.dumps(asdict(shape)), self.vae_hash)

    def caption_key(self, caption: str) -> str:
        """The cache's name for a caption's embedding."""
        return name_of("text", json.dumps(self._tokens(caption)), self.text_hash)

    def _tokens(self, caption: str) -> list[int]:
        length = self.tokenizer.model_max_length
        return self.tokenizer(caption, padding="max_length", truncation=True, max_length=length).input_ids


class ShardCache:
    """A folder of safetensors shards, read by key through memory maps."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._places: dict[str, safe_open] = {}
        self._known: set[Path] = set()
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def read(self, key: str) -> torch.Tensor:
        """The tensor under `key`; KeyError where there is none."""
        return self._places[key].get_tensor(key)

    def read_rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Rows start .. stop - 1 of the tensor under `key`, the others unread."""
        return self._places[key].get_slice(key)[start:stop]

    def refresh(self) -> None:
        """Take in shards written since. A damaged one is deleted with a line that says so: it can be made again."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._known or path.name.startswith(".part-"):
                continue
            try:
                shard = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                tqdm.write(f"{path} is damaged ({one_line(error)}); it is deleted and made again")
                with suppress(OSError):
                    path.unlink()
                continue
            self._known.add(path)
            self._places.update(dict.fromkeys(shard.keys(), shard))

    def write(self, entries: dict[str, torch.Tensor]) -> None:
        """Add a shard of `entries`, whole or not at all. UserError where it cannot be written (disk full)."""
        name = name_of(*sorted(entries))[:24]
        with atomic_path(self.folder / f"{name}.safetensors") as part:
            try:
                save_file({key: value.cpu().contiguous() for key, value in entries.items()}, part)
            except SafetensorError as error:  # its own class for a full disk
                raise OSError(one_line(error)) from error


def fill_cache(
    cache: ShardCache,
    encoder: Encoder,
    clips: Sequence[TrainingClip],
    shape: ClipShape,
    part: int = 0,
    parts: int = 1,
    show: bool = True,
) -> dict[str, str]:
    """Encode every clip and caption that `cache` lacks; part `part` of `parts` where processes share the work.

    Returns what this part found broken: clip name -> why. Safe to interrupt: finished shards are kept and reused.
    """
    cache.folder.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(cache.folder)
    clip_jobs = {encoder.clip_key(clip, shape): clip for clip in clips}
    captions = {encoder.caption_key(caption): caption for caption in ("", *(clip.caption for clip in clips))}
    broken: dict[str, str] = {}

    def encode_clip(clip: TrainingClip) -> torch.Tensor | None:
        try:
            return encoder.moments(clip.pixels(shape))
        except UserError as error:
            broken[clip.name] = one_line(error)
            tqdm.write(f"skipped {clip.name}: {broken[clip.name]}")
            return None

    _fill(cache, {k: v for i, (k, v) in enumerate(captions.items()) if i % parts == part}, encoder.text, "texts", show)
    _fill(cache, {k: v for i, (k, v) in enumerate(clip_jobs.items()) if i % parts == part}, encode_clip, "clips", show)
    return broken


class Inputs(Protocol):
    """Where training takes latents and text from."""

    def read(self, clip: TrainingClip) -> torch.Tensor:
        """What is read of a clip, without the encoder: (...), the same shape for every clip."""

    def latents(self, read: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Scaled latents (b c f h w) of what was read of b clips (b ...); `noise` (b c f h w) samples the VAE."""

    def text(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (b tokens dim) of b captions, on the training's device."""


class PrecomputedInputs:
    """Moments and embeddings from a filled cache."""

    def __init__(self, cache: ShardCache, encoder: Encoder, shape: ClipShape, device: torch.device) -> None:
        self.cache, self.encoder, self.shape, self.device = cache, encoder, shape, device
        self._texts: dict[str, torch.Tensor] = {}

    def read(self, clip: TrainingClip) -> torch.Tensor:
        return self.cache.read(self.encoder.clip_key(clip, self.shape))

    def latents(self, read: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.encoder.latents(read, noise)

    def text(self, captions: Sequence[str]) -> torch.Tensor:
        for caption in captions:
            if caption not in self._texts:
                self._texts[caption] = self.cache.read(self.encoder.caption_key(caption))
        return torch.stack([self._texts[caption] for caption in captions]).to(self.device)


@dataclass(frozen=True)
class PixelReader:
    """Reads a clip's pixels. Worker processes are sent this, and not the encoder."""

    shape: ClipShape

    def __call__(self, clip: TrainingClip) -> torch.Tensor:
        return clip.pixels(self.shape)


class EncodedInputs:
    """Moments and embeddings from the encoder, as the clips come."""

    def __init__(self, encoder: Encoder, shape: ClipShape, device: torch.device) -> None:
        self.encoder, self.read, self.device = encoder, PixelReader(shape), device

    def latents(self, read: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.encoder.latents(torch.stack([self.encoder.moments(pixels) for pixels in read]), noise)

    def text(self, captions: Sequence[str]) -> torch.Tensor:
        return torch.stack([self.encoder.text(caption) for caption in captions]).to(self.device)


def uncached(
    cache: ShardCache, encoder: Encoder, clips: Iterable[TrainingClip], shape: ClipShape, why: dict[str, str]
) -> dict[str, str]:
    """After every part has filled `cache`: the clips that no part could encode, with the reason where it is known."""
    cache.refresh()
    missing = [clip for clip in clips if encoder.clip_key(clip, shape) not in cache]
    return {clip.name: why.get(clip.name, "it cannot be read") for clip in missing}


def find_broken(clips: Iterable[TrainingClip], shape: ClipShape, show: bool = True) -> dict[str, str]:
    """Read every clip once; clip name -> what is wrong, for those that cannot be read."""
    broken: dict[str, str] = {}
    for clip in tqdm(list(clips), desc="checking clips", disable=not show):
        try:
            clip.pixels(shape)
        except UserError as error:
            broken[clip.name] = one_line(error)
            tqdm.write(f"skipped {clip.name}: {broken[clip.name]}")
    return broken


def _fill(
    cache: ShardCache, jobs: dict[str, Job], encode: Callable[[Job], torch.Tensor | None], what: str, show: bool
) -> None:
    missing = {key: job for key, job in jobs.items() if key not in cache}
    shard: dict[str, torch.Tensor] = {}
    for key, job in tqdm(missing.items(), desc=f"encoding {what}", disable=not (show and missing)):
        value = encode(job)
        if value is not None:
            shard[key] = value
        if len(shard) == SHARD:
            cache.write(shard)
            shard = {}
    if shard:
        cache.write(shard)
    cache.refresh()


def weights_hash(module: nn.Module) -> str:
    """Of a network's class and weights."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def name_of(*parts: str) -> str:
    """The cache's name for what was made from `parts`."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
