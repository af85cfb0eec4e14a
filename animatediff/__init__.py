"""Video motion transfer: the motion of a clip, the content of a sentence."""

import os

# The libraries read these when they are first imported; what a user must know, this project says itself.
for _library in ("TRANSFORMERS", "DIFFUSERS"):
    os.environ.setdefault(f"{_library}_VERBOSITY", "error")
