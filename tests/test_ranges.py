"""Every number that a configuration takes has its range beside its field."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_args, get_type_hints

import pytest

from animatediff import miniature
from animatediff.config import load_config
from animatediff.curation.pairs import PairsConfig
from animatediff.errors import UserError
from animatediff.evaluation.evaluate import EvaluationConfig
from animatediff.inference.run import run_schema
from animatediff.pipelines import METHODS
from animatediff.training.config import training_schema


def schemas(repository: Path) -> Iterator[tuple[str, type]]:
    for name in METHODS:
        yield f"run of {name}", run_schema(name)
        yield f"files of {name}", METHODS[name].Files
        yield f"settings of {name}", METHODS[name].Settings
        if METHODS[name].objective:
            yield f"training of {name}", training_schema(name)
    yield "evaluation", EvaluationConfig
    yield "pairs", PairsConfig
    spec = importlib.util.spec_from_file_location("make_miniature", repository / "scripts" / "make_miniature.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    rooms = [importlib.import_module(f"{miniature.__name__}.{room.name}") for room in iter_modules(miniature.__path__)]
    for module in (script, *rooms):
        for name, kind in vars(module).items():
            if name.endswith("Config") and is_dataclass(kind) and not kind.__module__.startswith("transformers"):
                yield "miniature", kind


def numbers(schema: type, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """The fields of `schema`, at any depth, that take a number, alone or in a list or dictionary."""
    for entry in fields(schema):
        kinds = [get_type_hints(schema)[entry.name]]
        while kinds:
            kind = kinds.pop()
            kinds += get_args(kind)
            if is_dataclass(kind):
                yield from numbers(kind, f"{prefix}{entry.name}.")
            elif kind in (int, float):
                yield f"{prefix}{entry.name}", entry


def test_every_number_has_a_range(repository: Path) -> None:
    found = [(where, path, entry) for where, schema in schemas(repository) for path, entry in numbers(schema)]
    without = sorted({f"{where}: {path}" for where, path, entry in found if entry.metadata.get("least") is None})
    assert without == []
    assert len(found) > 100
    for where, path, entry in found:
        least, most = entry.metadata["least"], entry.metadata["most"]
        assert least < (math.inf if most is None else most), f"{where}: {path}"


@pytest.mark.parametrize(
    ("schema", "override", "words"),
    [
        (EvaluationConfig, "static=-1", "static is -1.0, expected 0 to 10000"),
        (EvaluationConfig, "grid=0", "grid is 0, expected 1 to 512"),
        (EvaluationConfig, "videos=-1", "videos is -1, expected 0 to 100000"),
        (EvaluationConfig, "compat=other", "compat is 'other'"),
        (PairsConfig, "evaluation.grid=0", "evaluation.grid is 0, expected 1 to 512"),
        (PairsConfig, "synthetic_groups=0", "synthetic_groups is 0, expected 1 to 1000000"),
        (PairsConfig, "synthetic_size=0", "synthetic_size is 0, expected 16 to 1024"),
        (PairsConfig, "synthetic_seed=-1", "synthetic_seed is -1, expected 0 to"),
    ],
)
def test_what_is_outside_is_one_line(schema: type, override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(schema, None, [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
