"""The points of a sweep: axes, and whether they fit the function."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gflow._memory import refuse_if_too_large


def _axis(name: Any, given: Any) -> tuple[NDArray[Any], dict[str, Any]]:
    """Values of an axis, and the attributes that came with them."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"axes must have names of keyword arguments; got {name!r}")
    if name == "error":
        raise ValueError("axes must not have the name 'error': the errors of points have it")
    said = f"axes[{name!r}]"
    attributes = dict(given.attrs) if hasattr(given, "attrs") and hasattr(given, "dims") else {}
    if isinstance(given, str | bytes | Mapping | set | frozenset) or not isinstance(given, Iterable):
        raise ValueError(f"{said} must be a sequence of numbers or strings; got {given!r:.80}")
    listed = given if isinstance(given, np.ndarray) else getattr(given, "values", None)
    listed = listed if isinstance(listed, np.ndarray) else list(given)
    try:
        values = np.array(listed)
    except ValueError as error:
        raise ValueError(
            f"{said} must be a sequence of numbers or strings; got {given!r:.80} ({error})"
        ) from error
    if values.ndim != 1:
        raise ValueError(f"{said} must have one dimension; got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{said} must have at least one value; got none")
    kinds = {str: str, bool: bool, np.bool_: bool, np.str_: str}
    mixed = isinstance(listed, list) and len({kinds.get(type(value), float) for value in listed}) > 1
    if values.dtype.kind not in "biufUmM" or mixed:
        raise ValueError(
            f"{said} must have values that can be coordinates: all numbers, all bools or all strings; "
            f"got {given!r:.80}. Let it be names, and the function look up what they stand for"
        )
    if (values != values).any():
        raise ValueError(f"{said} must have no NaN: no point could be found by it")
    found, counts = np.unique(values, return_counts=True)
    if found.size < values.size:
        raise ValueError(
            f"{said} must have no value twice; {found[counts > 1][0].item()!r} came more than once"
        )
    return values, attributes


class Grid:
    """The points, numbered with the last axis fastest."""

    def __init__(self, axes: Any) -> None:
        if not isinstance(axes, Mapping) or not axes:
            raise ValueError(f"axes must be a dict of names to values, with one at least; got {axes!r:.80}")
        self.axes = {name: _axis(name, given) for name, given in axes.items()}
        self.names = list(self.axes)
        self.shape = tuple(values.size for values, _ in self.axes.values())
        self.size = int(np.prod(self.shape, dtype=object))
        refuse_if_too_large("axes", f"{self.size} points", 1000 * self.size)

    def points(self) -> list[dict[str, Any]]:
        columns = [
            list(values) if values.dtype.kind in "mM" else values.tolist() for values, _ in self.axes.values()
        ]
        return [dict(zip(self.names, point, strict=True)) for point in itertools.product(*columns)]


def check_parameters(function: Any, names: list[str], settings: dict[str, Any]) -> None:
    both = [name for name in names if name in settings]
    if both:
        raise ValueError(f"settings must not have the name of an axis; both have {both[0]!r}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # of some compiled functions
        return
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in by_name]
    for argument, given in (("axes", names), ("settings", settings)):
        unknown = [name for name in given if name not in known]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise ValueError(
                f"{argument} must have names of parameters of the function ({', '.join(known) or 'none'}); "
                f"got {unknown[0]!r}"
            )
    needed = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, *{q.kind for q in by_name}) and p.default is p.empty
    ]
    without = [name for name in needed if name not in names and name not in settings]
    if without:
        raise ValueError(
            f"axes, or settings, must have every parameter of the function without a default; {without[0]!r} is in neither"
        )
