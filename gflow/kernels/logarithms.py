"""The flow of a diagonal network in coordinates in which no start is too small.

Depth 2.  All parameters follow from G, the integral of dL/dbeta over time: log w_+ = log w_+(0) - 2 G and
log w_- = log w_-(0) + 2 G, and the same of u + v and u - v with 1 in the place of 2.  G = X^T nu with one number a
sample, and dnu/dt is the loss's derivative by the outputs.  For the square loss this is the gradient flow of a
*convex* function of nu, whose Hessian is X diag(-dbeta/dG) X^T: the methods for symmetric Jacobians apply, and
errors never grow.

Layout: ``dims`` holds ``[loss, d, m]`` and ``data`` ``[factor, unit, rate, scale]``, X (m, d), y (m,), and the
logarithms a, b (d,) of the pair at the start: beta = scale (e^(2 a - 2 rate G) - e^(2 b + 2 rate G)).  The state is
unit * nu, a unit of whose length moves no logarithm by more than one.

Depth D > 2.  The state holds the logarithms of |w_+| and |w_-|, or of |w|; layout of ``diagonal``, and at the end of
``data`` the sign with which each |w|^D goes into beta, 0 for a parameter that is 0 and stays so.
"""

from __future__ import annotations

import numpy as np

from gflow.kernels import diagonal, losses
from gflow.kernels.abi import kernel
from gflow.kernels.products import add_transposed, times

_HEADER = 4


@kernel
def _pairs(state, data, dims, work):
    """Write e^(2 a - 2 rate G) and e^(2 b + 2 rate G) to ``work`` at d and 2 d."""
    d, m = dims[1], dims[2]
    starts = _HEADER + m * (d + 1)
    for i in range(d):
        work[i] = 0.0
    add_transposed(data, _HEADER, state, 0, work, 0, m, d)
    shift = 2.0 * data[2] / data[1]
    for i in range(d):
        moved = shift * work[i]
        work[d + i] = np.exp(2.0 * data[starts + i] - moved)
        work[2 * d + i] = np.exp(2.0 * data[starts + d + i] + moved)


@kernel
def outputs(state, data, dims, work):
    """Write X beta to ``work`` at 3 d."""
    d, m = dims[1], dims[2]
    _pairs(state, data, dims, work)
    for i in range(d):
        work[i] = data[3] * (work[d + i] - work[2 * d + i])
    times(data, _HEADER, work, 0, work, 3 * d, m, d)


@kernel
def gradient(t, theta, data, dims, work, out):
    """Minus the rate of unit * nu."""
    d, m = dims[1], dims[2]
    outputs(theta, data, dims, work)
    losses.derivative(dims[0], data[0], 1, m, data, _HEADER + m * d, work, 3 * d, 3 * d + m)
    for i in range(m):
        out[i] = -data[1] * work[3 * d + m + i]


@kernel
def potential(t, theta, data, dims, work):
    """The function of unit * nu that the square loss descends."""
    d, m, unit = dims[1], dims[2], data[1]
    labels, total = _HEADER + m * d, 0.0
    _pairs(theta, data, dims, work)
    for i in range(d):
        total += work[d + i] + work[2 * d + i]
    total *= data[3] / (2.0 * data[2])
    for i in range(m):
        total += data[labels + i] * theta[i] / unit
    return 2.0 * data[0] * unit * unit * total


@kernel
def hvp(t, theta, v, data, dims, work, out):
    """Hessian of the potential times v."""
    d, m = dims[1], dims[2]
    _pairs(theta, data, dims, work)
    for i in range(d):
        work[i] = 0.0
    add_transposed(data, _HEADER, v, 0, work, 0, m, d)
    for i in range(d):
        work[i] *= 4.0 * data[0] * data[2] * data[3] * (work[d + i] + work[2 * d + i])
    times(data, _HEADER, work, 0, out, 0, m, d)


def work_size(dims: np.ndarray) -> int:
    """Length of the scratch array that the three kernels need."""
    return int(3 * dims[1] + 2 * dims[2])


@kernel
def deep_gradient(t, theta, data, dims, work, out):
    """Minus the rates of the logarithms of the parameters' sizes."""
    d, n, depth = dims[1], dims[2], dims[4]
    signs = data.size - theta.size
    for i in range(d):
        work[i] = 0.0
    for b in range(theta.size // d):
        for i in range(b * d, (b + 1) * d):
            work[i - b * d] += data[signs + i] * np.exp(depth * theta[i])
    diagonal._derivative(data, dims, work, 5 * d, 5 * d + n)
    for b in range(theta.size // d):
        for i in range(b * d, (b + 1) * d):
            out[i] = depth * data[signs + i] * np.exp((depth - 2) * theta[i]) * work[d + i - b * d]
