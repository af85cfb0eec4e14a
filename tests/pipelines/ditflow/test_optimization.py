"""Motion, loss and updates: the published numbers, gradients by finite differences, and what must be refused."""

import pytest
import torch

from animatediff.errors import UserError
from animatediff.models.hooks import capture
from animatediff.pipelines.ditflow import (
    default_positions,
    extract_motion,
    learning_rates,
    motion_loss,
    optimization,
    optimize,
    predict,
    read_blocks,
)
from animatediff.pipelines.ditflow.attention import rotate
from animatediff.pipelines.ditflow.transformer import read_keys_values
from tests.video_transformers import (
    KINDS,
    PUBLISHED,
    change_error,
    error,
    latents_of,
    left_as_it_was,
    number,
    positions_of,
    published_network,
    text_of,
    tiny,
)

LOSSES = ("flow", "moft", "smm", "smm_published")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def network(kind):
    return tiny(kind)


def motion_of(network, kind, loss="flow", blocks=(1,), **settings):
    settings = {"share": 0.2} | settings
    return extract_motion(network, latents_of(kind, 7), text_of(), list(blocks), loss, **settings)


class TestPublishedNumbers:
    @pytest.fixture(scope="class")
    def network(self):
        return published_network()

    @pytest.mark.parametrize("name", list(PUBLISHED["losses"]))
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_one_optimisation(self, network, name, checkpointing):
        loss, variable = name.split(".")
        clean, latents = number("inputs.motion_latent"), number("inputs.cur_latents")
        text, published = number("inputs.prompt_embeds"), PUBLISHED["losses"][name]
        motion = extract_motion(
            network,
            clean,
            number("inputs.source_embeds"),
            [2],
            {"smm": "smm_published", "flow_nothresh": "flow"}.get(loss, loss),
            moving_only=loss != "flow_nothresh",
        )
        variable, cut = {"latent": ("latents", ""), "emb": ("positions", "@7")}[variable]
        start = latents if variable == "latents" else default_positions(network, 6, 8, 12)
        if checkpointing:
            network.enable_gradient_checkpointing()
        moved = {}
        for steps in (1, 5):
            *both, losses = optimize(network, latents, 874, text, motion, variable, steps=steps, lr=published["lr"])
            moved[steps] = both[variable == "positions"]
        network.disable_gradient_checkpointing()
        assert losses == pytest.approx(published["losses"], rel=1e-5)
        assert change_error(moved[5], start, f"losses.{name}.param_final{cut}") < 5e-3
        if loss == "flow_nothresh":
            return
        assert change_error(moved[1], start, f"losses.{name}.param_step0") < 5e-3
        for i, values in enumerate((start, number(f"losses.{name}.param_step0"))):
            leaf = values.clone().requires_grad_()
            given = (leaf, None) if variable == "latents" else (latents, leaf)
            value = motion_loss(network, given[0], 874, text, motion, given[1])
            assert error(torch.autograd.grad(value, leaf)[0], f"losses.{name}.grad_step{i}{cut}") < 1e-4

    def test_learning_rates(self):
        for published in PUBLISHED["defaults_50_steps"].values():
            assert learning_rates(10, 0.002, 0.001) == pytest.approx(published["lr_range"][:10], abs=1e-6)
        assert learning_rates(0, 0.002, 0.001) == []


