"""efficientmt demo: the web page."""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from animatediff.apps.page.access import LOOPBACK
from animatediff.apps.page.options import Options
from animatediff.console import Parser
from animatediff.errors import UserError
from animatediff.files import check_writable
from animatediff.inference.run import run_of
from animatediff.pipelines import METHODS

INSTALL = 'pip install "efficientmt[demo]"'


def main(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the command until it is interrupted."""
    options = read_options(arguments, description or __doc__)
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"the page needs gradio, which is not installed; {INSTALL}")
    from animatediff.apps.page.server import serve

    with serve(options) as url:
        print(f"open {url} in a browser; results go to {options.output}/; Ctrl-C ends it", flush=True)
        while True:
            time.sleep(3600)


def read_options(arguments: Sequence[str] | None, description: str | None) -> Options:
    """The command line. UserError for what no page can be started with."""
    told = parse(arguments, description)
    overrides = dict(text.partition("=")[::2] for text in told.overrides)
    run_of([], [f"{key}={text}" for key, text in overrides.items()])
    for method in METHODS.values():
        for key in overrides:
            if key.startswith(f"{method.name}."):
                raise UserError(f"'{key}' is a key of method={method.name}; give keys that every method has")
    user, colon, password = (told.auth or "").partition(":")
    if told.auth is not None and not (user and colon and password):
        raise UserError("--auth is not USER:PASSWORD; give both, as in --auth anna:secret")
    if told.host not in LOOPBACK and not password:
        raise UserError(
            f"--host {told.host} lets other machines in, so --auth USER:PASSWORD is needed; leave --host out to keep "
            "the page to this machine"
        )
    if told.mcp and importlib.util.find_spec("mcp") is None:
        raise UserError('--mcp needs the package mcp; pip install "gradio[mcp]", or leave --mcp out')
    check_writable(Path(told.output), "--output")
    return Options(
        output=Path(told.output),
        host=told.host,
        port=told.port,
        user=user,
        password=password,
        max_megabytes=told.max_size,
        max_seconds=told.max_seconds,
        max_side=told.max_side,
        max_work=told.max_work,
        max_waiting=told.max_waiting,
        delete_after=told.delete_after,
        keep=told.keep,
        mcp=told.mcp,
        overrides=overrides,
    )


def parse(arguments: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The flags, each number in its range."""
    usual = Options()
    parser = Parser("demo", description, allow_abbrev=False)
    parser.add_argument(
        "--host", default=usual.host, help=f"where it listens (default {usual.host}); others need --auth"
    )
    parser.add_argument("--port", type=_whole(1, 65535), default=usual.port, help=f"default {usual.port}")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="who may come in")
    parser.add_argument("--output", default=str(usual.output), help=f"where results go (default {usual.output})")
    numbers: list[tuple[str, Callable[[str], float], float, str]] = [
        ("--max-size", _number(0.001, 1e6), usual.max_megabytes, "MB of an upload"),
        ("--max-seconds", _number(0.1, 1e6), usual.max_seconds, "length of an upload"),
        ("--max-side", _whole(8, 8192), usual.max_side, "pixels, the longer side of an upload"),
        (
            "--max-work",
            _number(1, 1e6),
            usual.max_work,
            "frames x size x steps of a job, as a multiple of its preset's",
        ),
        ("--max-waiting", _whole(1, 1000), usual.max_waiting, "jobs of one visitor in the queue"),
        ("--delete-after", _number(0.001, 1e6), usual.delete_after, "minutes until an upload is deleted"),
        ("--keep", _whole(1, 100), usual.keep, "methods or presets whose models stay loaded"),
    ]
    for flag, kind, default, what in numbers:
        parser.add_argument(flag, type=kind, default=default, help=f"{what} (default {default:g})")
    parser.add_argument("--mcp", action="store_true", help="also serve as tools for language models (MCP)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="common keys for every job: device, dtype, ..."
    )
    return parser.parse_intermixed_args(arguments)


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not {least:g} to {most:g}")
        return value

    read.__name__ = "number"
    return read


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not {least} to {most}")
        return value

    read.__name__ = "whole number"
    return read
