"""Settings shared by all tests."""

from __future__ import annotations

import pytest
import warm
from cases import CASES, SOLVED
from hypothesis import settings

settings.register_profile("gflow", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("gflow")


# fewer tests than that need not all that is compiled for the whole suite
_WHOLE = 1000


def pytest_collection_finish(session):
    """Two workers share the compiling, of which each would otherwise do all."""
    half = warm.HALVES.get(getattr(session.config, "workerinput", {}).get("workerid"))
    if half is not None and len(session.items) > _WHOLE:
        half()


def by_name(cases):
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.fixture(params=by_name(CASES))
def case(request):
    """Every case of ``cases.py`` in turn."""
    return request.param


@pytest.fixture(params=by_name(SOLVED))
def solved(request):
    """Every case with a closed form in turn."""
    return request.param
