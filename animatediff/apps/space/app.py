"""The page as a Space of the Hugging Face hub. On ZeroGPU hardware each job borrows a GPU.

Variables of the Space: EFFICIENTMT_OUTPUT, where results go (give it a persistent folder to keep them);
EFFICIENTMT_GPU_SECONDS, how long one job may hold a GPU.
"""

import importlib.util
import os
import threading
from pathlib import Path

ON_HUB = importlib.util.find_spec("spaces") is not None
if ON_HUB:
    import spaces  # before torch, which it prepares for devices that come and go

from animatediff.apps.page.options import Options  # noqa: E402
from animatediff.apps.page.server import serve  # noqa: E402


def read_options() -> Options:
    """The page's settings, from the Space's variables."""
    options = {"gpu": spaces.GPU(duration=int(os.environ.get("EFFICIENTMT_GPU_SECONDS", "120")))} if ON_HUB else {}
    return Options(
        output=Path(os.environ.get("EFFICIENTMT_OUTPUT", "outputs")),
        host="0.0.0.0",  # the hub stands between it and the visitors
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        framed=True,
        mcp=importlib.util.find_spec("mcp") is not None,
        **options,
    )


if __name__ == "__main__":
    with serve(read_options(), ssr_mode=False) as url:
        print(f"listening at {url}", flush=True)
        threading.Event().wait()
