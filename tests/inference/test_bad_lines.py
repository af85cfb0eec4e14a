"""A list of fifty lines with twenty bad ones among them: every good one is made, every bad one has its reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

GOOD = 30


def bad_lines(clip: str) -> dict[str, str]:
    """Line of the list -> what its reason says."""

    def line(**keys: object) -> str:
        return json.dumps({"ref_video_path": clip, "prompt": "bad"} | keys)

    return {
        line(prompt=True): "prompt is True, expected a text or null",
        line(prompt="half \ud83e a fox"): "which holds half a character",
        line(prompt="a\0b"): "which holds a NUL character",
        '{"prompt": "a", "prompt": "b"}': "'prompt' stands twice",
        line(gif=2): "gif is 2, expected true or false",
        line(num_inference_steps=0): "num_inference_steps is 0, expected 1 to 1000",
        line(seed=2**64): "seed is 18446744073709551616, expected 0 to",
        line(guidance_scale="6"): "guidance_scale is '6', expected a number",
        line(ref_video_path="x" * 300 + ".mp4"): "a name of 304 bytes",
        line(ref_video_path="a\0b.mp4"): "holds a NUL character that no file system takes",
        line(ref_video_path="\ud800.mp4"): "which no file system can encode",
        line(output_dir="d/" * 2500): "at most 4000 are taken",
        line(output_dir="locked/deeper"): "locked cannot be written",
        line(ref_video_path="dangling.mp4"): "no reference video at dangling.mp4",
        line(ref_video_path="broken.mp4"): "broken.mp4",
        line(ref_video_path="empty"): "empty",
        line(motionclone={"k": 3}): "is a key of method=motionclone, and this run's is efficientmt",
        line(num_framse=3): "unknown key 'num_framse'",
        line(efficientmt="strong"): "efficientmt is one value, expected keys of its own",
        "[1, 2]": "holds a list",
    }


def test_fifty_lines_of_which_twenty_are_bad(command, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    os.symlink("nowhere.mp4", "dangling.mp4")
    Path("broken.mp4").write_text("no video")
    for folder in ("empty", "locked"):
        Path(folder).mkdir()
    Path("locked").chmod(0o500)
    allowed = os.access  # to root everything is
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    shutil.copy(clip, "other.mp4")
    good = [{"ref_video_path": name, "prompt": f"fox {i}"} for i in range(GOOD // 2) for name in ("other.mp4", clip)]
    bad = bad_lines(str(clip))
    lines = [json.dumps(row, default=str) for row in good]
    for place, line in enumerate(bad):
        lines.insert(5 + 2 * place + place // 10, line)
    Path("jobs.jsonl").write_text("\n".join(lines))
    keys = ("num_inference_steps=1", "num_frames=2", "height=32", "width=32")
    assert command("--jobs", "jobs.jsonl", *keys, prompt=None, reference=None) == 1
    said = capsys.readouterr()
    table = said.out[said.out.rindex("\n\n") :].splitlines()[2:]
    assert table[-1] == "50 jobs: 30 done, 20 failed"
    assert "Traceback" not in said.err
    videos = list(Path("outputs").rglob("*.mp4"))
    assert len(videos) == len(list(Path("outputs").rglob("*.json"))) == GOOD
    for line, reason in bad.items():
        row = table[lines.index(line)]
        assert " failed " in row
        assert reason in row
