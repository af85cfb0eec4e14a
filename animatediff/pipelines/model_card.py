"""The README that goes with a saved pipeline: what it is, what it was made of, how it is loaded again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import yaml

from animatediff import __version__

CARD = """---
library_name: diffusers
pipeline_tag: text-to-video
license: {license}
tags:
- video motion transfer
- {name}
---

# {name}

{about}

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{place}", custom_pipeline="{place}", trust_remote_code=True)
```

The code files in this repository import the package `animatediff`, which `pip install efficientmt` installs.

## Parts

{parts}

## Recipe

{recipe}
"""


def model_card(pipeline: Any, place: str, recipe: Mapping[str, Any]) -> str:
    """The card of a pipeline that lies at `place` (a repository or a folder); recipe: see `inference.run.recipe`."""
    kind = type(pipeline)
    parts = [
        f"- `{name}`: {type(part).__name__}" for name, part in sorted(pipeline.components.items()) if part is not None
    ]
    made = f"Saved by efficientmt {__version__}."
    if recipe:
        text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        made += f" Loaded for this run:\n\n```yaml\n{text}```"
    return CARD.format(
        license="other",  # that of the weights, which come from elsewhere
        name=kind.__name__,
        about=(inspect.getdoc(kind) or "").partition("\n\n")[0],
        place=place,
        parts="\n".join(parts),
        recipe=made,
    )
