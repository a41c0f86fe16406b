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

from gflow.kernels import exponentials
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
            total += exponentials.exp(work[f + a * n + i] - top)
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
    return exponentials.log1p(exponentials.exp(-abs(m))) + max(-m, 0.0)


@kernel(forceinline=True, fastmath={"contract"})
def _pull(m):
    """-l'(m) of the logistic loss."""
    u = exponentials.exp(-abs(m))
    return (u if m > 0.0 else 1.0) / (1.0 + u)


@kernel(forceinline=True)
def _lowest_of_one(n, data, y, work, f):
    """The smallest margin, of one output a sample."""
    low = np.inf
    for i in range(n):
        low = min(low, data[y + i] * work[f + i])
    return low


@kernel(forceinline=True, fastmath={"reassoc", "contract"})
def _total_of_one(far, low, n, data, y, work, f):
    """Sum of the losses, e^low times that where ``far``, of one output a sample, in vector registers.

    The views tell the compiler that no index is negative, without which it makes no vectors.
    """
    labels, outputs, total = data[y : y + n], work[f : f + n], 0.0
    if far:
        for i in range(n):
            total += exponentials.exp(low - labels[i] * outputs[i])
    else:
        for i in range(n):
            total += _small(labels[i] * outputs[i])
    return total


@kernel(forceinline=True, fastmath={"reassoc", "contract"})
def _pulls_of_one(far, low, n, data, y, work, f, out):
    """The derivative of the logarithm of the sum of the losses, of one output a sample."""
    labels, outputs, slopes, total = data[y : y + n], work[f : f + n], work[out : out + n], 0.0
    if far:
        for i in range(n):
            pull = exponentials.exp(low - labels[i] * outputs[i])
            total += pull
            slopes[i] = labels[i] * pull
    else:
        for i in range(n):
            m = labels[i] * outputs[i]
            total += _small(m)
            slopes[i] = labels[i] * _pull(m)
    scale = -1.0 / total
    for i in range(n):
        slopes[i] *= scale


@kernel
def _bend(code, m):
    """-l''(m) / l'(m)."""
    return 1.0 if code == LOG_EXPONENTIAL or m > _LARGE else 1.0 / (1.0 + np.exp(-m))


@kernel
def value(code, factor, k, n, data, y, work, f):
    """The loss, or its logarithm."""
    total = 0.0
    if code >= LOG_LOGISTIC:
        if code != LOG_SOFTMAX:
            low = _lowest_of_one(n, data, y, work, f)
            far = code == LOG_EXPONENTIAL or low > _LARGE  # every loss is e^-m
            total = _total_of_one(far, low, n, data, y, work, f)
        else:
            low = _lowest(k, n, data, y, work, f)
            far = low > _LARGE
            for i in range(n):
                m = _margin(k, n, data, y, work, f, i)
                total += exponentials.exp(low - m) if far else _small(m)
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
    if code >= LOG_LOGISTIC:
        _log_derivative(code, k, n, data, y, work, f, out)
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
def _log_derivative(code, k, n, data, y, work, f, out):
    """Derivative of the logarithm of the loss: each sample's pull -l'(m) over the sum of the losses."""
    if code != LOG_SOFTMAX:
        low = _lowest_of_one(n, data, y, work, f)
        far = code == LOG_EXPONENTIAL or low > _LARGE  # every loss is e^-m
        _pulls_of_one(far, low, n, data, y, work, f, out)
        return
    total, low = 0.0, _lowest(k, n, data, y, work, f)
    far = low > _LARGE
    for i in range(n):
        m = _margin(k, n, data, y, work, f, i)
        work[out + i] = exponentials.exp(low - m) if far else _pull(m)
        total += work[out + i] if far else _small(m)
    for i in range(n):
        pull = work[out + i] / total
        right = _class(k, n, data, y, i)
        highest, others = _others(right, k, n, work, f, i)
        for a in range(k):
            work[out + a * n + i] = pull * exponentials.exp(work[f + a * n + i] - highest) / others
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
