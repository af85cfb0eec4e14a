"""Condition images of any size; the published resize is checked in tests/pipelines/test_motionclone_sampling.py."""

import numpy as np
import pytest
import torch
from PIL import Image

from animatediff.data.conditions import read_conditions
from animatediff.data.video import fit_frames, sample_indices
from animatediff.errors import UserError
from tests.goldens import MOTIONCLONE, golden, relative_error


@pytest.fixture
def images(tmp_path):
    """A wide image, red left of the middle and blue right of it, and a small white square one."""
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, :20, 0] = wide[:, 20:, 2] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.new("L", (6, 6), 255).save(tmp_path / "square.png")
    return [tmp_path / "wide.png", tmp_path / "square.png"]


def test_images_of_different_sizes(images):
    read, warnings = read_conditions(images, 16, 16)
    assert read.shape == (2, 3, 16, 16)
    assert read.dtype == torch.float32
    assert read[0, :, 0, 0].tolist() == [1, 0, 0]
    assert read[0, :, 0, -1].tolist() == [0, 0, 1]
    assert read[1].min() == 1
    assert warnings == [
        f"condition image {images[0]} is 40x10 and is stretched to 16x16; fit=crop or fit=pad keeps its shape"
    ]


def test_crop_and_pad_keep_the_shape(images):
    cut, warnings = read_conditions(images[:1], 10, 10, "crop")
    assert not warnings
    assert cut[0, 0, :, :5].min() == cut[0, 2, :, 5:].min() == 1
    padded, _ = read_conditions(images[:1], 40, 40, "pad")
    assert padded[0, :, :15].max() == padded[0, :, 25:].max() == 0
    assert torch.equal(padded[0, 0, 15:25, :20], torch.ones(10, 20))


def test_missing_unreadable_and_unknown_fit(images, tmp_path):
    with pytest.raises(UserError, match=r"no condition image at .*nope\.png; check condition_image_paths"):
        read_conditions([images[0], tmp_path / "nope.png"], 8, 8)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match=r"cannot read the image .*text\.png"):
        read_conditions([tmp_path / "text.png"], 8, 8)
    with pytest.raises(UserError, match="fit is 'bend', expected one of"):
        read_conditions(images, 8, 8, "bend")


@pytest.mark.parametrize(("name", "frames"), [("out", 23), ("out_duration", 16)])
def test_published_reference_preprocessing(name, frames):
    """16 frames over the whole clip, and over its first two seconds at 8 fps, 20x28 stretched to 16x24."""
    chosen = golden("preprocess.frames", MOTIONCLONE)[sample_indices(frames, 16)]
    assert relative_error(fit_frames(chosen, 16, 24), f"preprocess.{name}@13", MOTIONCLONE) == 0
