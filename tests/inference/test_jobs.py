"""Lists of jobs: loaded once, extracted once, resumed, shared by processes, and interrupted at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import psutil
import pytest

from animatediff.data.export import safe_name
from animatediff.errors import UserError
from animatediff.inference import cli
from animatediff.inference.jobs import ALREADY_DONE, FAILED, REPEATED, TO_DO, Job, plan, read_jobs, share, table
from animatediff.inference.run import run_schema
from animatediff.pipelines.method import Run

ROOT = Path(__file__).parents[2]


def jobs_file(*rows: dict[str, object] | str) -> str:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path("jobs.jsonl").write_text(text, encoding="utf-8")
    return "jobs.jsonl"


def outputs(kind: str) -> list[str]:
    """Finished files: a killed process may leave a temporary one, .part-<its number>-..., beside them."""
    paths = (path for path in Path("outputs").rglob(f"*.{kind}") if not path.name.startswith(".part-"))
    return sorted(path.relative_to("outputs").as_posix() for path in paths)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often models are loaded, references extracted and videos made."""
    counts: Counter[str] = Counter()

    def counted(name):
        function = getattr(cli, name)

        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        monkeypatch.setattr(cli, name, call)

    for name in ("load", "extract_and_warn", "make"):
        counted(name)
    return counts


def test_a_list_loads_once_extracts_once_and_survives_bad_jobs(command, clip: Path, calls: Counter[str], capsys):
    shutil.copy(clip, "other.mp4")
    Path("broken.mp4").write_text("no video")
    here, other = {"ref_video_path": str(clip)}, {"ref_video_path": "other.mp4"}
    path = jobs_file(
        here | {"prompt": "one"},
        other | {"prompt": "two", "seed": 7},
        here | {"prompt": "three", "num_inference_steps": 1},
        "{not json",
        {"ref_video_path": "broken.mp4", "prompt": "four"},
        here | {"prompt": "five", "num_framse": 3},
        here | {"prompt": "six", "dtype": "bf16"},
        other | {"prompt": "one"},
        here | {"prompt": "one"},
        here | {"prompt": "seven", "num_inference_steps": -2},
    )
    assert command("--jobs", path, prompt=None, reference=None) == 1
    done = ["clip/one-42.mp4", "clip/three-42.mp4", "other/one-42.mp4", "other/two-7.mp4"]
    assert outputs("mp4") == done
    assert outputs("json") == [name.replace(".mp4", ".json") for name in done]
    assert calls == {"load": 1, "extract_and_warn": 3, "make": 4}, "three references, of which one cannot be read"

    lines = capsys.readouterr().out.splitlines()
    summary = lines[-11:]
    assert summary[-1] == "10 jobs: 4 done, 1 repeated, 5 failed"
    assert [line.split()[0] for line in summary[:-1]] == [str(n) for n in range(1, 11)]
    for number, words in {
        1: "outputs/clip/one-42.mp4",
        4: "jobs.jsonl line 4 is not valid JSON",
        5: "broken.mp4",
        6: "unknown key 'num_framse' in jobs.jsonl line 6; did you mean 'num_frames'?",
        7: "jobs.jsonl line 7 sets 'dtype', which is loaded once for all jobs",
        9: "the same as job 1",
        10: "num_inference_steps is -2, expected 1 to 1000",
    }.items():
        assert words in summary[number - 1]

    calls.clear()
    path = jobs_file(here | {"prompt": "one"}, other | {"prompt": "two", "seed": 7}, here | {"prompt": "new"})
    assert command("--jobs", path, prompt=None, reference=None) == 0
    assert calls == {"load": 1, "extract_and_warn": 1, "make": 1}, "only what is not there yet"
    assert capsys.readouterr().out.splitlines()[-1] == "3 jobs: 1 done, 2 already done"

    calls.clear()
    assert command("--jobs", path, prompt=None, reference=None) == 0
    assert not calls


def test_a_defect_stops_one_job_only_and_shows_its_traceback(command, clip: Path, monkeypatch, capsys):
    made = cli.make

    def make(engine, job, *rest):
        if job.run.prompt == "bad":
            raise ZeroDivisionError("in our code")
        made(engine, job, *rest)

    monkeypatch.setattr(cli, "make", make)
    path = jobs_file({"prompt": "bad"}, {"prompt": "good"})
    assert command("--jobs", path, prompt=None) == 1
    said = capsys.readouterr()
    assert "ZeroDivisionError: in our code" in said.out
    assert "Traceback" in said.err
    assert outputs("mp4") == ["clip/good-42.mp4"]
    with pytest.raises(ZeroDivisionError):
        command(prompt="bad")


def test_names_of_other_programs_lists(command, clip: Path):
    path = jobs_file({"video_path": str(clip), "new_prompt": "a fox"})
    assert command("--dry-run", "--jobs", path, prompt=None, reference=None) == 0


@pytest.fixture
def config(clip: Path, tmp_path: Path) -> Run:
    return run_schema("efficientmt")(ref_video_path=str(clip), prompt="a fox", output_dir=str(tmp_path / "out"))


