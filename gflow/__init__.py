"""gflow: the exact gradient flow of linear, diagonal and two-layer ReLU networks, held against theory.

The public names load on first use: importing gflow compiles nothing and draws nothing.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gflow import datasets, observe, papers, plot, theory
    from gflow.claims import Verdict, check
    from gflow.comparison import compare
    from gflow.ensembles import Ensemble, ensemble
    from gflow.integrate import flow, load
    from gflow.iterate import descend
    from gflow.models.diagonal import Diagonal
    from gflow.models.linear import DeepLinear, Symmetric
    from gflow.models.relu import TwoLayerReLU
    from gflow.problem import Problem
    from gflow.stochastic import stochastic_flow
    from gflow.sweeps import sweep
    from gflow.trajectory import Status, Trajectory

_imported_at = time.time()  # what of the source is newer, this process may not have loaded

_HOME = {
    "Problem": "gflow.problem",
    "DeepLinear": "gflow.models.linear",
    "Symmetric": "gflow.models.linear",
    "Diagonal": "gflow.models.diagonal",
    "TwoLayerReLU": "gflow.models.relu",
    "flow": "gflow.integrate",
    "descend": "gflow.iterate",
    "stochastic_flow": "gflow.stochastic",
    "ensemble": "gflow.ensembles",
    "Ensemble": "gflow.ensembles",
    "sweep": "gflow.sweeps",
    "load": "gflow.integrate",
    "Trajectory": "gflow.trajectory",
    "Status": "gflow.trajectory",
    "compare": "gflow.comparison",
    "check": "gflow.claims",
    "Verdict": "gflow.claims",
}
_MODULES = ("datasets", "observe", "papers", "plot", "theory")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"gflow.{name}")
    else:
        raise AttributeError(f"module 'gflow' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
