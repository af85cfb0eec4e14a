"""scripts/evaluate.py from end to end on rendered outputs, and what it says of everything that is wrong with them."""

import csv
import gc
import json
import math
import shutil
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from animatediff.data.export import save_frames, save_video
from animatediff.errors import UserError
from animatediff.evaluation import evaluate as evaluation
from animatediff.evaluation.sources import (
    RECORD,
    benchmark_jobs,
    find_items,
    read_job_list,
    read_output,
    read_reference,
)
from scripts.evaluate import main
from tests.door import through
from tests.evaluation.conftest import FAMILIES, FRAMES, SIZE, write_output


def run(out, *arguments):
    """The exit status and evaluation.json."""
    status = main([*map(str, arguments), "--out", str(out), "grid=12"])
    return status, json.loads((out / "evaluation.json").read_text())


def problems(found):
    return [f"{video['name']}: {problem}" for video in found["videos"] for problem in video["problems"]]


def edit(sidecar, **changes):
    record = {**json.loads(sidecar.read_text()), **changes}
    sidecar.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_plots_without_their_library_are_refused_before_anything_is_measured(outputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "animatediff.evaluation.plots", raising=False)
    with pytest.raises(UserError, match="^--plots needs matplotlib; pip install matplotlib$"):
        main([str(outputs / "same"), "--out", str(tmp_path / "out"), "--plots", "clip=none"])
    assert not list(tmp_path.glob("out/*"))


