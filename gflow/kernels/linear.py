"""Deep linear networks W = W_N ... W_1 and symmetric factorisations W = U U^T.

Loss, gradient and Hessian-vector product for every objective that depends on the parameters
through the end-to-end matrix.

Layout
------
``dims`` holds ``[objective, d, k, m, N, w_0, ..., w_N]``: inputs d = w_0, outputs k = w_N, and m
samples or measurements.  For the symmetric model N = 1 and the widths are ``[d, rank]``.  The objective
``SAMPLES`` plus a code of ``losses`` is that loss of the outputs on the samples.
``data`` holds ``[factor, weight_decay, floor, ...]`` followed by the arrays of the objective:

==============  ==========================================================================
COVARIANCE      X^T X (d, d), Y^T X (k, d), R (d, d), C (k, d) with ||W X^T - Y^T||_F^2 =
                ||W R^T - C||_F^2 + floor / factor: the gradient needs one product, and the
                loss is a sum of squares that does not cancel
FACTORIZATION   M (k, d)
SENSING         A (m, k d), y (m)
COMPLETION      M (k, d), observed entries as 0.0 or 1.0 (k, d)
SAMPLES + loss  X^T (d, n), Y^T (k, n)
==============  ==========================================================================
"""

from __future__ import annotations

import numpy as np

from gflow.kernels import losses
from gflow.kernels.abi import kernel
from gflow.kernels.products import (
    SMALL,
    loop_mul,
    loop_mul_nt,
    loop_mul_tn,
    mul,
    mul_nt,
    mul_tn,
    times,
    times_transposed,
)

COVARIANCE, FACTORIZATION, SENSING, COMPLETION, SAMPLES = range(5)

_HEADER = 3
_WIDTHS = 5
# Up to this many multiplications in one layer the calls of a gradient cost more than its products (measured).
_FEW = 256
# Up to this many numbers a matrix is multiplied by a vector in loops in place; beyond, BLAS may have more threads.
_LONG = 8192


@kernel
def _copy(source, i0, out, k0, n):
    for i in range(n):
        out[k0 + i] = source[i0 + i]


@kernel
def _add(source, i0, out, k0, n):
    for i in range(n):
        out[k0 + i] += source[i0 + i]


@kernel(forceinline=True)
def _columns(dims):
    """Columns of the matrices that run through the network: samples, or the identity's."""
    return dims[3] if dims[0] >= SAMPLES else dims[1]


@kernel
def _residual_derivative(work, p, d, data, dims, rest):
    """Write dL/dp to ``work`` at d, for the output p (k, columns) that stands there at p; no weight decay.

    ``rest`` is where free scratch begins, here and below.
    """
    objective, inputs, outputs, m = dims[0], dims[1], dims[2], dims[3]
    scale, size = 2.0 * data[0], outputs * _columns(dims)
    if objective == COVARIANCE:
        cross = _HEADER + inputs * inputs
        mul(work, p, data, _HEADER, work, d, outputs, inputs, inputs)
        for i in range(size):
            work[d + i] = scale * (work[d + i] - data[cross + i])
    elif objective == SENSING:
        mul(data, _HEADER, work, p, work, rest, m, size, 1)
        for i in range(m):
            work[rest + i] = scale * (work[rest + i] - data[_HEADER + m * size + i])
        mul_tn(data, _HEADER, work, rest, work, d, size, m, 1)
    elif objective == COMPLETION:
        for i in range(size):
            observed = data[_HEADER + size + i]
            work[d + i] = scale * observed * (work[p + i] - data[_HEADER + i])
    elif objective > SAMPLES:
        labels = _HEADER + inputs * m
        losses.derivative(objective - SAMPLES, data[0], outputs, m, data, labels, work, p, d)
    else:
        target = _HEADER + (inputs * m if objective == SAMPLES else 0)
        for i in range(size):
            work[d + i] = scale * (work[p + i] - data[target + i])


