"""Write the folder that another program takes.

python scripts/export.py comfyui ComfyUI/custom_nodes/efficientmt    the nodes, with example workflows and help pages
python scripts/export.py space FOLDER                                the page as a Space of the Hugging Face hub

The folder must be new or empty; it is whole, or not there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path

from animatediff import __version__
from animatediff.apps.comfyui import packing
from animatediff.console import Parser
from animatediff.errors import UserError, describe_os_error
from animatediff.files import atomic_folder, is_file, is_folder, is_there, to_path
from animatediff.project import PROJECT

SPACE = Path(__file__).parent / "space"
GRADIO = "6.31.0"
SPACE_README = """---
title: EfficientMT
emoji: 🎬
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
license: mit
short_description: The motion of a clip, the content of a sentence
---

Video motion transfer: choose a clip that gives the motion, write what the new video shows, and press once.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("export", __doc__)
    parser.add_argument("tree", choices=sorted(TREES), help="which folder to write")
    parser.add_argument("folder", help="where: a folder that is not there yet, or is empty")
    parser.add_argument("--publisher", default="efficientmt", help="comfyui: who publishes it in ComfyUI's registry")
    parser.add_argument("--repository", default="", help="comfyui: the address of the folder's own git repository")
    options = parser.parse_args(arguments)
    folder = check_empty(options.folder)
    write_tree(folder, TREES[options.tree](options))
    print(f"wrote {folder}")
    return 0


def check_empty(folder: str) -> Path:
    """`folder`, where it is not there or empty; UserError where a tree would lie among other files."""
    path = to_path(folder, "FOLDER")
    try:
        if is_there(path) and not is_folder(path):
            raise UserError(f"{path} is a file; name a folder that is not there yet")
        if is_folder(path) and any(path.iterdir()):
            raise UserError(f"{path} is not empty; name a folder that is not there yet, or empty this one")
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    return path


def write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write path -> content below `folder`, all of it or nothing."""
    with atomic_folder(folder) as part:
        for name, content in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def comfyui_tree(options: argparse.Namespace) -> dict[str, bytes]:
    """What ComfyUI's custom_nodes takes."""
    return packing.tree(license_text(), options.publisher, options.repository)


def space_tree(_options: argparse.Namespace) -> dict[str, bytes]:
    """What a Space takes: its app, a README with the hub's front matter, and what to install."""
    texts = {
        "README.md": SPACE_README.format(gradio=GRADIO),
        "requirements.txt": f"{packing.PACKAGE}[demo]>={__version__}\n",
        "LICENSE": license_text(),
    }
    return {"app.py": (SPACE / "app.py").read_bytes(), **{name: text.encode() for name, text in texts.items()}}


TREES: dict[str, Callable[[argparse.Namespace], dict[str, bytes]]] = {"comfyui": comfyui_tree, "space": space_tree}


def license_text() -> str:
    """This project's licence: in a checkout, or as pip has installed it."""
    if is_file(PROJECT / "LICENSE"):
        return (PROJECT / "LICENSE").read_text(encoding="utf-8")
    return distribution(packing.PACKAGE).read_text("licenses/LICENSE") or ""
