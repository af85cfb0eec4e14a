"""Attention motion flow, features and losses: the published numbers, then what they leave open."""

import pytest
import torch

from animatediff.errors import UserError
from animatediff.pipelines.ditflow import attention_motion_flow, flow, flow_loss, moft_channels, moft_loss, smm_loss
from tests.video_transformers import error, number

GRID = (3, 2, 3)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestPublishedNumbers:
    @pytest.mark.parametrize("temperature", [2, 5])
    def test_flow(self, temperature):
        query, key = number("pure.amf.query"), number("pure.amf.key")
        assert error(attention_motion_flow(query, key, *GRID, temperature), f"pure.amf.soft.temp{temperature}") < 1e-5
        hard = attention_motion_flow(query, key, *GRID, temperature, hard=True)
        assert torch.equal(hard, number(f"pure.amf.argmax.temp{temperature}"))

    @pytest.mark.parametrize("moving_only", [True, False])
    def test_flow_loss(self, moving_only):
        query, key = number("pure.amf.query2").requires_grad_(), number("pure.amf.key").requires_grad_()
        current = attention_motion_flow(query, key, *GRID)
        loss = flow_loss(number("pure.amf.argmax.temp2"), current, moving_only)
        name = f"pure.flow_loss.thresh{int(moving_only)}"
        assert error(loss, name) < 1e-5
        gradients = torch.autograd.grad(loss, (query, key))
        assert error(gradients[0], f"{name}.grad_query2") < 1e-4
        assert error(gradients[1], f"{name}.grad_key") < 1e-4

    @pytest.mark.parametrize(
        ("name", "loss"),
        [
            ("moft_loss", lambda reference, current: moft_loss(reference, current, number("pure.moft.channels"))),
            ("smm_loss", lambda reference, current: smm_loss(reference, current, published=True)),
            ("smm_ancestor_loss", smm_loss),
        ],
    )
    def test_feature_losses(self, name, loss):
        current = number("pure.feat.cur").requires_grad_()
        value = loss(number("pure.feat.ref"), current)
        assert error(value, f"pure.{name}") < 1e-5
        assert error(torch.autograd.grad(value, current)[0], f"pure.{name}.grad") < 1e-4

    def test_moft_channels(self):
        channels = moft_channels(number("pure.feat.ref"), 0.25)
        assert set(channels.tolist()) == set(number("pure.moft.channels").tolist())


