"""MotionFollower's files at a tiny size, and five sequences of a stick figure."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff.files import write_json
from animatediff.pipelines.motionfollower import draw_skeleton
from tests.goldens import TINY

SIDE = 64
STANDING = np.array(
    [
        *((32, 8), (32, 16), (25, 16), (21, 24), (19, 32), (39, 16), (43, 24), (45, 32), (28, 34), (28, 46)),
        *((28, 58), (36, 34), (36, 46), (36, 58), (30, 6), (34, 6), (28, 7), (36, 7)),
    ],
    dtype=float,
)


def waving(frames, side=SIDE):
    """Body joints (f 18 2) of a figure whose left arm goes up."""
    body = np.repeat(STANDING[None], frames, axis=0) * side / SIDE
    for j in range(frames):
        angle = np.pi / 2 - j * np.pi / max(frames - 1, 1)
        arm = np.array([np.cos(angle), np.sin(angle)]) * side / 8
        body[j, 6] = body[j, 5] + arm
        body[j, 7] = body[j, 6] + arm
    return body


def outline(body, side=SIDE):
    """A person's mask (side side) uint8 around joints (18 2): the skeleton, thick."""
    import cv2

    drawn = draw_skeleton(body, size=(side, side)).max(axis=-1)
    return cv2.dilate((drawn > 0).astype(np.uint8) * 255, np.ones((7, 7), np.uint8))


def write_sequences(folder, frames=4, side=SIDE):
    """A prepared folder: frame_0.png ... in each of its six folders."""
    standing, moving = waving(1, side)[0], waving(frames, side)
    for j in range(frames):
        masks = outline(standing, side), outline(moving[j], side)
        photo = [np.where(mask[..., None] > 0, (200, 80, 60), (30, 90, 120)).astype(np.uint8) for mask in masks]
        drawn = [draw_skeleton(body, size=(side, side)) for body in (standing, moving[j])]
        images = {
            **{"source_images": photo[0], "target_images": photo[1], "source_poses": drawn[0]},
            **{"target_aligned_poses": drawn[1], "source_masks": masks[0], "predicted_masks": masks[1]},
        }
        for name, image in images.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / name / f"frame_{j}.png")
    return folder


def write_weights(folder, states):
    """Every file of the published layout; returns the keys of MotionFollowerFiles."""
    base = folder / "sd-image-variations-diffusers"
    for name in ("unet", "image_encoder"):
        (base / name).mkdir(parents=True)
    spatial, motion, appearance = split(states["unet"])
    write_json(base / "unet" / "config.json", TINY)
    torch.save(
        {key: torch.zeros_like(value) for key, value in spatial.items()}, base / "unet" / "diffusion_pytorch_model.bin"
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=64,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = CLIPVisionModelWithProjection(vision)
    write_json(base / "image_encoder" / "config.json", vision.to_dict())
    ids = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save(encoder.state_dict() | ids, base / "image_encoder" / "pytorch_model.bin")
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4, layers_per_block=1, sample_size=SIDE,
    )  # fmt: skip
    (folder / "vae").mkdir()
    write_json(folder / "vae" / "config.json", dict(vae.config))
    save_file(vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.safetensors")
    first = next(key for key in motion if key.endswith("attention_blocks.0.to_q.weight"))
    tables = {first.replace("to_q.weight", "pos_encoder.pe"): torch.zeros(1, 32, 32)}
    torch.save(motion | tables, folder / "motion_module.pth")
    torch.save(spatial | appearance, folder / "denoising_unet.pth")
    torch.save(states["pose"], folder / "poctr.pth")
    return {
        "pretrained_model_path": str(base),
        "vae_path": str(folder / "vae"),
        "motion_module_path": str(folder / "motion_module.pth"),
        "unet_path": str(folder / "denoising_unet.pth"),
        "pose_controller_path": str(folder / "poctr.pth"),
    }


def split(state):
    """A published UNet's keys: spatial, motion modules, appearance controller."""
    appearance = {key: value for key, value in state.items() if key.startswith("appearance_adapter.")}
    motion = {key: value for key, value in state.items() if ".motion_modules." in key}
    spatial = {key: value for key, value in state.items() if key not in appearance and key not in motion}
    return spatial, motion, appearance
