"""The pair factory: candidates, selection, contact sheet. Candidates are made by a stand-in for inference.py."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from animatediff.curation import pairs as make_pairs
from animatediff.curation.candidates import find_sources
from animatediff.curation.selection import Candidate, check_thresholds, distribution, judge
from animatediff.data.export import save_video
from animatediff.data.pairs import MANIFEST, ClipShape, folder_groups
from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.evaluation.evaluate import evaluate_item, load_tools
from animatediff.evaluation.measures import Column
from animatediff.files import write_json
from animatediff.inference import cli
from animatediff.inference.jobs import ALREADY_DONE, FAILED, plan, read_jobs
from animatediff.inference.run import read_run
from animatediff.miniature.words import colour_consistency_per_step, words_shown
from animatediff.miniature.world import Clip, Content, sample_motion
from animatediff.project import locate

GOOD, STILL = "a red star on a striped grey background", "a blue circle on a dotted brown background"
COLUMNS = [Column("up", "goodness", "higher"), Column("down", "distance", "lower"), Column("flat", "flat")]


def rendered(caption, seed, still=False):
    _, colour, shape, _, _, pattern, ground, _ = caption.split()
    motion = sample_motion(seed, "heldout", "line", 8)
    frames = Clip(Content(shape, colour, pattern, ground), motion, (64, 64)).frames()
    return frames[:1].repeat(8, axis=0) if still else frames


@pytest.fixture
def clips(tmp_path):
    """Two clips that can be read and one that cannot."""
    for seed in (1, 2):
        save_video(tmp_path / "clips" / f"clip {seed}.mp4", rendered("a green cross on a cloudy teal background", seed))
    (tmp_path / "clips" / "clip 1.txt").write_text("a green cross\non a cloudy teal background")
    (tmp_path / "clips" / "text.mp4").write_text("not a video")
    return tmp_path / "clips"


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.yaml").write_text(f"- {GOOD}\n- {STILL}\n- {GOOD}\n")
    return tmp_path / "prompts.yaml"


@pytest.fixture
def made(monkeypatch):
    """The stand-in: the second prompt's videos stand still. Returns the list of the outputs it made."""
    outputs = []

    def main(arguments):
        _, path, _, job_list, *overrides = arguments
        jobs = read_jobs(job_list, read_run([locate(path)], overrides))
        plan(jobs)
        for job in jobs:
            if job.status in (ALREADY_DONE, FAILED):
                continue
            prompt, seed = job.run.prompt, 1 if "clip-1" in str(job.output.parent.name).replace(" ", "-") else 2
            save_video(job.output, rendered(prompt, seed, still=prompt == STILL))
            record = {"output": job.output.name, "reference": job.run.ref_video_path, "prompt": prompt}
            write_json(job.sidecar, record | {"seed": job.run.seed, "fingerprint": job.fingerprint})
            outputs.append(job.output)
        return 0

    monkeypatch.setattr(cli, "main", main)
    return outputs


@pytest.fixture
def command(clips, prompts, tmp_path):
    def run(*more):
        keys = ["evaluation.clip=none", "inference.num_frames=8", "thresholds.words_shown=0.5", "evaluation.grid=8"]
        paths = ["--clips", str(clips), "--prompts", str(prompts), "--out", str(tmp_path / "out")]
        return make_pairs.main([*paths, *keys, *more])

    return run


def scores(out):
    return {row["name"]: row for row in map(json.loads, (out / "scores.jsonl").read_text().splitlines())}


