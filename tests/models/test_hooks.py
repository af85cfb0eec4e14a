from types import SimpleNamespace

import pytest
import torch
from torch import nn

from animatediff.models.hooks import capture, gradient_until, guidance_interval, inject, injected_paths, stop_after


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_capture_reads_outputs_and_leaves_nothing_behind():
    net, x = network(), torch.randn(3, 4)
    want = net(x)
    with capture({"first": net[0], "width": net[2]}, keep=lambda out: out.shape) as shapes:
        assert torch.equal(net(x), want)
    assert shapes == {"first": (3, 4), "width": (3, 2)}
    assert not net[0]._forward_hooks
    assert not net[2]._forward_hooks


def test_captured_outputs_carry_gradient():
    net, x = network(), torch.randn(3, 4, requires_grad=True)
    with capture({"first": net[0]}) as kept:
        net(x)
    kept["first"].sum().backward()
    assert torch.allclose(x.grad, net[0].weight.sum(0).expand(3, 4))


def test_hooks_are_removed_when_the_block_raises():
    net = network()
    with pytest.raises(RuntimeError), capture({"first": net[0]}):
        net(torch.randn(3, 5))
    assert not net[0]._forward_hooks


def test_inject_swaps_and_restores_also_on_error():
    net, x = network(), torch.randn(3, 4)
    original, want = net[0], net(x)
    with inject(net, {"0": nn.Identity()}):
        assert torch.equal(net(x), net[2](torch.relu(x)))
    assert net[0] is original
    with pytest.raises(ZeroDivisionError), inject(net, {"0": nn.Identity()}):
        raise ZeroDivisionError
    assert net[0] is original
    assert torch.equal(net(x), want)


def test_inject_refuses_a_path_that_does_not_exist_and_replaces_nothing():
    net = network()
    first = net[0]
    with pytest.raises(AttributeError), inject(net, {"0": nn.Identity(), "7.weight": nn.Identity()}):
        pass
    assert net[0] is first


def test_inject_child_before_parent():
    net = nn.Sequential(network())
    child, parent = net[0][0], net[0]
    with inject(net, {"0.0": nn.Identity(), "0": nn.Sequential(parent)}):
        assert isinstance(net[0][0][0], nn.Identity)
    assert net[0] is parent
    assert parent[0] is child


def test_stop_after_runs_nothing_more_and_keeps_the_gradient():
    net, x = network(), torch.randn(3, 4, requires_grad=True)
    with capture({"first": net[0], "last": net[2]}) as kept, stop_after(net[0]):
        net(x)
        raise AssertionError("the block went on")
    assert set(kept) == {"first"}
    kept["first"].sum().backward()
    assert torch.allclose(x.grad, net[0].weight.sum(0).expand(3, 4))
    assert not net[0]._forward_hooks
    assert net(x).shape == (3, 2)


def test_stop_after_ends_the_block_of_its_own_module():
    net, x = network(), torch.randn(3, 4)
    reached = []
    with stop_after(net[0]):
        with stop_after(net[2]):
            net(x)
        reached.append("after the inner block")
    assert not reached
    with stop_after(net[2]):
        reached.append("a block in which the module never runs")
    assert len(reached) == 1
    with pytest.raises(ZeroDivisionError), stop_after(net[0]):
        raise ZeroDivisionError


def test_gradient_until_a_module():
    net, x = network(), torch.randn(3, 4)
    with torch.no_grad():
        with capture(dict(net.named_children()), keep=lambda out: out.requires_grad) as recorded:
            with gradient_until(net[0]):
                net(x)
            assert not torch.is_grad_enabled()
        assert recorded == {"0": True, "1": False, "2": False}
    assert torch.is_grad_enabled()
    with pytest.raises(RuntimeError), gradient_until(net[0]):
        net(torch.randn(3, 5))
    assert torch.is_grad_enabled()
    assert not net[0]._forward_hooks


class Doubler(nn.Module):
    """Stands for a UNet: its sample is what it was given, and what it was told beside it."""

    def forward(self, sample, timestep, encoder_hidden_states, added):
        return SimpleNamespace(sample=sample + encoder_hidden_states + added["images"][0], seen=len(sample))


@pytest.mark.parametrize(("timestep", "seen"), [(299, 2), (300, 4), (499, 4), (500, 2), (501, 2)])
def test_outside_the_guidance_interval_the_half_with_the_text_stands_for_both(timestep, seen):
    net, x, text = Doubler(), torch.randn(4, 3), torch.randn(4, 3)
    images = {"images": [torch.randn(4, 3)]}
    want = net(x, torch.tensor(timestep), encoder_hidden_states=text, added=images).sample
    with guidance_interval(net, 300, 500):
        got = net(x, torch.tensor(timestep), encoder_hidden_states=text, added=images)
    assert got.seen == seen
    assert torch.equal(got.sample, want if seen == 4 else torch.cat([want[2:]] * 2))
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


def test_inject_refuses_a_path_that_is_replaced_already():
    """A second run on one network, in another thread or around the first, finds out, and the first goes on."""
    net = network()
    first, stand_in = net[0], nn.Identity()
    with inject(net, {"0": stand_in}):
        assert injected_paths(net) == {"0"}
        with pytest.raises(RuntimeError, match="^0 is already replaced"), inject(net, {"2": nn.Identity(), "0": first}):
            pass
        assert net[0] is stand_in
        assert isinstance(net[2], nn.Linear)
        with inject(net, {"2": nn.Identity()}):
            assert injected_paths(net) == {"0", "2"}
    assert net[0] is first
    assert not injected_paths(net)
    assert "_injected" not in net.__dict__


def test_inject_restores_after_an_interrupt_at_any_place(monkeypatch):
    """Ctrl-C between two replacements: both are back."""
    net = network()
    before, replace = list(net), net.set_submodule

    def interrupted(path, module):
        replace(path, module)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(net, "set_submodule", interrupted)
    with pytest.raises(KeyboardInterrupt), inject(net, {"0": nn.Identity(), "2": nn.Identity()}):
        pass
    assert list(net) == before
    assert not injected_paths(net)
