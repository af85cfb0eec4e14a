"""Writing the trained miniature in the layout of the published weights, so that one loader serves both."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from animatediff.files import atomic_path, read_json, write_json
from animatediff.miniature.base import PREDICTS, build_image_unet
from animatediff.models import VideoUNet
from animatediff.models.checkpoints import original_unet_state
from animatediff.pipelines.backbones.schedulers import build_scheduler


def export_base(
    folder: Path, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: VideoUNet
) -> None:
    """Write StableDiffusion/ (a diffusers folder) and Motion_Module/mm.safetensors (AnimateDiff's key names).

    The UNet and its motion modules are stored in half precision, the small rest in single.
    """
    base = folder / "StableDiffusion"
    image_unet = build_image_unet()
    spatial = {name: value for name, value in unet.state_dict().items() if ".motion_modules." not in name}
    image_unet.load_state_dict(spatial)
    image_unet.half().save_pretrained(base / "unet")
    vae.save_pretrained(base / "vae")
    config = base / "vae" / "config.json"
    written = read_json(config)
    written.pop("_name_or_path", None)  # where it lay on this machine
    write_json(config, written)
    text_encoder.save_pretrained(base / "text_encoder")
    tokenizer.backend_tokenizer.no_truncation()  # calls before this one have left their padding and length in it
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(base / "tokenizer")
    tokenizer.backend_tokenizer.model.save(str(base / "tokenizer"))  # vocab.json and merges.txt, as SD1.5 has them
    build_scheduler("ddim", PREDICTS).save_pretrained(base / "scheduler")
    write_json(
        base / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    state = {name: value for name, value in original_unet_state(unet).items() if ".motion_modules." in name}
    half = {name: value.to(torch.float16).contiguous() for name, value in state.items()}
    with atomic_path(folder / "Motion_Module" / "mm.safetensors") as part:
        save_file(half, part)
