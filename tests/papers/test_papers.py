"""Every claim of every paper gets the verdict that it must get; its negative controls do not hold."""

from __future__ import annotations

import pytest

from gflow import papers
from gflow.claims import check

LISTED = [
    (name, claim, expected)
    for name in papers.PAPERS
    for claim, expected in papers.paper(name).claims("quick")
]


@pytest.mark.parametrize(("name", "claim", "expected"), LISTED, ids=[f"{n}: {c.name}" for n, c, _ in LISTED])
def test_verdict(name, claim, expected):
    verdict = check(claim, rtol=1e-10)
    assert verdict.status == expected, verdict.table()
    assert len(verdict.rtols) >= 2


@pytest.mark.parametrize("name", papers.PAPERS)
def test_every_paper_has_claims_that_hold_and_controls_that_do_not(name):
    statuses = {expected for _, expected in papers.paper(name).claims("full")}
    assert statuses >= {"holds", "inapplicable", "violated"}


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("name", papers.PAPERS)
def test_too_loose_a_tolerance_is_inconclusive(name, rtol):
    """Runs so coarse that their difference exceeds the margin cannot decide."""
    claim, expected = papers.paper(name).claims("quick")[0]
    assert expected == "holds"
    verdict = check(claim, rtol=rtol)
    assert verdict.status == "inconclusive", verdict.table()


def test_an_unknown_paper_is_named():
    with pytest.raises(ValueError, match="name must be one of 'digits', 'saxe2013'; got 'moon'"):
        papers.paper("moon")