def test_two_methods_side_by_side(outputs, tmp_path, tiny_clip, capsys):
    out = tmp_path / "evaluation"
    status, found = run(out, outputs / "same", outputs / "reversed", "--plots", f"clip={tiny_clip}")
    assert status == 0
    assert problems(found) == []
    assert list(found["methods"]) == ["same", "reversed"]
    same, back = (found["methods"][name]["motion_fidelity"] for name in ("same", "reversed"))
    assert same["n"] == back["n"] == len(FAMILIES)
    assert same["mean"] > 0.8 > 0 > back["mean"]
    assert same["low"] < same["mean"] < same["high"]
    values = {(v["method"], v["name"]): v["values"]["motion_fidelity"] for v in found["videos"]}
    apart = [values["reversed", f"{f}/made-7"] - values["same", f"{f}/made-7"] for f in FAMILIES]
    assert found["differences"]["reversed"]["motion_fidelity"]["mean"] == pytest.approx(np.mean(apart))
    assert found["differences"]["reversed"]["seconds"] == {"mean": 0, "low": 0, "high": 0, "n": 3}
    assert found["methods"]["same"]["seconds"]["mean"] == 2
    assert found["methods"]["same"]["peak_memory"]["mean"] == 1
    first = found["videos"][0]
    assert all(-1 <= first["values"][key] <= 1 for key in ("text_alignment", "temporal_consistency"))
    assert {name: len(curve) for name, curve in first["curves"].items()} == {
        "temporal consistency": FRAMES - 1,
        "text alignment": FRAMES,
        "motion fidelity": FRAMES - 1,
        "global motion error": FRAMES - 1,
    }
    table = (out / "tables.md").read_text()
    assert "| minus same" in table
    assert table in capsys.readouterr().out
    with open(out / "videos.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert float(lines[0]["motion_fidelity"]) == first["values"]["motion_fidelity"]
    for name in ("measures", "tradeoff", "curves", "tracks"):
        assert (out / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "motion fidelity" in (out / "report.html").read_text()
    assert "grid: 12" in (out / "config.yaml").read_text()


def test_without_clip_its_columns_say_so_and_the_rest_is_computed(outputs, tmp_path, capsys):
    status, found = run(tmp_path / "out", outputs / "same", f"clip={tmp_path / 'no-such-model'}")
    assert status == 0
    assert "no-such-model" in found["unavailable"]["text_alignment"]
    assert found["methods"]["same"]["text_alignment"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert found["methods"]["same"]["motion_fidelity"]["n"] == 3
    assert "those columns stay empty" in capsys.readouterr().err
    assert "text alignment: clip=" in (tmp_path / "out" / "tables.md").read_text()


def test_everything_wrong_is_named_and_the_rest_evaluated(outputs, tmp_path, capsys):
    same = outputs / "same"
    line, arc, pan = (same / family / "made-7.json" for family in FAMILIES)
    edit(line, reference="gone.mp4")
    edit(arc, num_frames=16, width=64)
    pan.unlink()
    write_output(same, np.zeros((FRAMES, 32, 48, 3), np.uint8), outputs / "references" / "other.mp4").rename(
        same / "moved.mp4"
    )  # a sidecar without its video, a video without its sidecar
    (same / "text.mp4").write_text("not a video")
    (same / "text.json").write_text(json.dumps({"output": "text.mp4", "prompt": "x", "reference": "x.mp4"}))
    (same / "broken.json").write_text("{")
    (same / "other.json").write_text('{"about": "something else"}')
    status, found = run(tmp_path / "out", same, "clip=none")
    assert status == 1
    told = "\n".join(problems(found))
    for part in (
        "line/made-7: its reference gone.mp4 is missing; references=FOLDER",
        "arc/made-7: the video has 8 frames, its record says 16",
        "arc/made-7: the video is 48x32, its record says 64x32",
        "pan/made-7: no sidecar made-7.json beside it",
        "moved: no sidecar moved.json beside it",
        "text: cannot open",
        "broken: ",
    ):
        assert part in told, told
    assert "something else" not in told
    assert f"its video {same / 'other' / 'made-7.mp4'} is missing" in told
    fidelity = {video["name"]: video["values"]["motion_fidelity"] for video in found["videos"]}
    assert fidelity["arc/made-7"] > 0.5
    assert fidelity["pan/made-7"] is None
    shown = capsys.readouterr()
    assert "problem: same: text: cannot open" in shown.err
    assert "videos measured in full" in shown.out


def test_one_frame_is_not_measured_in_full(outputs, tmp_path, capsys):
    still = np.zeros((1, 32, 48, 3), np.uint8)
    write_output(tmp_path / "stills", still, outputs / "references" / "line.mp4")
    status, found = run(tmp_path / "out", tmp_path / "stills", "clip=none")
    assert status == 1
    assert problems(found)[0] == "line/made-7: the video has 1 frame, so its motion cannot be measured"
    assert "0 of 1 videos measured in full" in capsys.readouterr().out


def test_references_stay_in_memory_with_the_rows_that_show_them_only(outputs, monkeypatch):
    read, tracked = [], []

    def remembered(*arguments):
        frames = read_reference(*arguments)
        read.append(weakref.ref(frames))
        return frames

    monkeypatch.setattr(evaluation, "read_reference", remembered)
    tools = evaluation.load_tools(evaluation.EvaluationConfig(clip="none", grid=12))
    followed = tools.tracker
    tools.tracker = lambda frames: tracked.append(len(frames)) or followed(frames)
    items = [item for method in ("same", "reversed") for item in find_items(outputs / method, method)]
    rows = list(evaluation.evaluate(items, tools, lambda item: "line" in item.name))
    gc.collect()
    assert len(read) == 6
    assert len(tracked) == 6 + 3, "every output, and every reference once"
    assert sum(frames() is not None for frames in read) == 1
    first, second = (row for row in rows if row.frames is not None)
    assert first.reference is second.reference is not None, "two rows that show one reference hold it once"


def test_references_are_found_in_a_folder_and_of_other_sizes_and_frame_counts(outputs, tmp_path):
    pan = outputs / "same" / "pan" / "made-7.json"
    frames = np.stack([np.full((40, 96, 3), 10 * k, np.uint8) for k in range(20)])
    frames[:, 10:30, 30:50] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    save_video(tmp_path / "moved" / "pan.mp4", frames, 30)
    edit(pan, reference="somewhere/pan.mp4", reference_frames={"indices": [2, 4, 6, 8, 10, 12, 14, 19]}, fit="crop")
    status, found = run(tmp_path / "out", outputs / "same", "clip=none", f"references={tmp_path / 'moved'}")
    assert (status, problems(found)) == (0, [])
    edit(pan, reference_frames={"indices": [0, 25, 26, 27, 28, 29, 30, 31]})
    _, found = run(tmp_path / "out", outputs / "same", "clip=none", f"references={tmp_path / 'moved'}")
    assert "has 20 frames, but frame 31 was used" in problems(found)[0]
    edit(pan, reference_frames={"indices": [0, 1]})
    _, found = run(tmp_path / "out", outputs / "same", "clip=none", f"references={tmp_path / 'moved'}")
    assert "the video has 8 frames, but 2 of its reference were used" in problems(found)[0]


def test_unusable_values_in_a_sidecar_are_named(outputs, tmp_path):
    edit(outputs / "same" / "line" / "made-7.json", seconds="long", reference_frames={"indices": "all"}, seed=True)
    status, found = run(tmp_path / "out", outputs / "same", "clip=none")
    assert status == 1
    assert "seconds is 'long', expected a number or null" in problems(found)[0]
    assert "seed is true, expected a whole number or null" in problems(found)[0]
    line = next(video for video in found["videos"] if video["name"] == "line/made-7")
    assert line["values"]["seconds"] is None
    assert line["values"]["motion_fidelity"] > 0.8  # its frames are then spread over the whole clip


def test_a_list_of_lines_with_labels(outputs, tmp_path):
    listed = [
        {
            "output": f"{method}/{family}/made-7.mp4",
            "reference": f"references/{family}.mp4",
            "prompt": "a",
            "label": method,
        }
        for family in FAMILIES
        for method in ("same", "reversed")
    ]
    path = outputs / "list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*listed, {"prompt": "b"}, {"output": "no.mp4"}]))
    status, found = run(tmp_path / "out", path, "clip=none", "baseline=reversed", "compat=ditflow")
    assert status == 1
    assert problems(found) == [
        f"line 7: {path} line 7 lacks 'output', a text",
        "no: its video no.mp4 is missing",
    ]
    assert found["differences"]["same"]["motion_fidelity"]["mean"] > 0.5
    published = found["methods"]["same"]["motion_fidelity_ditflow"]
    assert published["n"] == 0  # a single step without displacement makes the published value NaN: here, as often


LONG = "x" * 300


def test_bad_records_are_named_and_the_rest_is_measured(outputs, tmp_path):
    """In a folder and in a list of lines; none of them ends the run."""
    folder = outputs / "same"
    bad = {
        "number.json": '{"output": 3}',
        "nul.json": '{"output": "a\\u0000.mp4"}',
        "long.json": json.dumps({"output": f"{LONG}.mp4"}),
        "twice.json": '{"output": "a.mp4", "output": "b.mp4"}',
        "bytes.json": "\udcff{",
    }
    for name, text in bad.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder / "other.json").write_text("[1, 2]")
    edit(folder / "line" / "made-7.json", reference=f"{LONG}/{LONG}.mp4")
    edit(folder / "pan" / "made-7.json", fit="fill", width=-1, seconds=-5, config={"start": "0"})
    status, found = run(tmp_path / "out", folder, "clip=none")
    told = "; ".join(problems(found))
    assert status == 1
    assert len(found["videos"]) == len(FAMILIES) + len(bad)
    for words in (
        "number.json: output is 3, expected a text",
        "nul.json: output is 'a\\x00.mp4', which holds a NUL",
        "with a name of 304 bytes",
        "twice.json is not valid JSON (key 'output' stands twice)",
        "bytes.json is not UTF-8 text",
        f"its reference {LONG}/{LONG}.mp4 is missing",
        "fit is 'fill', expected stretch or crop or pad or auto or null",
        "width is -1, expected 0 or more",
        "seconds is -5, expected 0 or more",
        "config: start is '0', expected a number or null",
    ):
        assert words in told
    values = {video["name"]: video["values"] for video in found["videos"]}
    assert values["arc/made-7"]["motion_fidelity"] > 0.8
    assert values["pan/made-7"]["motion_fidelity"] > 0.8

    lines = [json.dumps({"output": f"same/{name}/made-7.mp4"}) for name in ("arc", "line")]
    lines += ["[]", '{"output": "a", "label": 3}', json.dumps({"output": "."}), json.dumps({"output": LONG})]
    (outputs / "list.jsonl").write_text("\n".join(lines))
    status, found = run(tmp_path / "out", outputs / "list.jsonl", "clip=none")
    told = problems(found)
    assert status == 1
    assert [video["values"]["motion_fidelity"] is None for video in found["videos"]] == [False, *[True] * 5]
    assert [line.partition(":")[0] for line in told] == ["same/line/made-7", "line 3", "line 4", "line 5", "line 6"]


def test_jobs_under_the_names_of_other_programs(outputs, tmp_path, capsys):
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('\ufeff{"video_path": "x/line.mp4", "new_prompt": "a dog"}\n')
    status, _ = run(tmp_path / "out", outputs / "same", "clip=none", f"jobs={jobs}")
    assert status == 1
    assert "same: no output for the job line.mp4: a dog\n" in capsys.readouterr().err
    for text, message in (
        ('{"prompt": "a"}', "line 1 lacks 'ref_video_path'"),
        ('{"video_path": "a.mp4"}', "line 1 lacks 'prompt', a text"),
        ('{"video_path": "a.mp4", "prompt": 3}', "line 1: prompt is 3, expected a text"),
        ('{"video_path": ["a.mp4"], "prompt": ""}', "line 1: ref_video_path is a list, expected a text"),
    ):
        jobs.write_text(text)
        with pytest.raises(UserError, match=message):
            main([str(outputs / "same"), "clip=none", f"jobs={jobs}", "--out", str(tmp_path / "out")])


def test_prompt_lists_of_other_programs(tmp_path):
    for name in ("bear", "camel"):
        (tmp_path / "480p" / name).mkdir(parents=True)
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("\ufeffbear: a robot\r\ncamel: a horse\r\n".encode())
    jobs = benchmark_jobs(tmp_path / "480p", prompts)
    assert jobs == [
        {"ref_video_path": str(tmp_path / "480p" / "bear"), "prompt": "a robot"},
        {"ref_video_path": str(tmp_path / "480p" / "camel"), "prompt": "a horse"},
    ]
    prompts = tmp_path / "prompts.json"
    for content, message in (
        ("[]", r"prompts.json is a list, expected an object"),
        ('{"bear": 3}', r"prompts.json.bear is 3, expected a text or a list"),
        ('{"bear": ["a", null]}', r"prompts.json.bear\[1\] is null, expected a text"),
        ('{"bear": " "}', "has an empty prompt for 'bear'"),
        ('{"bear": []}', "holds no prompts"),
    ):
        prompts.write_text(content)
        with pytest.raises(UserError, match=message):
            benchmark_jobs(tmp_path / "480p", prompts)


TEXTS = st.text(st.characters(codec=None, categories=None), max_size=6) | st.sampled_from(
    [LONG, "a.mp4", "..", "/", "a\0"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["indices", "start"]), inner, max_size=2)
    ),
    max_leaves=4,
)
RECORDS = st.dictionaries(st.sampled_from([*RECORD, "label"]) | TEXTS, VALUES, max_size=5)


