"""The networks and inputs of the golden runs."""

import gzip
import json

import numpy as np
import pytest
import torch

from animatediff.pipelines.motionfollower import (
    Conditions,
    appearance_features,
    build_networks,
    load_original_networks,
    pose_features,
)
from tests.goldens import MOTIONFOLLOWER, TINY, fill, golden

POSE_WIDTHS = (16, 32, 48, 64)


@pytest.fixture(scope="session")
def published_keys():
    """Network -> published key -> shape."""
    with gzip.open(MOTIONFOLLOWER / "keys.json.gz") as file:
        return json.load(file)


@pytest.fixture(scope="session")
def images():
    """The golden runs' frames, skeletons and masks, as float tensors (f c H W), the frames in [-1, 1]."""
    with np.load(MOTIONFOLLOWER / "images.npz") as file:
        raw = {name: torch.from_numpy(file[name]).float() for name in file.files}
    masks = {name: value for name, value in raw.items() if name.endswith("masks")}
    drawn = {name: value.permute(0, 3, 1, 2) / 255 for name, value in raw.items() if name not in masks}
    drawn["inputs.source_uint8"] = raw["inputs.source_uint8"].permute(0, 3, 1, 2) / 127.5 - 1
    return masks | drawn


@pytest.fixture(scope="session")
def states(published_keys):
    """Published state dictionaries of the small networks: UNet with appearance controller, pose controller."""

    def state(network, prefix=""):
        filled = {key: fill(prefix + key, tuple(shape)) for key, shape in published_keys[network].items()}
        return {key.removeprefix("tiny_pose_guider."): value for key, value in filled.items()}

    return {"unet": state("unet"), "estimator": state("unet", "estimator."), "pose": state("tiny_pose_guider")}


def loaded(unet_state, pose_state):
    networks = build_networks(TINY, POSE_WIDTHS)
    load_original_networks(networks, [unet_state], pose_state)
    return networks


@pytest.fixture(scope="session")
def networks(states):
    return loaded(states["unet"], states["pose"])


@pytest.fixture(scope="session")
def estimator(states):
    return loaded(states["estimator"], states["pose"])


@pytest.fixture(scope="session")
def conditions(networks, images):
    """The conditions of the golden runs: 8 frames of 128x128."""
    return Conditions(
        embeds=golden("inputs.image_embeds", MOTIONFOLLOWER)[None],
        source_pose=pose_features(networks.pose_controller, images["inputs.pose_source_uint8"]),
        target_pose=pose_features(networks.pose_controller, images["inputs.pose_target_uint8"]),
        appearance=appearance_features(networks.appearance_controller, images["inputs.source_uint8"]),
        source_masks=images["inputs.source_masks"],
        target_masks=images["inputs.target_masks"],
    )


@pytest.fixture
def small(networks):
    """Conditions of 3 frames of 32x32 at random, and the initial latents."""
    return random_conditions(networks, frames=3), torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(7))


def random_conditions(networks, frames, height=32, width=32, seed=3):
    rng = torch.Generator().manual_seed(seed)
    source = torch.zeros(frames, 1, height, width)
    source[..., : height // 2, : width // 2] = 1
    poses = torch.rand(2, frames, 3, height, width, generator=rng)
    return Conditions(
        embeds=torch.randn(1, frames, 64, generator=rng),
        source_pose=pose_features(networks.pose_controller, poses[0]),
        target_pose=pose_features(networks.pose_controller, poses[1]),
        appearance=appearance_features(
            networks.appearance_controller, torch.rand(frames, 3, height, width, generator=rng) * 2 - 1
        ),
        source_masks=source,
        target_masks=source.roll(width // 4, dims=-1),
    )
