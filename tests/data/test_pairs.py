from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from animatediff.data.export import save_video
from animatediff.data.pairs import (
    ClipShape,
    FileClip,
    Group,
    folder_groups,
    keep_readable,
    split_groups,
)
from animatediff.errors import UserError
from animatediff.miniature.pairs import synthetic_groups
from tests.door import through

SHAPE = ClipShape(num_frames=4, height=16, width=24)


def write_clip(path: Path, seed: int = 0, frames: int = 6, height: int = 16, width: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    save_video(path, noise)
    return path


def write_manifest(root: Path, *rows: dict[str, str]) -> None:
    (root / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_captions_come_from_file_names(tmp_path: Path) -> None:
    write_clip(tmp_path / "left" / "a_red-star.mp4", 0)
    write_clip(tmp_path / "left" / "a blue cross.mp4", 1)
    (tmp_path / "left" / "notes.txt").write_text("not a clip")
    (group,) = folder_groups(tmp_path)
    assert group.name == "left"
    assert [clip.caption for clip in group.clips] == ["a blue cross", "a red star"]


def test_a_manifest_names_path_group_and_caption(tmp_path: Path) -> None:
    for number in range(4):
        write_clip(tmp_path / "clips" / f"{number}.mp4", number)
    rows = [{"path": f"clips/{n}.mp4", "group": f"g{n // 2}", "caption": f"caption {n}"} for n in range(4)]
    write_manifest(tmp_path, *rows)
    groups = folder_groups(tmp_path)
    assert [(g.name, [c.caption for c in g.clips]) for g in groups] == [
        ("g0", ["caption 0", "caption 1"]),
        ("g1", ["caption 2", "caption 3"]),
    ]


def test_without_a_group_the_folder_is_the_group(tmp_path: Path) -> None:
    rows = [{"path": str(write_clip(tmp_path / "jump" / f"{n}.mp4", n)), "caption": "x"} for n in range(2)]
    write_manifest(tmp_path, *rows)
    assert [group.name for group in folder_groups(tmp_path)] == ["jump"]


def test_clips_of_any_length_and_size_come_out_alike(tmp_path: Path) -> None:
    shapes = ((2, 10, 30), (9, 64, 16), (4, 16, 24))
    paths = [write_clip(tmp_path / "g" / f"c{i}.mp4", i, *shape) for i, shape in enumerate(shapes)]
    for path in paths:
        pixels = FileClip(path, "x").pixels(SHAPE)
        assert pixels.shape == (4, 3, 16, 24)
        assert -1 <= pixels.min() < pixels.max() <= 1


def bad_roots(root: Path, case: str) -> None:
    good = [{"path": f"g/{n}.mp4", "caption": f"c {n}"} for n in range(2)]
    if case != "empty":
        for number in range(2):
            write_clip(root / "g" / f"{number}.mp4", number)
    if case == "missing files":
        write_manifest(root, *good, {"path": "g/7.mp4", "caption": "x"}, {"path": "g/8.mp4", "caption": "x"})
    if case == "no caption":
        write_manifest(root, good[0], {"path": "g/1.mp4"})
    if case == "empty caption":
        write_manifest(root, good[0], {"path": "g/1.mp4", "caption": "  "})
    if case == "twice":
        write_manifest(root, *good, good[0])
    if case == "unknown key":
        write_manifest(root, {**good[0], "captoin": "x"}, good[1])
    if case == "one clip":
        write_manifest(root, *good, {"path": "g/0.mp4", "caption": "x", "group": "alone"})
        write_manifest(root, {**good[0], "group": "alone"}, good[1])
    if case == "copies":
        (root / "g" / "1.mp4").write_bytes((root / "g" / "0.mp4").read_bytes())
        write_manifest(root, *good)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("empty", "no clips in"),
        ("missing files", "points to missing files: line 3 g/7.mp4, line 4 g/8.mp4"),
        ("no caption", "line 2 (g/1.mp4) has no caption"),
        ("empty caption", "line 2 (g/1.mp4) has no caption"),
        ("no names", "has no caption in its name"),
        ("twice", "line 3 lists g/0.mp4 a second time"),
        ("unknown key", "line 1 has unknown key 'captoin'"),
        ("one clip", "group 'alone' holds one clip"),
        ("copies", "group 'g' holds copies of one clip"),
    ],
)
def test_bad_data_is_one_clear_line(tmp_path: Path, case: str, words: str) -> None:
    bad_roots(tmp_path, case)
    with pytest.raises(UserError) as error:
        folder_groups(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data folder at .*nowhere"):
        folder_groups(tmp_path / "nowhere")


def test_a_clip_of_one_frame_has_no_motion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no motion to learn"):
        FileClip(write_clip(tmp_path / "still.mp4", frames=1), "x").pixels(SHAPE)


def test_broken_clips_go_and_take_a_group_of_two_with_them() -> None:
    three, two = synthetic_groups(1, clips=3, seed=0)[0], synthetic_groups(1, clips=2, seed=1)[0]
    broken = {three.clips[0].name: "damaged", two.clips[1].name: "gone"}
    readable = keep_readable([three, two], broken)
    assert readable.groups == [Group(three.name, three.clips[1:])]
    assert readable.problems == [
        f"skipped {three.clips[0].name}: damaged",
        f"skipped {two.clips[1].name}: gone",
        f"skipped group '{two.name}': fewer than two of its clips can be read",
    ]


def test_the_split_is_by_group_and_stable() -> None:
    groups = synthetic_groups(20, clips=2, seed=0)
    train, validation = split_groups(groups, 0.25, seed=1)
    assert (len(train), len(validation)) == (15, 5)
    assert {g.name for g in train} | {g.name for g in validation} == {g.name for g in groups}
    assert split_groups(groups[::-1], 0.25, seed=1)[1] == validation[::-1]
    assert split_groups(groups, 0.25, seed=2)[1] != validation
    assert [len(side) for side in split_groups(groups, 0.001, seed=1)] == [19, 1]
    assert [len(side) for side in split_groups(groups, 0.0, seed=1)] == [20, 0]
    assert [len(side) for side in split_groups(groups[:1], 0.5, seed=1)] == [1, 0]


TEXTS = st.text(st.characters(codec=None, categories=None), max_size=6)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(["x" * 300, "g/0.mp4"])
ROWS = st.dictionaries(st.sampled_from(["path", "group", "caption"]) | TEXTS, VALUES, max_size=4)
GOOD = {"path": "g/0.mp4", "group": "g", "caption": "a dog"}


@given(st.lists(ROWS.map(json.dumps) | ROWS.map(lambda row: json.dumps(GOOD | row)) | TEXTS, max_size=3).map("\n".join))
def test_any_manifest_is_groups_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.getbasetemp() / "any manifest"
    (root / "g").mkdir(parents=True, exist_ok=True)
    (root / "g" / "0.mp4").write_bytes(b"0")
    (root / "manifest.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = through(lambda: folder_groups(root))
    assert isinstance(found, str) or all(clip.caption.strip() for group in found for clip in group.clips)
