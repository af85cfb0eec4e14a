from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from animatediff.errors import UserError
from animatediff.files.parts import Writer
from animatediff.models import Adapter
from animatediff.models.adapter import PARTS
from animatediff.training.checkpoints import (
    Progress,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_result,
)
from animatediff.training.config import TrainingConfig
from animatediff.training.objective import Fingerprint
from animatediff.training.optimizer import (
    all_finite,
    averaged,
    build_average,
    build_optimizer,
    build_schedule,
    trained_of,
)

CONFIG = TrainingConfig(learning_rate=0.1, schedule="linear", max_steps=10, ema_decay=0.5)


class Learning:
    """What a checkpoint asks of an objective: an adapter of one site, without a backbone."""

    def __init__(self, width: int, use_scaler: bool, parts: tuple[str, ...]) -> None:
        self.module = Adapter({"up_blocks.0.site": width}, use_scaler=use_scaler).requires_grad_(False)
        for part in parts:
            for parameter in self.module.part(part):
                parameter.requires_grad_(True)
        self.parts, self.fingerprint = parts, Fingerprint("clips", "order")
        self.architecture = {"site_channels": {"up_blocks.0.site": width}, "use_scaler": use_scaler}

    def parameter_groups(self, rate: float, rates: dict[str, float]) -> list[dict[str, Any]]:
        return [{"params": self.module.part(part), "lr": rates.get(part, rate)} for part in self.parts]

    def save(self, folder: Path, steps: int) -> None:
        self.module.save_pretrained(folder)


def start(
    config: TrainingConfig = CONFIG,
    width: int = 16,
    seed: int = 0,
    use_scaler: bool = True,
    parts: tuple[str, ...] = PARTS,
    rates: dict[str, float] | None = None,
) -> Progress:
    torch.manual_seed(seed)
    learning = Learning(width, use_scaler, parts if use_scaler else parts[:3])
    optimizer = build_optimizer(learning.parameter_groups(config.learning_rate, rates or {}), config)
    average = build_average(trained_of(learning.module), config)
    return Progress(learning, optimizer, build_schedule(optimizer, config), average, None)


def save(output: Path, progress: Progress, keep: int, config: TrainingConfig = CONFIG) -> Path:
    return save_checkpoint(progress, replace(config, output=str(output), keep_checkpoints=keep))


def advance(progress: Progress, steps: int) -> Progress:
    trained = trained_of(progress.objective.module)
    for _ in range(steps):
        for number, parameter in enumerate(trained):
            parameter.grad = torch.full_like(parameter, 1.0 + number + progress.step)
        progress.optimizer.step()
        progress.schedule.step()
        if progress.average is not None:
            progress.average.step(trained)
        progress.step += 1
        progress.samples += 3
    return progress


def same(a: Adapter, b: Adapter) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = advance(start(), 6)
    folder = save(tmp_path, advance(start(), 4), keep=0)
    resumed = start(seed=1)
    assert load_checkpoint(folder, resumed, CONFIG) == []
    assert (resumed.step, resumed.samples) == (4, 12)
    advance(resumed, 2)
    assert same(resumed.objective.module, unbroken.objective.module)
    assert resumed.schedule.get_last_lr() == pytest.approx(unbroken.schedule.get_last_lr())
    with averaged(resumed.objective.module, resumed.average), averaged(unbroken.objective.module, unbroken.average):
        assert same(resumed.objective.module, unbroken.objective.module)


def test_rates_follow_the_present_configuration(tmp_path: Path) -> None:
    folder = save(tmp_path, advance(start(), 5), keep=0)
    resumed = start(replace(CONFIG, learning_rate=0.2), rates={"scaler": 0.4})
    load_checkpoint(folder, resumed, CONFIG)
    assert resumed.schedule.get_last_lr() == pytest.approx([0.1, 0.1, 0.1, 0.2])
    assert [group["lr"] for group in resumed.optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.1, 0.2])


