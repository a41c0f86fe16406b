"""Two-layer (leaky) ReLU networks f(x) = A sigma(W x), sigma(z) = z for z > 0 and slope * z below.

Layout
------
``theta`` holds W (m, d), or a chain W_1 (m, d), W_2 (m, m), ... whose product is W, then A (k, m).
``dims`` holds ``[loss, d, k, n, m, train_outer, chain, planes]``, the plane of each sample (n,), the
samples plane by plane (n,) and where each plane's begin among these (planes + 1,): samples whose inputs are
parallel share the hyperplane w.u = 0 on which they have their kink; zero inputs are on none.
``data`` holds ``[factor, weight_decay, slope, kink]``, X^T (d, n), Y^T (k, n), the coefficients c (n,) with
x_i = c_i u_plane(i), and the unit normals u (planes, d).  What stands after Y^T, and after ``planes`` in
``dims``, is for the flow's events only: the data of a batch end there.
``work`` begins with ``[in a pattern or not]``, the slopes (m, n), the number of planes along which each
neuron slides (m,), an orthonormal basis of their normals (m, d, d), and the components of the gradient along
it (m, d).  Outside of a pattern the slopes are those of the signs, and ``kink`` at zero: the slope of the
inactive side, but for a descent that asks for another.  Within one they stay as they are, so that loss and
gradient are smooth; along sliding planes the velocity of a neuron is projected to zero, and what the projection
took off is kept.
"""

from __future__ import annotations

import numpy as np

from gflow.kernels import losses
from gflow.kernels.abi import kernel
from gflow.kernels.products import mul, mul_nt, mul_tn

_HEADER = 4
KINK = 3  # where the slope at zero stands in data
PLANES = 8  # where the planes of the samples begin in dims


@kernel
def slopes_at(dims):
    """Where the slopes begin in ``work``."""
    return 1


@kernel
def sliding_at(dims):
    """Where the numbers of sliding planes begin in ``work``."""
    return 1 + dims[4] * dims[3]


@kernel
def basis_at(dims):
    """Where the bases of the sliding normals begin in ``work``."""
    return sliding_at(dims) + dims[4]


@kernel
def along_at(dims):
    """Where the components of the last gradient along the sliding normals begin in ``work``."""
    return basis_at(dims) + dims[4] * dims[1] * dims[1]


@kernel
def scratch_at(dims):
    """Where free scratch begins in ``work``."""
    return along_at(dims) + dims[4] * dims[1]


@kernel
def derivative_at(dims):
    """Where the last gradient left the derivative of the loss by the outputs (k, n) in ``work``."""
    d, k, n, m, chain = dims[1], dims[2], dims[3], dims[4], dims[6]
    return scratch_at(dims) + chain * m * d + m * n + k * n


@kernel
def coefficients_at(dims):
    """Where the coefficients of the samples begin in ``data``."""
    return _HEADER + dims[3] * (dims[1] + dims[2])


@kernel
def normals_at(dims):
    """Where the unit normals of the planes begin in ``data``."""
    return coefficients_at(dims) + dims[3]


@kernel
def outer_at(dims):
    """Where the outer layer begins in ``theta``."""
    return dims[4] * dims[1] + (dims[6] - 1) * dims[4] * dims[4]


@kernel
def _first_layer(theta, dims, work, place):
    """Write the products of the chain to ``work`` from ``place``; return where W stands there."""
    d, m, chain = dims[1], dims[4], dims[6]
    for i in range(m * d):
        work[place + i] = theta[i]
    for layer in range(1, chain):
        mul(theta, m * d + (layer - 1) * m * m, work, place, work, place + m * d, m, m, d)
        place += m * d
    return place


@kernel
def _forward(theta, data, dims, work, w, z, f):
    """Pre-activations times slopes to ``work`` at z (m, n), outputs at f (k, n); slopes by sign if in none."""
    d, k, n, m = dims[1], dims[2], dims[3], dims[4]
    slopes = slopes_at(dims)
    mul(work, w, data, _HEADER, work, z, m, d, n)
    if work[0] == 0.0:
        for i in range(m * n):
            height = work[z + i]
            work[slopes + i] = 1.0 if height > 0.0 else data[KINK] if height == 0.0 else data[2]
    for i in range(m * n):
        work[z + i] *= work[slopes + i]
    mul(theta, outer_at(dims), work, z, work, f, k, m, n)


@kernel
def _loss_derivative(data, dims, work, f, out):
    """Derivative of the loss by the outputs, from ``work`` at f to ``work`` at out, both (k, n)."""
    losses.derivative(dims[0], data[0], dims[2], dims[3], data, _HEADER + dims[1] * dims[3], work, f, out)


@kernel
def loss(t, theta, data, dims, work):
    """Loss of a two-layer ReLU network."""
    d, k, n, m, chain = dims[1], dims[2], dims[3], dims[4], dims[6]
    place = scratch_at(dims)
    w = _first_layer(theta, dims, work, place)
    z = place + chain * m * d
    f = z + m * n
    _forward(theta, data, dims, work, w, z, f)
    total = losses.value(dims[0], data[0], k, n, data, _HEADER + d * n, work, f)
    if data[1] != 0.0:
        square = 0.0
        for i in range(theta.size if dims[5] else outer_at(dims)):
            square += theta[i] * theta[i]
        total += 0.5 * data[1] * square
    return total


@kernel
def _project(a, start, dims, work):
    """Take off the rows of a matrix (m, d) that begins in ``a`` what points off the planes; keep how much it was."""
    d, m = dims[1], dims[4]
    count, basis, kept = sliding_at(dims), basis_at(dims), along_at(dims)
    for j in range(m):
        for q in range(int(work[count + j])):
            b = basis + (j * d + q) * d
            along = 0.0
            for l in range(d):
                along += work[b + l] * a[start + j * d + l]
            for l in range(d):
                a[start + j * d + l] -= along * work[b + l]
            work[kept + j * d + q] = along


