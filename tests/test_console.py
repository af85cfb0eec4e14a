"""How a command ends: exit status, one line on stderr, and nothing half-written, whatever ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from animatediff.console import run_command
from animatediff.errors import UserError

WRITER = """
import sys, time
from animatediff.console import run_command
from animatediff.files import atomic_path
def main():
    with atomic_path(sys.argv[1]) as part:
        part.write_text("half")
        try:
            print("writing", flush=True)
            time.sleep(60)
        finally:
            print("cleaning", flush=True)
            time.sleep(float(sys.argv[2]))
run_command(main)
"""


def ended(main: Callable[[], int]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code


def test_statuses_and_lines(capsys: pytest.CaptureFixture[str]):
    def refuse() -> int:
        raise UserError("seed is\n-1, expected 0 or more")

    assert ended(lambda: 1) == 1
    assert ended(refuse) == 2
    assert capsys.readouterr().err == "error: seed is -1, expected 0 or more\n"
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("again", [0, 1])
def test_a_signal_ends_in_one_line_with_nothing_half_written(
    tmp_path: Path, repository: Path, number: signal.Signals, status: int, word: str, again: int
):
    """A second signal, while the first one's clean-up goes on, changes nothing."""
    target = tmp_path / "a.txt"
    target.write_text("old")
    command = [sys.executable, "-c", WRITER, str(target), "0.3" if again else "0"]
    with subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        assert process.stdout.readline() == "cleaning\n"
        for _ in range(again):
            process.send_signal(number)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == status
    assert errors == f"{word}: whatever was finished is kept\n"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert target.read_text() == "old"


def test_a_third_signal_ends_a_clean_up_that_does_not(tmp_path: Path, repository: Path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.txt"), "60"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.stdout.readline()
        while process.poll() is None:  # two signals that come at once may be one
            process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM


def test_handlers_are_as_before_and_threads_set_none():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found: list[object] = []
    assert ended(lambda: 0) == 0
    thread = threading.Thread(target=lambda: found.append(ended(lambda: 3)))
    thread.start()
    thread.join()
    assert found == [3]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_command_that_is_told_to_ignore_ctrl_c_does(repository: Path):
    """As a shell tells its background jobs."""
    code = (
        "import os, signal; from animatediff.console import run_command; run_command(lambda: os.kill(os.getpid(), 2))"
    )
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.SIG_IGN); {code}"]
    assert subprocess.run(command, cwd=repository, check=False).returncode == 0
