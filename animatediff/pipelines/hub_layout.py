"""The layout of a custom pipeline on the hub: a saved folder that diffusers' own loader takes.

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)

needs a `pipeline.py`, and beside every component that is not diffusers' or transformers' own a file of code, which
`model_index.json` names. The files written here import this package, and say so in one line where it is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from animatediff.files import atomic_path, read_json, write_json

PACKAGE = __name__.partition(".")[0]
PIPELINE = "pipeline"  # the file that diffusers looks for
CODE = '''"""Names a class of the package {package}, for diffusers' loader."""

try:
    from {module} import {name}  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "{package}":
        raise
    raise ImportError("{name} needs the package {package}, which EfficientMT's repository installs") from error
'''


def write_custom_code(folder: Path, pipeline: type) -> None:
    """Into a folder that holds the model_index.json of a `pipeline`, write the files of code, and name them there."""
    index = read_json(folder / "model_index.json")
    files = {f"{PIPELINE}.py": _code(pipeline.__module__, pipeline.__name__)}
    for component, entry in index.items():
        if isinstance(entry, list) and str(entry[0]).startswith(f"{PACKAGE}."):
            module, name = entry
            files[f"{component}/{_stem(module)}.py"] = _code(module, name)
            index[component] = [_stem(module), name]
    index["_class_name"] = [PIPELINE, pipeline.__name__]
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / path) as part:
            part.write_text(text, encoding="utf-8")
    write_json(folder / "model_index.json", index)


def installed_modules(index: Mapping[str, Any]) -> dict[str, Any]:
    """A model_index.json that names the modules of this package instead of the files of code that stand for them."""
    named = dict(index)
    for key, entry in index.items():
        if isinstance(entry, list) and str(entry[0]).startswith(_stem(f"{PACKAGE}.")):
            module = str(entry[0]).replace(_stem("."), ".")
            importlib.import_module(module)  # diffusers takes a class from what is imported already
            named[key] = [module, entry[1]]
    if isinstance(index.get("_class_name"), list):
        named["_class_name"] = index["_class_name"][1]
    return named


def _code(module: str, name: str) -> str:
    return CODE.format(package=PACKAGE, module=module, name=name)


def _stem(module: str) -> str:
    return module.replace(".", "__")
