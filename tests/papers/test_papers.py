"""Every claim of every paper gets the verdict that it must get; its negative controls do not hold."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from gflow import papers
from gflow.claims import Claim, Conclusion, Evidence, check
from gflow.report import Section

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


HOLDING = [(n, c) for n, c, expected in LISTED if expected == "holds"]


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize(("name", "claim"), HOLDING, ids=[f"{n}: {c.name}" for n, c in HOLDING])
def test_too_loose_a_tolerance_never_violates(name, claim, rtol):
    """Runs so coarse that their difference exceeds the margin cannot decide; it holds if the finest can."""
    verdict = check(claim, rtol=rtol)
    assert verdict.status in ("inconclusive", "holds"), verdict.table()
    for finding in verdict.findings:
        if finding.status == "holds":
            assert finding.conclusion.deviation + finding.uncertainty <= finding.conclusion.bound
    if claim.name.startswith(("tree", "digits")):  # bounds far below what these runs can tell
        assert verdict.status == "inconclusive", verdict.table()


def test_a_crossing_that_the_run_misses_is_not_a_number(monkeypatch):
    saxe = papers.paper("saxe2013")
    monkeypatch.setattr(saxe, "LAST", 2.5)  # above the target: never reached
    monkeypatch.setattr(saxe.theory.linear, "mode_time", lambda *arguments: 10.0)
    assert np.isnan(saxe.crossing(2, 1e-6)[0])


def test_an_unknown_paper_is_named():
    known = ", ".join(map(repr, papers.PAPERS))
    with pytest.raises(ValueError, match=f"name must be one of {known}; got 'moon'"):
        papers.paper("moon")


def counted(path, rtol):
    """A measurement that leaves a trace."""
    with open(path, "a") as file:
        file.write(f"{rtol:g}\n")
    return Evidence((), (Conclusion("a number", 1.0, 1e-3, 1.0),))


def test_a_claim_settled_before_is_taken_from_the_store(tmp_path):
    trace = tmp_path / "trace"
    claim = Claim("a claim", "It holds.", "none", partial(counted, str(trace)))

    def rows(rtol):
        section = Section("name", "title", "reference", "summary")
        papers.settle(section, [(claim, "holds")], lambda part, note: None, 1.0, rtol, tmp_path / "claims")
        return section.rows

    first = rows(1e-9)
    runs = trace.read_text()
    assert runs.splitlines() == ["1e-09", "1e-11"]
    assert rows(1e-9) == first and trace.read_text() == runs
    assert rows(1e-8) and len(trace.read_text()) > len(runs)

    runs = len(trace.read_text())
    for _ in range(2):  # another verdict than the expected one may come of a run cut short
        papers.settle(
            Section("name", "title", "reference", "summary"),
            [(claim, "violated")], lambda part, note: None, 1.0, 1e-9, tmp_path / "claims",
        )  # fmt: skip
        assert len(trace.read_text()) > runs
        runs = len(trace.read_text())
