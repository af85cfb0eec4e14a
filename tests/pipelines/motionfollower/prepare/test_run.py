"""inference.py on two plain videos, and on the folder that `efficientmt prepare` makes: whole edits, random weights."""

import json

import numpy as np
import pytest

from animatediff import command
from animatediff.errors import UserError
from animatediff.inference import cli
from animatediff.inference.engine import Engine
from animatediff.pipelines.motionfollower.prepare.command import read_options
from tests.pipelines.motionfollower.layout import write_weights
from tests.pipelines.motionfollower.prepare.conftest import FRAMES, write_clip


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, states):
    """The keys of a run of 4 frames of 64x64 in one step."""
    files = write_weights(tmp_path_factory.mktemp("weights"), states)
    size = {"num_frames": FRAMES, "height": 64, "width": 64, "num_inference_steps": 1}
    return files | size | {"method": "motionfollower", "device": "cpu"}


@pytest.fixture
def project(small_run, tmp_path, monkeypatch):
    """A folder with run.yaml, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(json.dumps(small_run))
    return tmp_path


def test_two_plain_videos_are_prepared_beside_the_output(project, detector, clips, capsys):
    given = ["--config", "run.yaml", f"source_path={clips[0]}", f"driving_path={clips[1]}"]
    assert cli.main([*given, "--dry-run"]) == 0
    assert "would prepare outputs/prepared/standing-waving-" in capsys.readouterr().out
    assert not (project / "outputs").exists()
    assert cli.main(given) == 0
    assert "source keypoints: drawings" in capsys.readouterr().out
    (folder,) = (project / "outputs" / "prepared").iterdir()
    sidecar = json.loads((project / "outputs" / "waving" / "standing-42.json").read_text())
    assert sidecar["prepared"]["folder"] == str(folder.relative_to(project))
    assert sidecar["prepared"]["made_by"]["source masks"] == "drawings"
    assert sidecar["config"]["source_path"] == str(clips[0])
    assert sidecar["config"]["target_pose_path"] == ""
    calls = list(detector.calls)
    assert cli.main(given) == 0
    assert "already done" in capsys.readouterr().out
    assert cli.main([*given, "seed=7", "--dry-run"]) == 0
    assert "prepared outputs/prepared/standing-waving-" in capsys.readouterr().out
    # The prepared folder gives the same video as the two it was made from.
    engine = Engine(json.loads((project / "run.yaml").read_text()))
    plain = engine.generate({"source_path": str(clips[0]), "driving_path": str(clips[1])})
    assert detector.calls == calls
    np.testing.assert_array_equal(plain, engine.generate({"prepared": str(folder)}))
    with pytest.raises(UserError, match=r"motionfollower\.root is 'source', which counts where two plain videos"):
        engine.generate({"prepared": str(folder), "motionfollower": {"root": "source"}})
    with pytest.raises(UserError, match=r"target_pose_path is empty, .*; or give source_path and driving_path alone"):
        engine.generate({name: str(clips[0]) for name in ("source_path", "driving_path", "source_pose_path")})


def test_a_job_that_cannot_be_prepared_stops_no_other(project, detector, clips, capsys):
    nobody = write_clip(project / "wall", np.full((FRAMES, 18, 2), np.nan))
    jobs = [
        {"source_path": str(clips[0]), "driving_path": str(nobody)},
        {"source_path": str(clips[0]), "driving_path": str(clips[1]), "motionfollower": {"source_subject": "nowhere"}},
        {"source_path": str(clips[0]), "driving_path": str(clips[1]), "motionfollower": {"root": "source"}},
    ]
    (project / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert cli.main(["--config", "run.yaml", "--jobs", "jobs.jsonl"]) == 1
    told = capsys.readouterr().out
    assert "no person was found in the driving clip" in told
    assert "source_subject is 'nowhere', expected x,y or x0,y0,x1,y1" in told
    assert "3 jobs: 1 done, 2 failed" in told


def test_the_command_prepares_and_tells_what_is_next(project, detector, clips, capsys):
    given = ["prepare", "--source", str(clips[0]), "--driving", str(clips[1]), "--output", "ready"]
    assert command.main([*given, "height=128", "width=128", "root=source"]) == 0
    told = capsys.readouterr().out
    assert "target masks: the source's masks, part by part" in told
    assert "look at ready/sheet.html" in told
    log = json.loads((project / "ready" / "log.json").read_text())
    assert (log["options"]["root"], log["size"]) == ("source", [128, 128])
    page = (project / "ready" / "sheet.html").read_text()
    assert "{{" not in page
    assert "http" not in page.replace("http-equiv", "")  # nothing comes from elsewhere
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert {len(sequence) for sequence in data["sequences"].values()} == {FRAMES}
    assert len(data["panels"]) == 6
    assert len(data["stages"]) == 7


def test_options_of_the_command(capsys):
    options = read_options(["proportions=false", "source_subject=12,40", "fps=12"])
    assert (options.proportions, options.source_subject, options.fps) == (False, "12,40", 12.0)
    with pytest.raises(UserError, match="unknown option 'rooot'; did you mean 'root'"):
        read_options(["rooot=source"])
    with pytest.raises(UserError, match="root is 'feet'; "):
        read_options(["root=feet"])
    with pytest.raises(UserError, match="num_frames is 1, expected 2 to 1000"):
        read_options(["num_frames=1"])
    with pytest.raises(UserError, match="'clip.mp4' is no option; write key=value"):
        read_options(["clip.mp4"])
    with pytest.raises(SystemExit):
        command.main(["prepare", "--help"])
    assert "aligned_keypoints=" in capsys.readouterr().out