class TestMotion:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_no_block_runs_after_the_last_guided_one(self, network, kind, loss):
        blocks = network.blocks if kind == "wan" else network.transformer_blocks
        with left_as_it_was(network), capture(dict(enumerate(blocks))) as ran:
            motion = motion_of(network, kind, loss)
        assert 2 not in ran
        latents = latents_of(kind).requires_grad_()
        with left_as_it_was(network), capture(dict(enumerate(blocks))) as ran:
            value = motion_loss(network, latents, 500, text_of(), motion)
        assert 2 not in ran
        assert torch.autograd.grad(value, latents)[0].abs().max() > 0

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_loss_is_the_mean_over_guided_blocks(self, network, kind, loss):
        values = [
            motion_loss(network, latents_of(kind), 500, text_of(), motion_of(network, kind, loss, blocks)).item()
            for blocks in ([0], [2], [2, 0])
        ]
        assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=1e-5)

    def test_the_reference_is_hard_and_small_or_soft(self, network, kind):
        hard, soft = (motion_of(network, kind, hard=hard) for hard in (True, False))
        assert hard.targets[1].dtype == torch.int16
        assert soft.targets[1].dtype == torch.float32
        values = [motion_loss(network, latents_of(kind), 500, text_of(), motion).item() for motion in (hard, soft)]
        assert values[0] != pytest.approx(values[1], rel=1e-3)
        itself = motion_loss(network, latents_of(kind, 7), 0, text_of(), soft)
        assert itself.item() == pytest.approx(0, abs=1e-9)

    def test_a_reference_in_which_nothing_moves_says_so_and_costs_nothing(self, network, kind):
        motion = motion_of(network, kind)
        assert not motion.is_static
        still = optimization.replace(motion, targets={1: torch.zeros_like(motion.targets[1])})
        assert still.is_static
        latents, _, losses = optimize(network, latents_of(kind), 500, text_of(), still, steps=2)
        assert losses == [0, 0]
        assert torch.equal(latents, latents_of(kind))

    def test_injection_and_positions_act(self, network, kind):
        motion = motion_of(network, kind)
        injected = read_keys_values(network, latents_of(kind, 9), 500, text_of(), [0])
        losses = {
            motion_loss(network, latents_of(kind), 500, text_of(), motion, **settings).item()
            for settings in ({}, {"injected": injected}, {"positions": positions_of(network)})
        }
        assert len(losses) == 3


class TestGradients:
    @pytest.mark.parametrize("variable", ["latents", "positions"])
    def test_against_finite_differences(self, variable):
        """The 5b kind, whose stock rotation is in place, in float64."""
        network = tiny("5b").double()
        text, latents, positions = text_of().double(), latents_of("5b").double(), positions_of(network).double()
        motion = extract_motion(network, latents_of("5b", 7).double(), text, [1])
        injected = read_keys_values(network, latents_of("5b", 9).double(), 500, text, [0])
        leaf = (latents if variable == "latents" else positions).clone().requires_grad_()

        def loss(values):
            given = (values, positions) if variable == "latents" else (latents, values)
            return motion_loss(network, given[0], 500, text, motion, given[1], injected)

        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        random = torch.Generator().manual_seed(0)
        halves = range(4) if variable == "positions" else range(1)
        for half in halves:  # the cos and the sin half of queries and keys, each by itself
            direction = torch.zeros_like(gradient)
            part = direction.flatten(0, 1)[half] if variable == "positions" else direction
            part.copy_(torch.randn(part.shape, generator=random, dtype=part.dtype))
            with torch.no_grad():
                difference = (loss(leaf + 1e-5 * direction) - loss(leaf - 1e-5 * direction)) / 2e-5
            assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-6)

    def test_the_network_s_own_rope_gives_the_same_gradient_as_ours(self):
        for kind in ("5b", "wan"):
            network, leaf = tiny(kind), latents_of(kind).requires_grad_()
            motion = motion_of(network, kind)
            own = default_positions(network, *(3, 8, 12))
            gradients = [
                torch.autograd.grad(motion_loss(network, leaf, 500, text_of(), motion, positions), leaf)[0]
                for positions in (None, own)
            ]
            assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)

    def test_the_published_gradient_of_rope_is_wrong_towards_cos_alone(self):
        network = tiny("5b")
        motion, leaf = motion_of(network, "5b"), positions_of(network).requires_grad_()
        right, published = (
            torch.autograd.grad(
                motion_loss(network, latents_of("5b"), 500, text_of(), motion, leaf, published_gradient=wrong), leaf
            )[0]
            for wrong in (False, True)
        )
        assert torch.allclose(right[:, 1], published[:, 1], rtol=1e-4, atol=1e-7)
        assert (right[:, 0] - published[:, 0]).norm() > 0.1 * right[:, 0].norm()

    def test_the_published_rotation(self):
        random = torch.Generator().manual_seed(0)
        states, weight = (torch.randn(1, 2, 5, 8, generator=random) for _ in range(2))
        cos, sin = (torch.randn(5, 8, generator=random) for _ in range(2))
        cos.requires_grad_()
        rotated = rotate(states, cos, sin)
        assert torch.equal(rotate(states, cos, sin, published_gradient=True), rotated)
        for published, factor in ((False, states), (True, rotated.detach())):
            (gradient,) = torch.autograd.grad((rotate(states, cos, sin, published) * weight).sum(), cos)
            assert torch.allclose(gradient, (weight * factor).sum(dim=(0, 1)), atol=1e-5)


