"""FreeNoise (Qiu et al., ICLR 2024, arXiv 2310.15169) on this backbone: temporal attention in overlapping windows.

diffusers turns it on by rebuilding the blocks of the motion modules, and its split inference by wrapping them. Here
is what else has to know of that: the reference pass, the sites of an adapter, overrides by path.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers.models.attention import FreeNoiseTransformerBlock
from diffusers.pipelines.free_noise_utils import SplitInferenceModule
from torch import nn

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class FrameWindow:
    """Frames from `start` to before `stop` that attend to each other, and the weight of each in the mean."""

    start: int
    stop: int
    weights: tuple[float, ...]


def frame_windows(block: nn.Module, num_frames: int) -> list[FrameWindow]:
    """The windows in which a temporal transformer block sees `num_frames`: one without FreeNoise.

    The last window ends with the last frame. num_frames is at least the windows' length.
    """
    if not isinstance(block, FreeNoiseTransformerBlock):
        return [FrameWindow(0, num_frames, (1.0,) * num_frames)]
    length, last = block.context_length, num_frames - block.context_length
    starts = sorted({*range(0, last + 1, block.context_stride), last})
    weights = tuple(block._get_frame_weights(length, block.weighting_scheme))
    return [FrameWindow(start, start + length, weights) for start in starts]


def blend(parts: Iterable[torch.Tensor], windows: Sequence[FrameWindow]) -> torch.Tensor:
    """The weighted mean over `windows`, which cover f frames, of their `parts`, each (n length c): (n f c)."""
    total: torch.Tensor | None = None
    shares = torch.zeros(windows[-1].stop)
    for window, part in zip(windows, parts, strict=True):
        weights = torch.tensor(window.weights)
        if total is None:
            total = part.new_zeros(len(part), len(shares), part.shape[2])
        total[:, window.start : window.stop] += part * weights[:, None].to(part)
        shares[window.start : window.stop] += weights
    assert total is not None
    return total / shares[:, None].to(total)


def unwrapped(module: nn.Module) -> nn.Module:
    """`module` without the wrapper of split inference."""
    return module.module if isinstance(module, SplitInferenceModule) else module


def unwrapped_path(root: nn.Module, path: str) -> str:
    """The dotted `path` of a submodule as it is now, led through the wrappers of split inference."""
    names: list[str] = []
    module = root
    for name in path.split("."):
        if isinstance(module, SplitInferenceModule):
            names.append("module")
            module = module.module
        names.append(name)
        module = module.get_submodule(name)
    return ".".join([*names, "module"]) if isinstance(module, SplitInferenceModule) else ".".join(names)


def whole_clip_blocks(unet: nn.Module, num_frames: int) -> dict[str, nn.Module]:
    """What to `inject` into `unet` so that its temporal blocks see all of `num_frames` at once; nothing as a rule."""
    blocks: dict[str, nn.Module] = {}
    for path, module in unet.named_modules():
        if path.rpartition(".")[0].endswith(".transformer_blocks") and ".motion_modules." in path:
            block = unwrapped(module)
            if isinstance(block, FreeNoiseTransformerBlock):
                block = shallow_copy(block)
                block.set_free_noise_properties(num_frames, num_frames, "flat")
            if block is not module:
                blocks[path] = block
    return blocks


def remove_split_inference(root: nn.Module) -> None:
    """Take the wrappers of split inference out of `root`."""
    for path, module in list(root.named_modules()):
        if isinstance(module, SplitInferenceModule):
            root.set_submodule(path.replace(".module.", "."), module.module)


class SplitByName(SplitInferenceModule):
    """SplitInferenceModule for a module that is called by position, as the middle block without motion modules does."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The wrapped module's result, from its arguments in parts."""
        named = dict(zip(inspect.signature(self.module.forward).parameters, args, strict=False))
        return super().forward(**named, **kwargs)


def split_by_name(root: nn.Module) -> None:
    """Have the wrappers of split inference in `root` take arguments by position too."""
    for path, module in list(root.named_modules()):
        if type(module) is SplitInferenceModule:
            parts = (module.module, module.split_size, module.split_dim, list(module.input_kwargs_to_split))
            root.set_submodule(path, SplitByName(*parts))


def is_split(root: nn.Module) -> bool:
    """Whether split inference is on in `root`."""
    return any(isinstance(module, SplitInferenceModule) for module in root.modules())


def shallow_copy(module: M) -> M:
    """A module of the same children and parameters, whose own attributes can change."""
    other = copy.copy(module)
    other._parameters = dict(module._parameters)
    for hook in ("forward", "_old_forward", "_hf_hook"):  # offloading hooks are bound to the original
        other.__dict__.pop(hook, None)
    return other
