"""app.py as a hub Space runs it, as far as that can be had without the hub: a stand-in for the hub's `spaces`."""

from __future__ import annotations

import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from animatediff.project import PROJECT

pytest.importorskip("gradio", reason='gradio is not installed: pip install "efficientmt[demo]"')

APP = PROJECT / "animatediff" / "apps" / "space" / "app.py"


def test_without_the_hub_nothing_is_borrowed(monkeypatch):
    monkeypatch.setenv("EFFICIENTMT_OUTPUT", "kept/here")
    options = runpy.run_path(str(APP))["read_options"]()

    def produce() -> None:
        return None

    assert options.gpu(produce) is produce
    assert (options.output, options.host, options.port) == (Path("kept/here"), "0.0.0.0", 7860)


def test_on_zerogpu_the_function_that_makes_videos_is_decorated(monkeypatch):
    spaces = ModuleType("spaces")
    spaces.__spec__ = ModuleSpec("spaces", None)
    spaces.GPU = lambda duration: lambda function: ("borrowed", duration, function)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("EFFICIENTMT_GPU_SECONDS", "60")
    options = runpy.run_path(str(APP))["read_options"]()
    assert options.gpu(len) == ("borrowed", 60, len)
