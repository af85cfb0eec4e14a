"""Whole runs of train.py, tiny ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train as program
from animatediff.errors import UserError
from animatediff.models import EfficientMT
from animatediff.models.checkpoints import original_adapter_state
from animatediff.pipelines.backbones.sd15 import load_components
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles as Files
from animatediff.pipelines.efficientmt.loading import load_adapter
from animatediff.training.config import read_config
from tests.data.test_pairs import write_clip
from tests.training.conftest import Settings


def run(overrides: list[str]) -> Path:
    config = read_config([], overrides)
    program.train(config)
    return Path(config.output)


def start(repository: Path, overrides: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(repository / "train.py"), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def final(output: Path) -> Mapping[str, torch.Tensor]:
    return load_file(output / "adapter" / "diffusion_pytorch_model.safetensors")


def state(output: Path, step: int) -> dict[str, Any]:
    return torch.load(output / "checkpoints" / f"step-{step:08d}" / "state.pt", weights_only=True)


def gradients(output: Path) -> torch.Tensor:
    """What one step of AdamW remembers of the gradient: all exp_avg after the first step are (1 - beta1) times it."""
    moments = state(output, 1)["optimizer"]["state"]
    return torch.cat([moments[key]["exp_avg"].flatten() for key in sorted(moments)])


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_killed_at_any_step_and_repeated_ends_with_the_same_weights(
    settings: Settings, repository: Path, tmp_path: Path
) -> None:
    def command(output: Path) -> list[str]:
        return settings(output=output, max_steps=6, checkpoint_every=2, ema_decay=0.5, schedule="cosine")

    unbroken = run(command(tmp_path / "unbroken"))
    process = start(repository, command(tmp_path / "broken"))
    second = tmp_path / "broken" / "checkpoints" / "step-00000002"
    while process.poll() is None and not second.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.communicate()[0]
    assert not (tmp_path / "broken" / "adapter").exists()
    broken = run(command(tmp_path / "broken"))
    assert equal(final(broken), final(unbroken))
    assert equal(state(broken, 6)["weights"], state(unbroken, 6)["weights"])
    assert state(broken, 6)["samples"] == state(unbroken, 6)["samples"] == 6
    assert len(list((broken / "checkpoints").iterdir())) == 3
    assert equal(final(run(command(broken))), final(unbroken)), "repeating a finished run changed it"


def test_two_processes_give_the_gradients_of_one_with_the_batch_doubled(
    settings: Settings, repository: Path, tmp_path: Path
) -> None:
    common: dict[str, object] = {"max_steps": 1, "max_grad_norm": 0, "targets_per_reference": 2}
    doubled = run(settings(**common, batch_size=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    overrides = settings(**common, batch_size=1, output=tmp_path / "two")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    ranks = [start(repository, overrides, RANK=str(r), LOCAL_RANK=str(r), **world) for r in range(2)]
    outputs = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    assert state(tmp_path / "two", 1)["samples"] == 2
    one, two = gradients(doubled), gradients(tmp_path / "two")
    assert one.norm() > 0
    assert (two - one).norm() / one.norm() < 1e-5


def test_accumulation_and_checkpointing_give_the_same_gradients(settings: Settings, tmp_path: Path) -> None:
    common: dict[str, object] = {"max_steps": 1, "max_grad_norm": 0}
    whole = gradients(run(settings(**common, batch_size=2)))
    for name, changes in (("parts", {"accumulation": 2}), ("again", {"batch_size": 2, "gradient_checkpointing": True})):
        other = gradients(run(settings(**common, **changes, output=tmp_path / name)))
        assert (other - whole).norm() / whole.norm() < 1e-5, name


def test_training_from_the_cache_equals_training_from_pixels(settings: Settings, tmp_path: Path) -> None:
    cached = run(settings(max_steps=2))
    encoded = run(settings(max_steps=2, output=tmp_path / "pixels", data__cache="null", data__workers=0))
    assert equal(final(cached), final(encoded))


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


def test_not_a_number_stops_before_it_reaches_a_weight(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run(settings(max_steps=3, checkpoint_every=1, learning_rate=1e30, max_grad_norm=0, weight_decay=0))
    assert "at step 2, samples 1 to 1 (motion" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    assert all(torch.isfinite(value).all() for value in state(tmp_path / "run", 1)["weights"].values())


def test_a_broken_clip_is_skipped_and_listed_at_the_end(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for group in ("left", "right"):
        for number, name in enumerate(("a red star", "a blue cross")):
            write_clip(tmp_path / "pairs" / group / f"{name}.mp4", number, 3 + number, 16 + 8 * number, 24)
    broken = tmp_path / "pairs" / "left" / "a green circle.mp4"
    broken.write_text("not a video")
    folder = {"data__source": "folder", "data__root": tmp_path / "pairs", "data__validation_share": 0}
    for cache in ("null", tmp_path / "cache"):
        run(settings(max_steps=1, **folder, data__cache=cache, data__workers=0, output=tmp_path / str(cache)[-4:]))
        lines = capsys.readouterr().out.strip().splitlines()
        assert lines[-1].startswith(f"skipped {broken}: cannot open")


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed_precision": "fp16"}, "mixed_precision is fp16"),
        ({"log_with": "[wandb]"}, "log_with names wandb, which is not installed"),
        ({"optimizer": "adamw8bit"}, "bitsandbytes is not installed"),
        ({"data__height": 36}, "expected multiples of 8"),
        ({"data__source": "folder", "data__root": "nowhere"}, "no data folder at nowhere"),
        ({"resume": "nowhere"}, "no checkpoint at nowhere"),
        ({"weights__pretrained_model_path": "nowhere"}, "no base model folder at nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(settings: Settings, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as error:
        run(settings(max_steps=1, **changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
