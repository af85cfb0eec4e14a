"""The guidance losses against the published form, which enlarges the features to the masks' grid."""

from dataclasses import asdict

import pytest
import torch
from torch.nn import functional

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower import TermWeights, guidance_losses


def published_form(edit, reference, source, target, foreground, body, overlap, complement):
    """Features enlarged to the grid, means over masked cells, frame by frame; regions all there."""
    grid = [2 * side for side in edit[-1].shape[-2:]]
    s, t = (functional.interpolate(m, grid, mode="nearest")[:, 0] > 0.5 for m in (source, target))
    large = [
        [functional.interpolate(feature[0].transpose(0, 1), grid, mode="nearest") for feature in side]  # f c H W
        for side in (edit, reference)
    ]
    loss_fg = loss_bg = 0.0
    for e, r in zip(*large, strict=True):
        frames = range(len(e))
        mean = lambda x, m: x[:, m].mean(dim=1)  # noqa: E731
        cos = lambda a, b: functional.cosine_similarity(a, b, dim=0)  # noqa: E731
        person = torch.stack([cos(mean(e[f], t[f]), mean(r[f], s[f])) for f in frames]).mean()
        near = torch.stack([cos(e[f], r[f])[s[f] & ~t[f]].mean() for f in frames]).mean()
        apart = torch.stack([((cos(e[f], r[f]) + 1) / 2)[~s[f] & ~t[f]].mean() for f in frames]).mean()
        filled = torch.stack([(cos(mean(e[f], s[f] & ~t[f]), mean(r[f], ~s[f])) + 1) / 2 for f in frames]).mean()
        loss_fg = loss_fg + 0.5 * foreground / (1 + 4 * person)
        loss_bg = loss_bg + 0.5 * body / (1 + 4 * near) + 0.5 * overlap * apart + complement / (1 + 4 * filled)
    return loss_fg, loss_bg


@pytest.fixture
def problem():
    """Features of 3 frames at 5x6 and 10x12, correlated, and masks whose edges cut through cells."""
    rng = torch.Generator().manual_seed(0)
    reference = [torch.randn(1, c, 3, h, w, generator=rng) for c, h, w in ((6, 5, 6), (4, 10, 12))]
    edit = [(r + 0.7 * torch.randn(r.shape, generator=rng)).requires_grad_() for r in reference]
    source, target = torch.zeros(2, 3, 1, 80, 96)
    source[:, :, 7:55, 11:50] = 1
    target[:, :, 20:71, 30:77] = 1
    return edit, reference, source, target


@pytest.mark.parametrize("term", [*asdict(TermWeights()), "all"])
def test_pooled_masks_equal_enlarged_features(problem, term):
    weights = {name: value if term in (name, "all") else 0.0 for name, value in asdict(TermWeights()).items()}
    edit = problem[0]
    for loss, expected in zip(guidance_losses(*problem, **weights), published_form(*problem, **weights), strict=True):
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
        if loss > 0:
            found = torch.autograd.grad(loss, edit, retain_graph=True)
            wanted = torch.autograd.grad(expected, edit, retain_graph=True)
            for a, b in zip(found, wanted, strict=True):
                assert (a - b).norm() < 2e-6 * b.norm()


def test_paper_exchanges_the_regions_of_body_and_overlap(problem):
    edit, reference, source, target = problem
    only = dict.fromkeys(asdict(TermWeights()), 0.0)

    def alone(term, source, regions):
        return guidance_losses(edit, reference, source, target, **(only | {term: 1.0}), regions=regions)[1]

    # With no source person the published overlap's region is all but the target, which is `paper`'s body region ...
    nobody = torch.zeros_like(source)
    assert alone("body", nobody, "published") == 0
    assert alone("body", nobody, "paper") > 0
    assert alone("overlap", nobody, "published") > 0
    assert alone("overlap", nobody, "paper") == 0
    # ... and the other terms do not change.
    for term in ("foreground", "complement"):
        assert alone(term, source, "paper") == alone(term, source, "published")
    with pytest.raises(UserError, match=r"regions is 'swapped', expected one of published, paper"):
        guidance_losses(*problem, regions="swapped")


def test_a_frame_without_a_region_leaves_the_mean(problem):
    edit, reference, source, target = problem
    source, target = source.clone(), target.clone()
    target[1] = 0  # no person in the edit's second frame
    source[2] = 1  # the source's person covers the whole third frame
    losses = guidance_losses(edit, reference, source, target)
    gradients = torch.autograd.grad(sum(losses), edit)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    frames = [0, 2]
    kept = [[feature[:, :, frames] for feature in side] for side in (edit, reference)]
    torch.testing.assert_close(losses[0], guidance_losses(*kept, source[frames], target[frames])[0])


@pytest.mark.parametrize("masks", [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_regions_empty_everywhere_give_finite_losses(problem, masks):
    edit, reference, source, _ = problem
    losses = guidance_losses(edit, reference, *(torch.full_like(source, value) for value in masks))
    assert (losses[0] == 0) == (0 in masks)  # one of the two persons is nowhere
    gradients = torch.autograd.grad(sum(losses), edit)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
