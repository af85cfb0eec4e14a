"""Tiny folders of the layouts in which CogVideoX and Wan are published: sharded, with tokenizers as they have them."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    UniPCMultistepScheduler,
)
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

from tests.video_transformers import COGVIDEOX_SCHEDULE, tiny

WORDS = 140  # of the text encoders, a few more than the tokenizer knows
_TEXT = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 3, "feed_forward_proj": "gated-gelu"}


def write_layout(folder: Path, kind: str) -> Path:
    """The folder of a base of a kind (2b, 5b, wan), every component with weights that matter."""
    torch.manual_seed(11)
    tokens = {} if kind == "wan" else {"max_text_seq_length": 24}
    tiny(kind, **tokens).save_pretrained(folder / "transformer", max_shard_size="60KB")
    text = UMT5EncoderModel(UMT5Config(vocab_size=WORDS, **_TEXT)) if kind == "wan" else None
    text = text or T5EncoderModel(T5Config(vocab_size=WORDS, **_TEXT))
    _stir(text).save_pretrained(folder / "text_encoder", max_shard_size="8KB")
    _stir(tiny_vae(kind)).save_pretrained(folder / "vae")
    _tokenizer(folder / "tokenizer", as_json=kind == "wan")
    _scheduler(kind).save_pretrained(folder / "scheduler")
    return folder


def tiny_vae(kind: str) -> AutoencoderKLCogVideoX | AutoencoderKLWan:
    if kind == "wan":
        return AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 1.0, 0.7, 2.0],
        )
    return AutoencoderKLCogVideoX(
        block_out_channels=[4, 4, 4, 4], latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=1.15
    )


def _stir(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def _scheduler(kind: str) -> CogVideoXDDIMScheduler | CogVideoXDPMScheduler | UniPCMultistepScheduler:
    if kind == "wan":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    schedule = COGVIDEOX_SCHEDULE | {"timestep_spacing": "leading"}  # as some checkpoints have it
    return (CogVideoXDPMScheduler if kind == "5b" else CogVideoXDDIMScheduler)(**schedule)


def _tokenizer(folder: Path, as_json: bool) -> None:
    """CogVideoX's: a sentencepiece model; Wan's: tokenizer.json."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red star moves to the right", "a blue car on a road", "bad quality, watermark"] * 3),
        model_writer=model,
        vocab_size=32,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=100)
    tokenizer.save_pretrained(folder)
    if as_json:
        (folder / "spiece.model").unlink()
    else:
        (folder / "tokenizer.json").unlink()