class TestOptimize:
    @pytest.mark.parametrize("variable", ["latents", "positions"])
    @pytest.mark.parametrize("loss", ["flow", "moft", "smm"])
    def test_gradient_checkpointing_changes_no_number(self, network, kind, variable, loss):
        motion = motion_of(network, kind, loss, blocks=(1, 2))
        injected = read_keys_values(network, latents_of(kind, 9), 500, text_of(), [0])
        arguments = (network, latents_of(kind), 500, text_of(), motion, variable)
        plain = optimize(*arguments, steps=3, lr=0.02, injected=injected)
        network.enable_gradient_checkpointing()
        with left_as_it_was(network):
            checkpointed = optimize(*arguments, steps=3, lr=0.02, injected=injected)
        network.disable_gradient_checkpointing()
        assert plain[2] == checkpointed[2]
        which = variable == "positions"
        assert torch.equal(plain[which], checkpointed[which])
        assert plain[2][0] > plain[2][-1]

    def test_what_is_not_the_variable_stays(self, network, kind):
        motion, positions = motion_of(network, kind), positions_of(network)
        latents, given, _ = optimize(network, latents_of(kind), 500, text_of(), motion, positions=positions, steps=1)
        assert given is positions
        assert not torch.equal(latents, latents_of(kind))
        latents, moved, _ = optimize(network, latents_of(kind), 500, text_of(), motion, "positions", positions, steps=1)
        assert torch.equal(latents, latents_of(kind))
        assert not torch.equal(moved, positions)

    def test_only_what_the_network_reads_of_wan_s_rope_moves(self):
        network = tiny("wan")
        own = default_positions(network, 3, 8, 12)
        _, moved, _ = optimize(network, latents_of("wan"), 500.0, text_of(), motion_of(network, "wan"), "positions")
        assert not (moved - own)[:, 0, :, 1::2].any()
        assert not (moved - own)[:, 1, :, 0::2].any()
        assert (moved - own)[:, 0, :, 0::2].all()

    def test_an_exception_leaves_nothing(self, network, kind):
        motion, block = motion_of(network, kind), (network.blocks if kind == "wan" else network.transformer_blocks)[0]

        def fail(*_):
            raise MemoryError

        network.enable_gradient_checkpointing()
        with left_as_it_was(network):
            handle = block.register_full_backward_hook(fail)
            with pytest.raises(MemoryError):
                optimize(network, latents_of(kind), 500, text_of(), motion)
            handle.remove()
            block._is_full_backward_hook = None  # torch keeps what kind of hook there was
        network.disable_gradient_checkpointing()

    def test_a_loss_scale_that_overflows_is_lowered(self, monkeypatch):
        network = tiny("2b")
        motion = motion_of(network, "2b")
        plain = optimize(network, latents_of("2b"), 500, text_of(), motion)
        monkeypatch.setattr(optimization, "_first_loss_scale", lambda dtype: 2.0**140)
        scaled = optimize(network, latents_of("2b"), 500, text_of(), motion)
        assert scaled[2] == plain[2]
        assert torch.equal(scaled[0], plain[0])

    def test_half_precision_follows_float32(self):
        moved = []
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            network = tiny("2b").to(dtype)
            motion = extract_motion(tiny("2b"), latents_of("2b", 7), text_of(), [1])
            latents, _, _ = optimize(network, latents_of("2b"), 500, text_of(), motion, steps=1)
            assert latents.dtype == torch.float32
            moved.append(((latents - latents_of("2b")) / 0.002).flatten())
        agreement = [(change.sign() == moved[0].sign()).float().mean().item() for change in moved[1:]]
        assert agreement[0] > 0.98
        assert agreement[1] > 0.9

    def test_numbers_that_are_not_finite_name_the_dtype_to_try(self):
        network = tiny("2b")
        motion = motion_of(network, "2b")
        network.transformer_blocks[0].ff.net[0].proj.weight.data[0, 0] = torch.nan
        with pytest.raises(
            UserError, match="the motion loss at timestep 500 is NaN or infinite in float32; try dtype="
        ):
            optimize(network, latents_of("2b"), 500, text_of(), motion)


