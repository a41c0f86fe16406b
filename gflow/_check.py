"""Checks of arguments: each error names the argument, what came, and what is wanted."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The type of all numbers; to compare with it by ``is`` takes a fifth of the time of ``==``.
FLOAT64 = np.dtype(np.float64)
# Up to so many numbers Python looks at them faster than it calls numpy.
_FEW = 16


def finite_array(name: str, value: Any, shape: Sequence[str | int]) -> NDArray[np.float64]:
    """A new C-contiguous float64 array of the given shape.

    A named axis takes any length from one on; a number is the length wanted.
    """
    try:
        if type(value) is np.ndarray and value.dtype is FLOAT64:
            array = value.copy()
        else:
            if value is None or np.iscomplexobj(value):  # which numpy would make NaN, or its real part
                raise TypeError("not real numbers")
            array = np.array(value, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a real array of shape {_shape(shape)}; got {value!r:.80} ({error})"
        ) from error
    if array.shape != shape and (array.ndim != len(shape) or not all(map(_fits, array.shape, shape))):
        raise ValueError(f"{name} must have shape {_shape(shape)}; got {array.shape}")
    if not _is_finite(array):
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite; {name}[{', '.join(map(str, bad))}] is {array[bad]}")
    return array


def _is_finite(array: NDArray[np.float64]) -> bool:
    if array.size <= _FEW:
        numbers = array.tolist() if array.ndim == 1 else array.ravel().tolist()
        return math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers))
    # the sum of the squares is the faster look
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def increases(array: NDArray[np.float64]) -> bool:
    """Whether each number is above the one before."""
    if array.size <= _FEW:
        numbers = array.tolist()
        return all(map(operator.lt, numbers, numbers[1:]))
    return np.count_nonzero(array[1:] > array[:-1]) == len(array) - 1


def _fits(have: int, want: str | int) -> bool:
    return have == want if isinstance(want, int) else have > 0


def _shape(shape: Sequence[str | int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def plain_array(name: str, value: Any, wanted: str) -> NDArray[Any]:
    """An array of real numbers, as it is and of any shape; entries may be NaN."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            if value is None or np.iscomplexobj(array):
                raise TypeError("not real numbers")
            array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a real array of shape {wanted}; got {value!r:.80} ({error})"
        ) from error
    return array


def _real(name: str, value: Any, wanted: str) -> float:
    real = type(value) is float or (isinstance(value, Real) and not isinstance(value, bool))
    try:
        number = float(value) if real else math.nan
    except OverflowError:  # a whole number beyond the range of double precision
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {wanted}; got {value!r:.80}")
    return number


def number(name: str, value: Any) -> float:
    """A finite number."""
    return _real(name, value, "a finite number")


def positive(name: str, value: Any) -> float:
    """A finite number above zero."""
    number = _real(name, value, "a number > 0")
    if number <= 0:
        raise ValueError(f"{name} must be a number > 0; got {value!r}")
    return number


def non_negative(name: str, value: Any) -> float:
    """A finite number, zero or above."""
    number = _real(name, value, "a number >= 0")
    if number < 0:
        raise ValueError(f"{name} must be a number >= 0; got {value!r}")
    return number


def positive_int(name: str, value: Any) -> int:
    """A whole number, one or above."""
    whole = type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
    if not whole or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1; got {value!r}")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    if type(value) is not bool and not isinstance(value, np.bool_):
        raise ValueError(f"{name} must be True or False; got {value!r:.80}")
    return bool(value)


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of the listed names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def of_type(name: str, value: Any, kind: type, known_as: str) -> Any:
    """An object of a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {known_as}; got {type(value).__name__}")
    return value


def generator(name: str, value: Any) -> np.random.Generator:
    """A random generator, from itself, a seed, or None."""
    if isinstance(value, np.random.Generator):
        return value
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 0):
        raise ValueError(
            f"{name} must be a whole number >= 0, a numpy.random.Generator or None; got {value!r:.80}"
        )
    return np.random.default_rng(None if value is None else int(value))
