"""raylab: a distributed laboratory on Ray for the scaling of retrieval models.

    import raylab
    from raylab.experiment.ladders import PICO

    lab = raylab.run(raylab.Grid(PICO, "scifact"), raylab.Execution(storage="lab"))
    lab.results()                                       # a pandas table of every measure
    lab.retriever("sparse-pico-1x96-cl-seed0")          # encodes texts

What these names are is imported when they are first used: `import raylab` itself loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Execution",
    "Grid",
    "Ladder",
    "Retriever",
    "Variant",
    "fit",
    "open_lab",
    "plan",
    "run",
]

if TYPE_CHECKING:
    from raylab.experiment.execution import Execution
    from raylab.experiment.grid import Grid, Ladder, Variant
    from raylab.models.retriever import Retriever
    from raylab.pipeline.lab import fit, open_lab, plan, run

_HOMES = {
    "Execution": "raylab.experiment.execution",
    "Grid": "raylab.experiment.grid",
    "Ladder": "raylab.experiment.grid",
    "Variant": "raylab.experiment.grid",
    "Retriever": "raylab.models.retriever",
    "fit": "raylab.pipeline.lab",
    "open_lab": "raylab.pipeline.lab",
    "plan": "raylab.pipeline.lab",
    "run": "raylab.pipeline.lab",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raylab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
