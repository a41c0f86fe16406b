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
def _sum_of_logarithms(k, n, work, u):
    """Sum of log(1 + x) over n numbers of [0, k - 1], from u on: the logarithm of a product, for 256 of them in one go.

    For more than two classes k it is so many fewer that no product exceeds 2^256.  What is carried is the product less 1,
    in terms that are all positive, so that tiny numbers keep their digits.
    """
    total, many, most = 0.0, 256, 2
    while most < k:
        most *= most
        many //= 2
    for first in range(u, u + n, many):
        a, b, c, d, i, end = 0.0, 0.0, 0.0, 0.0, first, min(first + many, u + n)
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


@kernel(forceinline=True, fastmath={"reassoc", "contract"})
def _hinges(n, data, y, work, f):
    """Sum of max(-m, 0), of one output a sample."""
    labels, outputs, total = data[y : y + n], work[f : f + n], 0.0
    for i in range(n):
        total += max(-labels[i] * outputs[i], 0.0)
    return total


@kernel(forceinline=True)
def _total_of_one(far, low, n, data, y, work, f, u):
    """Sum of the losses of one output a sample, or where ``far`` e^low times that; leaves the powers at u.

    Where ``far``, every loss is e^-m; else it is log(1 + e^-|m|), and -m more where m < 0.
    """
    if far:
        _powers(low, n, data, y, work, f, u)
        return _sum(n, work, u)
    total = _hinges(n, data, y, work, f) if low < 0.0 else 0.0
    _powers(np.nan, n, data, y, work, f, u)
    return total + _sum_of_logarithms(2, n, work, u)


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


@kernel(forceinline=True, fastmath={"contract"})
def _logistic_slopes(factor, n, data, y, work, f, out):
    """Derivative of the sum of the logistic losses."""
    labels, outputs, slopes = data[y : y + n], work[f : f + n], work[out : out + n]
    for i in range(n):
        slopes[i] = -factor * labels[i] * _pull(labels[i] * outputs[i])


@kernel(forceinline=True, fastmath={"contract"})
def _logistic_bends(factor, n, work, f, df, out):
    """Second derivatives of the logistic losses, which are even in the margin, times df."""
    outputs, along, bends = work[f : f + n], work[df : df + n], work[out : out + n]
    for i in range(n):
        u = elementary.exp(-abs(outputs[i]))
        bends[i] = factor * along[i] * (u / ((1.0 + u) * (1.0 + u)))


@kernel(forceinline=True, fastmath={"contract"})
def _exponentials(n, data, y, work, f, out):
    """Write e^-m to out, of one output a sample; out may be f."""
    labels, outputs, powers = data[y : y + n], work[f : f + n], work[out : out + n]
    for i in range(n):
        powers[i] = elementary.exp_of_any(-labels[i] * outputs[i])


@kernel(forceinline=True)
def _lower(k, n, work, f, out):
    """Write the outputs less the largest of their sample to out (k, n), elsewhere than at f; of two classes or more."""
    last = out + (k - 1) * n
    tops, outputs = work[last : last + n], work[f : f + n]
    for i in range(n):
        tops[i] = outputs[i]
    for a in range(1, k):
        outputs = work[f + a * n : f + (a + 1) * n]
        for i in range(n):
            tops[i] = max(tops[i], outputs[i])
    for a in range(k):  # the last are where the largest stand
        outputs, lowered = work[f + a * n : f + (a + 1) * n], work[out + a * n : out + (a + 1) * n]
        for i in range(n):
            lowered[i] = outputs[i] - tops[i]


@kernel(forceinline=True, fastmath={"contract"})
def _raise(n, work, u):
    """Put e^x in the place of n numbers x <= 0, from u on."""
    powers = work[u : u + n]
    for i in range(n):
        powers[i] = elementary.exp(powers[i])


