"""What decides a result, what a machine without optional packages does, and the shell scripts around the commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import make_dataclass, replace
from pathlib import Path

import pytest
import torch

from animatediff.config import option
from animatediff.hub import PUBLISHED, markdown_table
from animatediff.inference.run import fingerprint, located, missing_weights, read_run, reference_key
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Run


@pytest.fixture
def config(small_config: Path, clip: Path) -> Run:
    return read_run([small_config], [f"ref_video_path={clip}", "prompt=a fox"])


@pytest.fixture(autouse=True)
def _without_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_fingerprint_is_of_what_decides_the_pixels(config: Run, tmp_path: Path):
    moved = tmp_path / "moved.mp4"
    shutil.copy(config.ref_video_path, moved)
    same = [
        {"output_dir": "x"},
        {"gif": True},
        {"device": "auto"},
        {"dtype": "fp32"},
        {"offload": "model"},
        {"ref_video_path": str(moved)},
    ]
    for change in same:
        assert fingerprint(replace(config, **change)) == fingerprint(config), change
    different = [{"prompt": "b"}, {"seed": 1}, {"num_inference_steps": 3}, {"dtype": "bf16"}, {"ckpt_path": ""}]
    prints = {fingerprint(replace(config, **change)) for change in different} | {fingerprint(config)}
    assert len(prints) == len(different) + 1
    on_cuda = replace(config, device="cuda")
    assert fingerprint(on_cuda) == fingerprint(replace(config, dtype="fp16")) != fingerprint(config)
    assert fingerprint(replace(on_cuda, dtype="bf16")) == fingerprint(replace(config, dtype="bf16"))
    before = fingerprint(replace(config, ref_video_path=str(moved)))
    moved.write_bytes(moved.read_bytes() + b"x")
    assert fingerprint(replace(config, ref_video_path=str(moved))) != before


def test_the_fingerprint_outlives_new_methods_and_new_keys(config: Run, monkeypatch):
    before = fingerprint(config)
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    METHODS.register("newcomer", METHODS["motionclone"])
    assert fingerprint(replace(config)) == before
    settings = make_dataclass("Settings", [("new", int, option(3))], bases=(type(config.efficientmt),))
    section = settings(**vars(config.efficientmt))
    grown = make_dataclass("Grown", [("strength", float, option(1.0))], bases=(type(config),))
    assert fingerprint(grown(**vars(config) | {"efficientmt": section})) == before
    assert fingerprint(grown(**vars(config) | {"strength": 2.0})) != before
    assert fingerprint(grown(**vars(config) | {"efficientmt": replace(section, new=4)})) != before


def test_the_fingerprint_knows_what_the_base_model_predicts(config: Run, tmp_path: Path):
    folder = tmp_path / "base"
    (folder / "scheduler").mkdir(parents=True)
    elsewhere = replace(config, pretrained_model_path=str(folder))
    prints = {fingerprint(elsewhere)}
    for prediction in ("epsilon", "v_prediction"):
        (folder / "scheduler" / "scheduler_config.json").write_text(f'{{"prediction_type": "{prediction}"}}')
        prints.add(fingerprint(elsewhere))
    assert len(prints) == 3


def test_the_fingerprint_is_the_same_from_any_folder(config: Run, tmp_path, monkeypatch, repository: Path):
    inside = replace(config, motion_module_path="requirements.txt")
    monkeypatch.chdir(repository)
    here = fingerprint(located(inside))
    monkeypatch.chdir(tmp_path)
    assert located(inside).motion_module_path == str(repository / "requirements.txt")
    assert fingerprint(located(inside)) == here


def test_jobs_on_one_reference_share_its_pass(config: Run):
    assert reference_key(replace(config, prompt="b", seed=1, guidance_scale=1.0)) == reference_key(config)
    for change in ({"num_frames": 3}, {"height": 40}, {"fit": "crop"}, {"start": 1.0}, {"reference_seed": 1}):
        assert reference_key(replace(config, **change)) != reference_key(config)


def test_missing_weights_say_where_they_come_from(tmp_path: Path, monkeypatch, repository: Path):
    monkeypatch.chdir(tmp_path)
    config = read_run([repository / "configs" / "inference" / "efficientmt" / "sd15.yaml"])
    lines = missing_weights(located(config))
    names = {model.name for model in PUBLISHED if not model.optional and model.missing(repository / "models")}
    fetched = {line.rpartition("--only ")[2] for line in lines.values()}
    assert fetched == names
    assert all("fetch it with python scripts/download_models.py" in line for line in lines.values())


def test_the_table_of_weights_is_the_published_one(repository: Path):
    assert markdown_table() in (repository / "models" / "README.md").read_text()


def test_neither_decord_nor_xformers_is_needed(small_config: Path, clip: Path, repository: Path):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['decord', 'xformers', 'bitsandbytes', 'wandb']))\n"
        f"sys.path.insert(0, {str(repository)!r}); from animatediff.inference import cli\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    flags = ["--config", small_config, "--ref_video_path", clip, "--prompt", "x", "attention=xformers"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, flags)],
        cwd=small_config.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (small_config.parent / "outputs" / "clip" / "x-42.mp4").is_file()
    assert "using scaled_dot_product_attention" in done.stdout


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Path:
    """The scripts in a folder with a space in its name, beside an interpreter that writes down how it is called."""
    project = tmp_path / "a project"
    (project / "scripts").mkdir(parents=True)
    shutil.copy(repository / "infer.sh", project)
    shutil.copy(repository / "scripts" / "setup.sh", project / "scripts")
    for name in ("requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(repository / name, project)
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> "$LOG"\n[ "$1" = --version ] && echo Python 3.12.0\nexit 0\n')
    python.chmod(0o755)
    return project


def called(project: Path, script: str, *arguments: str) -> list[str]:
    """What the interpreter was called with while `script` ran in another folder."""
    log = project.parent / "log"
    log.write_text("")
    elsewhere = project.parent / "else where"
    elsewhere.mkdir(exist_ok=True)
    environment = os.environ | {"LOG": str(log), "PIP_INDEX_URL": "http://127.0.0.1:9/"}
    subprocess.run(["bash", str(project / script), *arguments], cwd=elsewhere, env=environment, check=True)
    return log.read_text().splitlines()


def test_infer_sh_sets_up_once_then_runs_the_bundled_jobs(project: Path):
    first = called(project, "infer.sh")
    installs = [line for line in first if " install " in line]
    torch = next(line for line in (project / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))
    assert [line.split()[-1] for line in installs] == [torch, "requirements.txt", "."]
    assert "--no-deps --no-build-isolation --editable ." in installs[-1]
    assert first[-1] == f"{project}/inference.py --jobs assets/jobs.jsonl"
    again = called(project, "infer.sh", "--config", "my config.yaml", "seed=1")
    assert not [line for line in again if " install " in line]
    assert again[-1] == f"{project}/inference.py --config my config.yaml seed=1"
    for name in ("requirements.txt", "pyproject.toml"):
        with open(project / name, "a") as file:
            file.write("# another\n")
        assert [line for line in called(project, "infer.sh") if " install " in line], name
    moved = project.rename(project.with_name("moved"))
    assert [line for line in called(moved, "infer.sh") if " install " in line], "it was installed as a path"


def test_setup_refuses_an_old_python_in_one_line(project: Path):
    shutil.rmtree(project / ".venv")
    tools = project.parent / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "grep", "cksum", "uname"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    (tools / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    (tools / "python3").chmod(0o755)
    script = str(project / "scripts" / "setup.sh")
    done = subprocess.run(["bash", script], env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Python 3.11 or newer is needed, found Python 3.8.1; install one, or name it")
    assert done.stderr.count("\n") == 1
    assert not (project / ".venv").exists()
