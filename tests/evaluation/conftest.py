"""A world of rendered outputs with sidecars, and a tiny CLIP, shared by the tests of evaluation."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from animatediff.data.export import save_video
from animatediff.miniature.motions import sample_motion
from animatediff.miniature.world import Clip, sample_content

cv2.setNumThreads(1)
FAMILIES = ("line", "arc", "pan")
FRAMES, SIZE = 8, (32, 48)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> str:
    """A folder with a CLIP of random weights whose vocabulary is the alphabet."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    text = {**small, **ends, "vocab_size": len(tokens), "max_position_embeddings": 16}
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def write_output(folder: Path, frames: np.ndarray, reference: Path, **record) -> Path:
    """A video and its sidecar as inference.py leaves them."""
    path = folder / reference.stem / "made-7.mp4"
    save_video(path, frames, 8)
    record = {
        "output": path.name,
        "reference": str(reference),
        "prompt": "a red star",
        "seed": 7,
        "num_frames": len(frames),
        "height": frames.shape[1],
        "width": frames.shape[2],
        "fit": "stretch",
        "seconds": 2.0,
        "peak_memory_bytes": 2**30,
        "reference_frames": {"indices": list(range(len(frames))), "of": len(frames)},
        **record,
    }
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """<tmp>/references, and three jobs done by two methods: <tmp>/same moves as asked, <tmp>/reversed backwards."""
    for number, family in enumerate(FAMILIES):
        motion = sample_motion(number, family=family, frames=FRAMES)
        reference = tmp_path / "references" / f"{family}.mp4"
        save_video(reference, Clip(sample_content(number), motion, SIZE).frames(), 8)
        content = sample_content(number + 50)
        for method, made in (("same", motion), ("reversed", motion.reversed())):
            frames = Clip(content, made, SIZE).frames()
            write_output(tmp_path / method, frames, reference, prompt=content.caption, seconds=1.0 + number)
    return tmp_path
