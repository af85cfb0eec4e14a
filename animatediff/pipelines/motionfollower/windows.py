"""Clips longer than the motion modules were trained on: overlapping windows, whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from animatediff.errors import UserError
from animatediff.models.unet import MAX_FRAMES

STRIDE_PER_STEP = 7  # by how many frames the inner windows move on from one step to the next


def window_starts(num_frames: int, i: int, length: int = 24, overlap: int = 8) -> list[int]:
    """Where the windows of step `i` start: one at 0, one that ends with the clip, others `length - overlap` apart.

    The inner ones move from step to step, so that no seam stays where it is. A clip no longer than `length` is one
    window. UserError for lengths that the motion modules do not have, and overlaps that leave gaps.
    """
    if not 1 <= length <= MAX_FRAMES:
        raise UserError(f"window is {length}, expected 1 to {MAX_FRAMES} frames (the motion modules' positions)")
    if not 0 <= overlap < length:
        raise UserError(f"overlap is {overlap}, expected 0 to {length - 1}: fewer frames than window")
    last = num_frames - length
    if last <= 0:
        return [0]
    stride = length - overlap
    inner = range(STRIDE_PER_STEP * i % stride, last, stride)
    return sorted({0, last, *inner})


def window_weights(length: int) -> torch.Tensor:
    """The weight of each frame of a window, float32 (length,): 1 at both ends, rising to the middle."""
    places = torch.arange(length)
    return torch.minimum(places + 1, length - places).float()


class Blend:
    """The weighted mean of what the windows of a clip gave: tensors (1 c f h w), f the frames of a window."""

    def __init__(self, starts: Sequence[int], num_frames: int, length: int) -> None:
        self.starts, self.num_frames = starts, num_frames
        self.weights = window_weights(min(length, num_frames))
        total = torch.zeros(num_frames)
        for start in starts:
            total[start : start + len(self.weights)] += self.weights
        self.total = total
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, start: int, value: torch.Tensor) -> None:
        """Add what the window at `start` gave. A single window's value is kept as it is, to the bit."""
        if len(self.starts) == 1:
            self.sums[name] = value
            return
        if name not in self.sums:
            self.sums[name] = value.new_zeros(*value.shape[:2], self.num_frames, *value.shape[3:])
        frames = slice(start, start + value.shape[2])
        share = (self.weights / self.total[frames]).to(value)[:, None, None]  # f 1 1
        self.sums[name][:, :, frames] += share * value

    def mean(self, name: str) -> torch.Tensor | None:
        """The whole clip's; None where no window gave any."""
        return self.sums.get(name)


def free_noise(noise: torch.Tensor, length: int, overlap: int, generator: torch.Generator | None) -> torch.Tensor:
    """Initial noise (1 c f h w) whose windows share their frames' noise in other orders (Qiu et al. 2023, FreeNoise).

    The frames that a window adds take those of the window before it, shuffled. A clip of one window is as it was.
    """
    noise, stride = noise.clone(), length - overlap
    for start in range(length, noise.shape[2], stride):
        order = torch.randperm(stride, generator=generator) + start - length
        count = min(stride, noise.shape[2] - start)
        noise[:, :, start : start + count] = noise[:, :, order[:count]]
    return noise
