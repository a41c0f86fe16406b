"""Arguments of closed forms: arrays of real numbers of any shape, and of shapes that broadcast."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def real_array(name: str, value: ArrayLike, lowest: float = -np.inf, infinite: bool = False) -> Array:
    """A float64 array, or a ValueError that names it."""
    try:
        raw = np.asarray(value)
        if raw.dtype.kind in "USc":  # which numpy would read, or make real
            raise TypeError("not real numbers")
        array = raw.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be real numbers; got {value!r:.80}") from error
    bad = np.isnan(array) | (array < lowest) | (np.isinf(array) & (not infinite))
    if bad.any():
        least = "" if lowest == -np.inf else f" >= {lowest:g}"
        raise ValueError(f"{name} must be {'' if infinite else 'finite '}numbers{least}; got {array[bad][0]}")
    return array


def broadcast(**arrays: Array) -> tuple[Array, ...]:
    """The arrays in one shape, or a ValueError that names them."""
    try:
        return tuple(np.broadcast_arrays(*arrays.values()))
    except ValueError as error:
        *names, last = arrays
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{', '.join(names)} and {last} must have shapes that broadcast together; got {shapes}"
        ) from error