class TestFlow:
    def test_a_pattern_that_moves_two_right_and_one_down_is_found(self):
        frames, height, width = 2, 5, 6
        first = random(height, width, 32)
        second = first.roll((1, 2), dims=(0, 1))
        tokens = torch.stack([first, second]).reshape(1, -1, 32)
        hard = attention_motion_flow(tokens, tokens, frames, height, width, hard=True)
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[:-1, :-2] = True
        assert torch.equal(hard[1][inside.flatten()], torch.tensor([2.0, 1.0]).expand(inside.sum(), 2))
        assert not hard[0].any()
        assert not hard[3].any()
        assert torch.allclose(attention_motion_flow(tokens, tokens, frames, height, width, 100.0), hard, atol=1e-3)

    def test_heads_are_averaged_before_the_softmax(self):
        query, key = random(4, 12, 8), random(4, 12, 8, seed=1)
        scores = 2.0 * (query @ key.mT / 8**0.5).mean(dim=0)  # all pairs of 2 frames of 2x3
        maps = scores.unflatten(1, (2, 6)).unflatten(0, (2, 6)).transpose(1, 2).flatten(0, 1).softmax(-1)
        places = torch.tensor([(x, y) for y in range(2) for x in range(3)]).float()
        assert torch.allclose(attention_motion_flow(query, key, 2, 2, 3), maps @ places - places, atol=1e-5)

    def test_pairs_taken_together_do_not_matter(self, monkeypatch):
        query, key = random(2, 60, 8).requires_grad_(), random(2, 60, 8, seed=1)
        whole = attention_motion_flow(query, key, 5, 3, 4)
        (gradient,) = torch.autograd.grad(whole.square().sum(), query)
        monkeypatch.setattr(flow, "MAP_ENTRIES", 2 * 12**2)
        parts = attention_motion_flow(query, key, 5, 3, 4)
        assert torch.allclose(parts, whole, atol=1e-6)
        assert torch.allclose(torch.autograd.grad(parts.square().sum(), query)[0], gradient, rtol=1e-4, atol=1e-5)

    def test_maps_kept_and_formed_again_give_one_gradient(self, monkeypatch):
        query, key = random(2, 24, 8).requires_grad_(), random(2, 24, 8, seed=1)

        def gradient():
            flow_of_tokens = attention_motion_flow(query, key, 2, 3, 4)
            return flow_of_tokens, torch.autograd.grad(flow_of_tokens.square().sum(), query)[0]

        kept = gradient()
        formed, form = [], flow._soft_coordinates
        monkeypatch.setattr(flow, "KEPT_ENTRIES", 24**2 - 1)
        monkeypatch.setattr(flow, "_soft_coordinates", lambda *args: formed.append(1) or form(*args))
        again = gradient()
        assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
        assert len(formed) == 4  # both frames' maps, twice

    def test_half_precision_is_worked_on_in_float32(self):
        query, key = random(2, 24, 8).half(), random(2, 24, 8, seed=1).half()
        assert torch.equal(
            attention_motion_flow(query, key, 2, 3, 4), attention_motion_flow(query.float(), key.float(), 2, 3, 4)
        )

    def test_a_grid_that_does_not_fit_is_refused(self):
        with pytest.raises(UserError, match="do not fit 3 frames of 2x3 tokens"):
            attention_motion_flow(random(2, 17, 8), random(2, 17, 8), 3, 2, 3)


class TestLosses:
    def test_flow_counts_both_components_of_what_moves(self):
        reference = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, -2.0]]])
        current = torch.tensor([[[9.0, 9.0], [2.0, 3.0], [0.0, 0.0]]])
        assert flow_loss(reference, current).item() == (1 + 9 + 0 + 4) / 4
        assert flow_loss(reference.to(torch.int16), current).item() == (1 + 9 + 0 + 4) / 4
        assert flow_loss(reference, current, moving_only=False).item() == pytest.approx((81 + 81 + 1 + 9 + 4) / 6)

    def test_where_nothing_moves_the_flow_loss_is_zero_and_so_is_its_gradient(self):
        current = random(4, 6, 2).requires_grad_()
        loss = flow_loss(torch.zeros(4, 6, 2), current)
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, current)[0].any()

    def test_features_of_the_reference_itself_cost_nothing(self):
        features = random(4, 50, 3, 5)
        assert moft_loss(features, features, moft_channels(features)).item() == pytest.approx(0, abs=1e-6)
        still = smm_loss(features, features + 7)  # what counts is how the means change
        assert still.item() == pytest.approx(4 / 16, abs=1e-5)  # a frame does not change towards itself: cos is 0

    def test_moft_ignores_what_does_not_change_over_time(self):
        features = random(4, 50, 3, 5)
        channels = moft_channels(features, 0.2)
        assert len(channels) == 10
        assert moft_loss(features, features + random(1, 50, 3, 5, seed=1), channels).item() == pytest.approx(
            0, abs=1e-5
        )

    @pytest.mark.parametrize("share", [0.01, 1.5])
    def test_a_share_without_channels_is_refused(self, share):
        with pytest.raises(UserError, match=f"moft_share is {share}"):
            moft_channels(random(2, 50, 2, 2), share)

    def test_another_size_is_refused(self):
        with pytest.raises(UserError, match="extract the reference at the video's size"):
            flow_loss(torch.zeros(4, 6, 2), torch.zeros(9, 6, 2))
