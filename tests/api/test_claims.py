"""Verdicts never claim more than the numerical error allows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gflow
from gflow.claims import CAUTION, Claim, Conclusion, Evidence, Observation
from gflow.report import observation_row, verdict_rows
from gflow.theory import Hypothesis
from gflow.trajectory import Status


def claim(value, bound=1.0, hypotheses=(), statuses=(), **options):
    """A claim whose measured value is a function of the tolerance."""

    def run(rtol):
        return Evidence(tuple(hypotheses), (Conclusion("x", value(rtol), bound, **options),), tuple(statuses))

    return Claim("toy", "x <= bound", "none", run)


@pytest.mark.parametrize(
    ("limit", "error", "expected"),
    [
        (0.5, 1e3, "holds"),  # error of 1e3 rtol: 1e-6 at the first run
        (1.5, 1e3, "violated"),
        (1.0 - 1e-14, 1e3, "inconclusive"),  # closer to the bound than the finest run can tell
        (1.0 + 1e-14, 1e3, "inconclusive"),
        (1.0 - 1e-6, 1e3, "holds"),  # decided by the third run only
    ],
)
def test_status_follows_margin_and_uncertainty(limit, error, expected):
    verdict = gflow.check(claim(lambda rtol: limit + error * rtol), rtol=1e-9)
    assert verdict.status == expected, verdict.table()


def test_the_uncertainty_is_ten_times_the_difference_of_the_finest_runs():
    verdict = gflow.check(claim(lambda rtol: 0.1 + rtol), rtol=1e-6)
    coarse, fine = verdict.rtols[-2:]
    assert verdict.uncertainty == pytest.approx(CAUTION * (coarse - fine), rel=1e-6)


def test_the_uncertainty_is_at_least_amplified_rounding():
    verdict = gflow.check(claim(lambda rtol: 0.1, amplification=1e8))
    assert verdict.uncertainty == pytest.approx(1e8 * np.finfo(float).eps)


def test_amplified_rounding_can_leave_it_open():
    assert gflow.check(claim(lambda rtol: 0.999, amplification=1e14)).status == "inconclusive"


def test_a_difference_that_does_not_shrink_is_inconclusive():
    noise = itertools.cycle([0.0, 1e-3, 0.0])
    verdict = gflow.check(claim(lambda rtol: 0.98 + next(noise)), rtol=1e-6)
    assert verdict.status == "inconclusive"


@pytest.mark.parametrize(
    ("rtol", "values", "status", "runs"),
    [
        (1e-6, (0.5, 0.5 + 1e-6, 0.5), "holds", 2),  # a wide margin: two runs suffice
        (1e-6, (1.5, 1.5 + 1e-6, 1.5), "violated", 2),
        (1e-6, (0.9995, 0.9995 + 1e-6, 0.9995), "inconclusive", 3),  # not wide, and does not shrink
        (1e-6, (1.0005, 1.0005 + 1e-6, 1.0005), "inconclusive", 3),
        (1e-6, (0.9995, 0.9995 + 1e-6, 0.9995 + 1.1e-6), "holds", 3),  # shrinks
        (1e-6, (float("nan"), 0.5, 0.5), "holds", 3),  # the two finest agree, far from the bound
        (1e-6, (0.5, 0.5, float("nan")), "holds", 2),
        (1e-6, (0.5, float("nan"), 0.5), "inconclusive", 3),
    ],
)
def test_a_third_run_must_shrink_the_difference(rtol, values, status, runs):
    given = iter(values)
    verdict = gflow.check(claim(lambda rtol: next(given)), rtol=rtol)
    assert (verdict.status, len(verdict.rtols)) == (status, runs), verdict.table()


def test_where_no_finer_run_is_possible_a_coarser_one_shows_how_the_difference_shrinks():
    verdict = gflow.check(claim(lambda rtol: 0.9999 + 1e5 * rtol), rtol=1e-11)
    assert verdict.rtols == pytest.approx((1e-9, 1e-11, 1e-13)) and verdict.status == "holds"
    verdict = gflow.check(claim(lambda rtol: 0.9999 + (1e-6 if rtol < 2e-13 else 0.0)), rtol=1e-11)
    assert verdict.status == "inconclusive"


def test_a_claim_without_conclusions_does_not_hold():
    verdict = gflow.check(Claim("empty", "nothing", "none", lambda rtol: Evidence(())))
    assert verdict.status == "inconclusive" and "no conclusions" in verdict.table()


@pytest.mark.parametrize(("value", "status"), [(1e-12, "holds"), (1e-3, "violated"), (-1e-3, "violated")])
def test_a_predicted_zero_is_compared_absolutely(value, status):
    verdict = gflow.check(claim(lambda rtol: value, bound=1e-6, predicted=0.0))
    assert verdict.status == status
    assert verdict.findings[0].conclusion.deviation == abs(value)


def test_what_is_no_claim_is_refused():
    with pytest.raises(ValueError, match=r"claim must be a gflow\.claims\.Claim; got int"):
        gflow.check(3)
    with pytest.raises(ValueError, match=r"claim\.run\(rtol\) must be .*Evidence; got float"):
        gflow.check(Claim("number", "", "none", lambda rtol: 1.0))


def test_a_failed_hypothesis_makes_it_inapplicable():
    broken = Hypothesis("balanced start", 0.3)
    verdict = gflow.check(claim(lambda rtol: 0.1, hypotheses=[broken]))
    assert verdict.status == "inapplicable"
    assert "balanced start: defect 0.3 > 1e-10" in verdict.table()


def test_a_run_that_did_not_finish_is_inconclusive():
    stopped = Status("max_steps", "Stopped at t = 3.")
    verdict = gflow.check(claim(lambda rtol: 0.1, statuses=[stopped]))
    assert verdict.status == "inconclusive"
    assert "Stopped at t = 3" in verdict.note


def test_an_unstable_manifold_is_inconclusive():
    doubtful = Status("finished", "Reached t = 3.", ("unstable manifold: ...",))
    assert gflow.check(claim(lambda rtol: 0.1, statuses=[doubtful])).status == "inconclusive"


def test_nan_is_inconclusive():
    assert gflow.check(claim(lambda rtol: float("nan"))).status == "inconclusive"


def test_a_predicted_value_is_compared_relatively():
    near = claim(lambda rtol: 200.0 * (1 + 1e-8), bound=1e-6, predicted=200.0)
    far = claim(lambda rtol: 200.0 * (1 + 1e-4), bound=1e-6, predicted=200.0)
    assert gflow.check(near).status == "holds"
    assert gflow.check(far).status == "violated"


@pytest.mark.parametrize("rtol", [0.0, -1e-9, 1.0, float("nan"), 1e-12])
def test_bad_tolerance(rtol):
    with pytest.raises(ValueError, match="rtol must"):
        gflow.check(claim(lambda r: 0.1), rtol=rtol)


def test_rows_mark_what_is_not_as_it_must_be():
    verdict = gflow.check(claim(lambda rtol: 0.1))
    assert all(row.expected for row in verdict_rows(verdict, "holds"))
    assert not any(row.expected for row in verdict_rows(verdict, "violated"))
    broken = gflow.check(claim(lambda rtol: 0.1, hypotheses=[Hypothesis("h", 1.0)]))
    assert [row.measured for row in verdict_rows(broken, "inapplicable")] == ["1.00e+00"]


def test_observations_are_reported_not_judged():
    row = observation_row(Observation("rank", 1.5, 1e-9, "one seed"))
    assert (row.quantity, row.measured, row.verdict) == ("rank (one seed)", "1.5", "observation")
