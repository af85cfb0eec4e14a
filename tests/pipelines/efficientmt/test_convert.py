"""Published checkpoint -> adapter folder -> published checkpoint: bit for bit, and one line where it cannot be."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from animatediff.errors import UserError
from animatediff.models.adapter import Adapter
from animatediff.models.weight_files import read_state_dict
from animatediff.pipelines.backbones.sd15 import load_components
from animatediff.pipelines.efficientmt.convert import main
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles as Files
from animatediff.pipelines.efficientmt.loading import load_adapter
from tests.disk import small_disk  # noqa: F401

SITE = "up_blocks.1.motion_modules.0.transformer_blocks.0"


def convert(*arguments: Path | str) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def published(tiny_weights: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A published file that holds the adapter alone, half precision, with its training steps."""
    state = read_state_dict(tiny_weights.ckpt_path)
    sites = {key.partition(".scaler.")[0] for key in state if ".scaler." in key}
    parts = (".to_q.", ".to_k.", ".to_v.", ".scaler.")
    alone = {
        key: value
        for key, value in state.items()
        if any(key.startswith(site) for site in sites) and any(part in key for part in parts)
    }
    path = tmp_path_factory.mktemp("published") / "checkpoint.ckpt"
    torch.save({"global_step": 1200, "state_dict": {f"module.{key}": value for key, value in alone.items()}}, path)
    return path, alone


def test_round_trip_without_a_backbone(published, tmp_path: Path):
    path, state = published
    assert convert(path, tmp_path / "adapter") == 0
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert json.loads((tmp_path / "adapter" / "config.json").read_text())["trained_steps"] == 1200
    assert convert(tmp_path / "adapter", tmp_path / "back.ckpt") == 0
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)
    assert back["global_step"] == 1200
    assert back["state_dict"].keys() == state.keys()
    assert all(value.dtype == state[key].dtype for key, value in back["state_dict"].items())
    assert all(torch.equal(value, state[key]) for key, value in back["state_dict"].items())


def test_every_form_and_back(published, tmp_path: Path):
    """Legacy torch in, safetensors between, a torch file of an odd suffix out: the same weights and steps."""
    _, state = published
    torch.save({"global_step": 7, "state_dict": state}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    steps = ["old.ckpt", "a.SafeTensors", "folder", "b.safetensors", "folder.v2", "c.pth"]
    for source, target in pairwise(steps):
        assert convert(tmp_path / source, tmp_path / target) == 0
    for name in ("a.SafeTensors", "b.safetensors"):
        with safe_open(tmp_path / name, "pt") as file:
            assert file.metadata() == {"global_step": "7"}
            assert set(file.keys()) == state.keys()
    assert json.loads((tmp_path / "folder.v2" / "config.json").read_text())["trained_steps"] == 7
    back = torch.load(tmp_path / "c.pth", weights_only=True)
    assert back["global_step"] == 7
    assert all(torch.equal(value, state[key]) for key, value in back["state_dict"].items())


@pytest.mark.parametrize("name", ["back", "back.onnx"])
def test_a_folder_needs_a_target_that_says_its_form(published, tmp_path: Path, name):
    assert convert(published[0], tmp_path / "adapter") == 0
    with pytest.raises(UserError, match=f"{name} does not say its form; expected a name in .safetensors or .ckpt"):
        convert(tmp_path / "adapter", tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("steps", [0, -3, 10**30, float("inf"), "many", None])
def test_steps_that_are_none(published, tmp_path: Path, steps):
    torch.save({"global_step": steps, "state_dict": published[1]}, tmp_path / "x.ckpt")
    assert convert(tmp_path / "x.ckpt", tmp_path / "adapter") == 0
    assert json.loads((tmp_path / "adapter" / "config.json").read_text())["trained_steps"] is None


def test_the_folder_is_the_checkpoint(tiny_weights: Files, tmp_path: Path):
    """A file with more than the adapter: against its backbone, folder and file load to the same."""
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({key: value for key, value in vars(tiny_weights).items() if value}))
    assert convert(tiny_weights.ckpt_path, tmp_path / "adapter", "--config", config) == 0
    unet = load_components(tiny_weights).unet
    ours, theirs = (
        dict(load_adapter(unet, str(p)).state_dict()) for p in (tmp_path / "adapter", tiny_weights.ckpt_path)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_more_than_the_adapter_needs_its_backbone(published, tmp_path: Path):
    _, state = published
    other = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    torch.save(state | {other: torch.zeros(2, 2)}, tmp_path / "more.ckpt")
    with pytest.raises(
        UserError, match=rf"more.ckpt holds 1 weights besides the adapter \(first {other}\); give --con"
    ):
        convert(tmp_path / "more.ckpt", tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["more.ckpt"]


def test_a_full_disk_is_one_line_and_leaves_nothing(published, tmp_path: Path, request):
    path, _ = published
    request.getfixturevalue("small_disk")
    with pytest.raises(UserError, match="writing .*adapter failed: "):
        convert(path, tmp_path / "adapter")
    for name in ("x.ckpt", "x.safetensors"):
        with pytest.raises(UserError, match=f"writing .*{name} failed: File too large"):
            convert(path, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "holds a list, expected an object"),
        ('{"site_channels": 3}', "site_channels is 3, expected an object"),
        ('{"site_channels": {"a": "b"}}', "site_channels.a is 'b', expected a whole number"),
        ('{"site_channels": {"a": -4}}', "describes no adapter that can be built"),
        ('{"site_channels": {}, "sites": 3}', "has unknown key 'sites'"),
        ('{"site_channels": {"a": 64}}', "safetensors (lacks|has)"),
    ],
)
def test_a_folder_whose_config_says_something_else(published, tmp_path: Path, content, match):
    assert convert(published[0], tmp_path / "adapter") == 0
    (tmp_path / "adapter" / "config.json").write_text(content)
    with pytest.raises(UserError, match=match):
        convert(tmp_path / "adapter", tmp_path / "x.ckpt")


def test_refusals(published, tiny_weights: Files, tmp_path: Path):
    path, state = published
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there is there already; remove it or choose another name"):
        convert(path, tmp_path / "there")
    with pytest.raises(UserError, match="no weights at none.ckpt"):
        convert("none.ckpt", tmp_path / "adapter")
    with pytest.raises(UserError, match="motion_module.ckpt holds no scaler weights, .* it looks like motion modules"):
        convert(tiny_weights.motion_module_path, tmp_path / "adapter")
    lacking = dict(state)
    gone = next(key for key in lacking if key.endswith("to_k.weight"))
    del lacking[gone]
    torch.save(lacking, tmp_path / "lacking.ckpt")
    with pytest.raises(UserError, match=r"lacking.ckpt lacks .*to_k.weight; expected an adapter"):
        convert(tmp_path / "lacking.ckpt", tmp_path / "adapter")
    with pytest.raises(UserError, match=r"reading .*there/config.json failed: No such file"):
        convert(tmp_path / "there", tmp_path / "back.ckpt")
    Adapter({SITE: 64}, use_scaler=False).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="trained without scalers"):
        convert(tmp_path / "plain", tmp_path / "back.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lacking.ckpt", "plain", "there"]