@given(RECORDS | VALUES, st.sampled_from(["a.mp4", "no.mp4", None]), st.booleans())
def test_any_record_is_an_item_that_tells_its_problem(outputs, record, output, listed):
    """And asking for its video and its reference is answered by frames, or by one line."""
    folder = outputs / "any"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.mp4").exists():
        shutil.copy(outputs / "same" / "line" / "made-7.mp4", folder / "a.mp4")
    if isinstance(record, dict) and output:
        record = record | {"output": output}
    path = folder / ("a.jsonl" if listed else "a.json")
    path.write_text(json.dumps(record))
    items = through(lambda: find_items(path if listed else folder, "m"))
    path.unlink()
    assert isinstance(items, list)
    for item in items:
        assert item.problem is None or len(item.problem.splitlines()) == 1
        assert isinstance(item.key, str)
        through(lambda item=item: read_output(item))
        through(lambda item=item: read_reference(item, (2, 8, 8)))


LINES = st.text(st.characters(codec=None, categories=None), max_size=12) | st.sampled_from(
    ["bear: a fox", "\ufeffbear: x"]
)


@given(st.lists(LINES, max_size=4).map("\n".join) | VALUES.map(json.dumps), st.sampled_from(["txt", "json", "jsonl"]))
def test_any_prompt_or_job_list_is_read_or_refused_in_one_line(tmp_path_factory, text, kind):
    folder = tmp_path_factory.getbasetemp() / "any list"
    (folder / "480p" / "bear").mkdir(parents=True, exist_ok=True)
    path = folder / f"list.{kind}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    through(lambda: read_job_list(path) if kind == "jsonl" else benchmark_jobs(folder / "480p", path))


