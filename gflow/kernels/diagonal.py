"""Diagonal linear networks: the predictor beta is a coordinatewise function of the parameters.

Loss, gradient and Hessian-vector product for losses of X beta, one output a sample.

Layout
------
``dims`` holds ``[objective, d, n, form, depth]``; ``theta`` holds w_+ and w_-, u and v, or w, (d,) each.  The
objective ``SAMPLES`` plus a code of ``losses`` is that loss of the outputs on the samples.
``data`` holds ``[factor, weight_decay, floor]`` followed by the arrays of the objective:

==============  ==========================================================================
MOMENTS         X^T X (d, d), X^T y (d,), R (d, d), c (d,) with |X beta - y|^2 =
                |R beta - c|^2 + floor / factor: for many samples the gradient needs one
                product, and the loss is a sum of squares that does not cancel
SAMPLES + loss  X (n, d), y (n,)
==============  ==========================================================================

With samples the gradient by beta lies in the span of the rows of X to rounding *of its own size*: what rounding
takes out of the span dies out with the residual.  The moments do not keep it there, so that they serve where
the rows span everything.
"""

from __future__ import annotations

import numpy as np

from gflow.kernels import losses
from gflow.kernels.abi import kernel
from gflow.kernels.products import add_transposed, times, times_transposed

MOMENTS, SAMPLES = range(2)
DIFFERENCE, PRODUCT, POWER = range(3)

_HEADER = 3
# The derivative is taken of as many samples in one go as have this many numbers, so that their rows are read from memory
# once and stay in the first-level cache between the two products with them; but of eight, which make a vector, at least.
_CACHED, _ROWS = 4096, 8


@kernel
def _raise_to(theta, start, d, exponent, work, out):
    """Write the powers of d parameters to ``work`` at out."""
    for i in range(d):
        work[out + i] = theta[start + i] if exponent > 0 else 1.0
    for _ in range(exponent - 1):
        for i in range(d):
            work[out + i] *= theta[start + i]


@kernel(forceinline=True)
def _predictor(theta, dims, work):
    """Write beta to ``work`` at 0, and for the powers w^(depth - 1) to 3 d and 4 d, where the gradient needs them."""
    d, form, depth = dims[1], dims[3], dims[4]
    if form == PRODUCT:
        for i in range(d):
            work[i] = theta[i] * theta[d + i]
        return
    if depth == 2:
        for i in range(d):
            work[i] = theta[i] * theta[i]
        if form == DIFFERENCE:
            for i in range(d):
                work[i] -= theta[d + i] * theta[d + i]
        return
    _raise_to(theta, 0, d, depth - 1, work, 3 * d)
    for i in range(d):
        work[i] = theta[i] * work[3 * d + i]
    if form == DIFFERENCE:
        _raise_to(theta, d, d, depth - 1, work, 4 * d)
        for i in range(d):
            work[i] -= theta[d + i] * work[4 * d + i]


