"""scripts/make_figures.py on outputs small enough to write by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from animatediff.data.export import save_video
from animatediff.errors import UserError
from animatediff.files import write_json
from animatediff.miniature.world import make_clip
from scripts import make_figures


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """One output that follows its reference exactly."""
    frames = make_clip(0, frames=4).frames()
    save_video(tmp_path / "clip.mp4", frames, 8)
    save_video(tmp_path / "outputs" / "clip" / "a-red-star-1.mp4", frames, 8)
    facts = {"output": "a-red-star-1.mp4", "reference": str(tmp_path / "clip.mp4"), "prompt": "a red star"}
    indices = {"indices": [0, 1, 2, 3], "of": 4}
    write_json(tmp_path / "outputs" / "clip" / "a-red-star-1.json", {**facts, "reference_frames": indices})
    return tmp_path / "outputs"


def test_pictures_of_outputs_and_of_a_run(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, figures = tmp_path / "run", tmp_path / "figures"
    for step, cosine in ((100, 0.25), (1100, 0.5)):
        write_json(run / f"validation/step-{step:08d}/measures.json", {"mean": {"cosine": cosine, "distance": 9.0}})
    monkeypatch.setattr(sys, "argv", ["make_figures.py", str(outputs), "--to", str(figures), "--run", str(run)])
    assert make_figures.main() == 0
    assert sorted(path.name for path in figures.iterdir()) == ["curve.png", "tracks.png", "transfers.gif"]
    assert make_figures.read_curve([run]) == {
        100: {"cosine": 0.25, "distance": 9.0},
        1100: {"cosine": 0.5, "distance": 9.0},
    }
    assert list(make_figures.read_curve([run, run])) == [100, 1100, 1200, 2200], "the second went on from the first"
    with Image.open(figures / "transfers.gif") as animation:
        assert animation.n_frames == 4
        first = np.asarray(animation.convert("RGB"))
    left, right = first[:128, :128], first[:128, 132:260]
    assert np.abs(left.astype(int) - right).mean() < 3, "reference and output are the same clip"


def test_nothing_to_draw_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no outputs with a JSON"):
        make_figures.read_transfers(tmp_path)
    with pytest.raises(UserError, match="holds no measured validation"):
        make_figures.read_curve([tmp_path])