def test_jobs_that_no_output_answers_are_named(outputs, tmp_path, capsys):
    (tmp_path / "jobs.jsonl").write_text(
        "\n".join(json.dumps({"ref_video_path": f"x/{name}.mp4", "prompt": "a red star"}) for name in ("line", "orbit"))
    )
    for family in FAMILIES:
        edit(outputs / "same" / family / "made-7.json", prompt="a red star")
    status, _ = run(tmp_path / "out", outputs / "same", "clip=none", f"jobs={tmp_path / 'jobs.jsonl'}")
    told = capsys.readouterr().err
    assert status == 1
    assert "same: no output for the job orbit.mp4: a red star\n" in told
    assert "line.mp4" not in told


def test_a_method_does_not_answer_for_another(outputs, tmp_path, capsys):
    jobs = [json.loads((outputs / "same" / family / "made-7.json").read_text()) for family in FAMILIES]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    shutil.rmtree(outputs / "reversed" / "pan")
    both = outputs / "same", outputs / "reversed"
    status, _ = run(tmp_path / "out", *both, "clip=none", f"jobs={tmp_path / 'jobs.jsonl'}")
    told = [line for line in capsys.readouterr().err.splitlines() if "no output" in line]
    assert status == 1
    assert told == [f"reversed: no output for the job pan.mp4: {jobs[-1]['prompt']}"]


