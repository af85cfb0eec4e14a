"""inference.py and `efficientmt infer`: flags, what a dry run tells, and the jobs of one command."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from animatediff.config import read_layers, to_dict, to_yaml
from animatediff.console import Parser
from animatediff.errors import UserError, nearest, one_line
from animatediff.files import is_there, read_json
from animatediff.inference import processes
from animatediff.inference.engine import Engine, Extracted, free_memory
from animatediff.inference.jobs import ALREADY_DONE, DONE, FAILED, TO_DO, Job, plan, read_jobs, share, table
from animatediff.inference.outputs import write
from animatediff.inference.run import missing_weights, read_run, reference_key, resolved_dtype, run_of, weight_files
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import UNTRAINED, Preparing, Run, attribute
from animatediff.project import PROJECT, locate

DEFAULT_CONFIG = "configs/inference/default.yaml"
MOVED = "configs/moved.yaml"  # old place of a YAML: its place now
FLAGS = ("ckpt_path", "ref_video_path", "prompt")  # the published program's


def main(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the command; returns the exit status: 0 all done, 1 some jobs failed or files are missing."""
    options = parse(arguments, description)
    run = read_config(options)
    jobs = read_jobs(locate(options.jobs), run) if options.jobs else [Job(run, "the command line")]
    if options.dry_run:
        return dry_run(run, jobs)
    state = processes.join(run.device)
    jobs = processes.from_first(lambda: plan(jobs))
    if not options.jobs and jobs[0].status == FAILED:
        raise UserError(jobs[0].note)
    settled = [job for job in jobs if job.status != TO_DO]
    todo = share([job for job in jobs if job.status == TO_DO], state.process_index, state.num_processes)
    engine = Engine(run, references=1)
    engine.preparing = Preparing(say=tqdm.write, make_environment=True)
    mine = make_all(engine, todo, keep_going=bool(options.jobs))
    ended = settled + processes.gather(mine)
    if state.is_main_process:
        if options.jobs:
            print(table(ended))
        elif ended[0].status == ALREADY_DONE:
            print(f"already done: {ended[0].output}; overwrite=true makes it again")
    return 1 if any(job.status == FAILED for job in ended) else 0


