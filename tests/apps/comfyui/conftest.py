"""The stand-in of ComfyUI in place of its modules, with the nodes taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from animatediff.apps import comfyui
from tests.apps.comfyui.standin import Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server(tmp_path / "ComfyUI")
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    made.start(comfyui.comfy_entrypoint)
    return made
