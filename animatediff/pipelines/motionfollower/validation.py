"""What is looked at while MotionFollower is trained: the loss on held-out videos, and these videos denoised."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange

from animatediff.data.export import save_video
from animatediff.files import write_json
from animatediff.pipelines.motionfollower.conditions import Conditions
from animatediff.pipelines.motionfollower.networks import Networks, appearance_features, pose_features
from animatediff.pipelines.motionfollower.pipeline import resized
from animatediff.pipelines.motionfollower.sampling import Options, sample
from animatediff.pipelines.motionfollower.training_data import Batch, PreparedVideo, Samples, VideoCache
from animatediff.pipelines.motionfollower.training_keys import Validation


def mean_loss(loss_of: Callable[[Batch], torch.Tensor], samples: Samples, count: int) -> dict[str, float]:
    """The mean loss of the first `count` samples, as what is logged; nothing where that is 0."""
    losses = [loss_of(samples[number, number]).item() for number in range(count)]
    return {"validation/loss": statistics.fmean(losses)} if losses else {}


def write(
    folder: Path,
    networks: Networks,
    vae: AutoencoderKL,
    cache: VideoCache,
    videos: Sequence[PreparedVideo],
    drawn: Sequence[Batch],
    settings: Validation,
    seed: int,
) -> dict[str, float]:
    """Denoise the samples `drawn`, without score guidance: the source under its own skeletons (reconstruction), and
    under those of the target's frames (pair). Writes source, reconstruction, pair, target side by side, and
    measures.json; returns the mean PSNRs against source and target.
    """
    rows: list[dict[str, object]] = []
    for number, batch in enumerate(drawn):
        video = videos[batch.videos[0]]
        sources, targets = batch.sources[0].tolist(), batch.targets[0].tolist()
        reconstruction, pair = denoise(networks, vae, cache, video, batch, settings, seed)
        height, width = reconstruction.shape[1:3]
        source, target = (_levels(resized(video.frames(frames), height, width)) for frames in (sources, targets))
        beside = np.concatenate([source, reconstruction, pair, target], axis=2)  # joined on the width
        save_video(folder / f"{number:02d}-{video.folder.name}.mp4", beside)
        rows.append({"video": video.name, "reconstruction": psnr(reconstruction, source), "pair": psnr(pair, target)})
    means = {name: statistics.fmean(float(row[name]) for row in rows) for name in ("reconstruction", "pair")}  # type: ignore[arg-type]
    write_json(folder / "measures.json", {"mean": means, "videos": rows})
    return {f"validation/{name}_psnr": value for name, value in means.items()}


def denoise(
    networks: Networks,
    vae: AutoencoderKL,
    cache: VideoCache,
    video: PreparedVideo,
    batch: Batch,
    settings: Validation,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(reconstruction, pair) of a batch of one: uint8 (f h w 3) each."""
    device = networks.unet.conv_in.weight.device
    sources, targets = batch.sources[0].tolist(), batch.targets[0].tolist()
    frames = batch.frames[0].to(device)  # f 3 H W
    with torch.no_grad():
        conditions = Conditions(
            embeds=cache.embeds(video, sources)[None].to(device),
            source_pose=pose_features(networks.pose_controller, cache.poses(video, sources).to(device)),
            target_pose=pose_features(networks.pose_controller, cache.poses(video, targets).to(device)),
            appearance=appearance_features(networks.appearance_controller, frames),
            source_masks=torch.zeros_like(frames[:, :1]),
            target_masks=torch.zeros_like(frames[:, :1]),  # so nowhere is noise added
        )
        last: list[torch.Tensor] = []
        edited = sample(
            networks,
            batch.noise.to(device),
            conditions,
            settings.num_inference_steps,
            settings.guidance_scale,
            guidance_strength=0.0,
            generator=torch.Generator().manual_seed(seed),
            callback=lambda _i, _edit, reference: last.append(reference),
            options=Options(window=len(frames), overlap=0),
        )
        return decoded(vae, last[-1]), decoded(vae, edited)


def decoded(vae: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """Latents (1 4 f h w) as frames uint8 (f h w 3), one after the other."""
    images = rearrange(latents[0] / vae.config.scaling_factor, "c f h w -> f c h w").to(vae.dtype)
    frames = torch.cat([vae.decode(image[None]).sample.float().cpu() for image in images])
    return _levels((frames + 1) * 127.5)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """The peak signal-to-noise ratio of two clips uint8 (f h w 3), in dB; 100 where they are equal."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return 10 * math.log10(255**2 / error) if error else 100.0


def _levels(frames: torch.Tensor) -> np.ndarray:
    """Frames (f 3 h w) in 0 to 255 -> uint8 (f h w 3)."""
    return rearrange(frames.round().clamp(0, 255).byte(), "f c h w -> f h w c").numpy()