def test_two_processes_make_what_one_makes(small_config, clips, prompts, tmp_path, repository):
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    limits = [f"thresholds.{key}=-1" for key in ("motion_fidelity", "words_shown", "colour_consistency")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"PYTHONPATH": str(repository)}
    for start, out in (([], tmp_path / "one"), (launch, tmp_path / "two")):
        paths = ["--config", small_config, "--clips", clips, "--prompts", prompts, "--out", out]
        keys = ["--method", "efficientmt", "evaluation.clip=none", "evaluation.grid=8", *limits]
        line = [sys.executable, *start, repository / "scripts" / "make_pairs.py", *paths, *keys]
        done = subprocess.run(list(map(str, line)), env=environment, capture_output=True, text=True, timeout=240)
        assert done.stdout.count("4 of 4 candidates kept") == 1, done.stdout + done.stderr
    one, two = scores(tmp_path / "one"), scores(tmp_path / "two")
    assert len(one) == 6, "two clips by two prompts, and the clip that cannot be read"
    for row in (*one.values(), *two.values()):
        for cost in ("seconds", "peak_memory"):
            row["scores"].pop(cost, None)
    assert {name: row["scores"] for name, row in one.items()} == {name: row["scores"] for name, row in two.items()}
    first, second = (sorted((tmp_path / name / "candidates").rglob("*.mp4")) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


class TestFactory:
    def test_pairs_that_train_py_reads(self, command, made, tmp_path, capsys):
        out = tmp_path / "out"
        assert command() == 1  # the clip that cannot be read
        rows = scores(out)
        kept = {row["prompt"] for row in rows.values() if row["kept"]}
        assert len(rows) == 6
        assert kept == {GOOD}
        still = [row["reasons"] for row in rows.values() if row["prompt"] == STILL and row["group"] != "text"]
        assert len(still) == 2
        assert all(len(reasons) == 1 and reasons[0].startswith("motion fidelity -1.000 is below") for reasons in still)
        broken = [row for row in rows.values() if row["group"] == "text"]
        assert len(broken) == 2
        assert all("text.mp4" in row["reasons"][0] and not row["kept"] for row in broken)
        groups = folder_groups(out)
        assert [group.name for group in groups] == ["clip-1", "clip-2"]
        assert sorted(clip.caption for clip in groups[0].clips) == ["a green cross on a cloudy teal background", GOOD]
        assert [clip.pixels(ClipShape(8, 64, 64)).shape for clip in groups[1].clips] == [torch.Size([8, 3, 64, 64])] * 2
        said = capsys.readouterr()
        assert "2 of 4 candidates kept" in said.out
        assert "the threshold on temporal_consistency is skipped" in said.err

    def test_a_link_to_a_clip_has_candidates_of_its_own_name(self, command, made, clips, tmp_path):
        (clips / "clip 3.mp4").symlink_to(clips / "clip 1.mp4")
        command()
        names = sorted(name for name in scores(tmp_path / "out") if not name.startswith("text"))
        assert [name.partition("/")[0] for name in names] == [f"clip-{n}" for n in (1, 1, 2, 2, 3, 3)]
        assert [group.name for group in folder_groups(tmp_path / "out")] == ["clip-1", "clip-2", "clip-3"]

    def test_selecting_again_makes_and_measures_nothing_again(self, command, made, tmp_path, monkeypatch):
        command()
        first = list(made)
        monkeypatch.setattr(make_pairs, "evaluate_item", lambda *_: pytest.fail("measured a second time"))
        command("thresholds.words_shown=0.6")
        assert made == first
        assert len(first) == 4

    def test_what_could_not_be_measured_is_tried_again(self, command, made, monkeypatch):
        measured = []

        def flawed(item, tools):
            row = evaluate_item(item, tools)
            if not measured:
                row.problems.append("its reference is missing")
            measured.append(item.name)
            return row

        monkeypatch.setattr(make_pairs, "evaluate_item", flawed)
        command()
        assert len(measured) == 4
        command()
        assert measured[4:] == measured[:1], "a failure is not kept, the rest is"

        def with_clip(config):
            tools = load_tools(config)
            tools.measures[0] = replace(tools.measures[0], reason=None)
            return tools

        monkeypatch.setattr(make_pairs, "load_tools", with_clip)
        command()
        assert sorted(measured[5:]) == sorted(measured[:4]), "a column has become available"

    def test_references_follow_the_settings(self, command, made, tmp_path):
        command()
        reference = tmp_path / "out" / "references" / "clip-1.mp4"
        assert len(read_frames(reference, None).frames) == 8
        before = reference.stat().st_mtime_ns
        command("inference.num_frames=4", "inference.duration=0.5")
        assert len(read_frames(reference, None).frames) == 4
        assert reference.stat().st_mtime_ns != before
        assert [path.name for path in reference.parent.iterdir() if path.name.startswith(".")] == []

    def test_nothing_left(self, command, made, tmp_path):
        command()
        with pytest.raises(UserError, match=r"none of 4 candidates is kept .*words_shown .* against 2;") as caught:
            command("thresholds.words_shown=2")
        assert "motion_fidelity -1.000 / " in str(caught.value)
        assert not (tmp_path / "out" / "manifest.jsonl").exists()
        assert len(list((tmp_path / "out" / "candidates").rglob("*.mp4"))) == 4
        assert len(scores(tmp_path / "out")) == 6

    def test_decisions_go_over_the_scores(self, command, made, tmp_path):
        command()
        names = {(row["group"], row["prompt"]): name for name, row in scores(tmp_path / "out").items()}
        decisions = {names["clip-1", GOOD]: "reject", names["clip-1", STILL]: "keep"}
        write_json(tmp_path / "decisions.json", decisions)
        command("--decisions", str(tmp_path / "decisions.json"))
        groups = {group.name: {clip.caption for clip in group.clips} for group in folder_groups(tmp_path / "out")}
        assert STILL in groups["clip-1"]
        assert GOOD not in groups["clip-1"]
        assert GOOD in groups["clip-2"]
        assert len(list((tmp_path / "out" / "pairs" / "clip-1").iterdir())) == 1
        for content, message in (
            ({"clip-1/x": "keep"}, "decides on 'clip-1/x', which is no candidate"),
            ({names["clip-1", GOOD]: "maybe"}, "says 'maybe'"),
            ([], "holds a list"),
        ):
            write_json(tmp_path / "bad.json", content)
            with pytest.raises(UserError, match=message):
                command("--decisions", str(tmp_path / "bad.json"))

    def test_synthetic_pairs_are_exact_and_resumable(self, tmp_path):
        keys = ["synthetic_groups=2", "synthetic_clips=3", "synthetic_size=32", "synthetic_frames=4"]
        command = ["--method", "synthetic", "--out", str(tmp_path / "pairs"), *keys]
        assert make_pairs.main(command) == 0
        groups = folder_groups(tmp_path / "pairs")
        assert [len(group.clips) for group in groups] == [3, 3]
        assert len({clip.caption for clip in groups[0].clips}) == 3
        frames = [read_frames(clip.path, None).frames for clip in groups[0].clips]
        assert all(f.shape == (4, 32, 32, 3) for f in frames)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "pairs").rglob("*.mp4")}
        make_pairs.main(command)
        assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "pairs").rglob("*.mp4")}
        make_pairs.main([*command, "synthetic_frames=5"])
        again = [clip for group in folder_groups(tmp_path / "pairs") for clip in group.clips]
        assert [len(read_frames(clip.path, None).frames) for clip in again] == [5] * 6

    def test_the_first_clip_of_every_group_gives_the_motion(self, tmp_path):
        keys = ["synthetic_groups=2", "synthetic_clips=3", "synthetic_size=32", "synthetic_frames=4"]
        make_pairs.main(["--method", "synthetic", "--out", str(tmp_path), *keys])
        rows = [json.loads(line) for line in (tmp_path / MANIFEST).read_text().splitlines()]
        firsts = [(tmp_path / row["path"], row["group"], row["caption"]) for row in (rows[0], rows[3])]
        sources = find_sources(tmp_path / MANIFEST, 4)
        assert [(source.path, source.group, source.caption) for source in sources] == firsts
        with pytest.raises(UserError, match="no manifest at"):
            find_sources(tmp_path / "nowhere" / MANIFEST, 4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "holds no prompts"),
            ("[]", "holds no prompts"),
            ("a: b", "holds dict, expected a YAML list"),
            ("- a\n- 3", "has 3 as prompt 2, expected a sentence"),
            ("- [", "is not valid YAML"),
        ],
    )
    def test_prompts(self, command, prompts, text, message):
        prompts.write_text(text)
        with pytest.raises(UserError, match=message):
            command()

    def test_clips_thresholds_and_arguments(self, command, tmp_path, clips):
        with pytest.raises(UserError, match="thresholds has 'beauty'"):
            command("thresholds.beauty=1")
        with pytest.raises(UserError, match="candidates_per_prompt is 0"):
            command("candidates_per_prompt=0")
        with pytest.raises(UserError, match="no folder of clips at"):
            command("--clips", str(tmp_path / "nowhere"))
        for path in clips.glob("clip*"):
            path.unlink()
        with pytest.raises(UserError, match=r"no clip in .* can be read; the first: .*text\.mp4"):
            command()
        (clips / "text.mp4").unlink()
        with pytest.raises(UserError, match="no clips in"):
            command()
        with pytest.raises(UserError, match="needs --clips"):
            make_pairs.main(["--out", str(tmp_path / "out")])


