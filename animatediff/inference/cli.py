"""inference.py's flags, how they become a configuration, and what a dry run tells."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from animatediff.config import load_config, nearest, override_config, to_dict, to_yaml, update_config
from animatediff.errors import UserError
from animatediff.files import read_json
from animatediff.inference.jobs import FAILED, Job, plan
from animatediff.inference.run import InferenceConfig, locate, located, missing_weights
from animatediff.pipelines.backbones.sd15 import weight_files

DEFAULT_CONFIG = "configs/inference/miniature.yaml"


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python inference.py --help")


def parse(arguments: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command line of inference.py; UserError for flags that do not exist, with the nearest one or the key."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=f"YAML of the run (default {DEFAULT_CONFIG})")
    parser.add_argument("--ckpt_path", help="the adapter: a published .ckpt or a saved folder")
    parser.add_argument("--ref_video_path", help="the reference: a video file or a folder of frames")
    parser.add_argument("--prompt", help="what the new video shows")
    parser.add_argument("--jobs", help="JSON Lines, one job a line: ref_video_path, prompt and any key of the YAML")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and files, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the YAML")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        if name in to_dict(InferenceConfig()):
            raise UserError(f"'{unknown[0]}' is a key, not a flag; write {name}=value")
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"unknown flag '{unknown[0]}'; {nearest(unknown[0], flags)}")
    return options


def read_config(options: argparse.Namespace) -> InferenceConfig:
    """The run's configuration: a YAML, or the JSON beside an output, then key=value, then the published flags."""
    path = locate(options.config)
    if path.endswith(".json"):
        written = read_json(path)
        if not isinstance(written, dict) or not isinstance(written.get("config"), dict):
            raise UserError(f"{path} has no 'config'; give a YAML, or the JSON that was written beside an output")
        config = override_config(update_config(InferenceConfig(), written["config"], path), options.overrides)
    else:
        config = load_config(InferenceConfig, path, options.overrides)
    flags = {key: getattr(options, key) for key in ("ckpt_path", "ref_video_path", "prompt")}
    given = {key: value for key, value in flags.items() if value is not None}
    return located(update_config(config, given, "the command line"))


def dry_run(config: InferenceConfig, jobs: Sequence[Job]) -> int:
    """Print the resolved configuration, every file it would read, present or missing, and what each job would write.

    Returns 0 where the run could start, else 1.
    """
    plan(jobs)
    print(to_yaml(config))
    missing = missing_weights(config)
    for name, path in weight_files(config).items():
        print(f"MISSING  {missing[name]}" if name in missing else f"present  {name}: {path}")
    for path in dict.fromkeys(Path(job.config.ref_video_path) for job in jobs if job.config.ref_video_path):
        print(f"{'present' if path.exists() else 'MISSING':8} reference: {path}")
    for job in jobs:
        print(f"{'BAD' if job.status == FAILED else job.status:8} {job.label}: {job.note or job.output}")
    return 1 if missing or any(job.status == FAILED for job in jobs) else 0
