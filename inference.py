"""Motion transfer: the motion of a reference clip, the content of a sentence.

python inference.py --ref_video_path clip.mp4 --prompt "a red star"        on the bundled miniature
python inference.py --config configs/inference/efficientmt/sd15.yaml --ref_video_path clip.mp4 --prompt "..." seed=7
python inference.py --jobs jobs.jsonl                                      a list; rerun it to finish it
python inference.py --config outputs/clip/a-red-star-42.json overwrite=true   the same video again

Any key of the YAML can follow as key=value. Paths are looked up here first, then in this project's folder.
"""

from animatediff.console import run_command
from animatediff.inference.cli import main

if __name__ == "__main__":
    run_command(lambda: main(description=__doc__))
