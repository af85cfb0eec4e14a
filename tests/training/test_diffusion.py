from __future__ import annotations

import pytest
import torch

from animatediff.training.diffusion import (
    TimestepRule,
    draw_reference_timestep,
    generator_for,
    loss_weight,
    noise_loss,
    published_noise_schedule,
    target_of,
)


def test_generators_follow_from_their_name_alone() -> None:
    draws = [torch.randn(4, generator=generator_for(*name)) for name in ((1, 2), (1, 2), (12,), (1, 3))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_timesteps_of_one_draw_are_spread_evenly_over_the_range() -> None:
    drawn = TimestepRule(300, 999).draw(7, generator_for(0)).sort().values
    assert torch.equal(drawn.diff(), torch.full((6,), 100))
    assert drawn.min() >= 300
    assert drawn.max() <= 999


def test_uniform_and_cubic_timesteps_have_their_quantiles() -> None:
    uniform = TimestepRule().draw(4000, generator_for(0)).double()
    cubic = TimestepRule(sampling="cubic").draw(4000, generator_for(0)).double()
    assert torch.equal(uniform.sort().values, (torch.arange(4000) // 4).double())
    assert cubic.median() == pytest.approx(1000 * (1 - 0.5**3), abs=2)
    assert cubic.min() >= 0
    assert cubic.max() == 999


def test_reference_timestep_is_fixed_or_within_its_range() -> None:
    assert draw_reference_timestep(400, None, generator_for(0)).item() == 400
    drawn = {draw_reference_timestep(400, 402, generator_for(n)).item() for n in range(60)}
    assert drawn == {400, 401, 402}


def test_loss_weights_are_one_or_the_clipped_inverse_of_alpha_bar() -> None:
    alphas = published_noise_schedule().alphas_cumprod
    timestep = torch.tensor([0, 400, 999])
    assert torch.equal(loss_weight(timestep, alphas, "none", 30.0), torch.ones(3))
    weights = loss_weight(timestep, alphas, "inverse_alpha_bar", 30.0)
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    expected = [1 / (1 - 0.00085), 1 / (1 - betas)[:401].prod().item(), 30.0]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_error_on_v_is_that_on_the_noise_over_alpha_bar() -> None:
    clean, noise = torch.randn(2, 2, 1, 2, 1, 1, generator=generator_for(0), dtype=torch.float64)
    timestep = torch.tensor([300, 900])
    schedule = published_noise_schedule("v_prediction")
    assert target_of(published_noise_schedule(), clean, noise, timestep) is noise
    abar = schedule.alphas_cumprod.double()[timestep].view(2, 1, 1, 1, 1)
    guess = noise + 0.1  # what follows for v where the noisy clip is given
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    v = abar.sqrt() * guess - (1 - abar).sqrt() * (noisy - (1 - abar).sqrt() * guess) / abar.sqrt()
    error = (v - target_of(schedule, clean, noise, timestep)).square()
    assert torch.allclose(error, (0.01 / abar).expand_as(error), rtol=1e-5)


def test_noise_loss_weighs_each_sample() -> None:
    noise = torch.zeros(2, 1, 1, 1, 2)
    prediction = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 1, 1, 1, 2)
    assert noise_loss(prediction, noise, torch.tensor([1.0, 10.0])).item() == (1 * 5 + 10 * 4) / 2
