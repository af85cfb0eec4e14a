"""The miniature's measures as a plug-in of evaluate.py: exact clips score full marks, and strangers are refused."""

import json
from pathlib import Path

import pytest

from animatediff.config import load_config
from animatediff.errors import UserError
from animatediff.evaluation.evaluate import EvaluationConfig
from animatediff.evaluation.measures import Sample, load_measure
from animatediff.miniature.heldout import heldout_jobs
from animatediff.miniature.measure import write_benchmark
from scripts.evaluate import main

CONFIGS = Path(__file__).parents[2] / "configs" / "evaluation"


def test_exact_answers_reach_the_upper_bound_and_copies_of_the_reference_do_not(tmp_path):
    write_benchmark(tmp_path, count=4)
    assert main([str(tmp_path / "exact"), "clip=none", "measures=[miniature]", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["methods"]["exact"]
    assert found["videos"] == 4
    assert found["subject_cosine"]["mean"] > 0.98
    assert found["subject_distance"]["mean"] < 1
    for key, value in (("colour", 100), ("shape", 100), ("background", 100), ("leak", 0)):
        assert found[key]["mean"] == value
    job = heldout_jobs(1)[0]
    copied = load_measure("miniature")(Sample(job.reference.frames(), {"reference": f"{job.name}.mp4"}, job.prompt))
    assert (copied.values["colour"], copied.values["leak"]) == (0, 100)


def test_a_reversed_reference_asks_for_the_reversed_motion():
    job, measure = heldout_jobs(1)[0], load_measure("miniature")
    record = {"reference": f"reversed/{job.name}.mp4"}
    forwards, backwards = job.wanted.frames(), job.wanted.frames()[::-1]
    reference = job.reference.frames()[::-1]
    assert measure(Sample(backwards, record, job.prompt, reference)).values["subject_cosine"] > 0.98
    assert measure(Sample(forwards, record, job.prompt, reference)).values["subject_cosine"] < 0


def test_outputs_of_other_jobs_are_refused_by_name():
    job, measure = heldout_jobs(1)[0], load_measure("miniature")
    with pytest.raises(UserError, match="'wolf' is not one of the miniature's held-out jobs"):
        measure(Sample(job.wanted.frames(), {"reference": "clips/wolf.mp4"}, job.prompt))
    with pytest.raises(UserError, match="its prompt 'a wolf' is not that of the held-out job 00-line"):
        measure(Sample(job.wanted.frames(), {"reference": f"{job.name}.mp4"}, "a wolf"))


def test_shipped_configurations_load_and_list_the_held_out_jobs():
    config = load_config(EvaluationConfig, CONFIGS / "miniature.yaml")
    assert config.measures == ["miniature"]
    assert load_config(EvaluationConfig, CONFIGS / "default.yaml") == EvaluationConfig()
    listed = [json.loads(line) for line in (CONFIGS.parents[1] / config.jobs).read_text().splitlines()]
    assert [(Path(job["ref_video_path"]).stem, job["prompt"], job["seed"]) for job in listed] == [
        (job.name, job.prompt, job.seed) for job in heldout_jobs()
    ]
