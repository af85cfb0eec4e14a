"""Interleaved timing, peak memory, and parts that run in a process of their own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from animatediff import memory
from animatediff.errors import UserError

T = TypeVar("T")
Times = dict[str, list[dict[str, float]]]


def stopwatch(action: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds on the clock ("wall") and, on the CPU, of processor time over all threads ("cpu") that `action` takes.

    On a machine that others use too, processor time is the steadier of the two.
    """
    _synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    _synchronise(device)
    seconds = {"wall": time.perf_counter() - wall}
    return seconds if device.startswith("cuda") else {**seconds, "cpu": time.process_time() - cpu}


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    device: str,
    rounds: int,
    seconds: float,
    warm_up: Sequence[str] = (),
) -> Times:
    """Times of every variant, one call of each per round, each round starting with another variant.

    First the variants named in `warm_up`, on CUDA all of them, run once untimed. Stops after `rounds`, or before a
    round once `seconds` have passed, warming up included; one round always runs.
    """
    names, end = list(variants), time.perf_counter() + seconds
    for name in names if device.startswith("cuda") else warm_up:
        variants[name]()
    times: Times = {name: [] for name in names}
    for i in (bar := tqdm(range(rounds), unit="round", leave=False)):
        if i and time.perf_counter() > end:
            break
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(stopwatch(variants[name], device))
            bar.set_postfix_str(f"{name} {times[name][-1]['wall']:.2f} s")
    return times


def summarise(times: Times, baseline: str) -> dict[str, Any]:
    """Median seconds of each variant, and its ratio to `baseline` round by round: median, lowest, highest."""
    clocks = list(times[baseline][0])
    return {
        name: {
            clock: {
                "seconds": statistics.median(run[clock] for run in runs),
                "ratio": spread([run[clock] / base[clock] for run, base in zip(runs, times[baseline], strict=True)]),
            }
            for clock in clocks
        }
        | {"rounds": len(runs)}
        for name, runs in times.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of `values`."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def isolated(function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)` in a fresh process, so that its peak memory is its own. UserError if it is killed."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"{function.__name__} was killed, most likely for want of memory; use --scale tiny"
            ) from error


def peak_memory(device: str) -> int:
    """Highest memory of this process so far, in bytes. UserError where the system does not tell it (Windows)."""
    return _told(memory.peak_memory(device))


def memory_now(device: str) -> int:
    """Memory of this process at this moment, in bytes. UserError where the system does not tell it (Windows)."""
    return _told(memory.memory_now(device))


def _told(found: int | None) -> int:
    if found is None:
        raise UserError("this system does not tell a process its memory; choose parts without it by --only step,phases")
    return found


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
