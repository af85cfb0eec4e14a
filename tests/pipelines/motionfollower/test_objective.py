"""The training loss: what it is at known values, and where its gradient goes."""

import copy

import pytest
import torch

from animatediff.pipelines.motionfollower import build_scheduler, predict
from animatediff.pipelines.motionfollower.objective import (
    drop_embeds,
    motion_paths,
    noised,
    offset_noise,
    snr_weight,
    training_velocity,
    velocity_error,
    velocity_loss,
)


@pytest.fixture
def batch(small):
    conditions, latents = small
    rng = torch.Generator().manual_seed(1)
    two = torch.cat([latents, latents.flip(2)])
    return two, torch.randn(two.shape, generator=rng), torch.tensor([999, 250]), conditions


def embeds_of_two(conditions):
    return torch.cat([conditions.embeds, conditions.embeds.flip(1)])


def test_forward_process_ends_in_noise_alone():
    clean, noise = torch.randn(2, 2, 4, 1, 2, 2)
    noisy, target = noised(clean, noise, torch.tensor([999, 0]))
    assert torch.equal(noisy[0], noise[0])
    assert torch.equal(target[0], -clean[0])
    abar = build_scheduler().alphas_cumprod[0]
    assert torch.allclose(noisy[1], abar**0.5 * clean[1] + (1 - abar) ** 0.5 * noise[1], rtol=1e-6, atol=0)
    assert torch.allclose(target[1], abar**0.5 * noise[1] - (1 - abar) ** 0.5 * clean[1], rtol=1e-6, atol=1e-7)


def test_weight_is_one_up_to_a_signal_of_gamma_then_falls():
    abar = build_scheduler().alphas_cumprod.double()
    raised = 1 / (1 - abar)  # abar / (1 - abar) + 1
    found = snr_weight(torch.arange(1000)).double()
    assert torch.allclose(found, torch.where(raised <= 5, 1.0, 5 / raised), rtol=1e-5)
    assert found[999] == 1.0
    assert found[0] < 0.01


def test_error_is_the_weighted_mean_over_samples():
    target = torch.zeros(2, 4, 1, 2, 2)
    predicted = torch.stack([torch.full((4, 1, 2, 2), 2.0), torch.full((4, 1, 2, 2), 3.0)])
    weights = snr_weight(torch.tensor([999, 10]))
    assert velocity_error(predicted, target, torch.tensor([999, 10])).item() == pytest.approx(
        (4 * weights[0] + 9 * weights[1]).item() / 2
    )


def test_offset_and_drop():
    noise = torch.zeros(2, 4, 3, 2, 2)
    shifted = offset_noise(noise, torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]]), 0.5)
    assert torch.equal(shifted[0, :, 1, 1, 0], torch.tensor([0.5, 1.0, 1.5, 2.0]))
    assert not shifted[1].any()
    kept = drop_embeds(torch.ones(3, 2, 5), torch.tensor([0.05, 0.1, 0.9]))
    assert kept[:, 0, 0].tolist() == [0.0, 1.0, 1.0]


def test_forward_is_the_one_of_inference(networks, small):
    conditions, latents = small
    arguments = conditions.target_pose, conditions.appearance
    expected = predict(networks, latents, 321, conditions.embeds, *arguments)
    found = training_velocity(networks.unet, latents, torch.tensor([321]), conditions.embeds, *arguments)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_samples_of_a_batch_do_not_meet(networks, batch):
    latents, noise, timesteps, conditions = batch
    embeds = embeds_of_two(conditions)
    pose = torch.cat([conditions.source_pose, conditions.target_pose])
    appearance = [torch.cat([feature, 2 * feature]) for feature in conditions.appearance]
    together = velocity_loss(networks, latents, noise, timesteps, embeds, pose, appearance)
    alone = [
        velocity_loss(
            networks, *(x[i : i + 1] for x in (latents, noise, timesteps, embeds, pose)),
            [feature[i : i + 1] for feature in appearance],
        )
        for i in range(2)
    ]  # fmt: skip
    assert together.item() == pytest.approx(sum(alone).item() / 2, rel=1e-5)
    assert alone[0].item() != pytest.approx(alone[1].item(), rel=1e-2)


def test_without_motion_frames_are_images_and_the_network_is_as_it_was(networks, batch):
    latents, _, timesteps, conditions = batch
    arguments = timesteps, embeds_of_two(conditions), conditions.target_pose, conditions.appearance
    whole = training_velocity(networks.unet, latents, *arguments, motion=False)
    for j in range(3):
        single = training_velocity(
            networks.unet, latents[:, :, j : j + 1], timesteps, arguments[1][:, j : j + 1],
            conditions.target_pose[:, :, j : j + 1], [f[:, :, j : j + 1] for f in conditions.appearance], motion=False,
        )  # fmt: skip
        assert torch.allclose(single, whole[:, :, j : j + 1], atol=1e-5)
    moving = training_velocity(networks.unet, latents, *arguments)
    assert not torch.allclose(moving, whole, atol=1e-3)
    assert torch.equal(moving, training_velocity(networks.unet, latents, *arguments))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_reaches_what_asks_for_it_after_the_forward(networks, batch, checkpointing):
    latents, noise, timesteps, conditions = batch
    unet = copy.deepcopy(networks.unet)
    paths = motion_paths(unet)
    assert len(paths) == 21  # 2 in each of four down blocks, 3 in each of four up blocks, 1 in the middle
    for path in paths:
        unet.get_submodule(path).requires_grad_(True)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    own = type(networks)(unet, networks.pose_controller, networks.appearance_controller)
    loss = velocity_loss(
        own, latents, noise, timesteps, embeds_of_two(conditions), conditions.target_pose, conditions.appearance
    )
    loss.backward()
    for name, parameter in unet.named_parameters():
        assert (parameter.grad is not None) == (".motion_modules." in name), name
    assert unet.get_submodule(paths[-1]).proj_out.weight.grad.abs().max() > 0


def test_gradient_of_the_error_is_the_one_of_its_values():
    predicted = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64)
    velocity_error(predicted, target, torch.tensor([999, 10])).backward()
    weights = snr_weight(torch.tensor([999, 10])).double()[:, None, None, None, None]
    assert torch.allclose(predicted.grad, weights * (predicted - target) / 16, rtol=1e-4, atol=1e-7)
