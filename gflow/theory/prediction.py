"""Predictions, and the hypotheses without which they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Refused(ValueError):
    """A prediction was asked for where one of its hypotheses fails."""


@dataclass(frozen=True)
class Hypothesis:
    """A condition of a theorem, as a measured number.

    Attributes
    ----------
    name : str
        The condition, in words.
    defect : float
        By how much it fails, relative to the terms that are compared; 0 if it holds exactly.
    tolerance : float
        The largest defect with which it counts as fulfilled.
    effect : callable, optional
        ``effect(t)`` (T,): first-order estimate of the largest absolute change of the predicted
        observable that the defect causes up to time t.
    """

    name: str
    defect: float
    tolerance: float = 1e-10
    effect: Callable[[Array], Array] | None = field(default=None, repr=False, compare=False)

    @property
    def holds(self) -> bool:
        """Whether the defect is within the tolerance."""
        return bool(self.defect <= self.tolerance)

    def __str__(self) -> str:
        relation = "<=" if self.holds else ">"
        return f"{self.name}: defect {self.defect:.2g} {relation} {self.tolerance:.2g}"


@dataclass(frozen=True)
class Prediction:
    """A closed form for one observable along the flow.

    Attributes
    ----------
    observable : str
        Name of the function in :mod:`gflow.observe` that it predicts.
    hypotheses : tuple of Hypothesis
        What the closed form supposes, measured.
    reference : str
        Source: arXiv id, with equation or theorem where known.
    forced : bool
        Whether it computes although a hypothesis fails.
    labels : tuple of str
        Names of the observable's last axis, for legends.
    """

    observable: str
    hypotheses: tuple[Hypothesis, ...]
    reference: str
    formula: Callable[[Array], Array] = field(repr=False)
    forced: bool = False
    labels: tuple[str, ...] = ()

    @property
    def applies(self) -> bool:
        """Whether every hypothesis holds."""
        return all(h.holds for h in self.hypotheses)

    def predict(self, t: ArrayLike) -> Array:
        """The observable (T, ...) at times t (T,).

        Raises
        ------
        Refused
            If a hypothesis fails and the prediction was not made with ``force=True``.
        """
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        if not self.applies and not self.forced:
            raise Refused(self._refusal(times))
        return self.formula(times)

    def bound(self, t: ArrayLike) -> Array:
        """First-order bound (T,) on the change of the observable that all defects cause, absolute.

        Infinite where a hypothesis that fails offers no estimate.
        """
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        total = np.zeros(len(times))
        for h in self.hypotheses:
            if h.effect is not None and h.defect > 0:
                total += h.effect(times)
            elif not h.holds:
                total += np.inf
        return total

    def _refusal(self, times: Array) -> str:
        failed = "; ".join(str(h) for h in self.hypotheses if not h.holds)
        worst = float(np.max(self.bound(times)))
        effect = (
            f"to first order it would change the prediction by up to {worst:.2g} at these times"
            if np.isfinite(worst)
            else "no first-order bound on its effect is known"
        )
        return (
            f"prediction of {self.observable} ({self.reference}) refused: {failed}; {effect}. "
            "bound(t) gives the estimate; force=True computes the formula all the same."
        )
