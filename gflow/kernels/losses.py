"""Losses of the outputs: value, derivative, and second derivative times a vector.

Outputs f (k, n) and labels y (k, n) lie in flat arrays, from given places on; ``factor`` multiplies the sum
over samples.  The codes from ``LOG_LOGISTIC`` on give the logarithm of the whole loss in the loss's place.
They rest on the logarithm of each sample's loss and on log-sum-exp, so that nothing under- or overflows where
the loss itself is e^(-10^7); there the labels are +-1, or one-hot with two classes or more.

A sample's loss is a function of its margin m alone: y f, or the output of its class less the log-sum-exp of the
others, with which the cross-entropy is log(1 + e^-m) too.
"""

from __future__ import annotations

import numpy as np

from gflow.kernels import elementary
from gflow.kernels.abi import kernel

SQUARE, LOGISTIC, EXPONENTIAL, SOFTMAX, LOG_LOGISTIC, LOG_EXPONENTIAL, LOG_SOFTMAX = range(7)

# Margin from which on log(1 + e^-m) is e^-m to the last bit.
_LARGE = 40.0


@kernel
def _class(k, n, data, y, i):
    """The class of sample i."""
    best = 0
    for a in range(1, k):
        if data[y + a * n + i] > data[y + best * n + i]:
            best = a
    return best


@kernel
def _others(right, k, n, work, f, i):
    """Largest output of the classes but the right one, and the sum of e^(output - largest) over them."""
    top = -np.inf
    for a in range(k):
        if a != right:
            top = max(top, work[f + a * n + i])
    total = 0.0
    for a in range(k):
        if a != right:
            total += elementary.exp(work[f + a * n + i] - top)
    return top, total


@kernel
def _margin(k, n, data, y, work, f, i):
    """Margin of sample i, of two classes or more."""
    right = _class(k, n, data, y, i)
    top, total = _others(right, k, n, work, f, i)
    return (work[f + right * n + i] - top) - np.log(total)


@kernel
def _lowest(k, n, data, y, work, f):
    """The smallest margin, of two classes or more."""
    low = np.inf
    for i in range(n):
        low = min(low, _margin(k, n, data, y, work, f, i))
    return low


@kernel(forceinline=True, fastmath={"contract"})
def _small(m):
    """log(1 + e^-m)."""
    return elementary.log1p(elementary.exp(-abs(m))) + max(-m, 0.0)


@kernel(forceinline=True, fastmath={"contract"})
def _pull(m):
    """-l'(m) of the logistic loss."""
    u = elementary.exp(-abs(m))
    return (u if m > 0.0 else 1.0) / (1.0 + u)


@kernel(forceinline=True)
def _lowest_of_one(n, data, y, work, f):
    """The smallest margin, of one output a sample."""
    low = np.inf
    for i in range(n):
        low = min(low, data[y + i] * work[f + i])
    return low


@kernel(forceinline=True, fastmath={"contract"})
def _powers(shift, n, data, y, work, f, out):
    """Write e^(shift - m) to out, or for NaN e^-|m|, of one output a sample; out may be f.

    The views tell the compiler that no index is negative, without which it makes no vectors.
    """
    labels, outputs, powers = data[y : y + n], work[f : f + n], work[out : out + n]
    if shift == shift:
        for i in range(n):
            powers[i] = elementary.exp(shift - labels[i] * outputs[i])
    else:
        for i in range(n):
            powers[i] = elementary.exp(-abs(labels[i] * outputs[i]))


@kernel(forceinline=True)
def _sum(n, work, u):
    """Sum of n numbers of ``work``, from u on."""
    a, b, c, d, i = 0.0, 0.0, 0.0, 0.0, u
    while i + 4 <= u + n:
        a += work[i]
        b += work[i + 1]
        c += work[i + 2]
        d += work[i + 3]
        i += 4
    while i < u + n:
        a += work[i]
        i += 1
    return (a + b) + (c + d)


