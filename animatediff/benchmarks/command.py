"""What the method costs, side by side in one run, on random weights of Stable Diffusion 1.5's shapes.

    python scripts/benchmark.py                               on a CPU the first five parts, on CUDA all
    python scripts/benchmark.py --only training,motionclone   the parts named
    python scripts/benchmark.py --only step --minutes 60 --rounds 9

Parts: step (a guided sampling step with and without reference, and diffusers' network), memory (one backbone against
the published two), phases (where a transfer's time goes), commands (ten prompts in one run of inference.py against ten
runs), reading (16 frames of a one-hour clip and of 1,000 short ones), training (a training step), motionclone (its
guided step), ditflow (its guided step against the published form, on CogVideoX-2b's widths with fewer blocks; 24 frames
of 352x240 where nothing else is said), motionfollower (its guided step against the published form; 8 frames). Times are
medians over interleaved rounds; ratios are taken round by round. On a CPU ratios are of processor time, which other
programs disturb least, and the first five parts are meant to take 8 minutes at most on two cores with nothing else to
do. The table is printed; the JSON holds everything.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from animatediff.benchmarks.commands import measure_commands
from animatediff.benchmarks.ditflow import measure_ditflow
from animatediff.benchmarks.guidance import measure_guidance
from animatediff.benchmarks.memory import measure_memory
from animatediff.benchmarks.motionfollower import measure_motionfollower, motionfollower_setup
from animatediff.benchmarks.networks import SCALES, Setup
from animatediff.benchmarks.phases import measure_phases
from animatediff.benchmarks.reading import measure_reading
from animatediff.benchmarks.report import table
from animatediff.benchmarks.sampling import measure_step
from animatediff.benchmarks.timing import isolated
from animatediff.benchmarks.training import measure_training
from animatediff.config import nearest
from animatediff.console import Parser
from animatediff.errors import UserError
from animatediff.files import write_json

# Part -> its share of the time, in the order in which they run.
SHARES = {
    "step": 0.3,
    "memory": 0.1,
    "phases": 0.1,
    "commands": 0.15,
    "reading": 0.05,
    "training": 0.15,
    "motionclone": 0.15,
    "ditflow": 0.15,
    "motionfollower": 0.15,
}
WITH_GRADIENTS = ("training", "motionclone", "ditflow", "motionfollower")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen parts one after the other, each in processes of its own; print, and write the JSON.

    Returns the exit status: 1 if a part could not be measured, which leaves the others as they are.
    """
    options = parse(arguments)
    setup = build_setup(options)
    parts = select(options.only, setup.device)
    results: dict[str, Any] = {}
    report = {"machine": machine(setup), "seconds": 0.0, "parts": results}
    started, failed = time.perf_counter(), False
    for part in parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        if time.perf_counter() - started > 60 * options.minutes:
            results[part] = {"skipped": f"{options.minutes:g} minutes had passed; --only {part} measures it"}
        else:
            share = SHARES[part] / sum(SHARES[name] for name in parts)
            own = replace(setup, seconds=60 * options.minutes * share)
            try:
                results[part] = {"setup": asdict(own)} | measure(part, own, options)
            except UserError as error:
                results[part], failed = {"skipped": str(error)}, True
        report["seconds"] = time.perf_counter() - started
        write_json(options.output, report)
    print(table(results))
    print(f"\n{report['seconds']:.0f} s in all; every figure in {options.output}")
    return int(failed)


def measure(part: str, setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """What one part found."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: isolated(measure_step, setup),
        "memory": lambda: measure_memory(setup),
        "phases": lambda: measure_phases(replace(setup, rounds=min(setup.rounds, 2))),
        "commands": lambda: measure_commands(options.config, options.overrides, singles=min(setup.rounds, 10)),
        "reading": lambda: measure_reading(rounds=min(setup.rounds, 5)),
        "training": lambda: measure_training(setup),
        "motionclone": lambda: measure_guidance(setup),
        "ditflow": lambda: measure_ditflow(ditflow_setup(setup, options)),
        "motionfollower": lambda: measure_motionfollower(motionfollower_setup(setup, options.frames)),
    }
    return parts[part]()


def build_setup(options: argparse.Namespace) -> Setup:
    """The Setup that the options ask for; on CUDA clips are 512x512 and rounds more."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device == "cpu"
    side = 128 if on_cpu else 512
    setup = Setup(
        scale=options.scale,
        device=device,
        frames=options.frames or 16,
        height=options.height or side,
        width=options.width or side,
        rounds=options.rounds or (3 if on_cpu else 20),
    )
    for name in ("height", "width"):
        if getattr(setup, name) % 64:
            raise UserError(f"{name} is {getattr(setup, name)}, expected a multiple of 64")
    return setup


def ditflow_setup(setup: Setup, options: argparse.Namespace) -> Setup:
    """`setup` at the size at which the published form's maps are large and still fit, where none is given."""
    return replace(setup, frames=options.frames or 24, height=options.height or 240, width=options.width or 352)


def select(only: str, device: str) -> list[str]:
    """The parts named in a comma-separated list, in order; for an empty one those that are quick on the device."""
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    for name in chosen:
        if name not in SHARES:
            raise UserError(f"unknown part '{name}'; {nearest(name, list(SHARES))}")
    quick = [name for name in SHARES if device != "cpu" or name not in WITH_GRADIENTS]
    return [name for name in SHARES if name in (chosen or quick)]


def machine(setup: Setup) -> dict[str, Any]:
    """What the figures were measured on and how busy it was."""
    return {
        "device": torch.cuda.get_device_name(setup.device) if setup.device.startswith("cuda") else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser("benchmark", __doc__)
    parser.add_argument("--only", default="", help=f"comma-separated parts of {', '.join(SHARES)} (default: see above)")
    parser.add_argument("--scale", default="sd15", choices=sorted(SCALES), help="shapes of the weights")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--frames", type=positive, help="of a clip (default 16; ditflow 24, motionfollower 8)")
    parser.add_argument("--height", type=positive, help="of a clip in pixels (default 128 on a CPU, 512 on CUDA)")
    parser.add_argument("--width", type=positive, help="likewise")
    parser.add_argument("--rounds", type=positive, help="measurements of each variant (default 3 on a CPU, 20 on CUDA)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no round or part starts after these (default 8)")
    parser.add_argument("--config", default="configs/inference/default.yaml", help="of inference.py, for `commands`")
    parser.add_argument("--output", default="outputs/benchmark.json", help="where the JSON goes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of that config")
    return parser.parse_intermixed_args(arguments)


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