class TestBadInput:
    def test_a_block_that_is_guided_and_injected(self, network, kind):
        motion = motion_of(network, kind)
        state = read_blocks(network, latents_of(kind), 500, text_of(), [1])[1]
        with pytest.raises(UserError, match="block 1 is in guidance_blocks and injection_blocks"):
            motion_loss(network, latents_of(kind), 500, text_of(), motion, injected={1: (state.key, state.value)})

    def test_a_motion_of_another_size(self, network, kind):
        with pytest.raises(UserError, match="3x4x6 tokens .* the video 3x3x6"):
            motion_loss(network, latents_of(kind, height=6), 500, text_of(), motion_of(network, kind))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"blocks": [5]}, "guidance_blocks holds 5; this transformer has blocks 0 to 2"),
            ({"blocks": []}, "guidance_blocks is empty"),
            ({"loss": "flows"}, "loss is 'flows', expected one of flow, moft, smm, smm_published"),
            ({"loss": "moft", "share": 0.0}, "moft_share is 0.0"),
        ],
    )
    def test_extraction(self, network, kind, arguments, message):
        with pytest.raises(UserError, match=message):
            motion_of(network, kind, **arguments)

    def test_a_variable_that_does_not_exist(self, network, kind):
        with pytest.raises(UserError, match="variable is 'emb', expected latents or positions"):
            optimize(network, latents_of(kind), 500, text_of(), motion_of(network, kind), "emb")

    def test_a_published_gradient_that_there_is_none_of(self):
        network = tiny("wan")
        with pytest.raises(UserError, match="this transformer has no published gradient"):
            motion_loss(network, latents_of("wan"), 500, text_of(), motion_of(network, "wan"), published_gradient=True)


def test_a_loss_of_the_caller_s_own_backward_needs_nothing_in_force():
    """With gradient checkpointing enabled the blocks would run again in backward, without our processors."""
    network = tiny("5b")
    motion, positions = motion_of(network, "5b"), positions_of(network).requires_grad_()
    gradients = []
    for enable in (network.disable_gradient_checkpointing, network.enable_gradient_checkpointing):
        enable()
        loss = motion_loss(network, latents_of("5b"), 500, text_of(), motion, positions)
        gradients.append(torch.autograd.grad(loss, positions)[0])
        output = predict(network, latents_of("5b"), 500, text_of(), positions)
        gradients.append(torch.autograd.grad(output.square().mean(), positions)[0])
    assert torch.equal(gradients[0], gradients[2])
    assert torch.equal(gradients[1], gradients[3])