@kernel
def _residual_tangent(work, p, d, q, e, data, dims, rest):
    """Write the derivative of dL/dp along q to e, given p and d = dL/dp."""
    objective, inputs, outputs, m = dims[0], dims[1], dims[2], dims[3]
    scale, size = 2.0 * data[0], outputs * _columns(dims)
    if objective == COVARIANCE:
        mul(work, q, data, _HEADER, work, e, outputs, inputs, inputs)
        for i in range(size):
            work[e + i] *= scale
    elif objective == SENSING:
        mul(data, _HEADER, work, q, work, rest, m, size, 1)
        for i in range(m):
            work[rest + i] *= scale
        mul_tn(data, _HEADER, work, rest, work, e, size, m, 1)
    elif objective == COMPLETION:
        for i in range(size):
            work[e + i] = scale * data[_HEADER + size + i] * work[q + i]
    elif objective > SAMPLES:
        labels = _HEADER + inputs * m
        losses.tangent(objective - SAMPLES, data[0], outputs, m, data, labels, work, p, d, q, e)
    else:
        for i in range(size):
            work[e + i] = scale * work[q + i]


@kernel(forceinline=True)
def _decay(theta, data):
    """Loss of the weight decay."""
    square = 0.0
    if data[1] != 0.0:
        for i in range(theta.size):
            square += theta[i] * theta[i]
    return 0.5 * data[1] * square


@kernel
def _output_loss(theta, work, p, data, dims, rest):
    """Loss of the output that stands in ``work`` at p, with the weight decay."""
    objective, inputs, outputs, m = dims[0], dims[1], dims[2], dims[3]
    size = outputs * _columns(dims)
    total, factor = 0.0, data[0]
    if objective == COVARIANCE:
        root = _HEADER + inputs * (inputs + outputs)
        mul_nt(work, p, data, root, work, rest, outputs, inputs, inputs)
        for i in range(size):
            total += (work[rest + i] - data[root + inputs * inputs + i]) ** 2
    elif objective == SENSING:
        mul(data, _HEADER, work, p, work, rest, m, size, 1)
        for i in range(m):
            total += (work[rest + i] - data[_HEADER + m * size + i]) ** 2
    elif objective == COMPLETION:
        for i in range(size):
            total += data[_HEADER + size + i] * (work[p + i] - data[_HEADER + i]) ** 2
    elif objective > SAMPLES:
        total = losses.value(objective - SAMPLES, factor, outputs, m, data, _HEADER + inputs * m, work, p)
        factor = 1.0
    else:
        target = _HEADER + (inputs * m if objective == SAMPLES else 0)
        for i in range(size):
            total += (work[p + i] - data[target + i]) ** 2
    return factor * total + data[2] + _decay(theta, data)


@kernel(forceinline=True)
def _add_decay(theta, data, out):
    if data[1] != 0.0:
        for i in range(theta.size):
            out[i] += data[1] * theta[i]


@kernel
def _forward(theta, data, dims, work):
    """Write P_j = W_j ... W_1 P_0 to ``work`` for j = 1 ... N; return the end of what is used."""
    columns = _columns(dims)
    weight, store, previous = 0, 0, 0
    for layer in range(dims[4]):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        if layer > 0:
            mul(theta, weight, work, previous, work, store, rows, cols, columns)
        elif dims[0] >= SAMPLES:
            mul(theta, weight, data, _HEADER, work, store, rows, cols, columns)
        else:
            _copy(theta, weight, work, store, rows * cols)
        previous = store
        weight += rows * cols
        store += rows * columns
    return store


@kernel
def _widest(dims):
    widest = 0
    for layer in range(dims[4] + 1):
        widest = max(widest, dims[_WIDTHS + layer])
    return widest


@kernel(forceinline=True)
def _one_output(theta, dims):
    """Whether all products are small ones of a vector, if the layers are multiplied before the samples.

    Not for what ``serves_lanes``, whose sums are taken in another order.
    """
    return (
        (dims[0] > SAMPLES or (dims[0] == SAMPLES and theta.size * dims[3] > _FEW))
        and dims[2] == 1
        and dims[3] > 1
        and theta.size <= _LONG
        and dims[1] * dims[3] <= _LONG
    )


