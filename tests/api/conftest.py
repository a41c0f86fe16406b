"""Fixtures of the tests of sweeps."""

from __future__ import annotations

import pytest
from sweeping import Counted


@pytest.fixture
def counted(tmp_path):
    return Counted(str(tmp_path / "calls"))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"
