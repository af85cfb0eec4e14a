"""What a step does when: rules, savings, options, windows."""

from dataclasses import replace

import pytest
import torch

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower import Options, TermWeights, sample, step
from animatediff.pipelines.motionfollower.sampling import _Run
from animatediff.pipelines.motionfollower.schedule import rules_at
from animatediff.pipelines.motionfollower.windows import free_noise, window_starts
from tests.pipelines.motionfollower.conftest import random_conditions

NOISE = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def calls(networks):
    """Forwards of the UNet: how many, and how many recorded gradients."""
    counted = {"all": 0, "gradient": 0}

    def count(_module, _inputs):
        counted["all"] += 1
        counted["gradient"] += torch.is_grad_enabled()

    handle = networks.unet.register_forward_pre_hook(count)
    yield counted
    handle.remove()


def test_rules_of_the_published_run():
    rules = [rules_at(i, 50, 4.0) for i in range(50)]
    assert [i for i, r in enumerate(rules) if r.guided] == [*range(10), *range(10, 30, 2)]
    assert [i for i, r in enumerate(rules) if r.noisy] == list(range(11, 20))
    assert [i for i, r in enumerate(rules) if r.runs == 3] == [22, 24, 26, 28]
    assert [i for i, r in enumerate(rules) if r.late] == list(range(20, 50))
    assert sum(r.runs for r in rules if r.guided) == 28
    assert (rules[0].timestep, rules[0].previous, rules[49].timestep, rules[49].previous) == (999, 979, 19, -1)


def test_rules_without_strength_and_in_proportion():
    assert not any(rules_at(i, 50, 0.0).guided or rules_at(i, 50, 0.0).runs > 1 for i in range(50))
    assert [i for i in range(50) if rules_at(i, 50, 0.0).noisy] == list(range(11, 20))
    half = [rules_at(i, 25, 4.0, "proportional") for i in range(25)]
    assert [i for i, r in enumerate(half) if r.guided] == [0, 1, 2, 3, 4, 6, 8, 10, 12, 14]
    assert [i for i, r in enumerate(half) if r.noisy] == [6, 7, 8, 9]
    assert [i for i, r in enumerate(half) if r.late] == list(range(10, 25))
    assert sum(rules_at(i, 25, 4.0).guided for i in range(25)) == 18  # as published: guided to the end
    with pytest.raises(UserError, match=r"step_scaling is 'half'"):
        rules_at(0, 25, 4.0, "half")


@pytest.mark.parametrize(
    ("i", "arguments", "forwards", "gradient"),
    [
        (0, {}, 3, 1),  # reconstruction, unconditional, conditional that is also compared
        (21, {}, 3, 0),
        (22, {}, 9, 3),  # one reconstruction, three times both halves, twice back up
        (22, {"camera": True}, 12, 3),  # the compared forward is one of its own
        (21, {"camera": True}, 3, 0),
        (0, {"guidance_scale": 1.0}, 2, 1),
        (0, {"guidance_strength": 0.0}, 3, 0),
        (22, {"guidance_strength": 0.0}, 3, 0),
    ],
)
def test_forwards_of_a_step(i, arguments, forwards, gradient, networks, small, calls):
    conditions, latents = small
    step(networks, i, latents, latents, conditions, **arguments)
    assert calls == {"all": forwards, "gradient": gradient}


def test_a_run_is_its_steps_and_the_callback_may_change_both(networks, small):
    conditions, latents = small
    noises = dict.fromkeys(range(20), NOISE)
    seen = []
    result = sample(networks, latents, conditions, 2, noises=noises, callback=lambda *state: seen.append(state))
    edit = reference = latents
    for i in range(2):
        edit, reference = step(networks, i, edit, reference, conditions, 2)
        assert seen[i][0] == i
        assert torch.equal(seen[i][1], edit)
        assert torch.equal(seen[i][2], reference)
    assert torch.equal(result, edit)
    other = sample(networks, latents, conditions, 1, callback=lambda i, edit, reference: (edit * 0, reference))
    assert torch.equal(other, torch.zeros_like(latents))


@pytest.mark.parametrize(
    ("arguments", "saved"),
    [
        ({}, 3),  # of 8 steps in proportion 0, 1, 2 and 4 are guided
        ({"guidance_strength": 0.0}, 8),
        ({"guidance_strength": 0.0, "camera": True}, 0),  # late steps look at the background up to the end
    ],
)
def test_the_reconstruction_ends_with_its_last_use(arguments, saved, networks, small, calls):
    conditions, latents = small
    noises = dict.fromkeys(range(8), NOISE)
    run = {"noises": noises, "options": Options(step_scaling="proportional"), **arguments}
    whole = sample(networks, latents, conditions, 8, **run)
    forwards = calls["all"]
    assert torch.equal(sample(networks, latents, conditions, 8, whole_reconstruction=False, **run), whole)
    assert 2 * forwards - calls["all"] == saved


