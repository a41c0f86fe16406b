"""Logarithm and exponential to base two for step sizes, in plain arithmetic.

The library's ``pow`` takes one number after another, and two of them cost more than a step of a network of two
parameters.  These are good to 1e-8, which is more than step sizes need; they go into vector registers, and a number's
bits do not depend on whether they did.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from gflow.kernels.abi import kernel

_ROUND = 1.5 * 2.0**52  # added and taken away again, it rounds to a whole number
_MANTISSA, _ONE = (1 << 52) - 1, 1023 << 52


@intrinsic
def _bits(typingctx: Any, x: Any) -> Any:
    """The bits of a float as an integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), codegen


@intrinsic
def _float(typingctx: Any, n: Any) -> Any:
    """The float of these bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.int64), codegen


@kernel(forceinline=True)
def log2(x):
    """Logarithm of x > 0; finite for any other x >= 0, far out where that belongs."""
    bits = _bits(x)
    whole = _float(((bits >> 52) & 2047) + _bits(_ROUND)) - _ROUND - 1023.0
    m = _float((bits & _MANTISSA) | _ONE)  # 1 <= m < 2
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
    return series * _float((_bits(rounded) + 1023) << 52)
