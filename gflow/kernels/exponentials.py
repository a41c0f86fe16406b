"""e^x for x <= 0 and log(1 + u) for u >= 0, to rounding.

The library's exponential is a call, one for each number; this one is arithmetic that the compiler puts into vector
registers.  Its polynomial is evaluated as a tree: in a loop over few samples the longest chain of operations counts.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from gflow.kernels.abi import kernel

# Exponent below which e^x is nothing.
_NOTHING = -700.0

_LOG2_E = 1.4426950408889634
# log 2 in two parts, of which the first has 21 trailing zeros: its product with an exponent is exact.
_HIGH, _LOW = 0.6931471803691238, 1.9082149292705877e-10
# Added to a number, it leaves the nearest integer in the last bits.
_ROUND = 1.5 * 2.0**52


@intrinsic
def _bits(context, x):
    """The bits of a number, as an integer."""

    def build(target, builder, signature, arguments):
        return builder.bitcast(arguments[0], target.get_value_type(types.int64))

    return types.int64(types.float64), build


@intrinsic
def _number(context, bits):
    """The number that has these bits."""

    def build(target, builder, signature, arguments):
        return builder.bitcast(arguments[0], target.get_value_type(types.float64))

    return types.float64(types.int64), build


@kernel(forceinline=True, fastmath={"contract"})
def exp(x):
    """e^x for x <= 0, and 0 below -700; NaN of NaN."""
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _HIGH) - k * _LOW  # x = k log 2 + r with |r| <= log(2) / 2: 14 terms of the series
    r2 = r * r
    r4 = r2 * r2
    a = (0.5 + r * (1 / 6)) + r2 * (1 / 24 + r * (1 / 120))
    b = (1 / 720 + r * (1 / 5040)) + r2 * (1 / 40320 + r * (1 / 362880))
    c = (1 / 3628800 + r * (1 / 39916800)) + r2 * (1 / 479001600 + r * (1 / 6227020800))
    rest = r + r2 * (a + r4 * (b + r4 * c))
    power = _number((_bits(shifted) + 1023) << 52)  # 2^k
    return 0.0 if x < _NOTHING else power + power * rest


@kernel(forceinline=True)
def log1p(u):
    """log(1 + u) for u >= 0, to rounding (Kahan): the library's log1p takes three times as long as its log."""
    w = 1.0 + u
    return u if w == 1.0 else np.log(w) * (u / (w - 1.0))