def test_inference_gets_the_average_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    progress = advance(start(), 3)
    weights = {name: value.clone() for name, value in progress.objective.module.state_dict().items()}
    folder = save(tmp_path, progress, keep=0)
    save_result(tmp_path / "adapter", progress)
    assert progress.average is not None
    for saved in (Adapter.from_pretrained(folder / "adapter"), Adapter.from_pretrained(tmp_path / "adapter")):
        for value, average in zip(saved.parameters(), progress.average.shadow_params, strict=True):
            assert torch.equal(value, average)
    name = next(iter(weights))
    assert not torch.equal(weights[name], saved.state_dict()[name])
    assert all(torch.equal(value, weights[name]) for name, value in progress.objective.module.state_dict().items())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    progress = start()
    for _ in range(4):
        save(tmp_path, advance(progress, 1), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    save(tmp_path, advance(progress, 1), keep=0)
    assert len(list_checkpoints(tmp_path)) == 3


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    progress = advance(start(), 1)
    first = save(tmp_path, progress, keep=1)
    request.getfixturevalue("small_disk")
    with pytest.raises(UserError) as error:
        save(tmp_path, advance(progress, 1), keep=1)
    assert "writing" in str(error.value)
    assert "step-00000002 failed" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [first.name]
    assert load_checkpoint(first, start(), CONFIG) == []


def test_a_kill_while_writing_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, advance(start(), 1), keep=0)
    dead = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(dead, 0)
    writer = replace(Writer.present(), pid=dead)
    half = writer.part(folder.with_name("step-00000002"))
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    final = writer.part(tmp_path / "adapter")
    final.mkdir()
    assert find_checkpoint(tmp_path, "latest") == folder
    assert not half.exists()
    assert not final.exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"width": 32}, "another architecture: at up_blocks.0.site 16 channels there, 32 channels here"),
        ({"use_scaler": False}, "another architecture: use_scaler True there, False here"),
        ({"parts": ("to_q",)}, "other parts or another optimizer"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    folder = save(tmp_path, advance(start(), 1), keep=0)
    with pytest.raises(UserError) as error:
        load_checkpoint(folder, start(**other), CONFIG)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at .*nowhere"):
        load_checkpoint(tmp_path / "nowhere", start(), CONFIG)
    (tmp_path / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="state.pt is damaged"):
        load_checkpoint(tmp_path, start(), CONFIG)
    torch.save({"weights": {}}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="no checkpoint of train.py"):
        load_checkpoint(tmp_path, start(), CONFIG)


def test_other_clips_and_another_order_are_told(tmp_path: Path) -> None:
    folder = save(tmp_path, advance(start(), 1), keep=0)
    for found, words in (
        (Fingerprint("other clips", "other"), "it goes on with the present ones"),
        (Fingerprint("clips", "other"), "the data order is not that of"),
    ):
        resumed = start()
        resumed.objective.fingerprint = found
        (note,) = load_checkpoint(folder, resumed, CONFIG)
        assert words in note


def test_every_setting_that_decides_the_result_and_changed_is_a_line(tmp_path: Path) -> None:
    folder = save(tmp_path, advance(start(), 4), keep=0)
    other = replace(CONFIG, batch_size=2, seed=7, learning_rate=0.2, checkpoint_every=5, keep_checkpoints=9)
    assert load_checkpoint(folder, start(), other, processes=2) == [
        "batch_size was 1 up to step 4 and is 2 from here on",
        "learning_rate was 0.1 up to step 4 and is 0.2 from here on",
        "seed was 42 up to step 4 and is 7 from here on; the samples come in another order",
        "processes was 1 up to step 4 and is 2 from here on",
    ]


def test_a_checkpoint_written_before_settings_were_kept_is_taken_up(tmp_path: Path) -> None:
    folder = save(tmp_path, advance(start(), 2), keep=0)
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key not in ("settings", "clips")}, folder / "state.pt")
    resumed = start()
    assert load_checkpoint(folder, resumed, replace(CONFIG, seed=7)) == []
    assert resumed.step == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_weights_or_average_is_seen(value: float) -> None:
    progress = start()
    trained = trained_of(progress.objective.module)
    assert progress.average is not None
    assert all_finite(trained, progress.average)
    for values in (trained, progress.average.shadow_params):
        last = values[-1].detach().flatten()
        before = last[-1].clone()
        last[-1] = value
        assert not all_finite(trained, progress.average)
        last[-1] = before
    assert all_finite(trained, None)


def test_resume_never_does_not_displace_a_run(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "never") is None
    folder = save(tmp_path, advance(start(), 1), keep=0)
    with pytest.raises(UserError, match="is there already"):
        find_checkpoint(tmp_path, "never")
    assert find_checkpoint(tmp_path, str(folder)) == folder