def planned(*configs: Run) -> list[Job]:
    jobs = [Job(config, f"line {i}", i) for i, config in enumerate(configs, start=1)]
    plan(jobs)
    return jobs


def test_one_name_each(config: Run, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(config.ref_video_path, tmp_path / "elsewhere" / "clip.mp4")
    with open(tmp_path / "elsewhere" / "clip.mp4", "ab") as file:
        file.write(b"another video")
    variants = [
        config,
        replace(config, num_inference_steps=3),
        replace(config, ref_video_path=str(tmp_path / "elsewhere" / "clip.mp4")),
        replace(config, prompt="A fox"),
        replace(config, seed=43),
        config,
        replace(config, gif=True, device="cpu"),
    ]
    jobs = planned(*variants)
    names = [job.output.relative_to(config.output_dir).as_posix() for job in jobs]
    assert names[0] == names[5] == names[6] == "clip/a-fox-42.mp4"
    assert names[3] == f"clip/{safe_name('A fox')}-42.mp4"
    assert names[4] == "clip/a-fox-43.mp4"
    assert len(set(names)) == 5
    assert [job.status for job in jobs] == [TO_DO] * 5 + [REPEATED] * 2
    assert not (tmp_path / "out").exists()


def test_lines_that_differ_in_what_is_written_beside_merge_their_wishes(command, clip: Path, calls: Counter[str]):
    wishes = [{"gif": True}, {"frames": True}, {"side_by_side": True}, {}]
    path = jobs_file(*({"prompt": "a fox"} | wish for wish in wishes))
    assert command("--jobs", path, prompt=None) == 0
    assert calls == {"load": 1, "extract_and_warn": 1, "make": 1}
    assert outputs("gif") == ["clip/a-fox-42.gif"]
    assert outputs("png") == ["clip/a-fox-42/00000.png", "clip/a-fox-42/00001.png"]
    assert outputs("mp4") == ["clip/a-fox-42-beside.mp4", "clip/a-fox-42.mp4"]
    Path("outputs/clip/a-fox-42.gif").unlink()
    assert command("--jobs", jobs_file({"prompt": "a fox"}, {"prompt": "a fox", "gif": True}), prompt=None) == 0
    assert outputs("gif") == ["clip/a-fox-42.gif"], "asked for by the second line, of a video that was there"
    assert calls["make"] == 2


def test_what_counts_as_finished(config: Run):
    [job] = planned(config)
    job.output.parent.mkdir(parents=True)
    job.output.write_bytes(b"video")
    assert planned(config)[0].status == TO_DO, "without a sidecar, the run was interrupted"
    assert planned(config)[0].output == job.output
    job.sidecar.write_text(json.dumps({"fingerprint": job.fingerprint}))
    assert planned(config)[0].status == ALREADY_DONE
    assert planned(replace(config, gif=True))[0].status == TO_DO, "the GIF is not there"
    assert planned(replace(config, overwrite=True))[0].status == TO_DO
    other = planned(replace(config, guidance_scale=5.0))[0]
    assert other.status == TO_DO
    assert other.output.name == f"a-fox-42-{other.fingerprint[:8]}.mp4"
    assert planned(replace(config, guidance_scale=5.0, overwrite=True))[0].output == job.output
    job.sidecar.write_text("{half")
    assert planned(config)[0].output != job.output, "a file that is not ours is not overwritten"


def test_shares_are_complete_disjoint_and_keep_references_together(config: Run):
    jobs = [Job(replace(config, ref_video_path=f"{i % 3}.mp4", seed=i), "", i) for i in range(10)]
    for count in (1, 2, 3, 12):
        shares = [share(jobs, index, count) for index in range(count)]
        assert sorted(job.number for part in shares for job in part) == list(range(10))
    first, second = share(jobs, 0, 2), share(jobs, 1, 2)
    shared = {job.run.ref_video_path for job in first} & {job.run.ref_video_path for job in second}
    assert len(shared) <= 1


def test_the_table_is_in_the_order_of_the_list(config: Run):
    jobs = [Job(config, "", 2).ended(FAILED, "why"), Job(config, "", 1).ended(ALREADY_DONE)]
    assert table(jobs).splitlines()[1:] == [
        "   1  already done      0.0 s  .",
        "   2  failed            0.0 s  why",
        "2 jobs: 1 already done, 1 failed",
    ]


def test_a_file_without_jobs(config: Run, tmp_path: Path):
    (tmp_path / "none.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"none.jsonl holds no jobs; expected one JSON object a line"):
        read_jobs(tmp_path / "none.jsonl", config)


def start(small_config: Path, *arguments: str, launch: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """inference.py in a process of its own, in the configuration's folder."""
    command = [sys.executable, *launch, str(ROOT / "inference.py"), "--config", str(small_config), *arguments]
    return subprocess.Popen(
        command,
        cwd=small_config.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
    )


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_at_any_moment_leaves_whole_outputs(
    command, small_config: Path, clip: Path, blow: signal.Signals, capsys
):
    """Killed after its first result; everything there plays, and the same command finishes the list."""
    path = jobs_file(*({"ref_video_path": str(clip), "prompt": f"job {i}", "gif": True} for i in range(30)))
    process = start(small_config, "--jobs", path)
    wait_for(lambda: outputs("json") and len(outputs("mp4")) > 1, process)
    process.send_signal(blow)
    _, err = process.communicate(timeout=60)
    if blow == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "interrupted: whatever was finished is kept"
        assert "Traceback" not in err
        assert not list(Path("outputs").rglob(".part-*"))
    before = outputs("mp4")
    assert 0 < len(before) < 30
    for name in before:
        with av.open(f"outputs/{name}") as container:
            assert len(list(container.decode(video=0))) == 2
    for name in outputs("json"):
        assert json.loads(Path("outputs", name).read_text())["fingerprint"]
        assert name.replace(".json", ".mp4") in before

    lines = Path(path).read_text().splitlines()[:3]
    Path(path).write_text("\n".join(lines))
    assert command("--jobs", path, prompt=None, reference=None) == 0
    assert all(f"clip/job-{i}-42.{kind}" in outputs(kind) for i in range(3) for kind in ("mp4", "json", "gif"))
    assert not list(Path("outputs").rglob(".part-*")), "leftovers of the killed process are gone"
    assert "already done" in capsys.readouterr().out


def test_accelerate_splits_the_list(small_config: Path, clip: Path, monkeypatch):
    monkeypatch.chdir(small_config.parent)
    shutil.copy(clip, "other.mp4")
    rows = [{"ref_video_path": name, "prompt": f"job {i}"} for i, name in enumerate(["other.mp4", str(clip)] * 2)]
    path = jobs_file(*rows, {"ref_video_path": "none.mp4", "prompt": "bad"})
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    jobs = ("--jobs", path, "device=auto")
    process = start(small_config, *jobs, launch=(*launch, "--mixed_precision", "no", "--dynamo_backend", "no"))
    out, err = process.communicate(timeout=240)
    assert process.returncode != 0, "one job failed"
    assert outputs("json") == ["clip/job-1-42.json", "clip/job-3-42.json", "other/job-0-42.json", "other/job-2-42.json"]
    assert outputs("mp4") == [name.replace("json", "mp4") for name in outputs("json")]
    assert out.count("5 jobs: 4 done, 1 failed") == 1, out + err
    rows = [line.split()[:2] for line in out.splitlines() if line[:4].strip().isdigit()]
    assert rows == [["1", "done"], ["2", "done"], ["3", "done"], ["4", "done"], ["5", "failed"]]
    assert "[2/2] done" in out, "the main process had two of the four jobs: the other process the other two"


def kill_with_children(process: subprocess.Popen[str]) -> None:
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.communicate()


@pytest.mark.parametrize("killed", [0, 1], ids=["the first node", "the second node"])
def test_a_node_that_is_gone_leaves_the_rest_to_a_rerun(
    command, small_config: Path, clip: Path, killed: int, calls: Counter[str], capsys
):
    """Two launches with one output folder; one is killed in its share. The second node waits then, the first works."""
    shutil.copy(clip, "other.mp4")
    rows = [
        {"ref_video_path": name, "prompt": f"job {i}", "num_inference_steps": 60 if i and killed in (node, 1) else 1}
        for node, name in enumerate(["other.mp4", str(clip)])
        for i in range(3)
    ]
    path = jobs_file(*rows)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2")
    launch += ("--main_process_ip", "127.0.0.1", "--main_process_port", port)
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", "--machine_rank")
    nodes = [start(small_config, "--jobs", path, launch=(*launch, str(rank))) for rank in (0, 1)]
    try:
        first_results = ["other/job-0-42.json", "clip/job-0-42.json"]
        wait_for(lambda: first_results[killed] in outputs("json"), nodes[killed])
        kill_with_children(nodes[killed])
        _, err = nodes[1 - killed].communicate(timeout=120)
    finally:
        for node in nodes:
            if node.poll() is None:
                kill_with_children(node)
    assert nodes[1 - killed].returncode == 1
    told = "1 of the 2 processes of this command are gone; what the others made is kept, run the same command again"
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [f"error: {told} for the rest"]
    survivor = ["clip", "other"][killed]
    made = outputs("json")
    assert [name for name in made if name.startswith(survivor)] == [f"{survivor}/job-{i}-42.json" for i in range(3)]
    assert len(made) < 6, "the killed node had not finished its share"

    assert command("--jobs", path, prompt=None, reference=None) == 0
    assert calls == {"load": 1, "extract_and_warn": 1, "make": 6 - len(made)}, "exactly what is missing"
    assert len(outputs("json")) == len(outputs("mp4")) == 6
    assert capsys.readouterr().out.splitlines()[-1] == f"6 jobs: {6 - len(made)} done, {len(made)} already done"
