"""Scoped access to a network: read submodules' outputs, swap submodules, stop or save gradient midway, halve a batch.

All are context managers over explicitly given modules and leave nothing behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn


Key = TypeVar("Key")


@contextmanager
def capture(
    modules: Mapping[Key, nn.Module], keep: Callable[[Any], Any] = lambda output: output
) -> Iterator[dict[Key, Any]]:
    """Yield a dictionary that fills, while the network runs, with `keep(output)` of each of `modules`.

    The keys are those of `modules`. A module that runs twice leaves its last output. Gradients flow through what
    was captured; the network computes exactly what it computes without `capture`.
    """
    outputs: dict[Key, Any] = {}

    def recorder(name: Key) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = keep(output)

        return record

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(recorder(name)).remove)
        yield outputs


_CLAIM = threading.Lock()  # held while paths are claimed or given back, never while a network runs


@contextmanager
def inject(root: nn.Module, replacements: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the block, the submodules of `root` at the given dotted paths are `replacements`.

    Replacements are made in the order given (a child before a parent that holds it) and undone in reverse, also
    when the block ends with an exception. AttributeError where a path does not exist, RuntimeError where a path is
    already replaced (by a run in another thread, or around this one); then nothing is replaced.
    """
    _claim(root, replacements)
    originals: dict[str, nn.Module] = {}
    try:
        originals |= {path: root.get_submodule(path) for path in replacements}
        for path, module in replacements.items():
            root.set_submodule(path, module)
        yield
    finally:
        for path in reversed(originals):
            root.set_submodule(path, originals[path])
        _give_back(root, replacements)


def injected_paths(root: nn.Module) -> frozenset[str]:
    """The paths at which `root` is replaced at this moment."""
    return frozenset(root.__dict__.get("_injected", ()))


def _claim(root: nn.Module, paths: Iterable[str]) -> None:
    with _CLAIM:
        taken = root.__dict__.setdefault("_injected", set())
        twice = sorted(taken.intersection(paths))
        if twice:
            raise RuntimeError(f"{twice[0]} is already replaced: a network serves one run at a time")
        taken.update(paths)


def _give_back(root: nn.Module, paths: Iterable[str]) -> None:
    with _CLAIM:
        taken = root.__dict__.get("_injected", set())
        taken.difference_update(paths)
        if not taken:
            root.__dict__.pop("_injected", None)


@contextmanager
def guidance_interval(unet: nn.Module, low: float, high: float) -> Iterator[None]:
    """Inside the block classifier-free guidance acts at timesteps from `low` to below `high`, and costs nothing elsewhere.

    unet: called with a batch [without, with] the text, (sample, timestep, **conditions), as diffusers' pipelines do.
    Outside the interval only the second half is run and stands for both, whose difference is then zero
    (Kynkaanniemi et al. 2024, Applying Guidance in a Limited Interval).
    """

    def halve(_unet: nn.Module, inputs: tuple[Any, ...], conditions: dict[str, Any]) -> tuple[Any, Any] | None:
        sample, timestep, *rest = inputs
        if low <= timestep < high:
            return None
        return (_second_half(sample), timestep, *_second_half(rest)), _second_half(conditions)

    def double(_unet: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not low <= inputs[1] < high:
            output.sample = torch.cat([output.sample] * 2)

    with ExitStack() as hooks:
        hooks.callback(unet.register_forward_pre_hook(halve, with_kwargs=True).remove)
        hooks.callback(unet.register_forward_hook(double).remove)
        yield


def _second_half(value: Any) -> Any:
    """Of every tensor in `value` (also in lists and dictionaries) the second half along its first axis.

    The arguments of attention processors, masks above all, have no halves.
    """
    if isinstance(value, dict):
        return {name: part if name == "cross_attention_kwargs" else _second_half(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_second_half(part) for part in value]
    return value.chunk(2)[1] if isinstance(value, torch.Tensor) else value


class _Reached(Exception):
    """Raised by `stop_after` to leave a forward pass; never leaves the block."""


@contextmanager
def stop_after(module: nn.Module) -> Iterator[None]:
    """The first run of `module` inside the block is the last thing that happens there: the block ends after it.

    For a forward pass of which only the beginning is wanted. Gradients flow through what was captured before. A block
    in which `module` never runs ends as any other.
    """
    reached = _Reached()

    def stop(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        raise reached

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _Reached as signal:
        if signal is not reached:  # that of a block around this one
            raise
    finally:
        handle.remove()


@contextmanager
def gradient_until(module: nn.Module) -> Iterator[None]:
    """Inside the block gradients are recorded until `module` has run, and not after it.

    The gradient mode from before is back when the block ends.
    """

    def switch_off(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        torch.set_grad_enabled(False)

    handle = module.register_forward_hook(switch_off)
    try:
        with torch.enable_grad():
            yield
    finally:
        handle.remove()
