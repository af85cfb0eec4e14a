"""An objective of a method registered from outside goes through train.py: nothing but the table knows its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

import train as program
from animatediff.command import find
from animatediff.config import option
from animatediff.errors import UserError
from animatediff.pipelines import METHODS
from animatediff.training.config import TrainingConfig, read_config
from animatediff.training.objective import Fingerprint
from animatediff.training.samples import BatchPlan
from tests.pipelines.test_method import Toy, ToyFiles


@dataclass
class ToyKeys:
    slope: float = option(3.0, "what is learned", least=-10, most=10)


@dataclass
class ToyBatch:
    numbers: list[int]
    names: list[str]


class ToyObjective:
    """Learns y = slope x from the numbers of the samples."""

    Keys = ToyKeys
    architecture = {"inputs": 1}
    problems = ["one number was left out"]

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.slope = config.part(ToyKeys).slope
        self.module = self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.fingerprint, self.rate = Fingerprint("numbers", "ascending"), config.learning_rate

    @classmethod
    def check(cls, config: TrainingConfig) -> None:
        if config.part(ToyKeys).slope == 0:
            raise UserError("slope is 0, so nothing would learn")

    @classmethod
    def describe(cls, config: TrainingConfig) -> list[str]:
        return ["trained: 1 parameter"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "lr": self.rate, "name": "slope"}]

    def batches(self, plan: BatchPlan, first: int, steps: int) -> Iterator[ToyBatch]:
        for numbers in plan.numbers(first, steps):
            yield ToyBatch(numbers, [str(number) for number in numbers])

    def loss(self, model: nn.Module, batch: ToyBatch) -> torch.Tensor:
        x = torch.tensor(batch.numbers, dtype=torch.float32)[:, None] + 1
        return (model(x) - self.slope * x).square().mean()

    def save(self, folder: Path, steps: int) -> None:
        save_file({"weight": self.module.weight.detach(), "steps": torch.tensor(steps)}, folder / "toy.safetensors")

    def validate(self, folder: Path) -> dict[str, float]:
        folder.mkdir(parents=True)
        return {"validation/error": (self.module.weight - self.slope).abs().item()}


class LearningToy(Toy):
    objective = "tests.training.test_objective:ToyObjective"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The overrides of a run; the method is registered for the length of a test, the current folder is empty."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    METHODS.register("toy", LearningToy())
    monkeypatch.chdir(tmp_path)
    return ["method=toy", "mixed_precision=fp32", "log_with=[]", "learning_rate=0.5", "validation.every=2", "slope=4"]


def learned(output: str) -> dict[str, torch.Tensor]:
    return load_file(Path(output) / "adapter" / "toy.safetensors")


def test_three_steps_with_a_checkpoint_and_a_resume(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([*toy, "max_steps=3", "output=whole", "checkpoint_every=2"]) == 0
    assert sorted(path.name for path in Path("whole/checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert sorted(path.name for path in Path("whole/validation").iterdir()) == ["step-00000002", "step-00000003"]
    assert learned("whole")["steps"] == 3
    assert 0 < learned("whole")["weight"].item() < 4
    assert program.main([*toy, "max_steps=2", "output=halves"]) == 0
    capsys.readouterr()
    assert program.main([*toy, "max_steps=3", "output=halves"]) == 0
    told = capsys.readouterr().out
    assert "going on from halves/checkpoints/step-00000002\nmax_steps was 2 up to step 2 and is 3 from here on" in told
    assert "one number was left out" in told
    assert torch.equal(learned("halves")["weight"], learned("whole")["weight"])


def test_its_keys_files_and_dry_run(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = read_config([], toy)
    assert (config.method, config.weights, config.part(ToyKeys)) == ("toy", ToyFiles(), ToyKeys(slope=4.0))
    assert program.main([*toy, "--dry-run"]) == 0
    assert "slope: 4.0" in (printed := capsys.readouterr().out)
    assert printed.endswith("trained: 1 parameter\n")
    assert find("train").main([*toy, "--dry-run"]) == 0, "as the console command calls it"
    for override, words in (
        ("slope=11", "slope is 11.0, expected -10 to 10"),
        ("slope=0", "nothing would learn"),
        ("sites=up", "unknown key 'sites'"),
    ):
        with pytest.raises(UserError, match=words):
            read_config([], [*toy, override])


def test_a_checkpoint_of_another_architecture_is_refused(toy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program.main([*toy, "max_steps=1", "output=run"])
    monkeypatch.setattr(METHODS["toy"], "objective", "tests.training.test_objective:WiderObjective")
    with pytest.raises(UserError, match="another architecture: inputs 1 there, 2 here"):
        program.main([*toy, "max_steps=2", "output=run"])


class WiderObjective(ToyObjective):
    architecture = {"inputs": 2}
