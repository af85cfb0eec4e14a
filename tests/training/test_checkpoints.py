from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from animatediff.errors import UserError
from animatediff.files.parts import Writer
from animatediff.models import Adapter
from animatediff.training.checkpoints import (
    Progress,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_adapter,
    save_checkpoint,
)
from animatediff.training.config import TrainingConfig, trained_parts
from animatediff.training.optimizer import (
    averaged,
    build_average,
    build_optimizer,
    build_schedule,
    freeze_untrained,
)

CONFIG = TrainingConfig(learning_rate=0.1, schedule="linear", max_steps=10, ema_decay=0.5)


def start(config: TrainingConfig = CONFIG, width: int = 16, seed: int = 0) -> Progress:
    torch.manual_seed(seed)
    adapter = Adapter({"up_blocks.0.site": width}, use_scaler=config.use_scaler)
    freeze_untrained(adapter, trained_parts(config))
    optimizer = build_optimizer(adapter, config)
    average = build_average([p for p in adapter.parameters() if p.requires_grad], config)
    return Progress(adapter, optimizer, build_schedule(optimizer, config), average, None)


def advance(progress: Progress, steps: int) -> Progress:
    trained = [p for p in progress.adapter.parameters() if p.requires_grad]
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
    folder = save_checkpoint(tmp_path, advance(start(), 4), "clips", keep=0)
    resumed = start(seed=1)
    assert load_checkpoint(folder, resumed, "clips") == []
    assert (resumed.step, resumed.samples) == (4, 12)
    advance(resumed, 2)
    assert same(resumed.adapter, unbroken.adapter)
    assert resumed.schedule.get_last_lr() == pytest.approx(unbroken.schedule.get_last_lr())
    with averaged(resumed.adapter, resumed.average), averaged(unbroken.adapter, unbroken.average):
        assert same(resumed.adapter, unbroken.adapter)


def test_rates_follow_the_present_configuration(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, advance(start(), 5), "clips", keep=0)
    resumed = start(replace(CONFIG, learning_rate=0.2, learning_rates={"scaler": 0.4}))
    load_checkpoint(folder, resumed, "clips")
    assert resumed.schedule.get_last_lr() == pytest.approx([0.1, 0.1, 0.1, 0.2])
    assert [group["lr"] for group in resumed.optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.1, 0.2])


def test_inference_gets_the_average_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    progress = advance(start(), 3)
    weights = {name: value.clone() for name, value in progress.adapter.state_dict().items()}
    folder = save_checkpoint(tmp_path, progress, "clips", keep=0)
    save_adapter(tmp_path / "adapter", progress)
    assert progress.average is not None
    for saved in (Adapter.from_pretrained(folder / "adapter"), Adapter.from_pretrained(tmp_path / "adapter")):
        for value, average in zip(saved.parameters(), progress.average.shadow_params, strict=True):
            assert torch.equal(value, average)
    name = next(iter(weights))
    assert not torch.equal(weights[name], saved.state_dict()[name])
    assert all(torch.equal(value, weights[name]) for name, value in progress.adapter.state_dict().items())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    progress = start()
    for _ in range(4):
        save_checkpoint(tmp_path, advance(progress, 1), "clips", keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    save_checkpoint(tmp_path, advance(progress, 1), "clips", keep=0)
    assert len(list_checkpoints(tmp_path)) == 3


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    progress = advance(start(), 1)
    first = save_checkpoint(tmp_path, progress, "clips", keep=1)
    request.getfixturevalue("small_disk")
    with pytest.raises(UserError) as error:
        save_checkpoint(tmp_path, advance(progress, 1), "clips", keep=1)
    assert "writing" in str(error.value)
    assert "step-00000002 failed" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [first.name]
    assert load_checkpoint(first, start(), "clips") == []


def test_a_kill_while_writing_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, advance(start(), 1), "clips", keep=0)
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
    ("config", "width", "words"),
    [
        (CONFIG, 32, "another architecture: at up_blocks.0.site 16 channels there, 32 channels here"),
        (replace(CONFIG, use_scaler=False), 16, "another architecture: use_scaler True there, False here"),
        (replace(CONFIG, train_parts=["to_q"]), 16, "other train_parts"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    tmp_path: Path, config: TrainingConfig, width: int, words: str
) -> None:
    folder = save_checkpoint(tmp_path, advance(start(), 1), "clips", keep=0)
    with pytest.raises(UserError) as error:
        load_checkpoint(folder, start(config, width), "clips")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at .*nowhere"):
        load_checkpoint(tmp_path / "nowhere", start(), "clips")
    (tmp_path / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="state.pt is damaged"):
        load_checkpoint(tmp_path, start(), "clips")
    torch.save({"weights": {}}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="no checkpoint of train.py"):
        load_checkpoint(tmp_path, start(), "clips")


def test_other_clips_are_told(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, advance(start(), 1), "clips", keep=0)
    (note,) = load_checkpoint(folder, start(), "other clips")
    assert "it goes on with the present ones" in note


def test_resume_never_does_not_displace_a_run(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "never") is None
    folder = save_checkpoint(tmp_path, advance(start(), 1), "clips", keep=0)
    with pytest.raises(UserError, match="is there already"):
        find_checkpoint(tmp_path, "never")
    assert find_checkpoint(tmp_path, str(folder)) == folder
