"""Embedding and track metrics: the published value to 1e-6, and ours on tracks made by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from animatediff.evaluation.metrics import (
    motion_fidelity,
    motion_fidelity_per_step,
    temporal_consistency,
    text_alignment,
    track_distance,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "ditflow"
FRAMES = 9


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "motion_fidelity.safetensors"), json.loads((GOLDEN / "manifest.json").read_text())


def walk(*directions, steps=FRAMES - 1, start=(0.0, 0.0)):
    """One track per direction (degrees), two pixels a step: [N, steps + 1, 2]."""
    angles = torch.deg2rad(torch.tensor(directions, dtype=torch.float64))
    step = 2 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.tensor(start).double() + step[:, None] * torch.arange(steps + 1)[None, :, None]


def still(count, frames=FRAMES):
    return torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(0)).double().expand(count, frames, 2) * 50


# ---------------------------------------------------------------------------------------------- published value


@pytest.mark.parametrize(
    ("first", "second", "score"),
    [
        ("edit", "original", "edit_original"),
        ("original", "edit", "original_edit"),
        ("original", "original", "self"),
    ],
)
def test_compat_equals_the_published_script(golden, first, second, score):
    tensors, manifest = golden
    ours = motion_fidelity(tensors[first], tensors[second], compat="ditflow")
    assert ours == pytest.approx(manifest["scores"][score], abs=1e-6)


def test_compat_keeps_the_published_nan(golden):
    tensors, _ = golden
    edit = tensors["edit"].clone()
    edit[0, 3] = edit[0, 2]
    assert math.isnan(motion_fidelity(edit, tensors["original"], compat="ditflow"))
    assert math.isfinite(motion_fidelity(edit, tensors["original"]))


def test_compat_ignores_visibility_as_published(golden):
    tensors, manifest = golden
    hidden = torch.zeros(7, 9, dtype=torch.bool)
    ours = motion_fidelity(tensors["edit"], tensors["original"], hidden, compat="ditflow")
    assert ours == pytest.approx(manifest["scores"]["edit_original"], abs=1e-6)


def test_compat_needs_equal_numbers_and_a_known_name(golden):
    tensors, _ = golden
    with pytest.raises(ValueError, match="7 and 6"):
        motion_fidelity(tensors["edit"], tensors["original"][:6], compat="ditflow")
    with pytest.raises(ValueError, match="'dmt'"):
        motion_fidelity(tensors["edit"], tensors["original"], compat="dmt")


# ---------------------------------------------------------------------------------------------- ours


def test_a_video_is_wholly_faithful_to_itself(golden):
    original = golden[0]["original"]
    assert motion_fidelity(original, original) == pytest.approx(1, abs=1e-6)


def test_both_directions_count():
    both, one = walk(0, 90), walk(0)
    # back: the first finds its like, the second a right angle; forth: the only track finds its like
    assert motion_fidelity(one, both) == pytest.approx((1 + (1 + 0) / 2) / 2)
    assert motion_fidelity(one, both) == pytest.approx(motion_fidelity(both, one))


def test_moving_everywhere_it_is_the_mean_of_the_papers_two_directions(golden):
    a, b = golden[0]["edit"].double(), golden[0]["original"].double()[:5, :9]
    u, v = ((s := p.diff(dim=1)) / s.norm(dim=-1, keepdim=True) for p in (a, b))
    correlation = torch.einsum("ntc,mtc->nmt", u, v).mean(-1)
    expected = (correlation.amax(1).mean() + correlation.amax(0).mean()) / 2
    assert motion_fidelity(a, b) == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(("turn", "score"), [(0, 1.0), (60, 0.5), (90, 0.0), (180, -1.0)])
def test_value_is_the_cosine_between_directions(turn, score):
    assert motion_fidelity(walk(10 + turn), walk(10)) == pytest.approx(score, abs=1e-12)


def test_still_against_moving_is_the_lowest_value_and_still_against_still_the_highest():
    moving = torch.cat([walk(30), still(20)])
    assert motion_fidelity(still(20), moving) == -1
    assert motion_fidelity(moving, still(20)) == -1
    assert motion_fidelity(still(3), still(20)) == 1


def test_a_still_background_neither_helps_nor_hurts():
    alone = motion_fidelity(walk(60), walk(0))
    among = motion_fidelity(torch.cat([walk(60), still(40)]), torch.cat([walk(0), still(9)]))
    assert alone == pytest.approx(among) == pytest.approx(0.5)


def test_static_threshold_is_in_pixels():
    jitter = still(1) + 0.05 * torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double().repeat(5, 1)[None, :FRAMES]
    assert motion_fidelity(jitter, walk(0), static=0.1) == -1
    assert motion_fidelity(jitter, still(4), static=0.1) == 1
    assert motion_fidelity(jitter, walk(0), static=0.01) > -1


def test_start_and_stop_is_half_faithful_to_moving_throughout():
    halting = walk(0)
    halting[:, 5:] = halting[:, 4:5]  # four steps, then none
    # forth: its 4 moving steps agree; back: 4 of 8 agree, 4 stand (-1); shares 1/2 and 1
    assert motion_fidelity(halting, walk(0)) == pytest.approx((0.5 * 1 + 1 * 0) / 1.5)


def test_hidden_positions_never_count():
    a, b = walk(0, 45), walk(0, 45)
    seen = torch.ones(2, FRAMES, dtype=torch.bool)
    seen[:, 5:] = False
    broken = b.clone()
    broken[:, 5:] = float("nan")
    assert motion_fidelity(a, broken, None, seen) == pytest.approx(1)
    assert track_distance(a, broken, None, seen) == pytest.approx(0)
    backwards = b.clone()
    backwards[:, 5:] = b[:, 4:5] - (b[:, 5:] - b[:, 4:5])
    assert motion_fidelity(a, backwards) < 0.5
    assert motion_fidelity(a, backwards, None, seen) == pytest.approx(1)


def test_a_partner_met_for_one_step_only_does_not_count():
    track, reference = walk(0), torch.cat([walk(90), walk(0)])
    seen = torch.ones(2, FRAMES, dtype=torch.bool)
    seen[1, 2:] = False  # the right partner is seen for one step of eight
    forth_and_back = (0 * 1 + (1 / 2) * 0 + (1 / 16) * 1) / (1 + 1 / 2 + 1 / 16)
    assert motion_fidelity(track, reference, None, seen) == pytest.approx(forth_and_back, abs=1e-12)


def test_nothing_in_common_is_nan():
    none = torch.zeros(0, FRAMES, 2)
    early, late = torch.zeros(2, 1, FRAMES, dtype=torch.bool)
    early[:, :4], late[:, 5:] = True, True
    assert math.isnan(motion_fidelity(none, walk(0)))
    assert math.isnan(motion_fidelity(walk(0), none))
    assert math.isnan(motion_fidelity(walk(0), walk(0), early, late))
    assert math.isnan(track_distance(walk(0), walk(0), early, late))
    assert math.isnan(motion_fidelity(walk(0)[:, :1], walk(0)[:, :1]))


def test_per_step_shows_when_the_motion_goes_wrong_and_averages_to_the_whole():
    reference, tracks = walk(0), walk(0)
    tracks[:, 5:] = tracks[:, 4:5] - (tracks[:, 5:] - tracks[:, 4:5])  # turns back after four steps
    profile = motion_fidelity_per_step(tracks, reference)
    assert profile.tolist() == pytest.approx([1, 1, 1, 1, -1, -1, -1, -1])
    assert profile.mean().item() == pytest.approx(motion_fidelity(tracks, reference))


def test_arrays_and_tensors_give_the_same(golden):
    a, b = golden[0]["edit"], golden[0]["original"]
    seen = torch.rand(7, 9, generator=torch.Generator().manual_seed(1)) > 0.2
    assert motion_fidelity(a.numpy(), b.numpy(), seen.numpy()) == motion_fidelity(a, b, seen)
    assert isinstance(motion_fidelity(a.numpy(), np.asarray(b)), float)


@pytest.mark.parametrize(
    ("tracks", "seen", "message"),
    [
        (torch.zeros(3, 9), None, r"\[3, 9\]; expected \[N, T, 2\]"),
        (torch.zeros(3, 9, 2), torch.ones(3, 8), r"\[3, 8\]; expected \[3, 9\]"),
        (torch.full((3, 9, 2), float("nan")), None, "not finite"),
    ],
)
def test_wrong_shapes_and_nan_are_named(tracks, seen, message):
    with pytest.raises(ValueError, match=message):
        motion_fidelity(tracks, walk(0), seen)


# ---------------------------------------------------------------------------------------------- distance, embeddings


def test_track_distance_is_the_mean_pixel_distance_and_counts_moving_tracks():
    shifted = walk(0) + torch.tensor([3.0, 4.0])
    assert track_distance(shifted, walk(0)) == pytest.approx(5)
    with_background = torch.cat([shifted, still(30) + 500])
    assert track_distance(with_background, torch.cat([walk(0), still(30) + 500])) == pytest.approx(5)
    assert track_distance(still(3) + 2, still(3) + 2) == 0


def test_track_distance_takes_the_nearest_path_in_both_directions():
    near, far = walk(0), walk(0) + torch.tensor([0.0, 40.0])
    # forth 0; back: 0 for one of the two reference paths and 40 for the other
    assert track_distance(near, torch.cat([near, far])) == pytest.approx((0 + 20) / 2)


def test_embedding_metrics_are_mean_cosines():
    frames = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert text_alignment(frames, torch.tensor([5.0, 0.0])) == pytest.approx((1 + 0 - 1) / 3)
    assert temporal_consistency(frames) == pytest.approx(0)
    assert temporal_consistency(frames[[0, 0, 1]]) == pytest.approx(0.5)
    assert math.isnan(temporal_consistency(frames[:1]))
