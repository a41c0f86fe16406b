"""Versions of gflow and of what its numbers depend on; loads none of it."""

from __future__ import annotations

import platform
from functools import cache


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    names = {"gflow": "gradient-flow", "numpy": "numpy", "scipy": "scipy", "numba": "numba"}
    return {key: installed(name) for key, name in names.items()} | {"python": platform.python_version()}


def versions() -> dict[str, str]:
    """Versions of gflow and of what its numbers depend on."""
    return dict(_versions())
