"""Which frames are taken and how they are fitted: the published preprocessing to the level, and the other fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from animatediff.data.video import fit_frames, resolve_size, sample_indices
from animatediff.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess.safetensors"


def noise(count: int, height: int, width: int) -> np.ndarray:
    """uint8 [count, height, width, 3]"""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_published_sampling():
    golden = load_file(GOLDEN)
    assert sample_indices(60, 16).tolist() == golden["00c4e6f642692c12.sample_index"].tolist()
    assert sample_indices(60, 16).tolist() == [0, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59]
    assert sample_indices(16, 16).tolist() == golden["sample_white_tiger.sample_index"].tolist()


def test_published_resize_to_the_level():
    golden = load_file(GOLDEN)
    frames = golden["frames"].numpy()
    for count, key in ((23, "frames.output"), (16, "frames.output_first_16")):
        fitted = fit_frames(frames[sample_indices(count, 16)], 16, 24)
        assert fitted.dtype == torch.float32
        assert torch.equal(fitted, golden[key] / 127.5 - 1)


@pytest.mark.parametrize(("clip", "side"), [("sample_white_tiger", 512), ("00c4e6f642692c12", 368)])
def test_published_resize_of_real_frames(clip, side):
    golden = load_file(GOLDEN)
    lines = golden[f"{clip}.lines"]
    frame = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    frame[0, lines[:, None], lines[None]] = golden[f"{clip}.pixels"]  # the pixels that the resize reads
    assert torch.equal(fit_frames(frame, 64, 64)[0], golden[f"{clip}.output"] / 127.5 - 1)


def test_crop_cuts_the_centre_and_pad_keeps_everything():
    frames = noise(2, 40, 80)
    same = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(fit_frames(frames, 40, 40, "crop"), same[..., 20:60])
    assert torch.equal(fit_frames(frames, 20, 80, "crop"), same[:, :, 10:30])
    padded = fit_frames(frames, 80, 80, "pad")
    assert torch.equal(padded[:, :, 20:60], same)
    assert (padded[:, :, :20] == -1).all()
    assert (padded[:, :, 60:] == -1).all()
    assert torch.equal(fit_frames(frames, 40, 80, "auto"), same)
    assert fit_frames(frames, 8, 8, "pad").shape == (2, 3, 8, 8)


def test_stretch_reaches_the_corners_and_stays_in_range():
    frames = noise(1, 33, 57)
    fitted = fit_frames(frames, 64, 40)
    assert fitted.shape == (1, 3, 64, 40)
    assert torch.equal(fitted[0, :, -1, -1], torch.from_numpy(frames[0, -1, -1]) / 127.5 - 1)
    assert fitted.min() >= -1
    assert fitted.max() <= 1


@pytest.mark.parametrize(
    ("frame", "fit", "expected"),
    [
        ((480, 720), "auto", (416, 624)),
        ((720, 480), "auto", (624, 416)),
        ((368, 368), "auto", (512, 512)),
        ((1080, 1920), "auto", (384, 680)),
        ((10, 9000), "auto", (16, 15360)),
        ((480, 720), "stretch", (512, 512)),
    ],
)
def test_resolve_size(frame, fit, expected):
    assert resolve_size(*frame, 512, 512, fit, 8) == expected


def test_sizes_the_network_cannot_take_name_the_nearest():
    with pytest.raises(UserError, match="height x width is 500x515, expected multiples of 64; the nearest are 512x512"):
        resolve_size(100, 100, 500, 515, "crop", 64)
    with pytest.raises(UserError, match="height x width is 0x64"):
        resolve_size(100, 100, 0, 64)
    with pytest.raises(UserError, match="fit is 'squash'"):
        resolve_size(100, 100, 64, 64, "squash")
