"""What the wheel holds, that it runs away from the repository, and that its ranges admit the tested set."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from animatediff import __version__
from animatediff.project import PROGRAMS

SHARE = "animatediff/share"
RUN_ALL = """
import importlib, logging, os, pkgutil, sys
import accelerate, cv2, diffusers, matplotlib, peft, torch, transformers
def state():
    names = [None, "accelerate", "diffusers", "peft", "torch", "transformers"]
    return dict(os.environ), {name: logging.getLogger(name).level for name in names}
before = state()
import animatediff
for module in pkgutil.walk_packages(animatediff.__path__, "animatediff."):
    importlib.import_module(module.name)
assert state() == before, (before, state())
from animatediff import command
sys.argv[0] = "efficientmt"
for word in sys.argv[1:]:
    try:
        command.main([word, "--help"])
    except SystemExit as end:
        assert end.code == 0, word
print("in", *animatediff.__path__)
sys.exit(command.main(["infer", "--dry-run", "--jobs", "assets/jobs.jsonl"]))
"""


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(next(WheelBuilder(str(repository)).build(directory=str(tmp_path_factory.mktemp("wheel")))))


def below(folder: Path) -> list[str]:
    """The files of `folder`, as paths in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(folder).as_posix() for path in files]


def test_the_wheel_holds_the_package_and_what_it_reads_and_nothing_else(wheel: Path, repository: Path):
    miniatures = [path.name for path in (repository / "models").glob("miniature*")]
    assert "miniature" in miniatures
    expected = {f"animatediff/{name}" for name in below(repository / "animatediff")}
    for folder in ("configs", "assets", *(f"models/{name}" for name in miniatures)):
        expected |= {f"{SHARE}/{folder}/{name}" for name in below(repository / folder)}
    expected |= {f"{SHARE}/{name}" for name in ("inference.py", "train.py", "models/README.md")}
    about = f"efficientmt-{__version__}.dist-info"
    expected |= {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as file:
        assert set(file.namelist()) == expected
        assert "efficientmt = animatediff.command:run" in file.read(f"{about}/entry_points.txt").decode().splitlines()


def test_the_wheel_runs_from_any_folder_and_names_its_own_commands(wheel: Path, tmp_path: Path):
    """Every module is imported, too: that sets no log level and nothing in the environment."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *PROGRAMS],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"in {site}/animatediff" in done.stdout
    for word in PROGRAMS:
        assert f"usage: efficientmt {word} " in done.stdout
    assert "scripts/" not in done.stdout
    assert f"present  motion module: {site}/{SHARE}/models/miniature/" in done.stdout
    assert f"present  reference: {site}/{SHARE}/assets/references/" in done.stdout
    assert not list(elsewhere.iterdir())


def test_the_ranges_admit_every_pin(repository: Path):
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    needed = {Requirement(line).name: Requirement(line) for line in project["project"]["dependencies"]}
    more = [line for lines in (*extras.values(), project["build-system"]["requires"]) for line in lines]
    allowed = needed | {Requirement(line).name: Requirement(line) for line in more}
    pins = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = (repository / name).read_text().splitlines()
        pins |= {Requirement(line).name: Requirement(line) for line in lines if line[:1] not in ("", "#", "-")}
    assert set(needed) <= set(pins) <= set(allowed)
    for name, pin in pins.items():
        for clause in pin.specifier:
            if clause.operator == "==":
                assert allowed[name].specifier.contains(clause.version), f"{pin} is outside of {allowed[name]}"
            else:
                assert clause in list(allowed[name].specifier), f"{pin} is not {allowed[name]}"
