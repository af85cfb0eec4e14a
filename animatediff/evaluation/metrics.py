"""Measures of a motion transfer, as pure functions of embeddings and point tracks. Nothing here reads a file.

Tracks are [N, T, 2]: N points, T frames, (x, y) in pixels, the centre of the top left pixel at (0, 0). Visibility is
[N, T], true where the point is seen; None means seen everywhere. Tensors and arrays of any float type are taken; the
results are Python floats (NaN where there is nothing to measure), or tensors where a value per frame is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ArrayLike: TypeAlias = Tensor | NDArray[np.generic] | Sequence[Sequence[Sequence[float]]]
STATIC_STEP = 1e-2  # pixels: a shorter step from frame to frame counts as standing still


# ---------------------------------------------------------------------------------------------- embeddings


def text_alignment_per_frame(frames: Tensor, text: Tensor) -> Tensor:
    """cos(frame, text) for every frame: frames [f, d], text [d], not necessarily unit length -> [f], -1..1."""
    return F.cosine_similarity(frames.float(), text.float()[None], dim=-1)


def text_alignment(frames: Tensor, text: Tensor) -> float:
    """Mean over frames of cos(CLIP image embedding, CLIP text embedding); higher is better, -1..1.

    frames [f, d], text [d]. Source: CLIPScore (Hessel et al. 2021, without its factor 2.5 and its clipping at 0) over
    frames, as used for video since Tune-A-Video (Wu et al. 2023). Papers that print 20 to 35 show 100 times this.
    """
    return text_alignment_per_frame(frames, text).mean().item()


def temporal_consistency_per_step(frames: Tensor) -> Tensor:
    """cos(frame k, frame k + 1): frames [f, d] -> [f - 1], -1..1."""
    return F.cosine_similarity(frames[:-1].float(), frames[1:].float(), dim=-1)


def temporal_consistency(frames: Tensor) -> float:
    """Mean cosine of the embeddings of adjacent frames; frames [f, d]; NaN for a single frame; -1..1.

    Source: "frame consistency" of Tune-A-Video (Wu et al. 2023), with CLIP or, as VBench's subject consistency, DINO
    embeddings. A still video has the highest value there is, 1: read it beside a measure of motion.
    """
    return temporal_consistency_per_step(frames).mean().item()


# ---------------------------------------------------------------------------------------------- tracks


class Steps(NamedTuple):
    """Frame-to-frame displacements of a set of tracks, by kind."""

    unit: Tensor  # [N, T-1, 2] direction of a moving step, zero for every other
    moving: Tensor  # [N, T-1] 1 where seen in both frames and at least the threshold long
    still: Tensor  # [N, T-1] 1 where seen in both frames and shorter

    @property
    def seen(self) -> Tensor:
        return self.moving + self.still

    @property
    def share(self) -> Tensor:
        """[N] the part of all steps at which a track is seen moving."""
        return self.moving.sum(1) / max(1, self.moving.shape[1])


class Matches(NamedTuple):
    """For every track of a set, the track of the other set that is most like it."""

    partner: Tensor  # [N] its number in the other set
    score: Tensor  # [N]
    weight: Tensor  # [N] how much the track counts
    found: Tensor  # [N] whether any track of the other set is seen together with it


def motion_fidelity(
    tracks: ArrayLike,
    reference_tracks: ArrayLike,
    visibility: ArrayLike | None = None,
    reference_visibility: ArrayLike | None = None,
    compat: str | None = None,
    static: float = STATIC_STEP,
) -> float:
    """How far the points of a video move in the directions in which points of the reference move: -1..1, 1 is best.

    Args:
        tracks: [N, T, 2] of the generated video, pixels.
        reference_tracks: [M, T', 2] of the reference; N and M may differ. Frame k is compared with frame k, over the
            frames that both have.
        visibility, reference_visibility: [N, T], [M, T'] or None (all seen).
        compat: None, or "ditflow" for the published script's value.
        static: a step shorter than this many pixels stands still.

    Source: Yatim et al. 2024 (Space-Time Diffusion Features for Zero-Shot Text-Driven Motion Transfer), motion
    fidelity: the correlation of two tracks is the mean over time of the cosine between their frame-to-frame
    displacements, c(n, m) = mean_t cos(v_n(t), w_m(t)); every track takes its best partner in the other set, and both
    directions count. Ours is

        fidelity = sum_n a_n max_m c(n -> m) + sum_m b_m max_n c(m -> n),    sum a + sum b = 1

    with what the paper leaves open settled so:

    - Standing still. c(n -> m) is the mean over the steps at which n moves: of the cosine where m moves too, of -1
      where m stands still. A track counts by the number of steps at which it is seen moving, as a share of its set's
      N (T-1) steps; a_n, b_m are these shares, scaled to sum to 1. So a background that stands still in both videos
      neither helps nor hurts, a still copy of a moving reference has the lowest value there is (-1), and two still
      videos have 1 by definition. Where every point moves, this is the mean of the paper's two directions (half of
      its sum).
    - Visibility. A step is used where the point is seen in both of its frames, and a pair of tracks is compared over
      the steps at which both are seen; a partner must share at least half as many steps as the best overlap that the
      track finds, so that two points that meet for one frame do not count as alike.
    - Nothing tracked, or no step seen in common: NaN.

    The measure is blind to speed and place: a zoom out holds every direction that a zoom in does, so the two are
    alike to it. track_distance and global_motion_error see the difference.

    compat="ditflow" is the value of the evaluation script published with DiTFlow (Pondaven et al. 2025), kept to
    compare with printed numbers. It differs from the above thus: it is one-sided (tracks towards the reference only);
    the identity matrix is subtracted from c(n, m), although n and m belong to different videos, which takes 1 from
    every equally numbered pair and needs N = M; a single step without any displacement makes the result NaN;
    visibility and `static` are ignored, so lost points count; T is cut to the shorter, silently; every track counts
    the same, whether or not it moves.
    """
    if compat == "ditflow":
        return _ditflow_fidelity(*_prepare(tracks, reference_tracks, None, None)[:2])
    if compat is not None:
        raise ValueError(f"compat is {compat!r}; expected None or 'ditflow'")
    a, b, seen_a, seen_b = _prepare(tracks, reference_tracks, visibility, reference_visibility)
    one, other = _steps(a, seen_a, static), _steps(b, seen_b, static)
    if not (one.seen @ other.seen.T).any():
        return float("nan")
    forth, back = _match_steps(one, other), _match_steps(other, one)
    total = forth.weight.sum() + back.weight.sum()
    if total == 0:
        return 1.0
    return (((forth.weight * forth.score).sum() + (back.weight * back.score).sum()) / total).item()


def motion_fidelity_per_step(
    tracks: ArrayLike,
    reference_tracks: ArrayLike,
    visibility: ArrayLike | None = None,
    reference_visibility: ArrayLike | None = None,
    static: float = STATIC_STEP,
) -> Tensor:
    """Where in time `motion_fidelity` comes from: [T-1], -1..1, NaN at steps where nothing moves.

    At each step, the mean agreement between every moving track (of either set) and the partner it has in
    motion_fidelity. Arguments as there.
    """
    a, b, seen_a, seen_b = _prepare(tracks, reference_tracks, visibility, reference_visibility)
    one, other = _steps(a, seen_a, static), _steps(b, seen_b, static)
    total = torch.zeros(one.seen.shape[1], dtype=a.dtype, device=a.device)
    weight = torch.zeros_like(total)
    for own, far in ((one, other), (other, one)):
        match = _match_steps(own, far)
        if not match.found.any():
            continue
        partner = Steps(*(kind[match.partner] for kind in far))
        counts = own.moving * partner.seen / len(own.moving)  # [N, T-1]
        agreement = (own.unit * partner.unit).sum(-1) - own.moving * partner.still  # [N, T-1]
        total = total + (counts * agreement).sum(0)
        weight = weight + counts.sum(0)
    return total / weight.where(weight > 0, torch.full_like(weight, float("nan")))


def track_distance(
    tracks: ArrayLike,
    reference_tracks: ArrayLike,
    visibility: ArrayLike | None = None,
    reference_visibility: ArrayLike | None = None,
    static: float = STATIC_STEP,
) -> float:
    """How far, in pixels, the paths of a video lie from the nearest paths of the reference; 0 is best.

    The distance of two tracks is mean_t |p_n(t) - q_m(t)| over the frames where both are seen; every track takes its
    nearest partner in the other set, and tracks count as in motion_fidelity: by how much they move (all alike where
    nothing moves in either video). Arguments as there; with one track in each set it is the plain mean distance. NaN
    where nothing is seen in common. Both videos must have the same size. It is a Chamfer distance between sets of
    trajectories and, unlike motion_fidelity, sees speed, size of the motion and place.
    """
    a, b, seen_a, seen_b = _prepare(tracks, reference_tracks, visibility, reference_visibility)
    overlap = seen_a @ seen_b.T  # [N, M] frames seen in common
    total = torch.zeros_like(overlap)
    for k in range(a.shape[1]):
        apart = torch.cdist(a[:, k], b[:, k], compute_mode="donot_use_mm_for_euclid_dist")  # [N, M]
        total += apart * seen_a[:, k, None] * seen_b[None, :, k]
    mean = total / overlap.clamp(min=1)
    share, other_share = _steps(a, seen_a, static).share, _steps(b, seen_b, static).share
    if not share.any() and not other_share.any():
        share, other_share = torch.ones_like(share), torch.ones_like(other_share)
    forth = _best(-mean, overlap, share)
    back = _best(-mean.T, overlap.T, other_share)
    weight = forth.weight.sum() + back.weight.sum()
    if weight == 0:
        return float("nan")
    return (((forth.weight * forth.score).sum() + (back.weight * back.score).sum()) / weight).abs().item()


# ---------------------------------------------------------------------------------------------- parts


def _prepare(
    tracks: ArrayLike, reference: ArrayLike, visibility: ArrayLike | None, reference_visibility: ArrayLike | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sets and their visibility (1 or 0) as floating tensors over the frames that both have."""
    a, seen_a = check_tracks(tracks, visibility, "tracks")
    b, seen_b = check_tracks(reference, reference_visibility, "reference_tracks")
    frames = min(a.shape[1], b.shape[1])
    b, seen_b = b.to(a), seen_b.to(a)
    return a[:, :frames], b[:, :frames], seen_a[:, :frames], seen_b[:, :frames]


def check_tracks(tracks: ArrayLike, visibility: ArrayLike | None, name: str = "tracks") -> tuple[Tensor, Tensor]:
    """Tracks [N, T, 2] and visibility [N, T] (1 or 0) as floating tensors; hidden points are set to 0.

    Positions of hidden points, NaN included, therefore never reach a result. ValueError on other shapes, and on a
    position that is not finite but is said to be seen.
    """
    points = torch.as_tensor(tracks)
    points = points if points.is_floating_point() else points.float()
    if points.ndim != 3 or points.shape[-1] != 2:
        raise ValueError(f"{name} has shape {list(points.shape)}; expected [N, T, 2]")
    if visibility is None:
        seen = torch.ones_like(points[..., 0], dtype=torch.bool)
    else:
        seen = torch.as_tensor(visibility).to(points.device).bool()
    if seen.shape != points.shape[:2]:
        raise ValueError(f"the visibility of {name} has shape {list(seen.shape)}; expected {list(points.shape[:2])}")
    points = points.where(seen[..., None], torch.zeros_like(points))
    if not points.isfinite().all():
        raise ValueError(f"{name} holds positions that are not finite at points said to be seen")
    return points, seen.to(points)


def _steps(points: Tensor, seen: Tensor, static: float) -> Steps:
    step = points[:, 1:] - points[:, :-1]  # [N, T-1, 2]
    length = step.norm(dim=-1)  # [N, T-1]
    both = seen[:, 1:] * seen[:, :-1]
    moving = both * (length >= static) * (length > 0)
    unit = step / length.where(moving > 0, torch.ones_like(length))[..., None] * moving[..., None]
    return Steps(unit, moving, both - moving)


def _match_steps(own: Steps, far: Steps) -> Matches:
    """For every track of `own` its best partner in `far`, by c(n -> m) of motion_fidelity."""
    agreement = own.unit.flatten(1) @ far.unit.flatten(1).T - own.moving @ far.still.T  # [N, M] sums over steps
    overlap = own.moving @ far.seen.T  # [N, M] steps at which n moves and m is seen
    return _best(agreement / overlap.clamp(min=1), overlap, own.share)


def _best(score: Tensor, overlap: Tensor, share: Tensor) -> Matches:
    """For every row of score [N, M] its greatest entry among those with enough overlap; rows without any weigh 0."""
    if 0 in score.shape:
        none = score.new_zeros(score.shape[0])
        return Matches(none.long(), none, none, none.bool())
    most = overlap.amax(1, keepdim=True)  # [N, 1]
    allowed = (overlap > 0) & (overlap * 2 >= most)
    best, index = score.masked_fill(~allowed, float("-inf")).max(1)
    found = most[:, 0] > 0
    return Matches(index, best.where(found, torch.zeros_like(best)), share * found / len(share), found)


def _ditflow_fidelity(edit: Tensor, original: Tensor) -> float:
    """The published one-sided score; its faults are listed in motion_fidelity."""
    if len(edit) != len(original):
        raise ValueError(f"compat='ditflow' needs equal numbers of tracks; got {len(edit)} and {len(original)}")
    u, v = (
        (step := points[:, 1:] - points[:, :-1]) / step.norm(dim=-1, keepdim=True)  # [N, T-1, 2]
        for points in (edit, original)
    )
    similarity = (u.flatten(1) @ v.flatten(1).T) / u.shape[1]  # [N, N]
    return (similarity - torch.eye(len(u)).to(similarity)).amax(1).mean().item()
