"""How the people miniature's VAE and vision encoder are trained, on single frames that are rendered as needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from animatediff.miniature.autoencoder import SQUARED, to_images, vae_loss
from animatediff.miniature.loop import train
from animatediff.miniature.muon import muon
from animatediff.miniature.people.data import colours_of, frames_of, parts_shown
from animatediff.miniature.people.world import COLOURS, PARTS
from animatediff.miniature.stages import StageConfig

CROP, PIECES = 32, 12  # of a piece around the person: pixels a side, and how many there are of a whole frame
PERSON, DECODED_NOISE = 3.0, 0.05  # see `train_people_decoder`
FIRST_SEED = 1_000_000  # of the frames of these stages; the cache's scenes start at 0


def train_people_vae(vae: AutoencoderKL, stage: StageConfig, checkpoint: Path, seed: int) -> None:
    """Train `vae` on frames; resumes from `checkpoint`.

    A step takes `batch` whole frames and PIECES times as many pieces around the person, who fills a tenth of a frame.
    """

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        seeds = FIRST_SEED + torch.randint(1_000_000, (4 * stage.batch,), generator=generator).numpy()
        frames, _, parts = frames_of(seeds)
        pieces = []
        for number in range(PIECES * stage.batch):
            shown = number % len(frames)
            rows, columns = np.nonzero(parts[shown] >= 0)
            chosen = int(torch.randint(len(rows), (), generator=generator))
            side = frames.shape[1] - CROP
            y, x = (int(np.clip(axis[chosen] - CROP // 2, 0, side)) for axis in (rows, columns))
            pieces.append(frames[shown, y : y + CROP, x : x + CROP])
        whole = to_images(frames[: stage.batch])
        return vae_loss(vae, whole, generator) + vae_loss(vae, to_images(np.stack(pieces)), generator)

    train(
        "vae", [{"params": list(vae.parameters()), "lr": stage.learning_rate}], loss_of, stage.steps, checkpoint, seed,
        save_every=100, make_optimizer=lambda _: muon(vae, stage.learning_rate, _at_the_pixels),
    )  # fmt: skip


def train_people_decoder(vae: AutoencoderKL, stage: StageConfig, checkpoint: Path, seed: int) -> None:
    """Train the decoder of `vae` on, with the latents as they are; resumes from `checkpoint`.

    A step takes 4 x `batch` whole frames, whose people count PERSON times. Latents are decoded with a little noise, as
    those that a UNet gives have it.
    """
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        seeds = FIRST_SEED + torch.randint(1_000_000, (4 * stage.batch,), generator=generator).numpy()
        frames, _, parts = frames_of(seeds)
        images = to_images(frames)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.mean.float()
            noise = torch.randn(latents.shape, generator=generator)
            decoded = vae.decode(latents + DECODED_NOISE * noise).sample
        error = decoded.float() - images
        weight = 1 + (PERSON - 1) * torch.from_numpy(parts >= 0)[:, None]
        return (weight * (error.abs() + SQUARED * error.square())).mean()

    train(
        "decoder", [{"params": list(vae.decoder.parameters()), "lr": stage.learning_rate}], loss_of, stage.steps,
        checkpoint, seed, save_every=100, make_optimizer=lambda _: muon(vae.decoder, stage.learning_rate, _is_end),
    )  # fmt: skip
    vae.requires_grad_(False)


def _is_end(name: str) -> bool:
    return name.startswith("conv_out")


def _at_the_pixels(name: str) -> bool:
    return name.startswith(("encoder.conv_in", "decoder.conv_out"))


def normalised(frames: Tensor) -> Tensor:
    """RGB frames [n, 3, h, w] of 0 to 1 as the vision encoder takes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (frames - mean) / std


class Wardrobe(nn.Module):
    """Reads the colour of every garment off an embedding: stands for CLIP's captions, and is not kept."""

    def __init__(self, encoder: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.encoder = encoder
        self.colours = nn.Linear(encoder.config.projection_dim, len(PARTS) * len(COLOURS))
        self.shown = nn.Linear(encoder.config.projection_dim, len(PARTS))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [n, 3, h, w] of 0 to 1 -> logits of the colours [n, 1 + patches, parts, colours], the first those of
        the embedding, and of which parts a patch shows [n, patches, parts].
        """
        vision = self.encoder.vision_model
        tokens = vision(pixel_values=normalised(frames)).last_hidden_state  # n 1+patches c
        embeds = self.encoder.visual_projection(vision.post_layernorm(tokens))
        return self.colours(embeds).unflatten(-1, (len(PARTS), len(COLOURS))), self.shown(embeds[:, 1:])


def vision_loss(wardrobe: Wardrobe, frames: Tensor, shown: Tensor, colours: Tensor) -> Tensor:
    """Cross-entropy of the colours that the embedding tells, and the same for every patch and the parts that it shows.

    frames [n, 3, h, w] of 0 to 1; shown bool [n, patches, 10], see `parts_shown`; colours int64 [n, 10]; scalar.
    Without the patches' own share, the embedding learns nothing for hundreds of steps.
    """
    told, found = wardrobe(frames)
    whole = F.cross_entropy(told[:, 0].flatten(0, 1), colours.flatten())
    expected = colours[:, None].expand(shown.shape)
    local = F.cross_entropy(told[:, 1:][shown], expected[shown])
    return whole + local + 4 * F.binary_cross_entropy_with_logits(found, shown.float())


def train_vision_encoder(
    encoder: CLIPVisionModelWithProjection, stage: StageConfig, checkpoint: Path, seed: int
) -> None:
    """Train `encoder` so that its embedding tells the colour of every garment; resumes from `checkpoint`."""
    wardrobe = Wardrobe(encoder)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        seeds = FIRST_SEED + torch.randint(2**31, (stage.batch,), generator=generator).numpy()
        frames, scenes, parts = frames_of(seeds)
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255  # n h w 3 -> n 3 h w
        return vision_loss(wardrobe, pixels, parts_shown(parts), colours_of(scenes))

    groups = [{"params": list(wardrobe.parameters()), "lr": stage.learning_rate}]
    train(
        "vision", groups, loss_of, stage.steps, checkpoint, seed,
        save_every=100, make_optimizer=lambda _: muon(wardrobe, stage.learning_rate, _at_the_ends),
    )  # fmt: skip


def _at_the_ends(name: str) -> bool:
    return "embedding" in name or name.startswith(("colours", "shown"))
