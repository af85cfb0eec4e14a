"""Make training pairs: a candidate for every clip, prompt and seed, filtered, in the layout that train.py reads.

python scripts/make_pairs.py --clips clips --prompts prompts.yaml --method motionclone --out data/pairs
python scripts/make_pairs.py ... --decisions decisions.json          after the manual pass on contact_sheet.html
python scripts/make_pairs.py ... thresholds.motion_fidelity=0.7      select again; nothing made is made again
accelerate launch scripts/make_pairs.py ...                          candidates and scores split over processes
python scripts/make_pairs.py --method synthetic --out data/pairs synthetic_groups=100    exact pairs, rendered

Keys: those of configs/pairs/default.yaml; `inference.KEY=value` is handed to inference.py. In --out: manifest.jsonl and
pairs/ for train.py, scores.jsonl with every score and every reason, contact_sheet.html, candidates/ with all videos.
Exit status: 0 pairs are there, 1 the same but some candidate or clip failed, 2 a mistake or nothing left to train on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

from animatediff.config import load_config, nearest, option, save_config
from animatediff.console import Parser
from animatediff.curation.candidates import (
    JOBS,
    Source,
    find_sources,
    read_prompts,
    reference_frames,
    save_even,
    write_jobs,
)
from animatediff.curation.selection import (
    SCORES,
    Candidate,
    check_thresholds,
    distribution,
    judge,
    read_decisions,
    write_pairs,
    write_scores,
)
from animatediff.curation.sheet import write_sheet
from animatediff.data.pairs import MANIFEST, ClipShape
from animatediff.data.sources import SOURCES
from animatediff.data.video import to_levels
from animatediff.errors import UserError
from animatediff.evaluation.evaluate import EvaluationConfig, Tools, evaluate_item, load_tools
from animatediff.evaluation.sources import find_items
from animatediff.files import check_value, check_writable, load_json, write_json, write_jsonl
from animatediff.inference import cli, processes
from animatediff.inference.jobs import Job
from animatediff.inference.run import read_run
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Run
from animatediff.project import locate

DEFAULT_CONFIG = "configs/pairs/default.yaml"
MINIATURE = "configs/inference/{method}/miniature.yaml"  # what makes the candidates unless --config says
SYNTHETIC = "synthetic"
PREFIX = "inference."


@dataclass
class PairsConfig:
    """What is made and what is kept. Every key can stand in the YAML and on the command line as key=value."""

    method: str = option(SYNTHETIC, "what makes the candidates: a method, or synthetic; --method says it, too")
    candidates_per_prompt: int = option(1, "seeds from inference.seed on", least=1, most=10_000)
    thresholds: dict[str, float] = option({}, "column of scripts/evaluate.py: its worst value", least=-1e9, most=1e9)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    synthetic_groups: int = option(150, "method synthetic: motions", least=1, most=1_000_000)
    synthetic_clips: int = option(2, "clips that share one", least=2, most=64)
    synthetic_size: int = option(64, "pixels, both sides", least=16, most=1024)
    synthetic_frames: int = option(16, "frames of each", least=2, most=1000)
    synthetic_seed: int = option(0, "of all that is drawn", least=0, most=2**31 - 1)
    synthetic_split: str = option("train", "which motions and contents: train, or heldout")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parse(arguments)
    own = [text for text in options.overrides if not text.startswith(PREFIX)]
    own += [f"method={options.method}"] if options.method else []
    config = load_config(PairsConfig, locate(options.pairs_config), own)
    out = check_writable(options.out, "--out")
    if config.method == SYNTHETIC:
        return make_synthetic(config, out)
    if config.method not in METHODS:
        raise UserError(f"method is '{config.method}'; {nearest(config.method, [*METHODS, SYNTHETIC])}")
    if not options.clips or not options.prompts:
        raise UserError(f"method {config.method} needs --clips (a folder or manifest) and --prompts (a YAML list)")
    flags = inference_flags(options.config, config.method)
    overrides = [text.removeprefix(PREFIX) for text in options.overrides if text.startswith(PREFIX)]
    overrides += [f"output_dir={out / 'candidates'}", f"method={config.method}"]
    made_with = read_run([locate(path) for path in flags[1::2]], overrides)
    tools = load_tools(config.evaluation)
    check_thresholds(config.thresholds, tools.columns)
    prompts = read_prompts(options.prompts)
    sources = find_sources(options.clips, made_with.num_frames)
    state = processes.join(made_with.device)
    all_jobs = partial(write_jobs, out, sources, prompts, made_with, config.candidates_per_prompt)
    processes.from_first(all_jobs)
    cli.main([*flags, "--jobs", str(out / JOBS), *overrides])
    jobs = processes.from_first(all_jobs)  # as they stand now
    scores = score(jobs, tools, config, out, state)
    if not state.is_main_process:
        return 0
    save_config(config, out / "config.yaml")
    return select(config, options.decisions, tools, sources, prompts, jobs, scores, made_with, out)


def inference_flags(path: str | None, method: str) -> list[str]:
    """The --config flags of the candidates' runs: the YAML given, else the method's for the miniature, else none."""
    usual = locate(MINIATURE.format(method=method))
    if path is None:
        return ["--config", usual] if Path(usual).is_file() else []
    return ["--config", path]


def make_synthetic(config: PairsConfig, out: Path) -> int:
    """Render exact pairs to order; what is there already is not rendered again."""
    shape = ClipShape(config.synthetic_frames, config.synthetic_size, config.synthetic_size)
    groups = SOURCES[SYNTHETIC].draw(
        config.synthetic_groups, config.synthetic_clips, config.synthetic_seed, config.synthetic_split
    )
    rows = []
    for number, group in enumerate(tqdm(groups, unit="group", desc="rendering")):
        for place, clip in enumerate(group.clips):
            size = f"{config.synthetic_frames}x{config.synthetic_size}"
            path = out / "pairs" / f"{number:05d}" / f"{place}-{clip.content_hash[:12]}-{size}.mp4"
            if not path.is_file():
                save_even(path, to_levels(clip.pixels(shape)), 8)
            rows.append({"path": path.relative_to(out).as_posix(), "group": f"{number:05d}", "caption": clip.caption})
    write_jsonl(out / MANIFEST, rows)
    print(f"{len(groups)} groups of {config.synthetic_clips} exact clips are in {out}; next: training on it")
    return 0


def score(
    jobs: Sequence[Job], tools: Tools, config: PairsConfig, out: Path, state: PartialState
) -> dict[str, dict[str, float | None]]:
    """Scores of every finished candidate by the name of its video, null where one cannot be had.

    Each is measured once and kept in `out`/scores, unless something went wrong; columns that could not be had at all
    are tried again once they can.
    """
    settings = json.dumps([asdict(config.evaluation), tools.reasons], sort_keys=True)
    outputs = {job.output.resolve() for job in jobs if job.output.is_file()}
    items = find_items(out / "candidates", "candidates") if outputs else []
    mine = [item for item in items if item.output.resolve() in outputs][state.process_index :: state.num_processes]
    found = []
    for item in tqdm(mine, unit="video", desc="measuring", disable=not state.is_main_process):
        key = hashlib.sha256(f"{settings} {item.record.get('fingerprint')}".encode()).hexdigest()
        path = out / "scores" / f"{key}.json"
        values = known_scores(path)
        if values is None:
            row = evaluate_item(item, tools)
            values = {key: None if math.isnan(value) else value for key, value in row.values.items()}
            if row.problems:
                print(f"problem: {item.name}: {'; '.join(row.problems)}", file=sys.stderr)
            else:
                write_json(path, values)
        found.append((str(item.output.resolve()), values))
    return dict(processes.gather(found))


def known_scores(path: Path) -> dict[str, float | None] | None:
    """The scores that lie at `path`; None where there are none, or none that can be used."""
    try:
        values = load_json(path)
        check_value(values, dict[str, float | None], str(path))
    except UserError:
        return None
    return values


def select(
    config: PairsConfig,
    decisions: str | None,
    tools: Tools,
    sources: Sequence[Source],
    prompts: Sequence[str],
    jobs: Sequence[Job],
    scores: Mapping[str, Mapping[str, float | None]],
    made_with: Run,
    out: Path,
) -> int:
    """Judge all candidates, write scores, contact sheet and pairs; the exit status."""
    candidates = list_candidates(sources, prompts, jobs, scores)
    counted = measurable(config.thresholds, candidates, tools)
    for candidate in candidates:
        if candidate.output.is_file():
            judge(candidate, counted, tools.columns)
    if decisions:
        read_decisions(decisions, candidates)
    references = {}
    for source in sources:
        if source.problem is None:
            path = out / "references" / f"{source.group}.mp4"  # anew: the frames that these candidates belong to
            save_even(path, reference_frames(source, made_with), rate(made_with))
            references[source.group] = path, source.caption
    write_scores(out / SCORES, candidates)
    shown = [column for column in tools.columns if column.key not in ("seconds", "peak_memory")]
    limits = ", ".join(f"{key} {limit}" for key, limit in counted.items()) or "none"
    sheet = write_sheet(out, candidates, references, shown, f"Thresholds: {limits}.")
    made = [candidate for candidate in candidates if candidate.output.is_file()]
    if not any(candidate.kept for candidate in candidates):
        (out / MANIFEST).unlink(missing_ok=True)
        raise UserError(
            f"none of {len(made)} candidates is kept (lowest / median / highest score): "
            f"{distribution(made, counted)}; lower the thresholds, or decide by hand in {sheet}"
        )
    kept = write_pairs(out, candidates, references)
    failed = len(candidates) - len(made)
    print(f"{kept} of {len(made)} candidates kept in {out}" + (f"; {failed} could not be made" if failed else ""))
    print(f"scores: {distribution(made, counted)}")
    print(f"manual pass: open {sheet}, export, and run again with --decisions")
    return 1 if failed else 0


def rate(run: Run) -> float:
    """Frames per second of the references' copies: the candidates', or 8 where these follow their clips."""
    return 8.0 if isinstance(run.fps, str) else run.fps


def measurable(thresholds: Mapping[str, float], candidates: Sequence[Candidate], tools: Tools) -> dict[str, float]:
    """The thresholds on columns that have a score for any candidate; says which are skipped, and why."""
    counted = {}
    for key, limit in thresholds.items():
        if any(not math.isnan(candidate.scores.get(key, math.nan)) for candidate in candidates):
            counted[key] = limit
        else:
            reason = tools.reasons.get(key, "it cannot be measured for any candidate")
            print(f"note: the threshold on {key} is skipped: {reason}", file=sys.stderr)
    return counted


def list_candidates(
    sources: Sequence[Source],
    prompts: Sequence[str],
    jobs: Sequence[Job],
    scores: Mapping[str, Mapping[str, float | None]],
) -> list[Candidate]:
    """Every clip, prompt and seed: made and scored, or with the reason why not."""
    groups = {os.path.abspath(source.path): source.group for source in sources}  # a link has a group of its own
    candidates = [
        Candidate(f"{source.group}/{prompt}", source.group, str(source.path), prompt, -1, Path(), {}, [source.problem])
        for source in sources
        if source.problem
        for prompt in prompts
    ]
    for job in jobs:
        config = job.run
        group = groups[os.path.abspath(config.ref_video_path)]
        known = scores.get(str(job.output.resolve()))
        values = {key: math.nan if value is None else value for key, value in (known or {}).items()}
        name = f"{group}/{job.output.stem}"
        reasons = [] if known is not None else [job.note or "it was not made; see the table of jobs"]
        output = job.output if known is not None else Path()
        candidates.append(
            Candidate(name, group, config.ref_video_path, config.prompt or "", config.seed, output, values, reasons)
        )
    return candidates


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("pairs", __doc__)
    parser.add_argument(
        "--clips",
        help="a folder of videos or frame folders that give the motion, or a manifest.jsonl: each group's first",
    )
    parser.add_argument("--prompts", help="a YAML list of sentences")
    parser.add_argument("--method", help="what makes the candidates: a method, or synthetic (default: the YAML's)")
    parser.add_argument("--out", default="data/pairs", help="folder to fill (default: data/pairs)")
    parser.add_argument("--config", help="YAML of inference.py (default: the method's one for the miniature)")
    parser.add_argument("--pairs-config", default=DEFAULT_CONFIG, help="YAML of what is kept")
    parser.add_argument("--decisions", help="what contact_sheet.html exported")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(arguments)