def test_noise_is_drawn_in_order_and_only_inside_the_target_mask(networks, small):
    conditions, latents = small
    arguments = (networks, 11, latents, latents, conditions)
    edits = [step(*arguments, guidance_strength=0.0, noise=noise)[0] for noise in (NOISE, NOISE + 1)]
    inside = torch.nn.functional.interpolate(conditions.target_masks, (4, 4)).transpose(0, 1)[None] > 0
    changed = (edits[0] != edits[1]).any(dim=1, keepdim=True)
    assert torch.equal(changed, inside)
    with pytest.raises(ValueError, match="step 11 adds noise"):
        step(*arguments)
    quick = {"guidance_strength": 0.0, "guidance_scale": 1.0, "options": Options(step_scaling="proportional")}
    assert [i for i in range(8) if rules_at(i, 8, 0.0, "proportional").noisy] == [2, 3]
    first = sample(networks, latents, conditions, 8, generator=torch.Generator().manual_seed(1), **quick)
    rng = torch.Generator().manual_seed(1)
    noises = {i: torch.randn(latents.shape, generator=rng) for i in (2, 3)}
    assert torch.equal(first, sample(networks, latents, conditions, 8, noises=noises, **quick))


@pytest.mark.parametrize("i", [0, 22])
def test_checkpointing_changes_nothing_and_stays_nowhere(i, networks, small):
    conditions, latents = small
    plain = step(networks, i, latents, latents, conditions, camera=i == 22)
    again = step(
        networks, i, latents, latents, conditions, camera=i == 22, options=Options(gradient_checkpointing=True)
    )
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)
    assert not networks.unet.is_gradient_checkpointing


def test_guidance_scale_up_to_one_is_the_conditional_half(networks, small):
    conditions, latents = small
    without = replace(conditions, embeds=conditions.embeds * 0)
    one = step(networks, 21, latents, latents, conditions, guidance_scale=1.0)[0]
    assert torch.equal(one, step(networks, 21, latents, latents, conditions, guidance_scale=0.3)[0])
    assert not torch.equal(one, step(networks, 21, latents, latents, without, guidance_scale=1.0)[0])


def test_an_estimator_of_its_own_weights_guides_without_appearance(networks, estimator, small):
    conditions, latents = small
    own = step(networks, 0, latents, latents, conditions)[0]
    other = step(networks, 0, latents, latents, conditions, options=Options(estimator=estimator))[0]
    assert not torch.equal(own, other)
    unguided = step(networks, 0, latents, latents, conditions, guidance_strength=0.0)[0]
    assert not torch.equal(unguided, other)


def test_camera_mode_leaves_the_reconstruction_and_early_steps_alone(networks, small):
    conditions, latents = small
    early = [step(networks, 19, latents, latents, conditions, camera=c, noise=NOISE)[0] for c in (False, True)]
    assert torch.equal(*early)
    late = [step(networks, 21, latents, latents, conditions, camera=c) for c in (False, True)]
    assert not torch.equal(late[0][0], late[1][0])
    assert torch.equal(late[0][1], late[1][1])
    masked = step(networks, 21, latents, latents, conditions, camera=True, options=Options(mask_attention=True))
    assert not torch.equal(masked[0], late[1][0])


def test_empty_masks_give_finite_latents(networks, small):
    conditions, latents = small
    nobody = replace(conditions, source_masks=conditions.source_masks * 0, target_masks=conditions.target_masks * 0)
    everywhere = replace(nobody, source_masks=nobody.source_masks + 1)
    for given in (nobody, everywhere):
        for mask_attention in (False, True):
            options = Options(mask_attention=mask_attention)
            assert torch.isfinite(step(networks, 20, latents, latents, given, camera=True, options=options)[0]).all()


def test_bfloat16_follows_float32(states, small):
    from tests.pipelines.motionfollower.conftest import loaded

    half = loaded(states["unet"], states["pose"])
    for network in (half.unet, half.pose_controller, half.appearance_controller):
        network.to(torch.bfloat16)
    conditions, latents = random_conditions(half, frames=3), small[1]
    full = loaded(states["unet"], states["pose"])
    wanted = step(full, 0, latents, latents, small[0])[0]
    found = step(half, 0, latents, latents, conditions)[0]
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.03 * wanted.norm()


# ------------------------------------------------------------------ windows


@pytest.fixture(scope="module")
def long(networks):
    """9 frames, to be made in windows of 4."""
    rng = torch.Generator().manual_seed(2)
    return random_conditions(networks, frames=9), torch.randn(1, 4, 9, 4, 4, generator=rng)


