"""The keys that every training run shares, and the table that the others come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from animatediff.errors import UserError
from animatediff.training.config import read_config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learning_rat=1"], "did you mean 'learning_rate'"),
        (["batch_size=0"], "batch_size is 0, expected 1 to 4096"),
        (["max_steps=many"], "max_steps"),
        (["warmup_steps=50000"], "warmup_steps 50000"),
        (["learning_rate=inf"], "learning_rate is inf, expected 0 to 1"),
        (["learning_rate=nan"], "learning_rate is nan, expected 0 to 1"),
        (["beta1=1.5"], "beta1 is 1.5, expected 0 to 0.9999"),
        ([f"seed={2**64}"], f"seed is {2**64}, expected 0 to {2**31 - 1}"),
        (["data.synthetic_seed=-1"], "data.synthetic_seed is -1, expected 0 to"),
        (["data.height=0"], "data.height is 0, expected 8 to"),
        (["data.synthetic_groups=0"], "data.synthetic_groups is 0, expected 1 to"),
        (["method=efficientmtt"], "method is 'efficientmtt'; did you mean 'efficientmt'?"),
        (
            ["method=motionclone"],
            "method is motionclone, which has nothing to train; efficientmt, motionfollower can",
        ),
    ],
)
def test_what_no_run_can_take_is_one_clear_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        read_config([], overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_method_is_the_last_one_said_and_the_first_of_the_table_without_one(tmp_path: Path) -> None:
    assert read_config([], []).method == "efficientmt"
    (tmp_path / "run.yaml").write_text("method: motionclone\n")
    assert read_config([str(tmp_path / "run.yaml")], ["method=efficientmt"]).method == "efficientmt"
    with pytest.raises(UserError, match="method is motionclone"):
        read_config([str(tmp_path / "run.yaml")], [])
