"""Motion transfer as ComfyUI nodes, of ComfyUI's current schema: over `inference.Engine`, generated from METHODS.

`efficientmt export comfyui FOLDER` writes the folder that ComfyUI's custom_nodes takes.
"""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls for the pack's nodes."""
    from animatediff.apps.comfyui.schema import extension

    return extension()
