"""Saved positions: to the bit, and a file that belongs to another run is one clear line."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from animatediff.errors import UserError
from animatediff.pipelines.ditflow.positions import (
    PositionFacts,
    check_positions_file,
    describe_transformer,
    load_positions,
    save_positions,
)
from tests.video_transformers import tiny

FACTS = PositionFacts("tiny", 9, 64, 96, 8, 2, (999, 874))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.positions.safetensors"
    save_positions(path, {999: torch.randn(1, 4, 2), 874: torch.ones(1, 4, 2)}, FACTS)
    return path


def test_they_come_back_to_the_bit(tmp_path):
    positions = {999: torch.randn(2, 2, 5, 4), 874: torch.randn(2, 2, 5, 4)}
    save_positions(tmp_path / "a" / "p.safetensors", positions, FACTS)
    loaded = load_positions(tmp_path / "a" / "p.safetensors", FACTS)
    assert loaded.keys() == positions.keys()
    assert all(torch.equal(loaded[key], positions[key]) for key in positions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": "another"}, "transformer tiny, this run has another"),
        ({"num_frames": 17}, "num_frames 9, this run has 17"),
        ({"height": 32}, "height 64, this run has 32"),
        ({"width": 32}, "width 96, this run has 32"),
        ({"num_inference_steps": 50}, "num_inference_steps 8, this run has 50"),
        ({"guidance_steps": 3}, "guidance_steps 2, this run has 3"),
        ({"timesteps": (999.0, 950.0)}, "timesteps 999 to 874, this run has 999 to 950"),
    ],
)
def test_another_run_s(path, changes, message):
    with pytest.raises(UserError, match=f"were saved with {message}; they serve only what they were made for"):
        load_positions(path, replace(FACTS, **changes))


def test_some_facts_can_be_checked_before_the_others_are_known(path):
    check_positions_file(path, {"num_frames": 9, "guidance_steps": 2})
    with pytest.raises(UserError, match="num_frames 9, this run has 8"):
        check_positions_file(path, {"num_frames": 8})


def test_what_is_no_such_file(tmp_path, path):
    metadata = {"format": "DiTFlow positions, 1"} | {name: json.dumps(value) for name, value in asdict(FACTS).items()}
    broken = {
        "text": (lambda p: p.write_text("hello"), "is no file of saved positions"),
        "cut": (lambda p: p.write_bytes(path.read_bytes()[:80]), "is no file of saved positions"),
        "weights": (lambda p: save_file({"a": torch.ones(1)}, p), "expected one that ditflow.save_positions wrote"),
        "names": (
            lambda p: save_file({"a": torch.ones(1)}, p, metadata),
            "holds a, expected positions named by timestep",
        ),
        "facts": (lambda p: save_file({"1": torch.ones(1)}, p, metadata | {"width": "{"}), "has broken facts"),
    }
    for name, (write, message) in broken.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match=message):
            load_positions(tmp_path / name, FACTS)
    with pytest.raises(UserError, match="no saved positions at"):
        load_positions(tmp_path / "nowhere", FACTS)


def test_transformers_are_told_apart():
    networks = [tiny(kind) for kind in ("2b", "5b", "wan")] + [tiny("2b", num_layers=2)]
    told = {describe_transformer(type(network).__name__, network.config) for network in networks}
    assert len(told) == 4
    assert "CogVideoXTransformer3DModel, 3 blocks, 2 heads of 16, a position table" in told
