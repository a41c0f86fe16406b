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
inactive side, but for a descent that asks for another; only those of the tile at hand are kept.  Within one they
stay as they are, so that loss and gradient are smooth; along sliding planes the velocity of a neuron is projected to
zero, and what the projection took off is kept.

Many samples go through the network in tiles, whose pre-activations and slopes stay in the cache from the forward to
the backward pass.
"""

from __future__ import annotations

import numpy as np

from gflow.kernels import losses
from gflow.kernels.abi import kernel
from gflow.kernels.products import mul, mul_nt, mul_tn

_HEADER = 4
KINK = 3  # where the slope at zero stands in data
PLANES = 8  # where the planes of the samples begin in dims

# Pre-activations of a tile: with as many slopes they take 400 kB of the second-level cache (measured).
_TILE = 3 * 2**13
# Samples of a tile at least, for products that are worth a call of a BLAS routine.
_LEAST = 64


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
def _tile_at(dims):
    """Where the samples of a tile begin in ``work``: behind two matrices as large as the layers."""
    d, k, n, m = dims[1], dims[2], dims[3], dims[4]
    return derivative_at(dims) + k * n + m * d + m * max(d, k)


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
def _tile(dims):
    """Samples that go through the network together: all of them where a tile does not pay.

    That is where they are few, where the inputs to be copied outnumber the neurons, and where the loss is the logarithm
    of a sum over all samples.
    """
    d, n, m = dims[1], dims[3], dims[4]
    if m * n <= _TILE or d > m or dims[0] >= losses.LOG_LOGISTIC:
        return n
    most = max(_TILE // m, d, _LEAST)  # with d or more the sums over the tiles are no larger than the tiles
    tiles = (n + most - 1) // most
    return (n + tiles - 1) // tiles


@kernel
def _copy(a, i0, gap, out, k0, space, rows, cols):
    """Copy a matrix (rows, cols) whose rows begin every ``gap`` numbers to where they begin every ``space``."""
    for row in range(rows):
        i, j = i0 + row * gap, k0 + row * space
        source, target = a[i : i + cols], out[j : j + cols]
        for l in range(cols):
            target[l] = source[l]


@kernel
def _take(data, dims, work, first, count):
    """Copy X^T and Y^T of ``count`` samples to ``work``, (d + k, count); return where they begin."""
    place = _tile_at(dims)
    _copy(data, _HEADER + first, dims[3], work, place, count, dims[1] + dims[2], count)
    return place


@kernel
def _slopes(dims, work, first, count):
    """Where the slopes of ``count`` samples begin in ``work``, and how far apart the neurons' are."""
    if work[0] == 0.0:
        return slopes_at(dims), count
    return slopes_at(dims) + first, dims[3]


@kernel
def _times_slopes(dims, work, z, first, count):
    """Multiply numbers (m, count) at z by the slopes."""
    slopes, gap = _slopes(dims, work, first, count)
    rows, cols = (1, dims[4] * count) if gap == count else (dims[4], count)
    for j in range(rows):
        row = work[z + j * cols : z + (j + 1) * cols]
        slope = work[slopes + j * gap : slopes + j * gap + cols]
        for i in range(cols):
            row[i] *= slope[i]


@kernel
def _forward(theta, data, dims, work, w, samples, x, first, count, z, f):
    """Pre-activations times slopes to ``work`` at z (m, count), outputs at f (k, count); slopes by sign if in none.

    Of the ``count`` samples from ``first`` on, whose inputs (d, count) begin at x of ``samples``.  The views tell the
    compiler that no index is negative, without which it makes no vectors.
    """
    d, k, m = dims[1], dims[2], dims[4]
    mul(work, w, samples, x, work, z, m, d, count)
    if work[0] == 0.0:
        leak, kink, size, place = data[2], data[KINK], m * count, slopes_at(dims)
        heights, slopes = work[z : z + size], work[place : place + size]
        for i in range(size):
            slopes[i] = 1.0 if heights[i] > 0.0 else kink if heights[i] == 0.0 else leak
            heights[i] *= slopes[i]
    else:
        _times_slopes(dims, work, z, first, count)
    mul(theta, outer_at(dims), work, z, work, f, k, m, count)


