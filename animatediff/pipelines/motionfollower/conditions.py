"""What an edit is given: embeddings, skeletons, appearance and masks of every frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.networks import Networks, appearance_features, pose_features


class Conditioning(Protocol):
    """The conditions of a whole clip, which give those of some of its frames."""

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""

    @property
    def target_masks(self) -> torch.Tensor:
        """The whole clip's, (f 1 H W)."""

    def window(self, start: int, stop: int) -> Conditions:
        """The conditions of the frames start .. stop - 1."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions as the UNet takes them. UserError where they are not of one number of frames.

    embeds (1 f dim); source_pose, target_pose (1 c f h w) and appearance (one (1 c f h w) per down block), each None
    to leave it out; source_masks, target_masks (f 1 H W) in [0, 1].
    """

    embeds: torch.Tensor
    source_pose: torch.Tensor | None
    target_pose: torch.Tensor | None
    appearance: Sequence[torch.Tensor] | None
    source_masks: torch.Tensor
    target_masks: torch.Tensor

    def __post_init__(self) -> None:
        counts = {"embeds": self.embeds.shape[1]}
        counts |= {name: len(getattr(self, name)) for name in ("source_masks", "target_masks")}
        poses = {name: getattr(self, name) for name in ("source_pose", "target_pose")}
        counts |= {name: pose.shape[2] for name, pose in poses.items() if pose is not None}
        counts |= {f"appearance {i}": feature.shape[2] for i, feature in enumerate(self.appearance or ())}
        check_counts(counts)

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self.embeds.shape[1]

    def window(self, start: int, stop: int) -> Conditions:
        """The conditions of the frames start .. stop - 1."""
        frames = slice(start, stop)
        return Conditions(
            embeds=self.embeds[:, frames],
            source_pose=None if self.source_pose is None else self.source_pose[:, :, frames],
            target_pose=None if self.target_pose is None else self.target_pose[:, :, frames],
            appearance=None if self.appearance is None else [feature[:, :, frames] for feature in self.appearance],
            source_masks=self.source_masks[frames],
            target_masks=self.target_masks[frames],
        )


@dataclass(frozen=True, kw_only=True)
class FrameConditions:
    """Conditions as images, whose controllers run for the frames of a window alone: memory for clips of any length.

    embeds (1 f dim); frames (f 3 H W) in [-1, 1]; source_poses, target_poses (f 3 H W) in [0, 1]; masks (f 1 H W) in
    [0, 1]; appearance_scale: weight of the frames' features, 0 leaves them out. UserError where the numbers of frames
    differ.
    """

    networks: Networks
    embeds: torch.Tensor
    frames: torch.Tensor
    source_poses: torch.Tensor
    target_poses: torch.Tensor
    source_masks: torch.Tensor
    target_masks: torch.Tensor
    appearance_scale: float = 1.0

    def __post_init__(self) -> None:
        names = ("frames", "source_poses", "target_poses", "source_masks", "target_masks")
        check_counts({"embeds": self.embeds.shape[1]} | {name: len(getattr(self, name)) for name in names})

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self.embeds.shape[1]

    @torch.no_grad()
    def window(self, start: int, stop: int) -> Conditions:
        """The conditions of the frames start .. stop - 1, on the device of the embeddings."""
        networks, device, frames = self.networks, self.embeds.device, slice(start, stop)
        controller = networks.pose_controller
        return Conditions(
            embeds=self.embeds[:, frames],
            source_pose=pose_features(controller, self.source_poses[frames]).to(device),
            target_pose=pose_features(controller, self.target_poses[frames]).to(device),
            appearance=self._appearance(frames),
            source_masks=self.source_masks[frames].to(device),
            target_masks=self.target_masks[frames].to(device),
        )

    def _appearance(self, frames: slice) -> list[torch.Tensor] | None:
        if not self.appearance_scale:
            return None
        found = appearance_features(self.networks.appearance_controller, self.frames[frames])
        return [self.appearance_scale * feature.to(self.embeds.device) for feature in found]


def check_counts(counts: dict[str, int]) -> None:
    """UserError unless all counts of frames, by what is counted, are the same."""
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"the numbers of frames differ ({listed}); give as many of each, or set num_frames")
