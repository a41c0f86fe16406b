"""The options that belong to one kind of run, with their defaults, and the seeds of many runs."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from gflow.iterate import seed_in
from gflow.stochastic import SCHEMES

FLOW_OPTIONS = {"method": "auto", "rtol": 1e-9, "atol": None, "events": True, "max_steps": 1_000_000}
PATH_OPTIONS = {"scheme": SCHEMES[0], "dt": None, "rng": None}
DESCENT_OPTIONS = {
    "optimizer": "gd", "momentum": None, "betas": None, "eps": None, "batch_size": None,
    "replacement": False, "rng": None, "kink": None, "save_every": 1,
}  # fmt: skip


def seeds_of(rng: Any) -> list[int]:
    """The seeds of the batches: one for each run, or the first of a row."""
    if isinstance(rng, Sequence | np.ndarray) and not isinstance(rng, str) and len(rng):
        for r, seed in enumerate(rng):
            if not isinstance(seed, Integral):
                raise ValueError(f"rng[{r}] must be a whole number >= 0; got {seed!r:.80}")
        return [seed_in(seed) for seed in rng]
    return [seed_in(rng)]