@kernel(forceinline=True, fastmath={"contract"})
def _sum_of_logarithms(n, work, u):
    """Sum of log(1 + x) over n numbers of [0, 1], from u on: the logarithm of a product, for 256 of them in one go.

    What is carried is the product less 1, in terms that are all positive, so that tiny numbers keep their digits.
    """
    total = 0.0
    for first in range(u, u + n, 256):
        a, b, c, d, i, end = 0.0, 0.0, 0.0, 0.0, first, min(first + 256, u + n)
        while i + 4 <= end:
            a += work[i] + a * work[i]
            b += work[i + 1] + b * work[i + 1]
            c += work[i + 2] + c * work[i + 2]
            d += work[i + 3] + d * work[i + 3]
            i += 4
        while i < end:
            a += work[i] + a * work[i]
            i += 1
        a += b + a * b
        c += d + c * d
        total += elementary.log1p(a + (c + a * c))
    return total


@kernel(forceinline=True)
def _total_of_one(far, low, n, data, y, work, f, u):
    """Sum of the losses of one output a sample, or where ``far`` e^low times that; leaves the powers at u.

    Where ``far``, every loss is e^-m; else it is log(1 + e^-|m|), and -m more where m < 0.
    """
    if far:
        _powers(low, n, data, y, work, f, u)
        return _sum(n, work, u)
    total = 0.0
    if low < 0.0:
        for i in range(n):
            total += max(-data[y + i] * work[f + i], 0.0)
    _powers(np.nan, n, data, y, work, f, u)
    return total + _sum_of_logarithms(n, work, u)


@kernel(forceinline=True, fastmath={"contract"})
def _pulls_of_one(far, low, n, data, y, work, f, out):
    """The derivative of the logarithm of the sum of the losses, of one output a sample."""
    scale = -1.0 / _total_of_one(far, low, n, data, y, work, f, out)
    labels, outputs, slopes = data[y : y + n], work[f : f + n], work[out : out + n]
    if far:
        for i in range(n):
            slopes[i] *= labels[i] * scale
    else:
        for i in range(n):
            u = slopes[i]
            slopes[i] = labels[i] * scale * ((u if labels[i] * outputs[i] > 0.0 else 1.0) / (1.0 + u))


@kernel
def _bend(code, m):
    """-l''(m) / l'(m)."""
    return 1.0 if code == LOG_EXPONENTIAL or m > _LARGE else 1.0 / (1.0 + np.exp(-m))


@kernel
def value(code, factor, k, n, data, y, work, f):
    """The loss, or its logarithm."""
    total = 0.0
    if code == LOG_SOFTMAX:
        low = _lowest(k, n, data, y, work, f)
        far = low > _LARGE  # every loss is e^-m
        for i in range(n):
            m = _margin(k, n, data, y, work, f, i)
            total += elementary.exp(low - m) if far else _small(m)
        return np.log(factor * total) - (low if far else 0.0)
    if code >= LOG_LOGISTIC:
        low = _lowest_of_one(n, data, y, work, f)
        far = code == LOG_EXPONENTIAL or low > _LARGE
        total = _total_of_one(far, low, n, data, y, work, f, f)  # nobody needs the outputs any more
        return np.log(factor * total) - (low if far else 0.0)
    if code == SQUARE:
        for i in range(k * n):
            total += (work[f + i] - data[y + i]) ** 2
    elif code == LOGISTIC:
        for i in range(n):
            margin = data[y + i] * work[f + i]
            total += np.log1p(np.exp(-abs(margin))) + max(-margin, 0.0)
    elif code == EXPONENTIAL:
        for i in range(n):
            total += np.exp(-data[y + i] * work[f + i])
    else:
        for i in range(n):
            top = _top(k, n, work, f, i)
            highest, rest, right = work[f + top * n + i], 0.0, 0.0
            for a in range(k):
                if a != top:
                    rest += np.exp(work[f + a * n + i] - highest)
                right += data[y + a * n + i] * (work[f + a * n + i] - highest)
            total += np.log1p(rest) - right
    return factor * total


@kernel
def _top(k, n, work, f, i):
    """The class of the largest output."""
    top = 0
    for a in range(1, k):
        if work[f + a * n + i] > work[f + top * n + i]:
            top = a
    return top


