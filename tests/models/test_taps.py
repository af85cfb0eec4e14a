import pytest
import torch
from torch import nn

from animatediff.models.taps import capture, inject


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
