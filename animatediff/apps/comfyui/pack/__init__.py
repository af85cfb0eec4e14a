"""EfficientMT's nodes for ComfyUI. The package efficientmt holds them; this folder shows them to ComfyUI."""

import logging

WEB_DIRECTORY = "./web"  # help pages

try:
    from animatediff.apps.comfyui import (
        comfy_entrypoint,  # noqa: F401  # ComfyUI calls it
        schema,  # noqa: F401  # what it needs, needed at once
    )
except (ImportError, OSError, RuntimeError) as error:
    NODE_CLASS_MAPPINGS: dict[str, type] = {}
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    said = " ".join(str(cause).split())
    logging.warning("EfficientMT has no nodes here: %s (pip install -r %s/requirements.txt)", said, __path__[0])
