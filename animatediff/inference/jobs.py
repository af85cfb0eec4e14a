"""The list of jobs of one command: read, checked, named, shared among processes, and told about at the end."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from animatediff.data.export import check_frames_folder, safe_name
from animatediff.errors import UserError
from animatediff.files import check_writable, is_there, parse_object, read_json, read_lines, to_path
from animatediff.inference.run import check, completed, content_hash, fingerprint, lay_over, reference_key
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Run, attribute

WISHES = ("gif", "frames", "side_by_side", "overwrite")  # keys that add to a video, and do not change it
TO_DO, DONE, ALREADY_DONE, REPEATED, FAILED = STATUSES = "to do", "done", "already done", "repeated", "failed"


@dataclass
class Job:
    """One video to make: its resolved run, where it came from, where it goes, and how it stands."""

    run: Run
    label: str
    number: int = 1  # in the list, from 1
    status: str = TO_DO
    note: str = ""
    seconds: float = 0.0
    reference_sha256: str = ""
    fingerprint: str = ""
    output: Path = field(default_factory=Path)

    @property
    def sidecar(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def gif(self) -> Path:
        return self.output.with_suffix(".gif")

    @property
    def frames(self) -> Path:
        return self.output.with_suffix("")

    @property
    def beside(self) -> Path:
        return self.output.with_stem(f"{self.output.stem}-beside")

    def results(self) -> list[Path]:
        """Everything this job writes, in the order of writing: the sidecar closes it."""
        asked = {self.gif: self.run.gif, self.frames: self.run.frames, self.beside: self.run.side_by_side}
        return [self.output, *(path for path, wanted in asked.items() if wanted), self.sidecar]

    def is_finished(self) -> bool:
        """Whether everything asked for is there, made with this very configuration."""
        return all(is_there(path) for path in self.results()) and _fingerprint_in(self.sidecar) == self.fingerprint

    def ended(self, status: str, note: str = "", seconds: float = 0.0) -> Job:
        """This job, with how it ended."""
        self.status, self.note, self.seconds = status, note, seconds
        return self


def read_jobs(path: str | Path, run: Run) -> list[Job]:
    """Jobs from a JSON Lines file; each line is laid over `run`. A bad line becomes a failed Job.

    UserError where the file cannot be read or holds no job.
    """
    jobs = []
    for number, (line, text) in enumerate(read_lines(path), start=1):
        label = f"{path} line {line}"
        try:
            jobs.append(Job(lay_over(run, parse_object(text, label), label), label, number))
        except UserError as error:
            jobs.append(Job(run, label, number).ended(FAILED, str(error)))
    if not jobs:
        raise UserError(f"{path} holds no jobs; expected one JSON object a line with ref_video_path and prompt")
    return jobs


def plan(jobs: list[Job]) -> list[Job]:
    """The jobs, each checked, with its fingerprint, its output and its status. Touches no model, writes nothing.

    A result goes to <output_dir>/<reference name>/<prompt>-<seed>.mp4. Where another configuration already has that
    name, in this list or on disk, digits of the fingerprint follow.
    """
    taken: dict[Path, Job] = {}
    sha256 = functools.cache(content_hash)
    for job in jobs:
        if job.status == FAILED:
            continue
        try:
            job.run = completed(job.run)
            check(job.run)
            job.reference_sha256 = sha256(Path(job.run.ref_video_path))
            job.fingerprint = fingerprint(job.run, sha256)
            job.output = _free_name(job, taken)
            check_writable(job.output.parent, "output_dir")
            if job.run.frames:
                check_frames_folder(job.frames)
        except UserError as error:
            job.ended(FAILED, str(error))
            continue
        if job.output in taken:
            _merge_wishes(taken[job.output], job)
            job.ended(REPEATED, f"the same as job {taken[job.output].number}")
        elif job.is_finished() and not job.run.overwrite:
            job.ended(ALREADY_DONE)
        taken.setdefault(job.output, job)
    return jobs


def _merge_wishes(first: Job, other: Job) -> None:
    """Let `first` write what `other`, the same video, asks for beside it, too."""
    wishes = {name: getattr(first.run, name) or getattr(other.run, name) for name in WISHES}
    first.run = replace(first.run, **wishes)
    if first.status == ALREADY_DONE and (first.run.overwrite or not first.is_finished()):
        first.status = TO_DO


def by_reference(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with those of one reference next to each other, references in order of first appearance."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(reference_key(job.run), []).append(job)
    return [job for group in groups.values() for job in group]


def share(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Process `index`'s contiguous part of the jobs, so that few references are extracted by two processes."""
    ordered = by_reference(jobs)
    return ordered[len(ordered) * index // count : len(ordered) * (index + 1) // count]


def table(jobs: Sequence[Job]) -> str:
    """One line a job, in the order of the list, and the totals."""
    width = max(len(job.status) for job in jobs)
    lines = [
        f"{job.number:4}  {job.status:{width}}  {job.seconds:7.1f} s  {job.note or job.output}"
        for job in sorted(jobs, key=lambda job: job.number)
    ]
    counts = {status: sum(job.status == status for job in jobs) for status in STATUSES}
    totals = [f"{count} {status}" for status, count in counts.items() if count]
    return "\n".join(["", *lines, f"{len(jobs)} jobs: {', '.join(totals)}"])


def _free_name(job: Job, taken: dict[Path, Job]) -> Path:
    """The first name for the job's output that no other configuration holds."""
    reference, content = attribute(METHODS[job.run.method], "names", _names)(job.run)
    folder = to_path(job.run.output_dir, "output_dir") / safe_name(reference, spaced=False)
    stem = f"{safe_name(content)}-{job.run.seed}"
    marked = [f"{stem}-{job.fingerprint[:digits]}" for digits in (8, 64)]
    for output in (folder / f"{name}.mp4" for name in (stem, *marked)):
        owner = taken[output].fingerprint if output in taken else _fingerprint_in(output.with_suffix(".json"))
        if owner in (None, job.fingerprint) or (job.run.overwrite and output not in taken):
            break
    return output


def _names(run: Run) -> tuple[str, str]:
    """What outputs are called after: the reference, and the prompt."""
    reference = Path(run.ref_video_path)
    return reference.stem or reference.resolve().name, run.prompt or ""


def _fingerprint_in(sidecar: Path) -> str | None:
    """The fingerprint that a sidecar holds, "" where it is no sidecar of ours, None where there is none."""
    if not sidecar.is_file():
        return None
    try:
        return str(read_json(sidecar).get("fingerprint", ""))
    except (UserError, AttributeError):
        return ""
