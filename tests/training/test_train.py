"""Whole runs of train.py, tiny ones."""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import train as program
from animatediff.data.pairs import PairOrder
from animatediff.errors import UserError
from animatediff.pipelines.efficientmt.objective import Objective
from animatediff.training.config import read_config
from animatediff.training.samples import Samples, join
from animatediff.training.setup import WAIT, build_accelerator
from tests.data.test_pairs import write_clip
from tests.training.conftest import Settings, equal, final, run


def start(repository: Path, overrides: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(repository / "train.py"), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def state(output: Path, step: int) -> dict[str, Any]:
    return torch.load(output / "checkpoints" / f"step-{step:08d}" / "state.pt", weights_only=True)


def gradients(output: Path) -> torch.Tensor:
    """What one step of AdamW remembers of the gradient: all exp_avg after the first step are (1 - beta1) times it."""
    moments = state(output, 1)["optimizer"]["state"]
    return torch.cat([moments[key]["exp_avg"].flatten() for key in sorted(moments)])


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


def test_not_a_number_stops_before_it_reaches_a_weight(settings: Settings, tmp_path: Path) -> None:
    overrides = settings(max_steps=3, checkpoint_every=1, max_grad_norm=0, weight_decay=0)
    with pytest.raises(UserError) as error:
        program.train(replace(read_config([], overrides), learning_rate=1e30))
    first = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert "at step 2, samples 1 to 1 (motion" in str(error.value)
    assert f"the last checkpoint, {first}, is good" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(first.parent.iterdir()) == [first]
    assert all(torch.isfinite(value).all() for value in state(tmp_path / "run", 1)["weights"].values())


def test_an_update_that_is_not_finite_stops_before_it_is_saved(settings: Settings, tmp_path: Path) -> None:
    config = read_config([], settings(max_steps=2, checkpoint_every=1))
    with pytest.raises(UserError) as error:
        program.train(replace(config, learning_rate=math.inf, output=str(tmp_path / "fresh")))
    assert "the weights after the update are not finite at step 1, samples 0 to 0 (motion" in str(error.value)
    assert "nothing of this step was saved, and there is no checkpoint yet" in str(error.value)
    assert not list((tmp_path / "fresh").rglob("*.safetensors"))
    program.train(replace(config, max_steps=1))
    with pytest.raises(UserError) as error:
        program.train(replace(config, learning_rate=math.inf))
    assert "at step 2" in str(error.value)
    assert f"the last checkpoint, {tmp_path / 'run' / 'checkpoints' / 'step-00000001'}, is good" in str(error.value)
    assert all(torch.isfinite(value).all() for value in state(tmp_path / "run", 1)["weights"].values())


def test_resuming_says_what_changed_and_when_nothing_is_left_to_do(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(settings(max_steps=2))
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    checkpoint = output / "checkpoints" / "step-00000002"
    capsys.readouterr()
    run(settings(max_steps=1))
    assert f"nothing to do: {checkpoint} is at step 2, and max_steps is 1; set max_steps above 2" in (
        capsys.readouterr().out
    )
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == written
    run(settings(max_steps=3, batch_size=2, seed=7, learning_rate=1e-4, data__synthetic_clips=3))
    told = capsys.readouterr().out.splitlines()[:8]
    assert told[0] == f"going on from {checkpoint}"
    assert "batch_size was 1 up to step 2 and is 2 from here on" in told
    assert "learning_rate was 0.001 up to step 2 and is 0.0001 from here on" in told
    assert "seed was 42 up to step 2 and is 7 from here on; the samples come in another order" in told
    assert "data.synthetic_clips was 2 up to step 2 and is 3 from here on" in told
    assert f"the clips are not those that {checkpoint} was trained on; it goes on with the present ones" in told


def test_processes_wait_for_long_validation_and_cache_filling(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[timedelta] = []
    begin = torch.distributed.init_process_group

    def recorded(*arguments: Any, **keys: Any) -> None:
        asked.append(keys["timeout"])
        begin(*arguments, **keys)

    monkeypatch.setattr(torch.distributed, "init_process_group", recorded)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (world | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, str(value))
    build_accelerator(read_config([], settings()))
    try:
        assert asked == [WAIT]
        assert asked[0] > timedelta(days=7)
    finally:
        torch.distributed.destroy_process_group()


def test_workers_started_by_spawn_read_the_same_clips_and_are_not_sent_the_encoder(
    settings: Settings, tmp_path: Path
) -> None:
    config = read_config([], settings(data__cache="null", data__workers=1, max_steps=1))
    objective = Objective(config, build_accelerator(config))
    source = Samples(PairOrder(objective.data.train, config.seed), objective.rule, objective.data.inputs.read)
    weights = sum(value.nbytes for value in objective.components.vae.state_dict().values())
    assert len(pickle.dumps(source)) < weights / 4
    loader = DataLoader(source, batch_sampler=[[0]], collate_fn=join, num_workers=1, multiprocessing_context="spawn")
    (batch,) = loader
    assert torch.equal(batch.targets, source[0].targets)
    assert batch.captions == source[0].captions


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