@kernel(forceinline=True)
def _derivative(data, dims, work, outputs, slopes):
    """Write dL/dbeta to ``work`` at d for the predictor at 0; of samples leave outputs and their derivatives."""
    d, n, factor = dims[1], dims[2], data[0]
    if dims[0] == MOMENTS:
        times(data, _HEADER, work, 0, work, d, d, d)
        cross = _HEADER + d * d
        for i in range(d):
            work[d + i] = 2.0 * factor * (work[d + i] - data[cross + i])
        return
    code, labels = dims[0] - SAMPLES, _HEADER + n * d
    block = n  # the logarithm of a sum couples its samples
    if code < losses.LOG_LOGISTIC and n * d > _CACHED:
        block = max(_ROWS, _CACHED // d // _ROWS * _ROWS)
    for first in range(0, n, block):
        rows = min(block, n - first)
        place = _HEADER + first * d
        times(data, place, work, 0, work, outputs + first, rows, d)
        if code == losses.SQUARE:
            for i in range(first, first + rows):
                work[slopes + i] = 2.0 * factor * (work[outputs + i] - data[labels + i])
        else:
            losses.derivative(
                code, factor, 1, rows, data, labels + first, work, outputs + first, slopes + first
            )
        if first == 0:
            times_transposed(data, place, work, slopes, work, d, rows, d)
        else:
            add_transposed(data, place, work, slopes + first, work, d, rows, d)


@kernel
def _tangent(data, dims, work, outputs, slopes, change, along):
    """Write the derivative of dL/dbeta along the direction at ``change`` to ``along``."""
    d, n, factor = dims[1], dims[2], data[0]
    if dims[0] == MOMENTS:
        times(data, _HEADER, work, change, work, along, d, d)
        for i in range(d):
            work[along + i] *= 2.0 * factor
        return
    code, labels = dims[0] - SAMPLES, _HEADER + n * d
    moved, bent = slopes + n, slopes + 2 * n
    times(data, _HEADER, work, change, work, moved, n, d)
    losses.tangent(code, factor, 1, n, data, labels, work, outputs, slopes, moved, bent)
    times_transposed(data, _HEADER, work, bent, work, along, n, d)


@kernel
def loss(t, theta, data, dims, work):
    """Loss of a diagonal network."""
    d, n = dims[1], dims[2]
    _predictor(theta, dims, work)
    if dims[0] == MOMENTS:
        root, total = _HEADER + d * (d + 1), 0.0
        times(data, root, work, 0, work, d, d, d)
        for i in range(d):
            total += (work[d + i] - data[root + d * d + i]) ** 2
        total = data[0] * total + data[2]
    else:
        times(data, _HEADER, work, 0, work, 5 * d, n, d)
        total = losses.value(dims[0] - SAMPLES, data[0], 1, n, data, _HEADER + n * d, work, 5 * d)
    if data[1] != 0.0:
        square = 0.0
        for i in range(theta.size):
            square += theta[i] * theta[i]
        total += 0.5 * data[1] * square
    return total


@kernel
def gradient(t, theta, data, dims, work, out):
    """Gradient of a diagonal network: one pass over the samples."""
    d, n, form, depth = dims[1], dims[2], dims[3], dims[4]
    _predictor(theta, dims, work)
    _derivative(data, dims, work, 5 * d, 5 * d + n)
    if form == PRODUCT:
        for i in range(d):
            out[i], out[d + i] = theta[d + i] * work[d + i], theta[i] * work[d + i]
    elif depth == 2:
        for i in range(d):
            out[i] = 2.0 * theta[i] * work[d + i]
        if form == DIFFERENCE:
            for i in range(d):
                out[d + i] = -2.0 * theta[d + i] * work[d + i]
    else:
        for i in range(d):
            out[i] = depth * work[3 * d + i] * work[d + i]
        if form == DIFFERENCE:
            for i in range(d):
                out[d + i] = -depth * work[4 * d + i] * work[d + i]
    if data[1] != 0.0:
        for i in range(theta.size):
            out[i] += data[1] * theta[i]


@kernel
def hvp(t, theta, v, data, dims, work, out):
    """Hessian of a diagonal network times v."""
    d, n, form, depth = dims[1], dims[2], dims[3], dims[4]
    outputs, slopes = 5 * d, 5 * d + n
    change, along, bend = slopes + 3 * n, 2 * d, slopes + 3 * n + d
    _predictor(theta, dims, work)
    _derivative(data, dims, work, outputs, slopes)
    if form == PRODUCT:
        for i in range(d):
            work[change + i] = v[i] * theta[d + i] + theta[i] * v[d + i]
        _tangent(data, dims, work, outputs, slopes, change, along)
        for i in range(d):
            out[i] = theta[d + i] * work[along + i] + v[d + i] * work[d + i]
            out[d + i] = theta[i] * work[along + i] + v[i] * work[d + i]
    else:
        signs = 2 if form == DIFFERENCE else 1
        for i in range(d):
            work[change + i] = 0.0
        for b in range(signs):
            sign = 1.0 - 2.0 * b
            _raise_to(theta, b * d, d, depth - 1, work, (3 + b) * d)
            for i in range(d):
                work[change + i] += sign * depth * work[(3 + b) * d + i] * v[b * d + i]
        _tangent(data, dims, work, outputs, slopes, change, along)
        for b in range(signs):
            sign = 1.0 - 2.0 * b
            _raise_to(theta, b * d, d, depth - 2, work, bend)
            for i in range(d):
                second = (depth - 1) * work[bend + i] * work[d + i] * v[b * d + i]
                out[b * d + i] = sign * depth * (work[(3 + b) * d + i] * work[along + i] + second)
    if data[1] != 0.0:
        for i in range(theta.size):
            out[i] += data[1] * v[i]


def work_size(dims: np.ndarray) -> int:
    """Length of the scratch array that the three kernels need."""
    return int(7 * dims[1] + 4 * dims[2])


def batch_layout(data: np.ndarray, dims: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a batch of samples: where they go (see descent.py), its data to be filled, and its dims."""
    d, n = int(dims[1]), int(dims[2])
    table = [[_HEADER, _HEADER, d, 0], [_HEADER + n * d, _HEADER + size * d, 1, 0]]
    batch = np.concatenate([data[:_HEADER], np.zeros(size * (d + 1))])
    batch[0] *= n / size
    dims = dims.copy()
    dims[2] = size
    return np.array(table), batch, dims
