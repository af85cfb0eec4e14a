"""Temporal attention: any number of positions, xformers elsewhere only."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from animatediff.models import motion_module
from animatediff.models.motion_module import TemporalAttnProcessor, attend
from tests.pipelines.small import extract, sample, small_pipeline


@pytest.fixture(scope="module")
def pipe():
    return small_pipeline()


def temporal(network):
    return [m for name, m in network.named_modules() if isinstance(m, Attention) and "motion_modules" in name]


def test_the_processor_computes_what_diffusers_own_computes(pipe):
    attention, x = temporal(pipe.unet)[0], torch.randn(5, 4, 16)
    assert isinstance(attention.processor, TemporalAttnProcessor)
    with torch.no_grad():
        for context in (None, torch.randn(5, 3, 16)):
            assert torch.equal(attention(x, context), AttnProcessor2_0()(attention, x, context))
    with pytest.raises(ValueError, match="takes no mask"):
        attention(x, attention_mask=torch.zeros(5, 1, 4))


def test_more_positions_than_a_kernel_takes_are_done_in_batches_to_the_bit(monkeypatch):
    q, k, v = torch.randn(3, 10, 4, 16).unbind()
    seen, attention = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(motion_module.F, "scaled_dot_product_attention", lambda *x: seen.append(len(x[0])) or attention(*x))
    whole = attend(q, k, v, heads=2)
    monkeypatch.setattr(motion_module, "MAX_BATCH", 4)
    assert torch.equal(attend(q, k, v, heads=2), whole)
    assert seen == [10, 4, 4, 2]


def test_a_whole_transfer_in_batches_gives_the_same(pipe, monkeypatch):
    """Backbone and sites: 16 positions and two guidance halves, 7 at a time."""
    reference = extract(pipe)
    want = sample(pipe, reference)
    monkeypatch.setattr(motion_module, "MAX_BATCH", 7)
    largest, attention = [], torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, **options):
        if not options:  # the spatial attentions' calls have some
            largest.append(len(q))
        return attention(q, k, v, **options)

    monkeypatch.setattr(motion_module.F, "scaled_dot_product_attention", watched)
    again = extract(pipe)
    assert all(torch.equal(a, b) for s, t in zip(reference.sites.values(), again.sites.values(), strict=True)
               for a, b in zip(s.features, t.features, strict=True))  # fmt: skip
    assert torch.equal(sample(pipe, again), want)
    assert max(largest) == 7


def test_xformers_is_for_every_attention_but_the_temporal_ones(pipe, monkeypatch):
    touched: list[tuple[Attention, bool]] = []
    monkeypatch.setattr(
        Attention,
        "set_use_memory_efficient_attention_xformers",
        lambda attention, valid, _op=None: touched.append((attention, valid)),
    )
    spatial = [m for m in pipe.unet.modules() if isinstance(m, Attention) and m not in temporal(pipe.unet)]
    vae = [m for m in pipe.vae.modules() if isinstance(m, Attention)]
    assert spatial
    assert vae
    assert temporal(pipe.unet)
    for enable, disable, expected in [
        (pipe.enable_xformers_memory_efficient_attention, pipe.disable_xformers_memory_efficient_attention,
         vae + spatial),
        (pipe.unet.enable_xformers_memory_efficient_attention, pipe.unet.disable_xformers_memory_efficient_attention,
         spatial),
    ]:  # fmt: skip
        for call, valid in ((enable, True), (disable, False)):
            touched.clear()
            call()
            assert {id(a) for a, _ in touched} == {id(a) for a in expected}
            assert {v for _, v in touched} == {valid}
    assert all(isinstance(a.processor, TemporalAttnProcessor) for a in temporal(pipe.unet))
