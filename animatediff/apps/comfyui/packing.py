"""The folder that ComfyUI's custom_nodes takes: made from the nodes, file by file."""

from __future__ import annotations

from pathlib import Path

from animatediff import __version__
from animatediff.apps.comfyui import workflows
from animatediff.apps.comfyui.nodes import PREFIX, all_nodes
from animatediff.apps.comfyui.slots import AS_PRESET, Node, Slot

PACK = Path(__file__).parent / "pack"
REQUIRES_COMFYUI = ">=0.3.64"
PACKAGE = "efficientmt"
PYPROJECT = """[project]
name = "{package}"
description = "Video motion transfer: the motion of a clip, the content of a sentence."
version = "{version}"
license = {{ file = "LICENSE" }}
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["{package}>={version}"]

[project.urls]
{urls}
[tool.comfy]
PublisherId = "{publisher}"
DisplayName = "{prefix}"
Icon = ""
requires-comfyui = "{comfyui}"
"""
README = """# {prefix} for ComfyUI

Video motion transfer: the motion of a clip, the content of a sentence. Methods: {methods}.

1. Put this folder into ComfyUI's `custom_nodes/`.
2. In ComfyUI's environment: `pip install -r requirements.txt` (it leaves the torch that is there alone).
3. Restart ComfyUI, open Templates, choose `{package}`, and run a workflow: the miniature needs no download.

| node | what it does |
| --- | --- |
{rows}

Weights: the Load node looks for a preset's files in ComfyUI's own model folders by their names, `models/{package}` and
what `extra_model_paths.yaml` names included, or takes the ones that are chosen there.
"""
IGNORE = """__pycache__/
*.pyc
.git/
.DS_Store
"""


def tree(license_text: str, publisher: str, repository: str) -> dict[str, bytes]:
    """Path in the folder -> content. publisher, repository: what ComfyUI's registry is told."""
    nodes = all_nodes(lambda _key: [])
    urls = {"Repository": repository, "Documentation": f"{repository}#readme"} if repository else {}
    words = {
        "package": PACKAGE,
        "version": __version__,
        "prefix": PREFIX,
        "publisher": publisher,
        "comfyui": REQUIRES_COMFYUI,
        "urls": "".join(f'{name} = "{address}"\n' for name, address in urls.items()),
        "methods": ", ".join(node.title.removeprefix("Settings of ") for node in nodes if "_Settings_" in node.id),
        "rows": "\n".join(f"| {node.title} | {node.about} |" for node in nodes),
    }
    texts = {
        "pyproject.toml": PYPROJECT.format(**words),
        "README.md": README.format(**words),
        "requirements.txt": f"{PACKAGE}>={__version__}\n",
        ".comfyignore": IGNORE,
        **{f"web/docs/{node.id}.md": help_page(node) for node in nodes},
    }
    files = {name: text.encode() for name, text in texts.items()}
    files["__init__.py"] = (PACK / "__init__.py").read_bytes()
    files["LICENSE"] = license_text.encode()
    for name, steps in workflows.example_workflows():
        files |= {f"example_workflows/{file}": data for file, data in workflows.files_of(name, steps).items()}
    return files


def help_page(node: Node) -> str:
    """What ComfyUI shows beside a node when its help is asked for."""
    lines = [f"# {node.title}", "", node.about, "", "## Inputs", "", "| input | type | value | what it is |"]
    lines += ["| --- | --- | --- | --- |", *(_row(slot) for slot in node.inputs())]
    lines += ["", "## Outputs", "", "| output | type | what it is |", "| --- | --- | --- |"]
    lines += [f"| {slot.id} | {slot.type} | {_cell(slot.help)} |" for slot in node.outputs]
    return "\n".join(lines) + "\n"


def _row(slot: Slot) -> str:
    limits = [f"{value:g}" for value in (slot.least, slot.most) if value is not None]
    value = " to ".join(limits) if slot.kind in ("whole", "number") else ", ".join(slot.choices)
    if AS_PRESET in slot.choices:
        value = f"{AS_PRESET}, or a choice"
    if slot.is_widget:
        shown = f"`{slot.default}`" if slot.default != "" else "empty"
        value = f"{shown}; {value}" if value else shown
    else:
        value = "may be left open" if slot.optional else "needed"
    return f"| {slot.id} | {slot.type} | {_cell(value)} | {_cell(slot.help)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
