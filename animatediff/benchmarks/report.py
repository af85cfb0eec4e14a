"""The measurements as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

GIB = 1 << 30


class Row(NamedTuple):
    """One line: what was measured, the figure, its ratio and the goal for that ratio (None: no goal)."""

    part: str
    what: str
    figure: str
    ratio: str = ""
    value: float | None = None
    goal: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the goal is met; empty where there is none."""
        if self.goal is None or self.value is None:
            return ""
        return f"<= {self.goal:.2f}: {'met' if self.value <= self.goal else 'MISSED'}"


def table(parts: dict[str, Any]) -> str:
    """All parts' rows as a Markdown table; parts that were skipped say why."""
    rows = [row for name, result in parts.items() for row in rows_of(name, result)]
    cells = [("part", "what", "figure", "ratio", "goal")]
    cells += [(row.part, row.what, row.figure, row.ratio, row.verdict) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_line(line, widths) for line in (cells[0], rule, *cells[1:]))


def rows_of(name: str, result: dict[str, Any]) -> Iterator[Row]:
    """The rows of one part by its name and what it measured."""
    if "skipped" in result:
        yield Row(name, "skipped", result["skipped"])
        return
    yield from READERS[name](result)


def _step_rows(result: dict[str, Any]) -> Iterator[Row]:
    words = {
        "plain": ("backbone alone", None),
        "prepared": ("with reference, constants once", 1.06),
        "unprepared": ("with reference, constants in every step", None),
        "direct": ("with reference, equations as written", None),
        "stock": ("diffusers' UNetMotionModel", None),
    }
    for name, values in result["variants"].items():
        what, goal = words[name]
        yield _timed("step", what, values, goal)
    counted = result["operations"]
    share = counted["prepared"] / counted["plain"]
    yield Row("step", "operations, with reference / alone", f"{counted['prepared']:.3e}", f"{share:.3f}", share, 1.06)
    # "Not slower than stock" is a ratio of ours to stock, the inverse of the one measured.
    steadiest = result["variants"]["stock"][_clock(result["variants"]["stock"])]["ratio"]["median"]
    yield Row("step", "backbone alone / diffusers'", "", f"{1 / steadiest:.3f}", 1 / steadiest, 1.0)


def _memory_rows(result: dict[str, Any]) -> Iterator[Row]:
    goals = {"shared": 0.6}
    words = {"shared": "one backbone and adapter", "published": "two UNets, features in a file"}
    yield from _compared("memory", result, words, goals)


def _phase_rows(result: dict[str, Any]) -> Iterator[Row]:
    for name, phase in result["phases"].items():
        yield Row("phases", name, f"{phase['seconds']:.1f} s", f"{phase['share']:.1%} of all")
    ten = result["ten_prompts"]
    figure = f"{ten['one_run']:.0f} s against {ten['single_runs']:.0f} s"
    yield Row("phases", "10 prompts in one run / 10 single runs, by these phases", figure, f"{ten['ratio']:.3f}")


def _command_rows(result: dict[str, Any]) -> Iterator[Row]:
    for clock, words in (("wall", "on the clock"), ("cpu", "of processor time")):
        values = result[clock]
        figure = f"{values['one_run']:.1f} s against {values['single_runs']:.1f} s {words}"
        what = f"{result['prompts']} prompts in one run / {result['prompts']} single runs"
        yield Row("commands", what, figure, f"{values['ratio']:.3f}")


def _reading_rows(result: dict[str, Any]) -> Iterator[Row]:
    hours, clips = f"{result['seconds'] / 3600:g} h", result["clips"]
    for name, what in (
        ("long", f"16 frames of a clip of {hours}"),
        ("short", f"16 frames of each of {clips} short clips"),
    ):
        wall, cpu = (result[name][clock]["median"] for clock in ("wall", "cpu"))
        yield Row("reading", what, f"{wall:.2f} s ({cpu:.2f} s of processor time)")


def _training_rows(result: dict[str, Any]) -> Iterator[Row]:
    words = {
        "published": "two UNets, features in a file",
        "shared": "one backbone",
        "shared, checkpointed": "one backbone, gradient checkpointing",
    }
    for name, values in result["time"].items():
        yield _timed("training", words[name], values, None)
    yield from _compared("training", result["memory"], words, {})
    counts = result["parameters"]
    figure = f"{counts['adapter'] / 1e6:.2f} M in {counts['adapter_tensors']} tensors"
    yield Row("training", "trained parameters", figure, f"{counts['adapter'] / counts['backbone']:.1%} of the frozen")


