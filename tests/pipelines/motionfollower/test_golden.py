"""The published numbers, float32, within the tolerances of their manifest."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from safetensors import safe_open

from animatediff.models.hooks import capture
from animatediff.pipelines.motionfollower import (
    appearance_features,
    attend_with_background,
    build_pose_controller,
    build_scheduler,
    features,
    guidance,
    pose_features,
    predict,
    step,
)
from animatediff.pipelines.motionfollower.schedule import timesteps, variance
from tests.goldens import MOTIONFOLLOWER, fill, golden

EXACT, GRADIENT = 1e-5, 1e-4


@pytest.fixture(scope="module")
def stored():
    with safe_open(MOTIONFOLLOWER / "golden.safetensors", "pt") as file:
        return {name.partition("@")[0]: name for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def error(stored):
    """Relative error of a tensor against the stored values of that name."""

    def measure(out, name):
        full = stored[name]
        every = int(full.partition("@")[2] or 1)
        want = golden(full, MOTIONFOLLOWER).double().flatten()
        have = out.detach().double().flatten()[::every]
        assert have.shape == want.shape
        return ((have - want).norm() / want.norm()).item()

    return measure


def value(name):
    return golden(name, MOTIONFOLLOWER)


def test_pose_controller_of_the_released_size(published_keys, images, error):
    controller = build_pose_controller(320, (16, 32, 96, 256))
    keys = published_keys["pose_guider"]
    controller.load_state_dict({k.removeprefix("pose_guider."): fill(k, tuple(s)) for k, s in keys.items()})
    out = pose_features(controller, images["networks.released_pose.input_uint8"])
    assert error(out, "networks.released_pose.output") < EXACT


def test_controllers(conditions, error):
    for i, feature in enumerate(conditions.appearance):
        assert error(feature, f"networks.appearance.{i}") < EXACT
    assert error(conditions.source_pose, "networks.pose_feature_source") < EXACT
    assert error(conditions.target_pose, "networks.pose_feature_target") < EXACT


@torch.no_grad()
def test_unet_and_its_blocks(networks, conditions, images, error):
    unet, t, latents = networks.unet, int(value("networks.timestep")), value("networks.sample")
    both = torch.cat([torch.zeros_like(conditions.embeds), conditions.embeds])
    blocks = {f"down.{i}": block for i, block in enumerate(unet.down_blocks)} | {"mid": unet.mid_block}
    blocks |= {f"up.{i}": block for i, block in enumerate(unet.up_blocks)}
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    with capture(blocks, first) as outputs:
        out = predict(networks, latents, t, both, conditions.target_pose, conditions.appearance)
    for name, output in outputs.items():
        assert error(rearrange(output, "(b f) c h w -> b c f h w", b=2), f"networks.block.{name}") < EXACT
    assert error(out, "networks.output") < EXACT
    no_pose = predict(networks, latents, t, both, appearance=conditions.appearance)
    assert error(no_pose, "networks.output_no_pose") < EXACT
    grey = appearance_features(networks.appearance_controller, torch.zeros_like(images["inputs.source_uint8"]))
    out = predict(networks, latents, t, both, conditions.target_pose, grey, pose_scale=0.5)
    assert error(out, "networks.output_grey_frames_pose_scale_0.5") < EXACT


@torch.no_grad()
def test_features(networks, conditions, error):
    t, latents = int(value("networks.timestep")), value("networks.sample")[:1]
    found = features(networks, latents, t, conditions.embeds, conditions.source_pose, conditions.appearance)
    for i, feature in enumerate(found, start=1):
        assert error(feature, f"networks.features.{i}") < EXACT


def test_schedule(error):
    scheduler = build_scheduler()
    assert error(scheduler.alphas_cumprod, "schedule.alphas_cumprod") < 1e-6
    assert scheduler.final_alpha_cumprod == value("schedule.final_alpha_cumprod")
    for n in (25, 30, 32, 50):
        scheduler.set_timesteps(n)
        assert scheduler.timesteps.tolist() == list(timesteps(n)) == value(f"schedule.timesteps.{n}").tolist()
        found = torch.tensor([variance(t, t - 1000 // n) for t in timesteps(n)])
        assert error(found, f"schedule.variance.{n}") < 1e-6


@torch.no_grad()
def test_attention_with_background(published_keys, images, error):
    attention = Attention(64, heads=8, dim_head=8)
    keys = published_keys["attn_kv"]
    attention.load_state_dict({k.removeprefix("attn_kv."): fill(k, tuple(s)) for k, s in keys.items()})
    hidden = value("attention_injection.ref_hidden")
    key, val = attention.to_k(hidden), attention.to_v(hidden)
    assert error(key, "attention_injection.stored_key") < EXACT
    assert error(val, "attention_injection.stored_value") < EXACT
    masks = (images["attention_injection.source_masks"], images["attention_injection.target_masks"])
    edit = value("attention_injection.edit_hidden")
    out = attend_with_background(attention, edit, key, val, *masks, (8, 8))
    assert error(out, "attention_injection.edit_output_injected") < EXACT


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_guidance(kind, networks, estimator, conditions, images, error):
    used = networks if kind == "shared" else estimator
    appearance = appearance_features(used.appearance_controller, images["inputs.source_uint8"])
    t, latents, masks = (
        int(value("guidance.timestep")),
        value("guidance.latent"),
        (conditions.source_masks, conditions.target_masks),
    )
    with torch.no_grad():
        reference = features(
            used, value("guidance.latent_ref"), t, conditions.embeds, conditions.source_pose, appearance
        )
    g = guidance(used, latents, t, conditions.embeds, conditions.target_pose, appearance, reference, *masks)
    assert error(g, f"guidance.{kind}.guidance") < GRADIENT


RUNS = {
    "loop_plain": {"guidance_scale": 7.0},
    "loop_camera": {"guidance_scale": 3.5, "camera": True},
    "loop_unguided": {"guidance_scale": 7.0, "guidance_strength": 0.0},
}


@pytest.mark.parametrize(
    ("run", "i"),
    [
        *(
            ("loop_plain", i) for i in (0, 10, 12, 21, 22, 49)
        ),  # zero SNR, the last full one, noise, plain, repeats, end
        *(("loop_camera", i) for i in (20, 22, 30)),
        ("loop_unguided", 11),
    ],
)
def test_one_step_of_both_branches(run, i, networks, conditions, stored, error):
    latents = value(f"{run}.before.{i}") if i else value("inputs.latents_init")
    noise = value(f"inputs.sde_noise.{i}") if i in (11, 12) else None
    edit, reference = step(networks, i, latents, value(f"inputs.reference.{i}"), conditions, noise=noise, **RUNS[run])
    assert error(edit, f"{run}.after.{i}") < EXACT
    if f"inputs.reference.{i + 1}" in stored:
        assert error(reference, f"inputs.reference.{i + 1}") < EXACT