@kernel
def _backward(theta, dims, work, derivative, first, count, z):
    """Derivative of the loss by the pre-activations, to ``work`` at z (m, count)."""
    k, m, outer = dims[2], dims[4], outer_at(dims)
    if k > 1:
        mul_tn(theta, outer, work, derivative, work, z, m, k, count)
        _times_slopes(dims, work, z, first, count)
        return
    slopes, gap = _slopes(dims, work, first, count)
    pulls = work[derivative : derivative + count]
    for j in range(m):
        row = work[z + j * count : z + (j + 1) * count]
        slope = work[slopes + j * gap : slopes + j * gap + count]
        a = theta[outer + j]
        for i in range(count):
            row[i] = a * pulls[i] * slope[i]


@kernel
def _sum_nt(more, a, i0, b, j0, out, k0, rows, inner, cols, work, room):
    """out = a b^T, or where there is ``more`` than this in the sum out += a b^T, by way of ``work`` at ``room``."""
    if not more:
        mul_nt(a, i0, b, j0, out, k0, rows, inner, cols)
        return
    mul_nt(a, i0, b, j0, work, room, rows, inner, cols)
    size = rows * cols
    total, share = out[k0 : k0 + size], work[room : room + size]
    for i in range(size):
        total[i] += share[i]


@kernel
def loss(t, theta, data, dims, work):
    """Loss of a two-layer ReLU network."""
    d, k, n, m, chain = dims[1], dims[2], dims[3], dims[4], dims[6]
    place, size = scratch_at(dims), _tile(dims)
    w = _first_layer(theta, dims, work, place)
    z = place + chain * m * d
    f = z + m * n
    total = 0.0
    for first in range(0, n, size):
        count, samples, x = min(size, n - first), data, _HEADER
        if size < n:
            samples, x = work, _take(data, dims, work, first, count)
        _forward(theta, data, dims, work, w, samples, x, first, count, z, f)
        total += losses.value(dims[0], data[0], k, count, samples, x + d * count, work, f)
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
    place, size, all_derivatives = scratch_at(dims), _tile(dims), derivative_at(dims)
    w = _first_layer(theta, dims, work, place)
    z = place + chain * m * d
    f = z + m * n
    here = all_derivatives + k * n
    there = here + m * d
    outer = outer_at(dims)
    by_w, dw = out, 0
    if chain > 1:
        by_w, dw = work, here
    for first in range(0, n, size):
        count, samples, x, derivative = min(size, n - first), data, _HEADER, all_derivatives
        if size < n:
            samples, x = work, _take(data, dims, work, first, count)
            derivative = x + (d + k) * count
        _forward(theta, data, dims, work, w, samples, x, first, count, z, f)
        losses.derivative(dims[0], data[0], k, count, samples, x + d * count, work, f, derivative)
        if size < n:
            _copy(work, derivative, count, work, all_derivatives + first, n, k, count)
        _sum_nt(first > 0, work, derivative, work, z, out, outer, k, count, m, work, there)
        _backward(theta, dims, work, derivative, first, count, z)
        _sum_nt(first > 0, work, z, samples, x, by_w, dw, m, count, d, work, there)
    if chain > 1:
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
    _forward(theta, data, dims, work, w, data, _HEADER, 0, n, z, f)
    labels = _HEADER + d * n
    losses.derivative(dims[0], data[0], k, n, data, labels, work, f, derivative)
    trained = 1.0 if dims[5] else 0.0
    mul(work, tangent, data, _HEADER, work, dz, m, d, n)
    _times_slopes(dims, work, dz, 0, n)
    mul(theta, outer, work, dz, work, df, k, m, n)
    mul(v, outer, work, z, work, rest, k, m, n)
    for i in range(k * n):
        work[df + i] += trained * work[rest + i]
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
    """Length of the scratch array that the kernels need; what hvp needs has room for a tile, too, where d <= m."""
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