class TestSelection:
    def candidate(self, **scores):
        return Candidate("g/a", "g", "r.mp4", "a cat", 1, Path(), scores)

    def test_reasons(self):
        one = self.candidate(up=0.4, down=3.0, flat=1.0)
        judge(one, {"up": 0.5, "down": 2.0}, COLUMNS)
        assert one.reasons == ["goodness 0.400 is below 0.5", "distance 3.000 is above 2"]
        edge = self.candidate(up=0.5, down=2.0)
        judge(edge, {"up": 0.5, "down": 2.0}, COLUMNS)
        assert edge.reasons == []
        unknown = self.candidate(up=float("nan"))
        judge(unknown, {"up": 0.5}, COLUMNS)
        assert unknown.reasons == ["goodness cannot be measured"]

    def test_thresholds_need_a_better_side(self):
        check_thresholds({"up": 1, "down": 1}, COLUMNS)
        with pytest.raises(UserError, match="thresholds has 'flat'"):
            check_thresholds({"flat": 1}, COLUMNS)
        with pytest.raises(UserError, match=r"thresholds\.up is nan"):
            check_thresholds({"up": float("nan")}, COLUMNS)

    def test_distribution(self):
        several = [self.candidate(up=value) for value in (0.1, 0.3, 0.2, float("nan"))]
        assert distribution(several, {"up": 0.5, "down": 1}) == (
            "up 0.100 / 0.200 / 0.300 against 0.5; down not measured against 1"
        )