@kernel(fastmath={"reassoc", "contract"})
def _softmax_total(k, n, data, y, work, f):
    """Sum of the cross-entropies; writes over the outputs, and to k n numbers after them."""
    u = f + k * n
    _lower(k, n, work, f, u)
    labels, lowered, total = data[y : y + k * n], work[u : u + k * n], 0.0
    for i in range(k * n):
        total -= labels[i] * lowered[i]
    _raise(k * n, work, u)
    rest, tops = work[f : f + n], work[f + n : f + 2 * n]  # the sum of all but the largest, which is 1
    for i in range(n):
        rest[i], tops[i] = 0.0, 0.0
    for a in range(k):
        powers = work[u + a * n : u + (a + 1) * n]
        for i in range(n):
            p, top = powers[i], tops[i]
            rest[i] += top if p > top else p
            tops[i] = p if p > top else top
    return total + _sum_of_logarithms(k, n, work, f)


@kernel
def _softmax_slopes(factor, k, n, data, y, work, f, out):
    """Derivative of the sum of the cross-entropies; writes over the outputs.

    It is p - y, and where y is 1 minus the sum of the other p, as p - 1 would cancel.
    """
    _lower(k, n, work, f, out)
    _raise(k * n, work, out)
    others, scales = work[f : f + n], work[f + n : f + 2 * n]
    for i in range(n):
        others[i], scales[i] = 0.0, 0.0
    for a in range(k):
        labels, powers = data[y + a * n : y + (a + 1) * n], work[out + a * n : out + (a + 1) * n]
        for i in range(n):
            others[i] += 0.0 if labels[i] == 1.0 else powers[i]
            scales[i] += powers[i] if labels[i] == 1.0 else 0.0
    for i in range(n):
        scales[i] = factor / (others[i] + scales[i])
        others[i] *= -scales[i]
    for a in range(k):
        labels, slopes = data[y + a * n : y + (a + 1) * n], work[out + a * n : out + (a + 1) * n]
        for i in range(n):
            slopes[i] = others[i] if labels[i] == 1.0 else scales[i] * slopes[i] - factor * labels[i]


@kernel
def _bend(code, m):
    """-l''(m) / l'(m)."""
    return 1.0 if code == LOG_EXPONENTIAL or m > _LARGE else 1.0 / (1.0 + np.exp(-m))


@kernel
def value(code, factor, k, n, data, y, work, f):
    """The loss, or its logarithm.  The outputs are lost, and for SOFTMAX the k n numbers of ``work`` after them."""
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
        total = _total_of_one(False, -np.inf, n, data, y, work, f, f)
    elif code == EXPONENTIAL:
        _exponentials(n, data, y, work, f, f)
        total = _sum(n, work, f)
    else:
        total = _softmax_total(k, n, data, y, work, f)
    return factor * total


@kernel
def derivative(code, factor, k, n, data, y, work, f, out):
    """Derivative by the outputs, to ``work`` at out (k, n).  For SOFTMAX the outputs are lost."""
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
        _logistic_slopes(factor, n, data, y, work, f, out)
    elif code == EXPONENTIAL:
        _exponentials(n, data, y, work, f, out)
        labels, slopes = data[y : y + n], work[out : out + n]
        for i in range(n):
            slopes[i] *= -factor * labels[i]
    else:
        _softmax_slopes(factor, k, n, data, y, work, f, out)


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
    """Second derivative by the outputs times df (k, n), to out (k, n), given the derivative d (k, n).

    The outputs are not read for SOFTMAX, whose derivative writes over them.
    """
    if code >= LOG_LOGISTIC:
        _log_tangent(code, k, n, data, y, work, f, d, df, out)
    elif code == SQUARE:
        for i in range(k * n):
            work[out + i] = 2.0 * factor * work[df + i]
    elif code == LOGISTIC:
        _logistic_bends(factor, n, work, f, df, out)
    elif code == EXPONENTIAL:
        for i in range(n):
            work[out + i] = -data[y + i] * work[d + i] * work[df + i]
    else:
        for i in range(n):
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
