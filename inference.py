"""Motion transfer: the motion of a reference clip, the content of a sentence.

python inference.py --ref_video_path clip.mp4 --prompt "a red star"        on the bundled miniature
python inference.py --config configs/inference/efficientmt/sd15.yaml --ref_video_path clip.mp4 --prompt "..." seed=7
python inference.py --jobs jobs.jsonl                                      a list; rerun it to finish it
python inference.py --config outputs/clip/a-red-star-42.json overwrite=true   the same video again

Any key of the YAML can follow as key=value. Paths are looked up here first, then in this project's folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from animatediff.console import run_command
from animatediff.inference import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 all done, 1 some jobs failed or files are missing."""
    return cli.main(arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
