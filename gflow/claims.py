"""Claims: a theorem's hypotheses and conclusions as measured numbers, and the verdict on them.

A verdict never claims more than the numerical error allows: every claim is run at two tolerances,
three unless the margin is wide, and what the runs differ by bounds what they can say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from gflow._check import of_type, positive
from gflow.theory.prediction import Hypothesis
from gflow.trajectory import Status

#: Uncertainty = this × the difference of the runs.
CAUTION = 10.0
#: A margin wider than this × the uncertainty needs no third run.
WIDE = 100.0
_FINEST = 1e-13
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Conclusion:
    """One conclusion of a claim as a measured number against a bound.

    Without ``predicted`` the conclusion is ``value <= bound``; with it,
    ``|value − predicted| <= bound × |predicted|``, or ``|value| <= bound`` where 0 is predicted.

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
        """What is compared with the bound: relative to the predicted value, absolute if that is 0."""
        if self.predicted is None:
            return self.value
        return abs(self.value - self.predicted) / self._scale

    def difference(self, other: Conclusion) -> float:
        """Difference of two runs, in units of the deviation."""
        return abs(self.value - other.value) / self._scale

    @property
    def _scale(self) -> float:
        return abs(self.predicted or 1.0)


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
        (the margin is below the numerical uncertainty, the difference of the runs does not shrink, a run
        did not finish, or nothing was concluded).
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
    """Run a claim at ``rtol`` and ``rtol / 100`` and judge it; at a third tolerance unless all is clear.

    The uncertainty of a conclusion is the larger of ten times the difference of the two finest runs
    and rounding × amplification.  Two runs suffice where the margin to the bound is wider than a hundred
    times the uncertainty, or the runs differ by no more than rounding × amplification.  Otherwise a
    third run is made (``rtol / 10^4``; at least 1e-13, or ``100 rtol`` where that is reached already),
    and the conclusion is inconclusive unless the difference shrinks to half or less.

    Parameters
    ----------
    claim : Claim
        What is run, with its hypotheses and conclusions.
    rtol : float
        Tolerance of the first run, 1e-11 ≤ rtol < 1, passed on to ``claim.run``.

    Returns
    -------
    Verdict
        ``"inapplicable"`` where a hypothesis of the finest run fails; ``"violated"`` where one conclusion
        is; ``"inconclusive"`` where one is, where a run did not finish or where the runs reached other
        conclusions or none; else ``"holds"``.

    Raises
    ------
    ValueError
        If ``claim`` is not a :class:`Claim`, its ``run`` does not return :class:`Evidence`, or ``rtol``
        is outside [1e-11, 1).  Errors of ``claim.run`` itself pass through.
    """
    of_type("claim", claim, Claim, "a gflow.claims.Claim")
    rtol = positive("rtol", rtol)
    if not 1e-11 <= rtol < 1:
        raise ValueError(f"rtol must lie in [1e-11, 1), so that finer runs are possible; got {rtol}")

    def run(tolerance: float) -> Evidence:
        evidence = of_type("claim.run(rtol)", claim.run(tolerance), Evidence, "a gflow.claims.Evidence")
        if any(
            status.code == "interrupted" for status in evidence.statuses
        ):  # what it measured is no verdict
            raise KeyboardInterrupt
        return evidence

    rtols = [rtol, max(rtol / 100, _FINEST)]
    runs = [run(r) for r in rtols]
    verdict = _judge(claim, runs, rtols)
    if verdict.status == "inconclusive" or any(f.status == "inconclusive" for f in verdict.findings):
        if rtols[-1] > _FINEST:
            rtols.append(max(rtols[-1] / 100, _FINEST))
            runs.append(run(rtols[-1]))
        else:
            rtols.insert(0, 100 * rtol)
            runs.insert(0, run(rtols[0]))
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
    if not finest.conclusions:
        return verdict("inconclusive", (), "the claim has no conclusions")
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
    margin = abs(finest.bound - finest.deviation)
    settled = (
        margin > WIDE * uncertainty
        or differences[-1] <= rounding
        or (len(differences) > 1 and differences[-1] <= 0.5 * differences[-2])
    )
    if not np.isfinite(finest.deviation) or not np.isfinite(uncertainty):
        return Finding(finest, float("inf"), "inconclusive")
    status = "inconclusive"
    if settled and finest.deviation + uncertainty <= finest.bound:
        status = "holds"
    elif settled and finest.deviation - uncertainty > finest.bound:
        status = "violated"
    return Finding(finest, uncertainty, status)
