"""One list of prompts on one reference against as many single runs, by the real command in real processes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from animatediff.data.export import save_video
from animatediff.errors import UserError, one_line
from animatediff.miniature.world import make_clip, render
from animatediff.project import PROGRAMS, PROJECT

PROMPT = "a red star on sand, take {}"


def measure_commands(config: str, overrides: Sequence[str], prompts: int = 10, singles: int = 3) -> dict[str, Any]:
    """`inference.py --jobs` with `prompts` lines against `prompts` runs of `inference.py`, both under `config`.

    `singles` of the single runs are made, and their median taken for all. UserError where a run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        clip, jobs = Path(folder) / "clip.mp4", Path(folder) / "jobs.jsonl"
        save_video(clip, render(make_clip(seed=0)))
        lines = [{"ref_video_path": str(clip), "prompt": PROMPT.format(i)} for i in range(prompts)]
        jobs.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        common = ["--config", config, *overrides]
        runs = [
            _run([*common, f"--ref_video_path={clip}", f"--prompt={PROMPT.format(i)}", f"output_dir={folder}/single"])
            for i in range(singles)
        ]
        together = _run([*common, f"--jobs={jobs}", f"output_dir={folder}/list"])
        written = len(list((Path(folder) / "list").rglob("*.mp4")))
    if written != prompts:
        raise UserError(f"the list of {prompts} prompts left {written} videos")
    result = {
        clock: {
            "one_single_run": median(run[clock] for run in runs),
            "single_runs": prompts * median(run[clock] for run in runs),
            "one_run": together[clock],
        }
        for clock in ("wall", "cpu")
    }
    for clock in result.values():
        clock["ratio"] = clock["one_run"] / clock["single_runs"]
    return {"prompts": prompts, "singles_measured": singles, "config": config, "overrides": list(overrides), **result}


def _run(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds on the clock and of processor time of one `inference.py`."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(PROJECT / PROGRAMS["infer"]), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"inference.py ended with status {done.returncode}: {one_line(done.stderr)[-200:]}")
    return {"wall": seconds, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
