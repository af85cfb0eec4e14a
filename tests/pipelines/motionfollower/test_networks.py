"""The networks: sizes of the release, files in any split, and the two traps."""

import pytest
import torch
from accelerate import init_empty_weights

from animatediff.errors import UserError
from animatediff.models.checkpoints import original_unet_state
from animatediff.pipelines.motionfollower import (
    build_networks,
    features,
    load_original_networks,
    predict,
)
from tests.goldens import TINY
from tests.pipelines.motionfollower.conftest import POSE_WIDTHS
from tests.pipelines.motionfollower.layout import split


def count(module, keep=lambda name: True):
    return sum(value.numel() for name, value in module.named_parameters() if keep(name))


def test_released_sizes(published_keys):
    with init_empty_weights():
        networks = build_networks({"cross_attention_dim": 768, "attention_head_dim": 8})
    assert count(networks.unet, lambda name: ".motion_modules." not in name) == 859_520_964
    assert count(networks.unet, lambda name: ".motion_modules." in name) == 453_209_280
    assert sum(".motion_modules." in key for key in original_unet_state(networks.unet)) == 546
    assert count(networks.pose_controller) == 1_086_480
    assert count(networks.appearance_controller) == 77_369_280
    found = {(value.numel(), value.shape[0]) for value in networks.appearance_controller.state_dict().values()}
    shapes = published_keys["released_appearance_adapter"].values()
    assert found == {(torch.Size(shape).numel(), shape[0]) for shape in shapes}
    assert len(networks.appearance_controller.state_dict()) == 38
    assert not any(parameter.requires_grad for parameter in networks.unet.parameters())


def test_files_in_any_split_later_ones_win(states, networks):
    spatial, motion, appearance = split(states["unet"])
    wrong = {key: value + 1 for key, value in spatial.items()}
    other = build_networks(TINY, POSE_WIDTHS)
    load_original_networks(other, [wrong, {"state_dict": motion}, spatial | appearance], states["pose"])
    for ours, wanted in zip(other.unet.parameters(), networks.unet.parameters(), strict=True):
        assert torch.equal(ours, wanted)
    for ours, wanted in zip(
        other.appearance_controller.parameters(), networks.appearance_controller.parameters(), strict=True
    ):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s, m, a: [s, m], r"a\.pth \+ b\.pth hold no appearance_adapter"),
        (lambda s, m, a: [s, a], r"lacks .*motion_modules"),
        (
            lambda s, m, a: [s | m | a, {"text_model.embeddings.weight": torch.zeros(1)}],
            r"b\.pth has unknown key text_",
        ),
        (lambda s, m, a: [s | m | a, {"conv_in.weight": torch.zeros(1, 2)}], r"conv_in\.weight of shape \[1, 2\], exp"),
        (
            lambda s, m, a: [s | m, dict(list(a.items())[1:])],
            r"lacks adapter\..*expected an appearance controller",
        ),
    ],
)
def test_gaps_and_strangers_are_refused_in_one_line(states, change, line):
    networks = build_networks(TINY, POSE_WIDTHS)
    with pytest.raises(UserError, match=line) as caught:
        load_original_networks(networks, change(*split(states["unet"])), states["pose"], ["a.pth", "b.pth"])
    assert "\n" not in str(caught.value)


def test_a_pose_controller_of_another_model_is_refused(states):
    networks = build_networks(TINY, POSE_WIDTHS)
    with pytest.raises(UserError, match=r"poctr\.pth .*expected a pose controller"):
        load_original_networks(networks, [states["unet"]], {"x": torch.zeros(1)}, pose_source="poctr.pth")


@pytest.mark.parametrize(("widths", "side"), [((16, 32, 48, 64), 8), ((16, 32, 48), 16)])
def test_the_number_of_widths_says_how_many_pixels_a_latent_has(widths, side):
    networks = build_networks(TINY, widths)
    images = torch.zeros(1, 3, 64, 64)
    assert networks.pose_controller(images).shape[-2:] == (side, side)
    assert [feature.shape[-1] for feature in networks.appearance_controller(images)] == [
        side,
        side // 2,
        side // 4,
        side // 8,
    ]


@torch.no_grad()
def test_the_middle_blocks_motion_module_mixes_frames(networks, small):
    conditions, latents = small
    outputs = []

    def keep(_module, inputs, output):
        outputs.append(output - inputs[0])

    handle = networks.unet.mid_block.motion_modules[0].register_forward_hook(keep)
    moved = latents.clone()
    moved[:, :, 0] += 1
    for given in (latents, moved):
        predict(networks, given, 500, conditions.embeds)
    handle.remove()
    module = networks.unet.mid_block.motion_modules[0]
    hidden = torch.randn(3, 128, 2, 2, generator=torch.Generator().manual_seed(0))
    other = hidden.clone()
    other[0] += torch.randn(128, 2, 2, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(module(hidden, num_frames=3)[2], module(other, num_frames=3)[2], atol=1e-4)
    assert torch.equal(module(hidden, None, None, None, 3, None), module(hidden, num_frames=3))
    assert not torch.equal(outputs[0][2], outputs[1][2])


@torch.no_grad()
def test_a_batch_is_what_its_parts_are(networks, small):
    conditions, latents = small
    embeds = torch.cat([torch.zeros_like(conditions.embeds), conditions.embeds])
    given = (conditions.target_pose, conditions.appearance)
    both = predict(networks, torch.cat([latents, latents]), 300, embeds, *given)
    for part, embed in zip(both.split(1), embeds.split(1), strict=True):
        torch.testing.assert_close(part, predict(networks, latents, 300, embed, *given), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(2, 6), (10, 6), (4, 8)])
def test_features_lie_at_half_and_full_size(networks, height, width):
    latents = torch.zeros(1, 4, 2, height, width)
    small, large = features(networks, latents, 10, torch.zeros(1, 2, 64))
    assert small.shape == (1, 128, 2, height // 2, width // 2)
    assert large.shape == (1, 64, 2, height, width)


def test_nothing_stays_behind_after_an_exception(networks, small):
    conditions, latents = small
    before = dict(networks.unet.named_modules())
    with pytest.raises(RuntimeError):
        predict(networks, latents, 10, conditions.embeds, torch.zeros(1, 7, 3, 4, 4), conditions.appearance)
    assert dict(networks.unet.named_modules()) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in networks.unet.modules())
