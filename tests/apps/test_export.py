"""`efficientmt export`: whole trees, never among other files; the pack names what is missing in one line."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from animatediff import __version__
from animatediff.apps import export
from animatediff.apps.comfyui import workflows
from animatediff.errors import UserError
from animatediff.pipelines import METHODS

# No network, no command line; then with one of the dependencies gone.
IMPORT = """
import asyncio, logging, socket, sys
logging.basicConfig(format="%(message)s")
def refuse(*_, **__):
    raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
import importlib.util
def pack():
    folder = sys.argv[1]
    place = {"submodule_search_locations": [folder]}
    spec = importlib.util.spec_from_file_location("pack", folder + "/__init__.py", **place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
assert pack().comfy_entrypoint
assert not {"animatediff.command", "animatediff.inference.cli", "gradio"} & set(sys.modules), "the command line"
for name in [name for name in sys.modules if name.startswith("animatediff")]:
    del sys.modules[name]
sys.modules["omegaconf"] = None
assert pack().NODE_CLASS_MAPPINGS == {}
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "efficientmt"
    address = "https://example.org/anna/nodes"
    assert export.main(["comfyui", str(folder), "--publisher", "anna", "--repository", address]) == 0
    return folder


def test_what_comfyui_takes(pack: Path):
    project = tomllib.loads((pack / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__
    assert "comfyui" not in project["project"]["name"].lower()
    assert project["project"]["urls"]["Repository"] == "https://example.org/anna/nodes"
    assert (project["tool"]["comfy"]["PublisherId"], project["tool"]["comfy"]["DisplayName"]) == ("anna", "EfficientMT")
    needed = [Requirement(line) for line in (pack / "requirements.txt").read_text().splitlines()]
    assert [each.name for each in needed] == ["efficientmt"]
    assert needed[0].specifier.contains(__version__)
    assert (pack / "LICENSE").read_text().startswith("MIT")
    assert "__pycache__" in (pack / ".comfyignore").read_text()
    for name, _ in workflows.example_workflows():
        assert (pack / "example_workflows" / f"{name}.jpg").is_file()
        for path in (f"{name}.json", f"api/{name}.json"):
            assert json.loads((pack / "example_workflows" / path).read_text())


def test_every_node_has_a_help_page(pack: Path):
    pages = {path.stem: path.read_text() for path in (pack / "web" / "docs").iterdir()}
    parts = ["Load", "Extract", "Generate", "Evaluate", "Save", *(f"Settings_{name}" for name in METHODS)]
    assert set(pages) == {f"EfficientMT_{part}" for part in parts}
    assert "| seed | INT | `42`; 0 to " in pages["EfficientMT_Generate"]
    assert "| guidance_scale | FLOAT | `6.0`; 0 to 100 |" in pages["EfficientMT_Settings_efficientmt"]


def test_nothing_of_it_installs_or_evaluates(pack: Path, repository: Path):
    for path in [pack / "__init__.py", *(repository / "animatediff" / "apps" / "comfyui").rglob("*.py")]:
        text = path.read_text()
        for word in ("eval(", "exec(", "subprocess", "os.system", "pip.main", "urllib", "requests.", "hf_hub_download"):
            assert word not in text, (path, word)


def test_it_imports_alone_and_names_what_is_missing(pack: Path, repository: Path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(pack)], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "EfficientMT" in line]
    assert len(said) == 1
    assert said[0].startswith("EfficientMT has no nodes here: ")
    assert "omegaconf" in said[0]
    assert f"(pip install -r {pack}/requirements.txt)" in said[0]
    assert "Traceback" not in done.stderr


def test_without_the_package_it_is_one_line_too(pack: Path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "animatediff.apps.comfyui", None)
    spec = importlib.util.spec_from_file_location("pack", pack / "__init__.py", submodule_search_locations=[str(pack)])
    module = importlib.util.module_from_spec(spec)
    with caplog.at_level(logging.WARNING):
        spec.loader.exec_module(module)
    assert len(caplog.records) == 1
    assert module.NODE_CLASS_MAPPINGS == {}


def test_what_a_space_takes(tmp_path: Path, repository: Path):
    folder = tmp_path / "space"
    folder.mkdir()  # an empty folder will do
    assert export.main(["space", str(folder)]) == 0
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["app_file"], front["python_version"]) == ("gradio", "app.py", "3.12")
    needed = Requirement((folder / "requirements.txt").read_text().strip())
    assert (needed.name, needed.extras) == ("efficientmt", {"demo"})
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    gradio = Requirement(project["optional-dependencies"]["demo"][0])
    assert gradio.specifier.contains(front["sdk_version"])
    assert SpecifierSet(project["requires-python"]).contains(front["python_version"])
    torch = next(each for each in map(Requirement, project["dependencies"]) if each.name == "torch")
    assert all(torch.specifier.contains(f"2.{minor}.0") for minor in range(8, 12))  # ZeroGPU's
    compile((folder / "app.py").read_text(), "app.py", "exec")


@pytest.mark.parametrize("tree", export.TREES)
def test_a_folder_with_something_in_it_is_refused(tree, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; name a folder that is not there yet"):
        export.main([tree, str(tmp_path)])
    with pytest.raises(UserError, match="is a file"):
        export.main([tree, str(tmp_path / "mine.txt")])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch):
    def fail(_options):
        return {"a.txt": b"a", "b.txt": "no bytes"}

    monkeypatch.setitem(export.TREES, "comfyui", fail)
    with pytest.raises(TypeError):
        export.main(["comfyui", str(tmp_path / "new")])
    assert not list(tmp_path.iterdir())
