"""Claims: a theorem's hypotheses and conclusions as measured numbers, and the verdict on them.

A verdict never claims more than the numerical error allows: every claim is run at two tolerances,
three when in doubt, and what the runs differ by bounds what they can say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from gflow._check import positive
from gflow.theory.prediction import Hypothesis
from gflow.trajectory import Status

#: Uncertainty = this × the difference of the runs.
CAUTION = 10.0
_FINEST = 1e-13
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Conclusion:
    """One conclusion of a claim as a measured number against a bound.

    Without ``predicted`` the conclusion is ``value <= bound``; with it,
    ``|value − predicted| <= bound × |predicted|``.

    Attributes
    ----------
    name : str
        The quantity, in words.
    value : float
        As measured.
    bound : float
        What the conclusion allows.
    predicted : float, optional
        What the theory says the value is.
    amplification : float
        How much a relative perturbation may have grown on the way to the value
        (:attr:`gflow.Trajectory.amplification`): rounding × this is the least uncertainty.
    """

    name: str
    value: float
    bound: float
    predicted: float | None = None
    amplification: float = 1.0

    @property
    def deviation(self) -> float:
        """What is compared with the bound."""
        if self.predicted is None:
            return self.value
        return abs(self.value - self.predicted) / abs(self.predicted)

    def difference(self, other: Conclusion) -> float:
        """Difference of two runs, in units of the deviation."""
        scale = 1.0 if self.predicted is None else abs(self.predicted)
        return abs(self.value - other.value) / scale


@dataclass(frozen=True)
class Evidence:
    """What one run of a claim measured."""

    hypotheses: tuple[Hypothesis, ...]
    conclusions: tuple[Conclusion, ...] = ()
    statuses: tuple[Status, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A theorem in one set-up.

    Attributes
    ----------
    name : str
    statement : str
        What is claimed, in words.
    reference : str
        Source: arXiv id, with theorem where known.
    run : callable
        ``run(rtol)`` measures at a tolerance and returns :class:`Evidence`.
    """

    name: str
    statement: str
    reference: str
    run: Callable[[float], Evidence] = field(repr=False)


@dataclass(frozen=True)
class Observation:
    """An empirical statement: a number to report, never asserted.

    ``error`` is the numerical error of the value.
    """

    name: str
    value: float
    error: float
    note: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Finding:
    """The verdict on one conclusion."""

    conclusion: Conclusion
    uncertainty: float
    status: str


@dataclass(frozen=True)
class Verdict:
    """What can be said of a claim.

    Attributes
    ----------
    status : str
        ``"holds"``, ``"violated"``, ``"inapplicable"`` (a hypothesis fails) or ``"inconclusive"``
        (the margin is below the numerical uncertainty, or a run did not finish).
    claim : Claim
    findings : tuple of Finding
        Conclusion by conclusion.
    hypotheses : tuple of Hypothesis
    note : str
        Why, where the status needs a word.
    rtols : tuple of float
        The tolerances at which it ran.
    """

    status: str
    claim: Claim
    findings: tuple[Finding, ...]
    hypotheses: tuple[Hypothesis, ...]
    note: str
    rtols: tuple[float, ...]

    @property
    def uncertainty(self) -> float:
        """The largest numerical uncertainty of a conclusion; 0 if none was reached."""
        return max((f.uncertainty for f in self.findings), default=0.0)

    def table(self) -> str:
        """Hypotheses and conclusions with their numbers, as text."""
        lines = [f"{self.claim.name}: {self.status}" + (f" ({self.note})" if self.note else "")]
        lines += [f"  if    {h}" for h in self.hypotheses]
        for f in self.findings:
            c = f.conclusion
            shown = (
                f"{c.value:.6g}" if c.predicted is None else f"{c.value:.10g}, predicted {c.predicted:.10g}"
            )
            lines.append(
                f"  then  {c.name}: {shown}; deviation {c.deviation:.2g}, allowed {c.bound:.2g}, "
                f"uncertainty {f.uncertainty:.2g}: {f.status}"
            )
        return "\n".join(lines)

    __str__ = table


def check(claim: Claim, rtol: float = 1e-9) -> Verdict:
    """Run a claim at ``rtol`` and ``rtol / 100`` and judge it; once more, finer, when in doubt.

    The uncertainty of a conclusion is the larger of ten times the difference of the two finest runs
    and rounding × amplification; a difference that does not shrink with the tolerance leaves it
    inconclusive.

    Parameters
    ----------
    claim : Claim
    rtol : float
        Tolerance of the coarsest run, 1e-11 … 1.

    Returns
    -------
    Verdict
    """
    rtol = positive("rtol", rtol)
    if not 1e-11 <= rtol < 1:
        raise ValueError(f"rtol must lie in [1e-11, 1), so that finer runs are possible; got {rtol}")
    rtols = [rtol, max(rtol / 100, _FINEST)]
    runs = [claim.run(r) for r in rtols]
    verdict = _judge(claim, runs, rtols)
    in_doubt = verdict.status != "inapplicable" and (
        verdict.status == "inconclusive"
        or any(
            abs(f.conclusion.bound - f.conclusion.deviation) < 10 * f.uncertainty for f in verdict.findings
        )
    )
    if in_doubt and rtols[-1] > _FINEST:
        rtols.append(max(rtols[-1] / 100, _FINEST))
        runs.append(claim.run(rtols[-1]))
        verdict = _judge(claim, runs, rtols)
    return verdict


def _judge(claim: Claim, runs: Sequence[Evidence], rtols: Sequence[float]) -> Verdict:
    finest = runs[-1]

    def verdict(status: str, findings: tuple[Finding, ...], note: str = "") -> Verdict:
        return Verdict(status, claim, findings, finest.hypotheses, note, tuple(rtols))

    failed = [h for h in finest.hypotheses if not h.holds]
    if failed:
        return verdict("inapplicable", (), "; ".join(map(str, failed)))
    names = {tuple(c.name for c in run.conclusions) for run in runs}
    if len(names) != 1:
        return verdict("inconclusive", (), "the runs reached different conclusions")
    findings = tuple(_find([run.conclusions[i] for run in runs]) for i in range(len(finest.conclusions)))
    stopped = [s for run in runs for s in run.statuses if not s.ok]
    if stopped:
        undecided = tuple(Finding(f.conclusion, f.uncertainty, "inconclusive") for f in findings)
        return verdict("inconclusive", undecided, str(stopped[-1]))
    statuses = {f.status for f in findings}
    for status in ("violated", "inconclusive"):
        if status in statuses:
            return verdict(status, findings)
    return verdict("holds", findings)


def _find(conclusions: Sequence[Conclusion]) -> Finding:
    """Judge one conclusion from its values at falling tolerances."""
    finest, rounding = conclusions[-1], _EPS * conclusions[-1].amplification
    differences = [a.difference(b) for a, b in pairwise(conclusions)]
    uncertainty = max(CAUTION * differences[-1], rounding)
    status = "inconclusive"
    if not np.isfinite(finest.deviation):
        return Finding(finest, float("inf"), status)
    if finest.deviation + uncertainty <= finest.bound:
        status = "holds"
    elif finest.deviation - uncertainty > finest.bound:
        status = "violated"
    stuck = len(differences) > 1 and differences[-1] > 0.5 * differences[-2] and differences[-1] > rounding
    if stuck and abs(finest.bound - finest.deviation) < 100 * CAUTION * differences[-1]:
        status = "inconclusive"
    return Finding(finest, uncertainty, status)
