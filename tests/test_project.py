"""The project's commands under their two names, and what importing it does: nothing."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from animatediff import command
from animatediff.config import read_layers
from animatediff.errors import UserError
from animatediff.inference import cli
from animatediff.project import PROGRAMS, PROJECT, as_called


@pytest.fixture
def called_efficientmt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/efficientmt"])


class TestNames:
    def test_in_a_checkout_the_programs_are_named(self):
        text = "see python inference.py --help, python scripts/evaluate.py and train.py"
        assert as_called(text) == text

    @pytest.mark.usefixtures("called_efficientmt")
    def test_the_console_command_names_itself(self):
        text = "python scripts/evaluate.py x; accelerate launch scripts/make_pairs.py; jobs for inference.py, train.py"
        assert as_called(text) == (
            "efficientmt evaluate x; accelerate launch -m animatediff.command pairs; "
            "jobs for efficientmt infer, efficientmt train"
        )

    def test_every_command_is_a_program_too(self, repository: Path):
        assert list(command.COMMANDS) == list(PROGRAMS)
        for program in PROGRAMS.values():
            assert (repository / program).is_file()

    @pytest.mark.parametrize(("word", "called"), PROGRAMS.items())
    def test_a_mistake_is_one_line_that_names_the_command(self, word, called, monkeypatch):
        monkeypatch.setattr(sys, "argv", [called])
        with pytest.raises(UserError, match=f"see python {called} --help$|unknown flag '--nothing'"):
            command.main([word, "--nothing"])

    def test_an_unknown_word(self):
        with pytest.raises(UserError, match="unknown command 'evalute'; did you mean 'evaluate'"):
            command.main(["evalute"])


PROGRAM_FILES = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("scripts/*.py"))


@pytest.mark.parametrize("program", ["inference.py", "train.py", *PROGRAM_FILES])
def test_every_program_tells_its_usage(program: str, repository: Path, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        monkeypatch.setenv(f"{library}_VERBOSITY", "error")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(repository / program), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_earlier_places_of_configurations_still_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    moved = [(old, new) for _, table in read_layers(PROJECT / cli.MOVED) for old, new in table.value]
    assert ("configs/prompts/inference.yaml", "configs/inference/efficientmt/sd15.yaml") in [
        (old.value, new.value) for old, new in moved
    ]
    for old, new in moved:
        cli.main(["--dry-run", "--config", old.value])
        assert capsys.readouterr().out.startswith(f"{old.value} is {new.value} now\nmethod: ")


class TestImport:
    def test_the_package_and_its_command_load_no_library(self):
        code = "import os, sys; before = dict(os.environ); import animatediff, animatediff.command\n"
        code += "assert dict(os.environ) == before; print(*sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
        assert {"animatediff.command", "os"} <= set(found.stdout.split())
        assert not {"torch", "diffusers", "transformers", "cv2"} & set(found.stdout.split())

    def test_no_module_reads_the_environment(self):
        for path in (PROJECT / "animatediff").rglob("*.py"):
            assert not list(environment_at_import(ast.parse(path.read_text()))), path


def environment_at_import(node: ast.AST):
    """Lines that run when a module is imported and name os.environ or os.getenv."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Attribute) and child.attr in ("environ", "getenv"):
            yield child.lineno
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from environment_at_import(child)


def test_environment_at_import_finds_it():
    code = "import os\nclass A:\n    home = os.environ['HOME']\ndef f():\n    return os.getenv('HOME')\n"
    assert list(environment_at_import(ast.parse(code))) == [3]