@kernel(forceinline=True)
def _rows_from_top(theta, dims, work):
    """Of one output, write A_j = W_N ... W_{j+1} to ``work`` for j = N - 1 ... 0; return where A_0 stands."""
    depth = dims[4]
    top = dims[_WIDTHS + depth - 1]
    weight, store = theta.size - top, 0
    _copy(theta, weight, work, 0, top)
    for layer in range(depth - 2, -1, -1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        weight -= rows * cols
        times_transposed(theta, weight, work, store, work, store + rows, rows, cols)
        store += rows
    return store


@kernel
def loss(t, theta, data, dims, work):
    """Loss of a deep linear network."""
    if _one_output(theta, dims):
        row, inputs, samples = _rows_from_top(theta, dims, work), dims[1], dims[3]
        labels, p = _HEADER + inputs * samples, row + inputs
        times_transposed(data, _HEADER, work, row, work, p, inputs, samples)
        total = losses.value(dims[0] - SAMPLES, data[0], 1, samples, data, labels, work, p)
        return total + data[2] + _decay(theta, data)
    end = _forward(theta, data, dims, work)
    return _output_loss(theta, work, end - dims[2] * _columns(dims), data, dims, end)


@kernel(forceinline=True)
def _gradient_of_numbers(theta, data, dims, work, out):
    """Gradient of a chain of numbers: all widths one."""
    p = 1.0
    for layer in range(theta.size):
        work[layer] = p
        p *= theta[layer]
    covariance = data[_HEADER] if dims[0] == COVARIANCE else 1.0
    cross = data[_HEADER + 1] if dims[0] == COVARIANCE else data[_HEADER]
    d = 2.0 * data[0] * (p * covariance - cross)
    for layer in range(theta.size - 1, -1, -1):
        out[layer] = d * work[layer]
        d *= theta[layer]
    _add_decay(theta, data, out)


@kernel
def _gradient_of_few(theta, data, dims, work, out):
    """The gradient of a small network: what ``gradient`` does, in loops in place."""
    depth, columns, samples = dims[4], _columns(dims), dims[0] >= SAMPLES
    weight, store, previous, widest = 0, 0, 0, dims[_WIDTHS]
    for layer in range(depth):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        widest = max(widest, rows)
        if layer > 0:
            loop_mul(theta, weight, work, previous, work, store, rows, cols, columns)
        elif samples:
            loop_mul(theta, weight, data, _HEADER, work, store, rows, cols, columns)
        else:
            for i in range(rows * cols):
                work[i] = theta[i]
        previous = store
        weight += rows * cols
        store += rows * columns
    d, d_below = store, store + widest * columns
    _residual_derivative(work, previous, d, data, dims, store + 2 * widest * columns)
    for layer in range(depth - 1, 0, -1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        weight -= rows * cols
        previous -= cols * columns
        loop_mul_nt(work, d, work, previous, out, weight, rows, columns, cols)
        loop_mul_tn(theta, weight, work, d, work, d_below, cols, rows, columns)
        d, d_below = d_below, d
    cols, rows = dims[_WIDTHS], dims[_WIDTHS + 1]
    if samples:
        loop_mul_nt(work, d, data, _HEADER, out, 0, rows, columns, cols)
    else:
        for i in range(rows * cols):
            out[i] = work[d + i]
    _add_decay(theta, data, out)


@kernel
def _gradient_of_many(theta, data, dims, work, out):
    """Gradient of any deep linear network."""
    columns = _columns(dims)
    buffer = _widest(dims) * columns
    end = _forward(theta, data, dims, work)
    d, d_below = end, end + buffer
    _residual_derivative(work, end - dims[2] * columns, d, data, dims, end + 2 * buffer)
    weight, store = theta.size, end
    for layer in range(dims[4] - 1, -1, -1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        weight -= rows * cols
        store -= rows * columns
        if layer > 0:
            mul_nt(work, d, work, store - cols * columns, out, weight, rows, columns, cols)
            mul_tn(theta, weight, work, d, work, d_below, cols, rows, columns)
            d, d_below = d_below, d
        elif dims[0] >= SAMPLES:
            mul_nt(work, d, data, _HEADER, out, weight, rows, columns, cols)
        else:
            _copy(work, d, out, weight, rows * cols)
    _add_decay(theta, data, out)


@kernel
def _gradient_by_outputs(theta, data, dims, work, out):
    """Gradient of a network of fewer outputs k than columns: all products are k rows high.

    A_j = W_N ... W_{j+1} from the top, then B_j = dL/dW (W_j ... W_1)^T from below; dL/dW_j = A_j^T B_{j-1}.
    """
    depth, inputs, k, columns = dims[4], dims[1], dims[2], _columns(dims)
    samples = dims[0] >= SAMPLES
    top = dims[_WIDTHS + depth - 1]
    weight, store = theta.size - k * top, 0
    _copy(theta, weight, work, 0, k * top)
    for layer in range(depth - 2, 0, -1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        weight -= rows * cols
        mul(work, store, theta, weight, work, store + k * rows, k, rows, cols)
        store += k * rows
    b = store + k * dims[_WIDTHS + 1]
    b_above = b + k * _widest(dims)
    mul(work, store, theta, 0, work, b, k, dims[_WIDTHS + 1], inputs)
    p = b_above + k * _widest(dims)
    d = p + k * columns
    if samples:
        mul(work, b, data, _HEADER, work, p, k, inputs, columns)
        _residual_derivative(work, p, d, data, dims, d + k * columns)
        mul_nt(work, d, data, _HEADER, work, b, k, columns, inputs)
    else:
        _residual_derivative(work, b, d, data, dims, d + k * columns)
        _copy(work, d, work, b, k * inputs)
    weight = 0
    for layer in range(depth - 1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        mul_tn(work, store, work, b, out, weight, rows, k, cols)
        mul_nt(work, b, theta, weight, work, b_above, k, cols, rows)
        b, b_above = b_above, b
        weight += rows * cols
        store -= k * dims[_WIDTHS + layer + 2]
    _copy(work, b, out, weight, k * top)
    _add_decay(theta, data, out)


@kernel(forceinline=True)
def _gradient_of_one_output(theta, data, dims, work, out):
    """The same of one output on samples: all products are those of a vector."""
    depth, inputs, samples, weight = dims[4], dims[1], dims[3], 0
    row = _rows_from_top(theta, dims, work)
    p = row + inputs
    d, below = p + samples, p + 2 * samples
    times_transposed(data, _HEADER, work, row, work, p, inputs, samples)
    labels = _HEADER + inputs * samples
    losses.derivative(dims[0] - SAMPLES, data[0], 1, samples, data, labels, work, p, d)
    if depth == 1:
        times(data, _HEADER, work, d, out, 0, inputs, samples)
    else:
        times(data, _HEADER, work, d, work, below, inputs, samples)
    for layer in range(depth - 1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        row -= rows
        for i in range(rows):
            for j in range(cols):
                out[weight + i * cols + j] = work[row + i] * work[below + j]
        if layer == depth - 2:
            times(theta, weight, work, below, out, weight + rows * cols, rows, cols)
        else:
            times(theta, weight, work, below, work, below + cols, rows, cols)
        below += cols
        weight += rows * cols
    _add_decay(theta, data, out)


@kernel
def gradient(t, theta, data, dims, work, out):
    """Gradient of a deep linear network: one sweep forward, one back."""
    if theta.size == dims[4] and (dims[0] == COVARIANCE or dims[0] == FACTORIZATION):
        _gradient_of_numbers(theta, data, dims, work, out)
    elif _one_output(theta, dims):
        _gradient_of_one_output(theta, data, dims, work, out)
    elif theta.size * _columns(dims) <= _FEW:
        _gradient_of_few(theta, data, dims, work, out)
    elif dims[4] > 1 and dims[2] < _columns(dims):
        _gradient_by_outputs(theta, data, dims, work, out)
    else:
        _gradient_of_many(theta, data, dims, work, out)


@kernel
def _mul_in_lanes(a, i0, ai, al, b, j0, bl, bj, out, k0, rows, inner, cols, lanes):
    """out = a b for each lane: a[i, l] stands at i0 + i ai + l al, b[l, j] at j0 + l bl + j bj, one number for each lane."""
    for i in range(rows):
        for j in range(cols):
            p, q = i0 + i * ai, j0 + j * bj
            x, y = a[p * lanes : (p + 1) * lanes], b[q * lanes : (q + 1) * lanes]
            o = out[(k0 + i * cols + j) * lanes : (k0 + i * cols + j + 1) * lanes]
            for n in range(lanes):
                o[n] = 0.0 + x[n] * y[n]
            for l in range(1, inner):
                p, q = i0 + i * ai + l * al, j0 + j * bj + l * bl
                x, y = a[p * lanes : (p + 1) * lanes], b[q * lanes : (q + 1) * lanes]
                for n in range(lanes):
                    o[n] += x[n] * y[n]


@kernel
def _mul_by_data_in_lanes(a, i0, ai, al, data, j0, bl, bj, out, k0, rows, inner, cols, lanes):
    """The same for a matrix b of data, one for all lanes."""
    for i in range(rows):
        for j in range(cols):
            p, y = i0 + i * ai, data[j0 + j * bj]
            x = a[p * lanes : (p + 1) * lanes]
            o = out[(k0 + i * cols + j) * lanes : (k0 + i * cols + j + 1) * lanes]
            for n in range(lanes):
                o[n] = 0.0 + x[n] * y
            for l in range(1, inner):
                p, y = i0 + i * ai + l * al, data[j0 + j * bj + l * bl]
                x = a[p * lanes : (p + 1) * lanes]
                for n in range(lanes):
                    o[n] += x[n] * y


@kernel
def _difference_in_lanes(work, p, data, target, out, k, count, scale, lanes):
    """out = scale (work - target) for ``count`` numbers of each lane."""
    for i in range(count):
        y = data[target + i]
        x, o = work[(p + i) * lanes : (p + i + 1) * lanes], out[(k + i) * lanes : (k + i + 1) * lanes]
        for n in range(lanes):
            o[n] = scale * (x[n] - y)


@kernel
def _residual_derivative_in_lanes(work, p, d, data, dims, rest, lanes):
    """``_residual_derivative`` of the objectives of ``lane_gradient``."""
    objective, inputs, outputs, m = dims[0], dims[1], dims[2], dims[3]
    scale, size = 2.0 * data[0], outputs * _columns(dims)
    if objective == COVARIANCE:
        cross = _HEADER + inputs * inputs
        _mul_by_data_in_lanes(
            work, p, inputs, 1, data, _HEADER, inputs, 1, work, d, outputs, inputs, inputs, lanes
        )
        _difference_in_lanes(work, d, data, cross, work, d, size, scale, lanes)
    elif objective == SENSING:
        _mul_by_data_in_lanes(work, p, size, 1, data, _HEADER, 1, size, work, rest, 1, size, m, lanes)
        _difference_in_lanes(work, rest, data, _HEADER + m * size, work, rest, m, scale, lanes)
        _mul_by_data_in_lanes(work, rest, m, 1, data, _HEADER, size, 1, work, d, 1, m, size, lanes)
    elif objective == COMPLETION:
        for i in range(size):
            observed, target = scale * data[_HEADER + size + i], data[_HEADER + i]
            x = work[(p + i) * lanes : (p + i + 1) * lanes]
            o = work[(d + i) * lanes : (d + i + 1) * lanes]
            for n in range(lanes):
                o[n] = observed * (x[n] - target)
    else:
        target = _HEADER + (inputs * m if objective == SAMPLES else 0)
        _difference_in_lanes(work, p, data, target, work, d, size, scale, lanes)


@kernel
def _numbers_in_lanes(theta, data, dims, work, out, lanes):
    """``_gradient_of_numbers`` for each lane."""
    depth = dims[4]
    covariance = data[_HEADER] if dims[0] == COVARIANCE else 1.0
    cross = data[_HEADER + 1] if dims[0] == COVARIANCE else data[_HEADER]
    scale, p, d = 2.0 * data[0], theta[0:lanes], out[0:lanes]
    for layer in range(1, depth - 1):
        x, above = theta[layer * lanes : (layer + 1) * lanes], work[layer * lanes : (layer + 1) * lanes]
        for n in range(lanes):
            above[n] = p[n] * x[n]
        p = above
    if depth == 1:
        for n in range(lanes):
            d[n] = scale * (p[n] * covariance - cross)
        return
    x = theta[(depth - 1) * lanes : depth * lanes]
    for n in range(lanes):
        d[n] = scale * (p[n] * x[n] * covariance - cross)
    for layer in range(depth - 1, 0, -1):
        below = theta if layer == 1 else work  # the product of one number is itself
        p = below[(layer - 1) * lanes : layer * lanes]
        x, o = theta[layer * lanes : (layer + 1) * lanes], out[layer * lanes : (layer + 1) * lanes]
        for n in range(lanes):
            o[n] = d[n] * p[n]
            d[n] *= x[n]


@kernel
def _few_in_lanes(theta, data, dims, work, out, lanes):
    """``_gradient_of_few`` for each lane."""
    depth, columns, samples = dims[4], _columns(dims), dims[0] >= SAMPLES
    weight, store, previous, widest = 0, 0, 0, dims[_WIDTHS]
    for layer in range(depth):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        widest = max(widest, rows)
        if layer > 0:
            _mul_in_lanes(
                theta, weight, cols, 1, work, previous, columns, 1, work, store, rows, cols, columns, lanes
            )
        elif samples:
            _mul_by_data_in_lanes(
                theta, weight, cols, 1, data, _HEADER, columns, 1, work, store, rows, cols, columns, lanes
            )
        else:
            for i in range(rows * cols * lanes):
                work[i] = theta[i]
        previous = store
        weight += rows * cols
        store += rows * columns
    d, d_below = store, store + widest * columns
    _residual_derivative_in_lanes(work, previous, d, data, dims, store + 2 * widest * columns, lanes)
    for layer in range(depth - 1, 0, -1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        weight -= rows * cols
        previous -= cols * columns
        _mul_in_lanes(
            work, d, columns, 1, work, previous, 1, columns, out, weight, rows, columns, cols, lanes
        )
        _mul_in_lanes(theta, weight, 1, cols, work, d, columns, 1, work, d_below, cols, rows, columns, lanes)
        d, d_below = d_below, d
    cols, rows = dims[_WIDTHS], dims[_WIDTHS + 1]
    if samples:
        _mul_by_data_in_lanes(
            work, d, columns, 1, data, _HEADER, 1, columns, out, 0, rows, columns, cols, lanes
        )
    else:
        below = work[d * lanes : (d + rows * cols) * lanes]
        for i in range(rows * cols * lanes):
            out[i] = below[i]


@kernel
def lane_gradient(t, theta, data, dims, work, out):
    """Gradient of many small networks side by side: that of ``gradient``, to the bit; the lane stands last.

    For the networks and objectives of ``serves_lanes``.
    """
    size = 0
    for layer in range(dims[4]):
        size += dims[_WIDTHS + layer] * dims[_WIDTHS + layer + 1]
    lanes = theta.size // size
    if size == dims[4] and (dims[0] == COVARIANCE or dims[0] == FACTORIZATION):
        _numbers_in_lanes(theta, data, dims, work, out, lanes)
    else:
        _few_in_lanes(theta, data, dims, work, out, lanes)
    _add_decay(theta, data, out)


def serves_lanes(dims: np.ndarray) -> bool:
    """Whether ``lane_gradient`` is there for this: a small network, and an objective without exponentials or BLAS."""
    objective, inputs, outputs, m = (int(x) for x in dims[:4])
    if objective > SAMPLES:
        return False
    widths = [int(w) for w in dims[_WIDTHS:]]
    size = sum(rows * cols for rows, cols in zip(widths[1:], widths[:-1], strict=True))
    columns = m if objective >= SAMPLES else inputs
    inner = {COVARIANCE: outputs * inputs**2, SENSING: m * outputs * inputs}.get(objective, 0)
    return size * columns <= _FEW and inner <= SMALL


@kernel
def hvp(t, theta, v, data, dims, work, out):
    """Hessian of a deep linear network times v: the gradient's two sweeps, differentiated."""
    columns, outputs = _columns(dims), dims[2]
    buffer = _widest(dims) * columns
    span = _forward(theta, data, dims, work)  # P_j in [0, span), its derivative Q_j in [span, 2 span)
    d, d_below, e, e_below = 2 * span, 2 * span + buffer, 2 * span + 2 * buffer, 2 * span + 3 * buffer
    rest = 2 * span + 4 * buffer
    weight, store, previous = 0, span, 0
    for layer in range(dims[4]):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        if layer > 0:
            mul(v, weight, work, previous - span, work, store, rows, cols, columns)
            mul(theta, weight, work, previous, work, rest, rows, cols, columns)
            _add(work, rest, work, store, rows * columns)
        elif dims[0] >= SAMPLES:
            mul(v, weight, data, _HEADER, work, store, rows, cols, columns)
        else:
            _copy(v, weight, work, store, rows * cols)
        previous = store
        weight += rows * cols
        store += rows * columns
    last = outputs * columns
    _residual_derivative(work, span - last, d, data, dims, rest)
    _residual_tangent(work, span - last, d, 2 * span - last, e, data, dims, rest)
    store = span
    for layer in range(dims[4] - 1, -1, -1):
        cols, rows = dims[_WIDTHS + layer], dims[_WIDTHS + layer + 1]
        weight -= rows * cols
        store -= rows * columns
        if layer > 0:
            below = store - cols * columns
            mul_nt(work, e, work, below, out, weight, rows, columns, cols)
            mul_nt(work, d, work, span + below, work, rest, rows, columns, cols)
            _add(work, rest, out, weight, rows * cols)
            mul_tn(theta, weight, work, e, work, e_below, cols, rows, columns)
            mul_tn(v, weight, work, d, work, rest, cols, rows, columns)
            _add(work, rest, work, e_below, cols * columns)
            mul_tn(theta, weight, work, d, work, d_below, cols, rows, columns)
            d, d_below = d_below, d
            e, e_below = e_below, e
        elif dims[0] >= SAMPLES:
            mul_nt(work, e, data, _HEADER, out, weight, rows, columns, cols)
        else:
            _copy(work, e, out, weight, rows * cols)
    _add_decay(v, data, out)


def work_size(dims: np.ndarray) -> int:
    """Length of the scratch array that the three kernels of a deep linear network need."""
    widths = [int(w) for w in dims[_WIDTHS:]]
    columns = int(dims[3]) if dims[0] >= SAMPLES else int(dims[1])
    largest = max(rows * cols for rows, cols in zip(widths[1:], widths[:-1], strict=True))
    scratch = max(max(widths) * columns, largest, int(dims[3]))
    return 2 * sum(widths[1:]) * columns + 4 * max(widths) * columns + scratch


@kernel
def _symmetric_output(work, w, p, data, dims):
    """Write the output of the map w to p: W itself, or W X^T when the objective is on samples."""
    size = dims[_WIDTHS]
    if dims[0] >= SAMPLES:
        mul(work, w, data, _HEADER, work, p, size, size, dims[3])
    else:
        _copy(work, w, work, p, size * size)


@kernel
def _symmetric_pull(work, d, w, data, dims):
    """Write G + G^T to w, where G = dL/dW comes from d = dL/dp."""
    size = dims[_WIDTHS]
    if dims[0] >= SAMPLES:
        mul_nt(work, d, data, _HEADER, work, w, size, dims[3], size)
    else:
        _copy(work, d, work, w, size * size)
    _symmetrise(work, w, size)


@kernel
def _symmetrise(work, w, size):
    """Add its transpose to the square matrix at w."""
    for i in range(size):
        for j in range(i + 1):
            both = work[w + i * size + j] + work[w + j * size + i]
            work[w + i * size + j] = both
            work[w + j * size + i] = both


@kernel
def symmetric_loss(t, theta, data, dims, work):
    """Loss of W = U U^T."""
    size, rank, columns = dims[_WIDTHS], dims[_WIDTHS + 1], _columns(dims)
    p = size * size
    mul_nt(theta, 0, theta, 0, work, 0, size, rank, size)
    _symmetric_output(work, 0, p, data, dims)
    return _output_loss(theta, work, p, data, dims, p + size * columns)


@kernel
def symmetric_gradient(t, theta, data, dims, work, out):
    """Gradient (G + G^T) U of W = U U^T, with G = dL/dW."""
    size, rank, columns = dims[_WIDTHS], dims[_WIDTHS + 1], _columns(dims)
    p = size * size
    d = p + size * columns
    mul_nt(theta, 0, theta, 0, work, 0, size, rank, size)
    _symmetric_output(work, 0, p, data, dims)
    _residual_derivative(work, p, d, data, dims, d + size * columns)
    _symmetric_pull(work, d, 0, data, dims)
    mul(work, 0, theta, 0, out, 0, size, size, rank)
    _add_decay(theta, data, out)


@kernel
def symmetric_hvp(t, theta, v, data, dims, work, out):
    """Hessian of W = U U^T times v."""
    size, rank, columns = dims[_WIDTHS], dims[_WIDTHS + 1], _columns(dims)
    w, dw = 0, size * size
    p = 2 * size * size
    d, q, e = p + size * columns, p + 2 * size * columns, p + 3 * size * columns
    rest = e + size * columns
    mul_nt(theta, 0, theta, 0, work, w, size, rank, size)
    _symmetric_output(work, w, p, data, dims)
    _residual_derivative(work, p, d, data, dims, rest)
    _symmetric_pull(work, d, w, data, dims)
    mul_nt(theta, 0, v, 0, work, dw, size, rank, size)
    _symmetrise(work, dw, size)
    _symmetric_output(work, dw, q, data, dims)
    _residual_tangent(work, p, d, q, e, data, dims, rest)
    _symmetric_pull(work, e, dw, data, dims)
    mul(work, dw, theta, 0, out, 0, size, size, rank)
    mul(work, w, v, 0, work, rest, size, size, rank)
    _add(work, rest, out, 0, size * rank)
    _add_decay(v, data, out)


def symmetric_work_size(dims: np.ndarray) -> int:
    """Length of the scratch array that the three kernels of W = U U^T need."""
    size, rank, m = int(dims[_WIDTHS]), int(dims[_WIDTHS + 1]), int(dims[3])
    columns = m if dims[0] >= SAMPLES else size
    return 2 * size * (size + 2 * columns) + max(size * rank, m, size * columns)


def batch_layout(data: np.ndarray, dims: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a batch of samples or measurements: where they go (see descent.py), its data to be filled, and its dims."""
    inputs, outputs, m = (int(x) for x in dims[1:4])
    if dims[0] == SENSING:
        numbers = inputs * outputs
        table = [[_HEADER, _HEADER, numbers, 0], [_HEADER + m * numbers, _HEADER + size * numbers, 1, 0]]
    else:
        table = [[_HEADER, _HEADER, inputs + outputs, 1]]
    batch = np.concatenate([data[:_HEADER], np.zeros(size * sum(row[2] for row in table))])
    batch[0] *= m / size
    dims = dims.copy()
    dims[3] = size
    return np.array(table), batch, dims