def test_windows_no_shorter_than_the_clip_change_no_bit(networks, long):
    conditions, latents = long
    plain = step(networks, 20, latents, latents, conditions, camera=True)
    same = step(networks, 20, latents, latents, conditions, camera=True, options=Options(window=9, overlap=3))
    assert torch.equal(plain[0], same[0])
    assert torch.equal(plain[1], same[1])


def test_windows_average_what_each_gives(networks, long):
    conditions, latents = long
    options = Options(window=6, overlap=2)  # at step 0: frames 0-5 and 3-8
    whole = step(networks, 0, latents, latents, conditions, options=options)
    parts = [
        step(networks, 0, latents[:, :, s], latents[:, :, s], conditions.window(s.start, s.stop))
        for s in (slice(0, 6), slice(3, 9))
    ]
    for found, first, second in zip(whole, *parts, strict=True):  # at zero SNR a step is linear in v
        torch.testing.assert_close(found[:, :, :3], first[:, :, :3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[:, :, 6:], second[:, :, 3:], rtol=1e-4, atol=1e-5)
        middle = (3 * first[:, :, 3] + 1 * second[:, :, 0]) / 4
        torch.testing.assert_close(found[:, :, 3], middle, rtol=1e-4, atol=1e-5)


def test_a_constant_network_shows_no_seam(networks, long):
    conditions, _ = long
    frame = torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    latents = frame.expand(-1, -1, 9, -1, -1).clone()
    handle = networks.unet.conv_out.register_forward_hook(lambda _m, _i, output: torch.ones_like(output) * 0.3)
    try:
        edit, reference = step(
            networks, 22, latents, latents, conditions, guidance_strength=0.0, options=Options(window=4, overlap=2)
        )
    finally:
        handle.remove()
    for result in (edit, reference):
        assert (result - result[:, :, :1]).abs().max() < 1e-6


def test_repeats_in_windows_hold_one_reconstruction_at_a_time(networks, long, calls):
    conditions, latents = long
    step(networks, 22, latents, latents, conditions, options=Options(window=6, overlap=2))
    assert window_starts(9, 22, 6, 2) == [0, 2, 3]
    assert calls["all"] == 3 * (3 * 3 + 2)  # windows x (three runs of three forwards, twice back up)


def test_a_window_in_use_is_made_once(networks, small):
    made = []

    class Counted:
        num_frames = 3
        target_masks = small[0].target_masks

        def window(self, start, stop):
            made.append((start, stop))
            return small[0].window(start, stop)

    sample(networks, small[1], Counted(), 2)
    assert made == [(0, 3)]
    assert _Run(networks, small[0], 7.0, 4.0, Options()).last is None


def test_free_noise_shuffles_what_the_window_before_has():
    noise = torch.randn(1, 4, 10, 2, 2, generator=torch.Generator().manual_seed(0))
    mixed = free_noise(noise, 4, 2, torch.Generator().manual_seed(1))
    assert torch.equal(mixed[:, :, :4], noise[:, :, :4])
    for start in (4, 6, 8):
        pair = {tuple(frame.flatten().tolist()) for frame in mixed[0, :, start : start + 2].unbind(1)}
        assert pair == {tuple(frame.flatten().tolist()) for frame in mixed[0, :, start - 4 : start - 2].unbind(1)}
    assert torch.equal(free_noise(noise, 10, 2, None), noise)


def test_odd_latents_and_other_counts_are_refused(networks, small):
    conditions, latents = small
    with pytest.raises(UserError, match=r"latents are 4x3, expected even sides"):
        sample(networks, latents[..., :3], conditions, 1)
    with pytest.raises(UserError, match=r"latents have 2 frames, the conditions 3"):
        sample(networks, latents[:, :, :2], conditions, 1)
    with pytest.raises(UserError, match=r"numbers of frames differ \(embeds 3, source_masks 2"):
        replace(conditions, source_masks=conditions.source_masks[:2])


def test_nan_ends_the_run_in_one_line(networks, small):
    conditions, latents = small
    broken = replace(conditions, embeds=conditions.embeds * float("nan"))
    with pytest.raises(UserError, match=r"step 1 of 2 gave NaN .* try .*dtype=fp32"):
        sample(networks, latents, broken, 2)


def test_terms_can_be_weighted(networks, small):
    conditions, latents = small
    weights = TermWeights(0, 0, 0, 0)
    none = step(networks, 0, latents, latents, conditions, options=Options(weights=weights))[0]
    assert torch.equal(none, step(networks, 0, latents, latents, conditions, guidance_strength=0.0)[0])
