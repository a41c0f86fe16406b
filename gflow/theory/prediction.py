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
        ``effect(t)`` (T,): bound on the absolute change of the predicted observable that the defect
        causes up to time t if the other hypotheses hold; inf where none is known.
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
    together : callable, optional
        ``together(t)`` (T,): bound on the absolute change that all defects cause together, which may exceed
        the sum of their effects.  Without it the effects are added, which is right to first order only.
    """

    observable: str
    hypotheses: tuple[Hypothesis, ...]
    reference: str
    formula: Callable[[Array], Array] = field(repr=False)
    forced: bool = False
    labels: tuple[str, ...] = ()
    together: Callable[[Array], Array] | None = field(default=None, repr=False, compare=False)

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
        ValueError
            If t is not one-dimensional, or holds anything but numbers ≥ 0; inf is allowed where the closed
            form has a limit.
        """
        times = times_of(t, infinite=True)
        if not self.applies and not self.forced:
            raise Refused(self._refusal(times))
        return self.formula(times)

    def bound(self, t: ArrayLike) -> Array:
        """Bound (T,) on the absolute change of the observable that all defects cause up to time t.

        Infinite where none is known.

        Raises
        ------
        ValueError
            If t is not one-dimensional, or holds anything but finite numbers ≥ 0.
        """
        times = times_of(t)
        if all(h.defect == 0 for h in self.hypotheses):
            return np.zeros(len(times))
        if self.together is not None:
            return self.together(times)
        total = np.zeros(len(times))
        for h in self.hypotheses:
            if h.effect is not None and h.defect > 0:
                total += h.effect(times)
            elif not h.holds:
                total += np.inf
        return total

    def _refusal(self, times: Array) -> str:
        failed = "; ".join(str(h) for h in self.hypotheses if not h.holds)
        worst = float(np.max(self.bound(times), initial=0.0)) if np.isfinite(times).all() else np.inf
        effect = (
            f"it changes the prediction by at most {worst:.2g} at these times"
            if np.isfinite(worst)
            else "no bound on its effect at these times is known"
        )
        return (
            f"prediction of {self.observable} ({self.reference}) refused: {failed}; {effect}. "
            "bound(t) gives the bound; force=True computes the formula all the same."
        )


def times_of(t: ArrayLike, infinite: bool = False) -> Array:
    """Times (T,), or a ValueError that says what came."""
    wanted = f"t must be {'numbers' if infinite else 'finite numbers'} >= 0 of shape (T,)"
    try:
        raw = np.asarray(t)
    except ValueError as error:
        raise ValueError(f"{wanted}; got {t!r:.80}") from error
    if raw.size and raw.dtype.kind not in "iuf":
        raise ValueError(f"{wanted}; got {t!r:.80}")
    times = np.atleast_1d(raw.astype(np.float64))
    if times.ndim != 1:
        raise ValueError(f"{wanted}; got shape {times.shape}")
    bad = ~(times >= 0) | (np.isinf(times) & (not infinite))
    if bad.any():
        raise ValueError(f"{wanted}; got {times[bad][0]:g}")
    return times