@kernel
def derivative(code, factor, k, n, data, y, work, f, out):
    """Derivative by the outputs, to ``work`` at out (k, n)."""
    if code == LOG_SOFTMAX:
        _log_softmax_derivative(k, n, data, y, work, f, out)
    elif code >= LOG_LOGISTIC:
        low = _lowest_of_one(n, data, y, work, f)
        far = code == LOG_EXPONENTIAL or low > _LARGE  # every loss is e^-m
        _pulls_of_one(far, low, n, data, y, work, f, out)
    elif code == SQUARE:
        for i in range(k * n):
            work[out + i] = 2.0 * factor * (work[f + i] - data[y + i])
    elif code == LOGISTIC:
        for i in range(n):
            label = data[y + i]
            work[out + i] = -factor * label / (1.0 + np.exp(label * work[f + i]))
    elif code == EXPONENTIAL:
        for i in range(n):
            label = data[y + i]
            work[out + i] = -factor * label * np.exp(-label * work[f + i])
    else:
        for i in range(n):
            top = _top(k, n, work, f, i)
            highest, rest = work[f + top * n + i], 0.0
            for a in range(k):
                if a != top:
                    rest += np.exp(work[f + a * n + i] - highest)
            for a in range(k):
                p = np.exp(work[f + a * n + i] - highest) / (1.0 + rest)
                work[out + a * n + i] = factor * (p - data[y + a * n + i])
            if data[y + top * n + i] == 1.0:  # where p - 1 would cancel
                work[out + top * n + i] = -factor * rest / (1.0 + rest)


@kernel
def _log_softmax_derivative(k, n, data, y, work, f, out):
    """Derivative of the logarithm of the cross-entropy: each sample's pull -l'(m) over the sum of the losses."""
    total, low = 0.0, _lowest(k, n, data, y, work, f)
    far = low > _LARGE
    for i in range(n):
        m = _margin(k, n, data, y, work, f, i)
        work[out + i] = elementary.exp(low - m) if far else _pull(m)
        total += work[out + i] if far else _small(m)
    for i in range(n):
        pull = work[out + i] / total
        right = _class(k, n, data, y, i)
        highest, others = _others(right, k, n, work, f, i)
        for a in range(k):
            work[out + a * n + i] = pull * elementary.exp(work[f + a * n + i] - highest) / others
        work[out + right * n + i] = -pull


@kernel
def tangent(code, factor, k, n, data, y, work, f, d, df, out):
    """Second derivative by the outputs times df (k, n), to out (k, n), given the derivative d (k, n)."""
    if code >= LOG_LOGISTIC:
        _log_tangent(code, k, n, data, y, work, f, d, df, out)
        return
    for i in range(n):
        if code == SQUARE:
            for a in range(k):
                work[out + a * n + i] = 2.0 * factor * work[df + a * n + i]
        elif code == LOGISTIC:
            half = np.cosh(0.5 * min(abs(work[f + i]), 700.0))
            work[out + i] = factor * work[df + i] / (4.0 * half * half)
        elif code == EXPONENTIAL:
            work[out + i] = factor * np.exp(-data[y + i] * work[f + i]) * work[df + i]
        else:
            mean = 0.0
            for a in range(k):
                p = work[d + a * n + i] / factor + data[y + a * n + i]
                mean += p * work[df + a * n + i]
            for a in range(k):
                p = work[d + a * n + i] / factor + data[y + a * n + i]
                work[out + a * n + i] = factor * p * (work[df + a * n + i] - mean)


@kernel
def _log_tangent(code, k, n, data, y, work, f, d, df, out):
    """The same of the logarithm of the loss, which couples the samples."""
    total = 0.0
    for i in range(k * n):
        total += work[d + i] * work[df + i]
    for i in range(n):
        m = _margin(k, n, data, y, work, f, i) if code == LOG_SOFTMAX else data[y + i] * work[f + i]
        bend = _bend(code, m)
        if code != LOG_SOFTMAX:
            slope = work[d + i]
            work[out + i] = abs(slope) * bend * work[df + i] - slope * total
            continue
        right = _class(k, n, data, y, i)
        slope, along, mean = work[d + right * n + i], 0.0, 0.0
        for a in range(k):
            along += work[d + a * n + i] * work[df + a * n + i]
            if a != right and slope != 0.0:
                mean -= work[d + a * n + i] / slope * work[df + a * n + i]
        change = -bend * along - slope * total  # of the slope by the margin
        for a in range(k):
            p = -work[d + a * n + i] / slope if slope != 0.0 else 0.0
            work[out + a * n + i] = -p * (change + slope * (work[df + a * n + i] - mean))
        work[out + right * n + i] = change