def test_only_the_first_jobs_are_pictured(outputs, tmp_path):
    run(tmp_path / "out", outputs / "same", "clip=none", "videos=1")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2  # one reference, one output
    assert "2 without pictures here" in page


def test_a_davis_style_benchmark_becomes_jobs(tmp_path, capsys):
    for name in ("bear", "camel"):
        save_frames(tmp_path / "480p" / name, np.zeros((3, 8, 8, 3), np.uint8))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# sequence: prompt\nbear: a robot: shiny\n\ncamel:a horse\nbear: a wolf\n")
    jobs = tmp_path / "jobs.jsonl"
    arguments = ["--frames", str(tmp_path / "480p"), "--prompts", str(prompts), "--write-jobs", str(jobs)]
    assert main(arguments) == 0
    bear, camel = str(tmp_path / "480p" / "bear"), str(tmp_path / "480p" / "camel")
    assert [json.loads(line) for line in jobs.read_text().splitlines()] == [
        {"ref_video_path": bear, "prompt": "a robot: shiny"},
        {"ref_video_path": camel, "prompt": "a horse"},
        {"ref_video_path": bear, "prompt": "a wolf"},
    ]
    assert "3 jobs written" in capsys.readouterr().out
    prompts.write_text("bear a robot")
    with pytest.raises(UserError, match="line 1 is 'bear a robot'; expected 'sequence: prompt'"):
        main(arguments)
    prompts.write_text("dog: a cat")
    with pytest.raises(UserError, match="does not hold: dog"):
        main(arguments)
    (tmp_path / "prompts.json").write_text('{"bear": ["a", "b"], "camel": "c"}')
    arguments[3] = str(tmp_path / "prompts.json")
    assert main(arguments) == 0
    assert len(jobs.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate"),
        (["no/such/folder"], "nothing to evaluate at no/such/folder"),
        (["{empty}"], "holds nothing to evaluate"),
        (["{same}", "tracker=raft"], "tracker is 'raft'"),
        (["{same}", "trakcer=raft"], "did you mean 'tracker'"),
        (["{same}", "measures=[vbench]"], "measures names 'vbench'"),
        (["{same}", "compat=other"], "compat is 'other'"),
        (["{same}", "static=-1"], "static is -1"),
        (["{same}", "baseline=them"], "baseline is 'them'; expected one of same"),
        (["{same}", "--labels", "a", "b"], "2 labels for 1"),
        (["{same}", "{same}"], "called the same"),
        (["--write-jobs", "x.jsonl"], "needs --frames"),
    ],
)
def test_mistakes_in_the_command_are_one_line(outputs, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    filled = [text.format(empty=tmp_path / "empty", same=outputs / "same") for text in arguments]
    extra = [] if "--write-jobs" in arguments else ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        main([*filled, *extra, *(["clip=none"] if arguments else [])])
    assert not (tmp_path / "out" / "report.html").exists()


def test_folders_of_one_name_are_told_apart(outputs, tmp_path):
    shutil.copytree(outputs / "same", tmp_path / "a" / "done")
    shutil.copytree(outputs / "reversed", tmp_path / "b" / "done")
    _, found = run(tmp_path / "out", tmp_path / "a" / "done", tmp_path / "b" / "done", "clip=none")
    assert list(found["methods"]) == ["a/done", "b/done"]


def test_one_video_has_a_mean_and_no_interval(outputs, tmp_path):
    _, found = run(tmp_path / "out", outputs / "same" / "line", "clip=none")
    mean = found["methods"]["line"]["motion_fidelity"]
    assert mean["n"] == 1
    assert mean["low"] is None
    assert not math.isnan(mean["mean"])
    assert SIZE == (32, 48)