class TestWeightFree:
    def test_colour_consistency(self):
        black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
        half = black.copy()
        half[:4] = 255
        assert colour_consistency_per_step(np.stack([black, black, half, half[::-1], white])).tolist() == [
            1,
            0.5,
            1,
            0.5,
        ]

    def test_words_shown(self):
        frames = rendered(GOOD, 1)
        assert words_shown(frames, GOOD) == 1
        assert words_shown(frames, STILL) == 0
        assert words_shown(frames, "A red, striped thing") == 1
        assert np.isnan(words_shown(frames, "a cat"))


def test_contact_sheet_in_a_browser(command, made, tmp_path, browser):
    """Clicks in a real headless browser; its export is read back."""
    command()
    sheet = tmp_path / "out" / "contact_sheet.html"
    assert sheet.read_text().count("Content-Security-Policy") == 1
    browser.page.goto(sheet.as_uri())
    shown = browser.evaluate("[...document.querySelectorAll('.card')].map((card) => card.className)")
    browser.page.locator('.card.keep [data-choice="reject"]').first.click()
    browser.page.locator('.card.reject:last-of-type [data-choice="keep"]').first.click()
    with browser.page.expect_download() as download:
        browser.page.locator("#export").click()
    decisions = json.loads(download.value.path().read_text())
    assert sorted(shown) == ["card keep"] * 2 + ["card reference"] * 2 + ["card reject"] * 2
    assert sorted(decisions.values()) == ["keep", "reject"]
    write_json(tmp_path / "decisions.json", decisions)
    command("--decisions", str(tmp_path / "decisions.json"))
    by_hand = {name: row["by_hand"] for name, row in scores(tmp_path / "out").items() if row["by_hand"]}
    assert by_hand == decisions
