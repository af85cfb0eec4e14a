"""Every sampler at every number of steps: from pure noise, over its own timesteps, to the end; or a refusal."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from animatediff.errors import UserError
from animatediff.pipelines.backbones.schedulers import SCHEDULERS, EvenDDIMScheduler, build_scheduler
from animatediff.pipelines.video import BETAS


def run(scheduler, steps, **options):
    """What the scheduler makes of noise with a network that gives 0.3 x; and the timesteps."""
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(0.3 * scheduler.scale_model_input(x, t), t, x, **options).prev_sample
    return x, scheduler.timesteps.tolist()


def stock(**options):
    return DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, **options)


@pytest.mark.parametrize("steps", [1, 4, 25, 50, 500])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_where_steps_divide_the_range_ddim_is_diffusers_own_to_the_bit(steps, prediction_type):
    want, timesteps = run(stock(prediction_type=prediction_type), steps)
    got, ours = run(build_scheduler("ddim", prediction_type), steps)
    assert ours == timesteps
    assert torch.equal(got, want)


def test_noise_between_steps_is_diffusers_own_too():
    options = [{"eta": 0.7, "generator": torch.Generator().manual_seed(1)} for _ in range(2)]
    assert torch.equal(run(build_scheduler("ddim"), 25, **options[0])[0], run(stock(), 25, **options[1])[0])


@pytest.mark.parametrize("steps", [3, 30, 333, 334, 400, 600, 999, 1000])
def test_ddim_spreads_any_number_of_steps_over_the_whole_range(steps):
    x, timesteps = run(build_scheduler("ddim"), steps)
    assert torch.isfinite(x).all()
    assert len(timesteps) == steps
    strides = {a - b for a, b in pairwise(timesteps)}
    assert strides <= {1000 // steps, 1000 // steps + 1}
    assert 0 <= timesteps[-1] <= 1
    assert timesteps[0] + 1000 / steps >= 999


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 30, 40])
def test_every_ddim_step_lands_on_the_next_timestep(spacing, steps):
    """With the exact noise of a clean sample, the state after each step is that sample noised to the next timestep."""
    scheduler = EvenDDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    clean, noise = torch.randn(2, 1, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = scheduler.timesteps
    x = scheduler.add_noise(clean, noise, timesteps[:1])
    for t, following in pairwise(timesteps):
        x = scheduler.step(noise, t, x).prev_sample
        assert torch.allclose(x, scheduler.add_noise(clean, noise, following[None]), atol=1e-5)
    assert torch.allclose(scheduler.step(noise, timesteps[-1], x).prev_sample, clean, atol=1e-4)


def test_a_timestep_of_another_run_is_refused():
    scheduler = build_scheduler("ddim")
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(torch.zeros(1), 1, torch.zeros(1))
    scheduler.set_timesteps(25)
    with pytest.raises(ValueError, match="timestep 960 is not among the 25"):
        scheduler.step(torch.zeros(1), 960, torch.zeros(1))


@pytest.mark.parametrize(
    ("name", "steps", "works"),
    [("pndm", 150, 142), ("pndm", 400, 333), ("pndm", 1000, 500), ("dpmsolver++", 1000, 999)],
)
def test_what_does_not_work_is_refused_with_the_nearest_number_that_does(name, steps, works):
    with pytest.raises(UserError, match=f"num_inference_steps is {steps}, .* the nearest number that works is {works}"):
        build_scheduler(name).set_timesteps(steps)
    assert torch.isfinite(run(build_scheduler(name), works)[0]).all()


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "pndm"])
@pytest.mark.parametrize("steps", [2, 30, 400, 600, 999])
def test_every_sampler_ends_at_finite_values(name, steps):
    assert torch.isfinite(run(build_scheduler(name), steps)[0]).all()


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmsolver++"])
def test_save_and_load(name, tmp_path):
    scheduler = build_scheduler(name)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    assert torch.equal(run(loaded, 5)[0], run(scheduler, 5)[0])
