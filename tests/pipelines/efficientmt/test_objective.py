"""What train.py learns for EfficientMT, on whole tiny runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import train as program
from animatediff.errors import UserError
from animatediff.models import EfficientMT
from animatediff.models.checkpoints import original_adapter_state
from animatediff.pipelines.backbones.sd15 import load_components
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles as Files
from animatediff.pipelines.efficientmt.loading import load_adapter
from tests.training.conftest import Settings, equal, final, run


def test_only_the_trained_parts_change(settings: Settings, tmp_path: Path) -> None:
    trained = final(run(settings(max_steps=1, train_parts="[to_k,scaler]", learning_rates__scaler=0)))
    begun = final(run(settings(max_steps=1, learning_rate=0, output=tmp_path / "begun")))
    changed = {key for key in trained if not torch.equal(trained[key], begun[key])}
    assert changed == {key for key in trained if ".to_k." in key}


def test_a_run_goes_on_from_a_published_checkpoint(settings: Settings, tiny_weights: Files, tmp_path: Path) -> None:
    paths = {f"weights__{key}": value for key, value in asdict(tiny_weights).items() if value and key.endswith("_path")}
    changes = {"sites": "up", "scaler_bias": 0, "max_steps": 1, **paths}
    output = run(settings(**changes))
    unet = load_components(tiny_weights).unet
    published, trained = load_adapter(unet, tiny_weights.ckpt_path), load_adapter(unet, str(output / "adapter"))
    steps = torch.cat([(a - b).flatten() for a, b in zip(trained.parameters(), published.parameters(), strict=True)])
    assert 0 < steps.abs().max() < 1.1e-3, "one step of AdamW at 1e-3"
    with pytest.raises(UserError, match=r"sites is up_1, but .* has"):
        run(settings(**changes | {"sites": "up_1", "output": tmp_path / "other"}))


def test_the_adapter_serves_inference_and_the_published_layout(
    settings: Settings, tiny_base: dict[str, Path], tmp_path: Path
) -> None:
    output = run(settings(max_steps=1))
    unet = load_components(Files(**{key: str(path) for key, path in tiny_base.items()})).unet
    adapter = load_adapter(unet, str(output / "adapter"))
    torch.save({"global_step": 1, "state_dict": original_adapter_state(adapter)}, tmp_path / "published.ckpt")
    assert adapter.config.trained_steps == 1
    back = load_adapter(unet, str(tmp_path / "published.ckpt"))
    assert equal(back.state_dict(), adapter.state_dict())
    latents, text = torch.zeros(1, 4, 3, 8, 8), torch.zeros(1, 32, 64)
    model = EfficientMT(unet, adapter=back)
    with torch.no_grad():
        assert model(latents, 10, text, model.extract(latents, 400, text)).shape == latents.shape


def test_validation_writes_side_by_sides_and_measures(settings: Settings, tmp_path: Path) -> None:
    output = run(
        settings(
            max_steps=2,
            validation__every=2,
            validation__pairs=1,
            validation__videos=1,
            validation__num_inference_steps=1,
            validation__measures="world",
            log_with="[tensorboard]",
        )
    )
    folder = output / "validation" / "step-00000002"
    (video,) = folder.glob("*.mp4")
    assert video.stat().st_size > 0
    measures = json.loads((folder / "measures.json").read_text())
    names = {"cosine", "distance", "camera", "colour", "shape", "pattern", "ground", "background", "leak"}
    assert measures["mean"].keys() == names, "the motion is the camera's, so all can be measured"
    (clip,) = measures["clips"]
    assert {name: clip[name] for name in names} == measures["mean"]
    assert list((output / "trackers").glob("events.*"))
    assert (output / "config.yaml").is_file()


def test_a_dry_run_counts_the_published_adapter(
    settings: Settings, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "base" / "unet").mkdir(parents=True)
    config = {"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
    config |= {"cross_attention_dim": 768, "attention_head_dim": 8}
    (tmp_path / "base" / "unet" / "config.json").write_text(json.dumps(config))
    overrides = settings(sites="up", scaler_bias=0, weights__pretrained_model_path=tmp_path / "base")
    monkeypatch.setattr(sys, "argv", ["train.py", "--dry-run", *overrides])
    assert program.main() == 0
    printed = capsys.readouterr().out
    assert "max_steps: 50000" in printed
    assert "MISSING  base model: vae" in printed
    assert "in 144 tensors (to_q, to_k, to_v, scaler at up)" in printed
    assert "trained: 120,95" in printed
    assert "training: 6 clips in 3 groups" in printed
    assert not (tmp_path / "run").exists()
