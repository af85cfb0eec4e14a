"""The exported pack in a real ComfyUI on the CPU: every example workflow, pictures and videos of its own nodes, Cancel,
freeing memory, help pages.

    COMFYUI_PATH=/path/to/ComfyUI pytest tests/apps/comfyui/test_real.py

COMFYUI_PATH holds main.py, and where it has a venv/ that one's Python runs it (else COMFYUI_PYTHON, else this one).
This project's dependencies must be installed there. Without COMFYUI_PATH these tests are left out: they take minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from animatediff.apps import export
from animatediff.apps.comfyui import workflows
from animatediff.data.video import read_frames
from tests.browser import Browser

COMFYUI = os.environ.get("COMFYUI_PATH", "")
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(not COMFYUI, reason="no COMFYUI_PATH: a real ComfyUI takes minutes"),
]
EXAMPLES = dict(workflows.example_workflows())
MINUTES = 15 * 60


class Real:
    """A server in a base folder of its own, asked over HTTP."""

    def __init__(self, base: Path) -> None:
        self.base = base
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def command(self) -> list[str]:
        venv = Path(COMFYUI, "venv", "bin", "python")
        python = str(venv) if venv.is_file() else os.environ.get("COMFYUI_PYTHON", sys.executable)
        flags = ["--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base)]
        return [python, "main.py", *flags, "--database-url", "sqlite:///:memory:"]

    def ask(self, path: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text.startswith((b"{", b"[")) else text.decode()

    def queue(self, prompt: dict[str, Any]) -> str:
        return self.ask("/prompt", {"prompt": prompt})["prompt_id"]

    def wait(self, number: str) -> dict[str, Any]:
        """The history of a prompt that has ended."""
        until = time.monotonic() + MINUTES
        while time.monotonic() < until:
            history = self.ask(f"/history/{number}")
            if number in history and history[number]["status"]["status_str"]:
                return history[number]
            time.sleep(0.5)
        raise AssertionError(f"{number} did not end")

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The outputs of a workflow: node -> what it shows."""
        ended = self.wait(self.queue(prompt))
        assert ended["status"]["status_str"] == "success", ended["status"]["messages"][-1]
        return ended["outputs"]

    def frames(self, shown: dict[str, Any]) -> np.ndarray:
        file = shown["images"][0]
        return read_frames(self.base / file["type"] / file["subfolder"] / file["filename"], None).frames


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Real]:
    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    assert export.main(["comfyui", str(base / "custom_nodes" / "efficientmt")]) == 0
    (base / "input").mkdir()
    for clip in sorted((repository / "assets" / "references").glob("*.mp4"))[:1]:
        shutil.copy(clip, base / "input" / "clip.mp4")
    server = Real(base)
    with open(base / "log.txt", "w") as log, subprocess.Popen(
        server.command(), cwd=COMFYUI, stdout=log, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
    ) as process:  # fmt: skip
        try:
            for _ in range(600):
                assert process.poll() is None, (base / "log.txt").read_text()[-2000:]
                with contextlib.suppress(OSError):
                    if server.ask("/object_info/EfficientMT_Load"):
                        break
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()


def short(name: str, **given: Any) -> dict[str, Any]:
    """A workflow with other values, by "<node number>_<input>"."""
    prompt = workflows.api_format(EXAMPLES[name])
    for key, value in given.items():
        number, _, slot = key.removeprefix("n").partition("_")
        prompt[number]["inputs"][slot] = value
    return prompt


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_workflow_makes_a_video_that_moves(real: Real, name: str):
    outputs = real.run(workflows.api_format(EXAMPLES[name]))
    frames = real.frames(outputs["6"]).astype(float)
    assert len(frames) == len(outputs["7"]["images"])
    assert frames.std() > 10
    assert np.abs(np.diff(frames, axis=0)).max() > 30
    fidelity = float(outputs["5"]["text"][0].split("motion fidelity: ")[1].split()[0])
    print(f"{name}: motion fidelity {fidelity}")
    assert fidelity > 0.3


def test_a_video_and_images_of_its_own_nodes_give_the_same(real: Real):
    prompt = short("efficientmt_miniature", n2_num_inference_steps=2, n3_example="none")
    prompt["10"] = {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}
    prompt["11"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["10", 0]}}
    prompt["3"]["inputs"]["video"] = ["10", 0]
    prompt["12"] = {
        "class_type": "SaveVideo",
        "inputs": {"video": ["4", 1], "filename_prefix": "own", "format": "auto", "codec": "auto"},
    }
    by_video = real.run(prompt)
    assert len(real.frames(by_video["12"])) == 16
    del prompt["3"]["inputs"]["video"]
    prompt["3"]["inputs"]["images"] = ["11", 0]
    by_images = real.run(prompt)
    assert np.array_equal(real.frames(by_video["6"]), real.frames(by_images["6"]))
    kept = by_images["6"]["images"][0]["filename"].replace(".mp4", "ref_video")
    assert len(list((real.base / "output" / "EfficientMT" / kept).iterdir())) == 16


def test_comfyuis_own_page_reads_a_workflow_as_it_is_meant(real: Real, browser: Browser):
    """Opened in the page, a workflow becomes the prompt that its API format is."""
    browser.page.goto(f"http://127.0.0.1:{real.port}")
    browser.wait_for("Boolean(window.app && window.app.graph && document.querySelector('canvas'))")
    for name, steps in EXAMPLES.items():
        workflow = json.dumps(workflows.page_format(steps))
        asked = browser.evaluate(
            f"(async () => {{ await app.loadGraphData({workflow}); return (await app.graphToPrompt()).output }})()"
        )
        wanted = workflows.api_format(steps)
        assert {number: node["class_type"] for number, node in asked.items()} == {
            number: node["class_type"] for number, node in wanted.items()
        }
        for number, node in wanted.items():
            assert asked[number]["inputs"] == node["inputs"], (name, node["class_type"])


def test_cancel_and_free(real: Real):
    name = "motionclone_miniature" if "motionclone_miniature" in EXAMPLES else next(iter(EXAMPLES))
    number = real.queue(short(name, n4_seed=7))
    while not real.ask("/queue")["queue_running"]:
        time.sleep(0.2)
    time.sleep(6)
    real.ask("/interrupt", {})
    ended = real.wait(number)
    assert any(message[0] == "execution_interrupted" for message in ended["status"]["messages"])
    real.ask("/free", {"unload_models": True})
    real.run(short("efficientmt_miniature", n2_num_inference_steps=2, n4_seed=8))
    real.ask("/free", {"unload_models": True, "free_memory": True})
    real.run(short("efficientmt_miniature", n2_num_inference_steps=2, n4_seed=9))


def test_a_mistake_is_told_by_the_node(real: Real):
    prompt = short("efficientmt_miniature", n2_height=65, n2_num_inference_steps=2)
    ended = real.wait(real.queue(prompt))
    kind, said = ended["status"]["messages"][-1]
    assert kind == "execution_error"
    assert said["node_type"] == "EfficientMT_Extract"
    assert said["exception_message"].startswith("height x width is 65x64, expected multiples of 8")


def test_help_pages_and_templates_are_served(real: Real):
    page = real.ask("/extensions/efficientmt/docs/EfficientMT_Generate.md")
    assert page.startswith("# Generate by motion")
    assert set(real.ask("/workflow_templates")["efficientmt"]) == set(EXAMPLES)
