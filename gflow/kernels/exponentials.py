"""e^x for x <= 0 and log(1 + u) for 0 <= u <= 1, to rounding, in arithmetic that the compiler puts into vector registers.

The library's functions are calls, one for each number; a loop over these takes a fifth of the time.  Their
polynomials are evaluated as trees: in a loop over few samples the longest chain of operations counts.
"""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from gflow.kernels.abi import kernel

# Exponent below which e^x is nothing.
_NOTHING = -700.0

_LOG2_E = 1.4426950408889634
_LOG_2 = 0.6931471805599453
# log 2 in two parts, of which the first has 21 trailing zeros: its product with an exponent is exact.
_HIGH, _LOW = 0.6931471803691238, 1.9082149292705877e-10
# Added to a number, it leaves the nearest integer in the last bits.
_ROUND = 1.5 * 2.0**52
_ROOT = 0.4142135623730951  # sqrt(2) - 1


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


@kernel(forceinline=True, fastmath={"contract"})
def log1p(u):
    """log(1 + u) for 0 <= u <= 1, by 2 artanh(u / (2 + u)); above sqrt(2) by that of (1 + u) / 2."""
    large = u > _ROOT
    s = (u - 1.0 if large else u) / ((3.0 if large else 2.0) + u)  # |s| <= 0.172: 11 terms of the series
    q = s * s
    q2 = q * q
    q4 = q2 * q2
    a = (1 / 3 + q * (1 / 5)) + q2 * (1 / 7 + q * (1 / 9))
    b = (1 / 11 + q * (1 / 13)) + q2 * (1 / 15 + q * (1 / 17))
    rest = q * (a + q4 * (b + q4 * (1 / 19 + q * (1 / 21))))
    twice = 2.0 * s
    return (_LOG_2 if large else 0.0) + (twice + twice * rest)