@kernel
def _finish(theta, data, dims, work, out):
    """Weight decay, a fixed outer layer, and no motion off the sliding planes."""
    outer = outer_at(dims)
    if data[1] != 0.0:
        for i in range(theta.size):
            out[i] += data[1] * theta[i]
    if not dims[5]:
        for i in range(outer, theta.size):
            out[i] = 0.0
    if work[0] == 0.0:
        return
    _project(out, 0, dims, work)


@kernel
def gradient(t, theta, data, dims, work, out):
    """Gradient of a two-layer ReLU network; within a pattern, of its smooth continuation."""
    d, k, n, m, chain = dims[1], dims[2], dims[3], dims[4], dims[6]
    place, derivative = scratch_at(dims), derivative_at(dims)
    w = _first_layer(theta, dims, work, place)
    z = place + chain * m * d
    f = z + m * n
    back = derivative + k * n
    outer, slopes = outer_at(dims), slopes_at(dims)
    _forward(theta, data, dims, work, w, z, f)
    _loss_derivative(data, dims, work, f, derivative)
    mul_tn(theta, outer, work, derivative, work, back, m, k, n)
    for i in range(m * n):
        work[back + i] *= work[slopes + i]
    mul_nt(work, derivative, work, z, out, outer, k, n, m)
    if chain == 1:
        mul_nt(work, back, data, _HEADER, out, 0, m, n, d)
    else:
        here, there = back + m * n, back + m * n + m * d
        mul_nt(work, back, data, _HEADER, work, here, m, n, d)
        for layer in range(chain - 1, 0, -1):
            weight = m * d + (layer - 1) * m * m
            below = place + (layer - 1) * m * d
            mul_nt(work, here, work, below, out, weight, m, d, m)
            mul_tn(theta, weight, work, here, work, there, m, m, d)
            here, there = there, here
        for i in range(m * d):
            out[i] = work[here + i]
    _finish(theta, data, dims, work, out)


@kernel
def hvp(t, theta, v, data, dims, work, out):
    """Hessian times v inside the pattern of theta, for a first layer of one matrix; along sliding planes only."""
    d, k, n, m = dims[1], dims[2], dims[3], dims[4]
    w = scratch_at(dims)
    z = w + m * d
    f = z + m * n
    derivative = f + k * n
    dz = derivative + k * n
    df = dz + m * n
    change = df + k * n
    back = change + k * n
    rest = back + m * n
    tangent = rest + max(m * n, k * n, k * m)
    outer, slopes = outer_at(dims), slopes_at(dims)
    for i in range(m * d):
        work[tangent + i] = v[i]
    if work[0] != 0.0:
        _project(work, tangent, dims, work)
    _first_layer(theta, dims, work, w)
    _forward(theta, data, dims, work, w, z, f)
    _loss_derivative(data, dims, work, f, derivative)
    trained = 1.0 if dims[5] else 0.0
    mul(work, tangent, data, _HEADER, work, dz, m, d, n)
    for i in range(m * n):
        work[dz + i] *= work[slopes + i]
    mul(theta, outer, work, dz, work, df, k, m, n)
    mul(v, outer, work, z, work, rest, k, m, n)
    for i in range(k * n):
        work[df + i] += trained * work[rest + i]
    labels = _HEADER + d * n
    losses.tangent(dims[0], data[0], k, n, data, labels, work, f, derivative, df, change)
    mul_tn(theta, outer, work, change, work, back, m, k, n)
    mul_tn(v, outer, work, derivative, work, rest, m, k, n)
    for i in range(m * n):
        work[back + i] = (work[back + i] + trained * work[rest + i]) * work[slopes + i]
    mul_nt(work, back, data, _HEADER, out, 0, m, n, d)
    mul_nt(work, change, work, z, out, outer, k, n, m)
    mul_nt(work, derivative, work, dz, work, rest, k, n, m)
    for i in range(k * m):
        out[outer + i] += work[rest + i]
    _finish(v, data, dims, work, out)


@kernel
def forces(j, theta, dims, work, out):
    """Write beta (n,), the pulls of active samples on neuron j at the state of the last gradient.

    dw_j/dt = sum_i slope_ji beta_i x_i, but for the weight decay.
    """
    k, n, m, outer, derivative = dims[2], dims[3], dims[4], outer_at(dims), derivative_at(dims)
    for i in range(n):
        pull = 0.0
        for a in range(k):
            pull -= theta[outer + a * m + j] * work[derivative + a * n + i]
        out[i] = pull


@kernel
def heights(theta, data, dims, out):
    """Write w_j . u_p (m, planes), the switching functions."""
    mul_nt(theta, 0, data, normals_at(dims), out, 0, dims[4], dims[1], dims[7])


def work_size(dims: np.ndarray) -> int:
    """Length of the scratch array that the kernels need."""
    _, d, k, n, m, _, chain = (int(x) for x in dims[:7])
    pattern = 1 + m * n + m + m * d * d + m * d
    return pattern + chain * m * d + 3 * m * n + 5 * k * n + m * d + max(m * d, m * n, k * n, k * m)


def batch_layout(data: np.ndarray, dims: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a batch of samples: where they go (see descent.py), its data to be filled, and its dims."""
    rows = int(dims[1] + dims[2])
    batch = np.concatenate([data[:_HEADER], np.zeros(rows * size)])
    batch[0] *= dims[3] / size
    dims = dims[:PLANES].copy()
    dims[3] = size
    return np.array([[_HEADER, _HEADER, rows, 1]]), batch, dims