def _guidance_rows(result: dict[str, Any]) -> Iterator[Row]:
    words = {
        "plain": "plain step, classifier-free guidance",
        "guided": "MotionClone's guided step",
        "guided, checkpointed": "guided step, gradient checkpointing",
    }
    for name, values in result["time"].items():
        yield _timed("motionclone", words[name], values, 2.2 if name == "guided" else None)
    yield from _compared("motionclone", result["memory"], words, {"guided, checkpointed": 1.5})


def _ditflow_rows(result: dict[str, Any]) -> Iterator[Row]:
    words = {
        "published": "the published form of the guided step",
        "ours, checkpointed": "DiTFlow's guided step, gradient checkpointing",
        "ours": "DiTFlow's guided step",
        "plain": "plain step, classifier-free guidance",
    }
    for name, values in result["time"].items():
        yield _timed("ditflow", words[name], values, 0.5 if name == "ours" else None)
    for name in words:
        above = result["memory"][name]["peak"] - result["memory"][name]["weights"]
        base = result["memory"]["published"]["peak"] - result["memory"]["published"]["weights"]
        ratio, goal = above / max(base, 1), 0.35 if name == "ours, checkpointed" else None
        yield Row("ditflow", words[name], f"{above / GIB:.2f} GiB above the weights", f"{ratio:.3f}", ratio, goal)
    largest = max(result["difference"].values())
    yield Row("ditflow", f"largest difference of latents, at {result['tokens']} tokens", f"{largest:.1e}")


def _motionfollower_rows(result: dict[str, Any]) -> Iterator[Row]:
    words = {
        "published": f"the published form of guided step {result['step']}",
        "ours, checkpointed": "MotionFollower's guided step, gradient checkpointing",
        "ours": "MotionFollower's guided step",
        "plain": "the same step without score guidance",
    }
    for name, values in result["time"].items():
        yield _timed("motionfollower", words[name], values, 0.6 if name == "ours" else None)
    yield from _compared("motionfollower", result["memory"], words, {"ours": 0.5, "ours, checkpointed": 0.5})
    camera = result["camera"]
    figure = f"{camera['ours'] / GIB:.3f} GiB against {camera['published'] / GIB:.3f} GiB"
    yield Row("motionfollower", "keys and values kept in camera mode", figure)
    largest = max(result["difference"].values())
    yield Row("motionfollower", "largest relative difference of latents", f"{largest:.1e}")


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "step": _step_rows,
    "memory": _memory_rows,
    "phases": _phase_rows,
    "commands": _command_rows,
    "reading": _reading_rows,
    "training": _training_rows,
    "motionclone": _guidance_rows,
    "ditflow": _ditflow_rows,
    "motionfollower": _motionfollower_rows,
}


def _timed(part: str, what: str, values: dict[str, Any], goal: float | None) -> Row:
    """Seconds on both clocks; the ratio is that of processor time where there is one."""
    clock = _clock(values)
    ratio = values[clock]["ratio"]
    figure = f"{values['wall']['seconds']:.2f} s"
    if clock == "cpu":
        figure += f" ({values['cpu']['seconds']:.2f} s of processor time)"
    text = f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
    return Row(part, what, figure, text, ratio["median"], goal)


def _compared(part: str, memory: dict[str, Any], words: dict[str, str], goals: dict[str, float]) -> Iterator[Row]:
    """Peaks of the schemes that `words` names; a part's result holds its setup, too."""
    for name, values in ((name, memory[name]) for name in words if name in memory):
        figure = f"peak {values['peak'] / GIB:.2f} GiB ({values['weights'] / GIB:.2f} with weights alone)"
        text = f"{values['ratio']:.3f} ({values['ratio_above_start']:.3f} without the libraries)"
        yield Row(part, words[name], figure, text, values["ratio"], goals.get(name))


def _clock(values: dict[str, Any]) -> str:
    return "cpu" if "cpu" in values else "wall"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
