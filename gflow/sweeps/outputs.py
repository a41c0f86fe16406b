"""What a function returns at a point, as named arrays; and those of all points as blocks."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WANTED = "a number, an array, a dict of names to these, or an xarray DataArray or Dataset"
_BARE = (np.ndarray, np.memmap, np.matrix)


class BadOutput(Exception):
    """A function returned what is no output; the text says what."""


class Part(NamedTuple):
    """A named array."""

    dims: tuple[str, ...]
    values: NDArray[Any]
    attributes: dict[str, Any]


class Outputs(NamedTuple):
    """What a function returned at one point, by names."""

    variables: dict[str, Part]
    coordinates: dict[str, Part]

    @classmethod
    def read(cls, value: Any) -> Outputs:
        """What a function returned; a :class:`BadOutput` if that is none."""
        xarray = sys.modules.get("xarray")
        if xarray is not None and isinstance(value, xarray.DataArray):
            value = value.to_dataset(name=value.name or "value")
        if xarray is not None and isinstance(value, xarray.Dataset):
            # a single value is no coordinate of a grid: it may be another one at each point
            value = value.reset_coords([name for name, part in value.coords.items() if not part.dims])
            return cls(
                {str(name): _labelled(name, part) for name, part in value.data_vars.items()},
                {str(name): _labelled(name, part) for name, part in value.coords.items()},
            )
        named = dict(value) if isinstance(value, Mapping) else {"value": value}
        if not named:
            raise BadOutput("an empty dict")
        made = cls({}, {})
        for name, part in named.items():
            if not isinstance(name, str):
                raise BadOutput(f"a dict with the key {name!r:.80}; wanted names")
            if xarray is not None and isinstance(part, xarray.DataArray):
                inner = cls.read(part.rename(name))
                for other in made.coordinates.keys() & inner.coordinates.keys():
                    if _listed(made.coordinates[other]) != _listed(inner.coordinates[other]):
                        raise BadOutput(
                            f"outputs of which {name!r} has other coordinates {other!r} than one before it"
                        )
                made.variables.update(inner.variables)
                made.coordinates.update(inner.coordinates)
            else:
                values = _array(name, part)
                made.variables[name] = Part(tuple(f"{name}_{i}" for i in range(values.ndim)), values, {})
        return made

    def form(self) -> Hashable:
        """Equal for outputs of the same names, dimensions, shapes, kinds and coordinates."""
        return self.said(), tuple((name, _listed(part)) for name, part in sorted(self.coordinates.items()))

    def said(self) -> str:
        """Names, dimensions, shapes and kinds in words."""
        return ", ".join(
            f"{name} {part.values.shape} of {_kind(part)}"
            + (f" along {', '.join(part.dims)}" if part.dims != _unnamed(name, part) else "")
            for part_of in self
            for name, part in sorted(part_of.items())
        )

    def told(self) -> str:
        """:meth:`said`, and the coordinates."""
        along = [
            f"{name} {np.array2string(part.values, threshold=6)}" for name, part in self.coordinates.items()
        ]
        return self.said() + (f" (coordinates: {'; '.join(along)})" if along else "")

    def misfit(self, taken: set[str]) -> str:
        """Why outputs cannot be in one Dataset with names that are taken, or ``""``."""
        import xarray

        dims = {str(d) for part_of in self for part in part_of.values() for d in part.dims}
        clash = sorted(taken & {*self.variables, *self.coordinates, *dims})
        if clash:
            return f"an output named {clash[0]!r}, which is the name of an axis or of the errors"
        try:
            xarray.Dataset(
                {name: part[:2] for name, part in self.variables.items()},
                {name: part[:2] for name, part in self.coordinates.items()},
            )
        except ValueError as error:
            return f"outputs that do not fit into one Dataset: {error}"
        return ""


def _labelled(name: Any, given: Any) -> Part:
    attributes = {
        str(key): value if isinstance(value, str | Number | np.ndarray) else str(value)
        for key, value in given.attrs.items()
    }
    return Part(tuple(map(str, given.dims)), _array(name, given.values), attributes)


def _array(name: Any, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise BadOutput(f"{value!r:.80} as {name!r} ({error})") from error
    hidden = isinstance(value, np.ndarray) and type(value) not in _BARE  # a mask, a unit
    if array.dtype.kind not in "biufcU" or hidden:
        hint = f" of type {array.dtype}" if isinstance(value, np.ndarray) else ""
        if type(value).__name__ == "Trajectory":
            hint = " (of a trajectory, such as trajectory.loss, trajectory.end or trajectory['sharpness'])"
        raise BadOutput(f"a {type(value).__name__}{hint}")
    return array


def _kind(part: Part) -> str:
    return "text" if part.values.dtype.kind == "U" else "numbers"


def _unnamed(name: str, part: Part) -> tuple[str, ...]:
    return tuple(f"{name}_{i}" for i in range(part.values.ndim))


def _listed(part: Part) -> tuple[Any, ...]:
    """Values of a coordinate such that equal ones are equal, NaN too."""
    return tuple(None if value != value else value for value in part.values.ravel().tolist())


def block(found: Sequence[NDArray[Any] | None]) -> tuple[NDArray[Any], str]:
    """An output at all points (points, ...), NaN or empty text where it is missing; what was lost by it, or ``""``."""
    there = [array for array in found if array is not None]
    dtype: Any = np.result_type(*{array.dtype for array in there})
    missing = len(there) < len(found)
    if missing and dtype.kind in "biu":
        dtype = np.dtype(np.float64)
    filler: Any = "" if dtype.kind == "U" else np.nan if missing else 0
    made = np.full((len(found), *there[0].shape), filler, dtype)
    for number, array in enumerate(found):
        if array is not None:
            made[number] = array
    rounded = dtype.kind in "fc" and any(
        array.dtype.kind in "iu" and np.abs(array.astype(float)).max(initial=0) >= 2**53 for array in there
    )
    why = "points are missing" if missing else "others are no whole numbers of its type"
    return made, f"whole numbers above 2^53, rounded to floats since {why}" if rounded else ""
