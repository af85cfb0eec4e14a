"""Measure transfers: text alignment, temporal consistency, motion fidelity, and what they cost.

python scripts/evaluate.py outputs                                   one folder of outputs with their sidecars
python scripts/evaluate.py runs/ours runs/theirs --plots             methods side by side, with paired differences
python scripts/evaluate.py list.jsonl clip=none                      lines {"output", "reference", "prompt", ...}
python scripts/evaluate.py --frames DAVIS/JPEGImages/480p --prompts prompts.txt --write-jobs davis.jsonl
                                                                     a benchmark as jobs for inference.py --jobs
python scripts/evaluate.py --write-miniature runs/miniature          the miniature's references and jobs
python scripts/evaluate.py --write-miniature-dit runs/miniature_dit_jobs   those of models/miniature_dit
python scripts/evaluate.py --write-miniature-people runs/people            those of models/miniature_people

Exit status: 0 everything measured, 1 something could not be (named at the end), 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import transformers
from tqdm import tqdm

from animatediff.config import load_config, save_config
from animatediff.console import Parser
from animatediff.errors import UserError
from animatediff.evaluation.evaluate import EvaluationConfig, Row, evaluate, load_tools
from animatediff.evaluation.report import write_report
from animatediff.evaluation.sources import Item, benchmark_jobs, find_items, missing_jobs, name_methods, read_job_list
from animatediff.evaluation.tables import Summary, problem_lines, summarise, to_csv, to_json, to_markdown
from animatediff.files import check_writable, is_there, write_json, write_jsonl, write_text
from animatediff.miniature.measure import write_benchmark
from animatediff.miniature.people.measure import write_benchmark as write_people_benchmark
from animatediff.miniature.video_autoencoder import FRAMES
from animatediff.project import as_called, locate

DEFAULT_CONFIG = "configs/evaluation/default.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parse(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.write_jobs:
        return write_jobs(options.frames, options.prompts, options.write_jobs)
    if options.write_miniature:
        print("written:", *write_benchmark(options.write_miniature))
        return 0
    if options.write_miniature_dit:
        print("written:", *write_benchmark(options.write_miniature_dit, frames=FRAMES, anchored=False))
        return 0
    if options.write_miniature_people:
        print("written:", *write_people_benchmark(options.write_miniature_people))
        return 0
    out = check_writable(options.out, "--out")
    overrides = [text for text in options.paths if "=" in text and not is_there(text)]
    paths = [text for text in options.paths if text not in overrides]
    config = load_config(EvaluationConfig, locate(options.config), overrides)
    if not paths:
        raise UserError("nothing to evaluate; give folders of outputs or JSON Lines files")
    items = collect(paths, options.labels)
    methods = list(dict.fromkeys(item.method for item in items))
    if config.baseline not in (None, *methods):
        raise UserError(f"baseline is '{config.baseline}'; expected one of {', '.join(methods)}")
    save_plots = load_plots() if options.plots else None
    absent = unanswered(read_job_list(config.jobs), items) if config.jobs else []
    tools = load_tools(config)
    for reason in dict.fromkeys(tools.reasons.values()):
        print(f"note: {reason}; those columns stay empty", file=sys.stderr)
    pictured = set(list(dict.fromkeys(item.key for item in items))[: config.videos])
    rows = list(tqdm(evaluate(items, tools, lambda item: item.key in pictured), total=len(items), unit="video"))
    summary = summarise(rows, tools.columns, tools.reasons, config.baseline)
    table = to_markdown(summary, rows)
    write_text(out / "tables.md", table)
    write_text(out / "videos.csv", to_csv(summary, rows))
    write_json(out / "evaluation.json", to_json(summary, rows))
    save_config(config, out / "config.yaml")
    write_report(out / "report.html", summary, rows)
    if save_plots is not None:
        save_plots(out / "plots", summary, rows)
    print(table)
    return tell(rows, absent, out)


def load_plots() -> Callable[[Path, Summary, Sequence[Row]], object]:
    """`save_plots`, whose library is an extra; UserError where that is not installed."""
    try:
        from animatediff.evaluation.plots import save_plots
    except ModuleNotFoundError as error:
        raise UserError(f"--plots needs {error.name}; pip install {error.name}") from error
    return save_plots


def collect(paths: Sequence[str], labels: Sequence[str] | None) -> list[Item]:
    """The items of all paths, each path a method named by its label or its own name."""
    if labels and len(labels) != len(paths):
        raise UserError(f"{len(labels)} labels for {len(paths)} folders; give one each")
    names = labels or name_methods(paths)
    if len(set(names)) < len(paths):
        raise UserError(f"two of the folders are called the same ({', '.join(names)}); give --labels that differ")
    return [item for path, name in zip(paths, names, strict=True) for item in find_items(path, name)]


def unanswered(jobs: Sequence[tuple[str, str]], items: Sequence[Item]) -> list[str]:
    """The jobs that a method has no output for, one line each, method by method."""
    by_method: dict[str, list[Item]] = {}
    for item in items:
        by_method.setdefault(item.method, []).append(item)
    return [
        f"{method}: no output for the job {job}" for method, own in by_method.items() for job in missing_jobs(jobs, own)
    ]


def write_jobs(frames: str | None, prompts: str | None, path: str) -> int:
    """Write a benchmark's jobs for inference.py --jobs."""
    if not frames or not prompts:
        raise UserError("--write-jobs needs --frames (a folder of sequences) and --prompts (a list)")
    jobs = benchmark_jobs(frames, prompts)
    write_jsonl(path, jobs)
    print(as_called(f"{len(jobs)} jobs written to {path}; next: python inference.py --jobs ") + path)
    return 0


def tell(rows: Sequence[Row], absent: Sequence[str], out: Path) -> int:
    """Say where the results are and what went wrong; the exit status."""
    problems = problem_lines(rows)
    for line in absent:
        print(line, file=sys.stderr)
    for line in problems:
        print(f"problem: {line}", file=sys.stderr)
    failed = sum(bool(row.problems) for row in rows)
    print(
        f"{len(rows) - failed} of {len(rows)} videos measured in full; tables, JSON, CSV and report.html are in {out}"
    )
    return 1 if problems or absent else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("evaluate", __doc__)
    parser.add_argument("paths", nargs="*", metavar="folder|list.jsonl|key=value", help="what to evaluate, and keys")
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML of the evaluation")
    parser.add_argument("--labels", nargs="+", help="a name for each folder, in their order")
    parser.add_argument("--out", default="runs/evaluation", help="where the results go (default %(default)s)")
    parser.add_argument("--plots", action="store_true", help="write PNG figures too")
    benchmark = parser.add_argument_group("a benchmark's jobs")
    benchmark.add_argument("--frames", help="folder with one folder of frames (or one video) per sequence")
    benchmark.add_argument("--prompts", help="lines 'sequence: prompt', or JSON {sequence: [prompts]}")
    benchmark.add_argument("--write-jobs", metavar="JSONL", help="write the jobs there, and stop")
    benchmark.add_argument(
        "--write-miniature", metavar="FOLDER", help="render the miniature's references, jobs and upper bound, and stop"
    )
    benchmark.add_argument("--write-miniature-dit", metavar="FOLDER", help="the same for models/miniature_dit")
    benchmark.add_argument("--write-miniature-people", metavar="FOLDER", help="the same for models/miniature_people")
    return parser.parse_intermixed_args(arguments)