def parse(arguments: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command line of inference.py; UserError for flags that do not exist, with the nearest one or the key."""
    parser = Parser("infer", description, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="append",
        help=f"YAML of the run (default {DEFAULT_CONFIG}); given several times, a later one is laid over an earlier",
    )
    parser.add_argument("--ckpt_path", help="the adapter: a published .ckpt or a saved folder")
    parser.add_argument("--ref_video_path", help="the reference: a video file or a folder of frames")
    parser.add_argument("--prompt", help="what the new video shows")
    parser.add_argument("--jobs", help="JSON Lines, one job a line: ref_video_path, prompt and any key of the YAML")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and files, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the YAML")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    options.config = options.config or [DEFAULT_CONFIG]
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        if name in to_dict(run_of([])):
            raise UserError(f"'{unknown[0]}' is a key, not a flag; write {name}=value")
        for method in METHODS.values():
            key, answer = (attribute(method, names, {}).get(name) for names in ("aliases", "renamed"))
            if key or answer:
                ours = answer or f"{key}=value"
                raise UserError(f"'{unknown[0]}' is another program's; with method={method.name} write {ours}")
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"unknown flag '{unknown[0]}'; {nearest(unknown[0], flags)}")
    return options


def read_config(options: argparse.Namespace) -> Run:
    """The command's run: YAMLs, or the JSON beside an output, then key=value, then the published flags."""
    given = {key: getattr(options, key) for key in FLAGS if getattr(options, key) is not None}
    paths = [find_config(path) for path in options.config]
    if not any(path.endswith(".json") for path in paths):
        return read_run(paths, options.overrides, given)
    layers: list[tuple[str, Any]] = []
    for path in paths:
        if not path.endswith(".json"):
            layers += read_layers(path)
            continue
        written = read_json(path)
        if not isinstance(written.get("config"), dict):
            raise UserError(f"{path} has no 'config'; give a YAML, or the JSON that was written beside an output")
        layers.append((path, written["config"]))
    return run_of(layers, options.overrides, given)


def find_config(path: str) -> str:
    """Where the configuration `path` lies, looked up as it stands, in this project, and by its earlier places."""
    found = locate(path)
    if is_there(found):
        return found
    for _, table_of_places in read_layers(PROJECT / MOVED):
        for old, new in table_of_places.value:  # type: ignore[union-attr]
            if Path(path).as_posix().removeprefix("./") == old.value:
                print(f"{path} is {new.value} now")
                return str(PROJECT / new.value)
    return found


def dry_run(run: Run, jobs: list[Job]) -> int:
    """Print the resolved configuration, every file it would read, present or missing, and what each job would write.

    Returns 0 where the run could start, else 1.
    """
    plan(jobs)
    print(to_yaml(run))
    missing = missing_weights(run)
    for file in weight_files(run):
        if file.what in missing:
            print(f"MISSING  {missing[file.what]}")
        elif is_there(file.path):
            print(f"present  {file.what}: {file.path}")
    for path in dict.fromkeys(Path(job.run.ref_video_path) for job in jobs if job.run.ref_video_path):
        print(f"{'present' if is_there(path) else 'MISSING':8} reference: {path}")
    for job in jobs:
        said = attribute(METHODS[job.run.method], "preparation", lambda _: None)(job.run)
        if said and job.status != FAILED:
            print(said)
    for job in jobs:
        print(f"{'BAD' if job.status == FAILED else job.status:8} {job.label}: {job.note or job.output}")
    return 1 if missing or any(job.status == FAILED for job in jobs) else 0


def make_all(engine: Engine, jobs: Sequence[Job], keep_going: bool) -> list[Job]:
    """Make every job's video, models loaded once, each reference extracted once; returns the jobs, ended.

    With `keep_going` one job's failure does not stop the others; without, it is raised.
    """
    if not jobs:
        return []
    quiet = not PartialState().is_main_process
    load(engine, quiet)
    done = 0
    for _, group in itertools.groupby(jobs, key=lambda job: reference_key(job.run)):
        extracted: Extracted | None = None
        for job in group:
            start = time.perf_counter()
            try:
                extracted = extracted or extract_and_warn(engine, job)
                make(engine, job, extracted, quiet)
                job.ended(DONE, seconds=time.perf_counter() - start)
            except Exception as error:
                if not keep_going:
                    raise
                job.ended(FAILED, _describe(error), time.perf_counter() - start)
            if job.status == FAILED:  # outside the handler, whose traceback holds tensors
                free_memory(engine.device)
            done += 1
            if not quiet:
                print(f"[{done}/{len(jobs)}] {job.status} in {job.seconds:.1f} s: {job.note or job.output}", flush=True)
    return list(jobs)


def load(engine: Engine, quiet: bool = False) -> None:
    """Load the models and say what a user should know of them."""
    started = time.perf_counter()
    engine.load()
    if quiet:
        return
    name = next((str(file.path) for file in weight_files(engine.run)), engine.run.method)
    name = getattr(engine.run, "pretrained_model_path", name)
    dtype = resolved_dtype(engine.run)
    print(f"loaded {name} on {engine.device} in {time.perf_counter() - started:.1f} s ({dtype})")
    for line in engine.notes:
        print(line)
    if UNTRAINED in engine.facts():
        print(f"{UNTRAINED}: {engine.facts()[UNTRAINED]}")


def extract_and_warn(engine: Engine, job: Job) -> Extracted:
    """The reference of `job`; its warnings go to stderr."""
    extracted = engine.extract(job.run)
    warn(extracted.warnings)
    return extracted


def make(engine: Engine, job: Job, extracted: Extracted, quiet: bool = False) -> None:
    """Generate one video, with a bar, and write it."""
    phase = attribute(engine.method, "phase", lambda _run, _step: "sampling")
    with tqdm(desc=phase(job.run, 0), leave=False, disable=quiet or None) as bar:

        def stepped(step: int, steps: int, _latents: Any) -> None:
            bar.total = steps
            bar.set_description(phase(job.run, step + 1), refresh=False)
            bar.update(step + 1 - bar.n)

        result = engine.make(job.run, extracted, stepped)
    warn(line for line in result.warnings if line not in extracted.warnings)
    write(job, result)


def warn(lines: Iterable[str]) -> None:
    """Each line as a warning on stderr."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _describe(error: Exception) -> str:
    """What the summary says of a failure; a defect of ours shows its traceback, too."""
    if isinstance(error, UserError):
        return one_line(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {one_line(error)}"
