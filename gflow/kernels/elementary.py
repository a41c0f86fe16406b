"""Exponentials and logarithms in plain arithmetic, which the compiler puts into vector registers.

The library's functions are calls, one for each number.  ``log2`` and ``exp2`` serve step sizes and are good to 1e-8; two
calls of ``pow`` would cost more than a step of a network of two parameters.  ``exp``, ``exp_of_any`` and ``log1p`` are
exact to rounding.  A number's bits do not depend on whether it went into a vector register, but in the exponentials, which
may contract a product and a sum.  Polynomials are evaluated as trees: in a loop over few numbers the longest chain of operations counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from gflow.kernels.abi import kernel

# Added to a number and taken away again, it rounds to a whole one, and leaves it in the last bits between.
_ROUND = 1.5 * 2.0**52
_MANTISSA, _ONE = (1 << 52) - 1, 1023 << 52
# Exponent below which e^x is nothing: down to it the results are normal numbers, as their bits are made.
_NOTHING = -708.0
# Exponent above which e^x is infinite whatever its bits are: from 709.78 to here the result overflows by itself.
_TOO_MUCH = 710.0
_LOG2_E = 1.4426950408889634
# log 2 in two parts, of which the first has 21 trailing zeros: its product with an exponent is exact.
_HIGH, _LOW = 0.6931471803691238, 1.9082149292705877e-10


@intrinsic
def _bits(typingctx: Any, x: Any) -> Any:
    """The bits of a number as an integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), codegen


@intrinsic
def _number(typingctx: Any, bits: Any) -> Any:
    """The number of these bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.int64), codegen


@kernel(forceinline=True)
def log2(x):
    """Logarithm of x > 0; finite for any other x >= 0, far out where that belongs."""
    bits = _bits(x)
    whole = _number(((bits >> 52) & 2047) + _bits(_ROUND)) - _ROUND - 1023.0
    m = _number((bits & _MANTISSA) | _ONE)  # 1 <= m < 2
    high = m > 1.4142135623730951
    m = 0.5 * m if high else m
    whole = whole + 1.0 if high else whole
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = (1.0 + z * (1 / 3)) + (z * z) * ((1 / 5 + z * (1 / 7)) + (z * z) * (1 / 9))
    return whole + 2.8853900817779268 * s * series  # 2 / log(2)


@kernel(forceinline=True)
def exp2(y):
    """Two to the power of y, for |y| < 1000."""
    rounded = y + _ROUND
    x = 0.6931471805599453 * (y - (rounded - _ROUND))
    z = x * x
    high = (1 / 24 + x * (1 / 120)) + z * (1 / 720 + x * (1 / 5040))
    series = ((1.0 + x) + z * (1 / 2 + x * (1 / 6))) + (z * z) * high
    return series * _number((_bits(rounded) + 1023) << 52)


@kernel(forceinline=True, fastmath={"contract"})
def _reduced(x):
    """k, in the last bits of a number, and e^r - 1, where x = k log 2 + r."""
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _HIGH) - k * _LOW  # x = k log 2 + r with |r| <= log(2) / 2: 14 terms of the series
    r2 = r * r
    r4 = r2 * r2
    a = (0.5 + r * (1 / 6)) + r2 * (1 / 24 + r * (1 / 120))
    b = (1 / 720 + r * (1 / 5040)) + r2 * (1 / 40320 + r * (1 / 362880))
    c = (1 / 3628800 + r * (1 / 39916800)) + r2 * (1 / 479001600 + r * (1 / 6227020800))
    return shifted, r + r2 * (a + r4 * (b + r4 * c))


@kernel(forceinline=True, fastmath={"contract"})
def exp(x):
    """e^x for x <= 0, and 0 below -708; NaN of NaN."""
    shifted, rest = _reduced(x)
    power = _number((_bits(shifted) + 1023) << 52)  # 2^k
    return 0.0 if x < _NOTHING else power + power * rest


@kernel(forceinline=True, fastmath={"contract"})
def exp_of_any(x):
    """e^x, but 0 below -708; infinite above 709.78; NaN of NaN."""
    shifted, rest = _reduced(x)
    half = _number((_bits(shifted) + 1022) << 52)  # 2^(k - 1): 2^1024 is no number
    power = 2.0 * (half + half * rest)
    return 0.0 if x < _NOTHING else np.inf if x > _TOO_MUCH else power


@kernel(forceinline=True)
def log1p(u):
    """log(1 + u) for u >= 0, to rounding (Kahan): the library's log1p takes three times as long as its log."""
    w = 1.0 + u
    return u if w == 1.0 else np.log(w) * (u / (w - 1.0))
