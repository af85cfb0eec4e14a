"""The console command `efficientmt`: one word for each of the project's commands."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from animatediff import __version__
from animatediff.config import nearest
from animatediff.console import run_command
from animatediff.errors import UserError
from animatediff.project import PROGRAMS, PROJECT

COMMANDS = {  # word -> (the module or program that holds its `main`, what it does)
    "infer": (PROGRAMS["infer"], "make videos: the motion of a clip, the content of a sentence"),
    "demo": ("animatediff.apps.page.command", "the same on a web page"),
    "train": (PROGRAMS["train"], "train a method's adapter"),
    "evaluate": ("animatediff.evaluation.command", "measure outputs: table, JSON, CSV, HTML report"),
    "pairs": ("animatediff.curation.pairs", "make, filter and show training pairs"),
    "prepare": ("animatediff.pipelines.motionfollower.prepare.command", "two clips to skeletons, alignment and masks"),
    "download": ("animatediff.hub_download", "fetch published weights"),
    "convert": ("animatediff.pipelines.efficientmt.convert", "a published adapter to a folder, and back"),
    "benchmark": ("animatediff.benchmarks.command", "speed and memory as ratios, side by side"),
    "export": ("animatediff.apps.export", "the folder that ComfyUI takes, or a hub Space"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `efficientmt WORD ...`; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"efficientmt {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise UserError(f"unknown command '{words[0]}'; {nearest(words[0], list(COMMANDS))}")
    run: Callable[[Sequence[str]], int] = find(words[0]).main
    return run(words[1:])


def usage() -> str:
    """What there is, a line each."""
    lines = [f"  {word:10} {what}" for word, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: efficientmt COMMAND ...   (efficientmt COMMAND --help tells more)", "", *lines])


def find(word: str) -> ModuleType:
    """The module of a command: in the package, or one of the project's two programs."""
    place, _ = COMMANDS[word]
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"efficientmt_{word}", PROJECT / place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run() -> None:
    """The entry point: run the command and exit."""
    run_command(main)


if __name__ == "__main__":  # python -m animatediff.command, which launchers of several processes need
    run()
