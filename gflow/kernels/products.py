"""Products of matrices that lie in flat arrays, given by their offsets.

Views for BLAS cost more than the arithmetic of a small product, so that small ones are plain loops: the ``loop_``
functions, and those of a matrix and a vector, which are inlined where they are called.
"""

from __future__ import annotations

import numpy as np

from gflow.kernels.abi import kernel

# Below this many multiplications a plain loop beats the call of a BLAS routine (measured).
SMALL = 128


@kernel(counted=True)
def _matrix(flat, start, rows, cols):
    return flat[start : start + rows * cols].reshape(rows, cols)


@kernel(counted=True)
def _mul_blas(a, i0, b, j0, out, k0, rows, inner, cols):
    np.dot(_matrix(a, i0, rows, inner), _matrix(b, j0, inner, cols), _matrix(out, k0, rows, cols))


@kernel(forceinline=True)
def loop_mul(a, i0, b, j0, out, k0, rows, inner, cols):
    """out = a b for matrices (rows, inner) and (inner, cols) that start at i0, j0, k0 of flat arrays."""
    for i in range(rows):
        for j in range(cols):
            x = 0.0
            for l in range(inner):
                x += a[i0 + i * inner + l] * b[j0 + l * cols + j]
            out[k0 + i * cols + j] = x


@kernel
def mul(a, i0, b, j0, out, k0, rows, inner, cols):
    """out = a b for matrices (rows, inner) and (inner, cols) that start at i0, j0, k0 of flat arrays."""
    if rows * inner * cols > SMALL:
        _mul_blas(a, i0, b, j0, out, k0, rows, inner, cols)
        return
    loop_mul(a, i0, b, j0, out, k0, rows, inner, cols)


@kernel(counted=True)
def _mul_tn_blas(a, i0, b, j0, out, k0, rows, inner, cols):
    np.dot(_matrix(a, i0, inner, rows).T, _matrix(b, j0, inner, cols), _matrix(out, k0, rows, cols))


@kernel(forceinline=True)
def loop_mul_tn(a, i0, b, j0, out, k0, rows, inner, cols):
    """out = a^T b for matrices (inner, rows) and (inner, cols)."""
    for i in range(rows):
        for j in range(cols):
            x = 0.0
            for l in range(inner):
                x += a[i0 + l * rows + i] * b[j0 + l * cols + j]
            out[k0 + i * cols + j] = x


@kernel
def mul_tn(a, i0, b, j0, out, k0, rows, inner, cols):
    """out = a^T b for matrices (inner, rows) and (inner, cols)."""
    if rows * inner * cols > SMALL:
        _mul_tn_blas(a, i0, b, j0, out, k0, rows, inner, cols)
        return
    loop_mul_tn(a, i0, b, j0, out, k0, rows, inner, cols)


@kernel(counted=True)
def _mul_nt_blas(a, i0, b, j0, out, k0, rows, inner, cols):
    np.dot(_matrix(a, i0, rows, inner), _matrix(b, j0, cols, inner).T, _matrix(out, k0, rows, cols))


@kernel(forceinline=True)
def loop_mul_nt(a, i0, b, j0, out, k0, rows, inner, cols):
    """out = a b^T for matrices (rows, inner) and (cols, inner)."""
    for i in range(rows):
        for j in range(cols):
            x = 0.0
            for l in range(inner):
                x += a[i0 + i * inner + l] * b[j0 + j * inner + l]
            out[k0 + i * cols + j] = x


@kernel
def mul_nt(a, i0, b, j0, out, k0, rows, inner, cols):
    """out = a b^T for matrices (rows, inner) and (cols, inner)."""
    if rows * inner * cols > SMALL:
        _mul_nt_blas(a, i0, b, j0, out, k0, rows, inner, cols)
        return
    loop_mul_nt(a, i0, b, j0, out, k0, rows, inner, cols)


@kernel(forceinline=True, fastmath={"reassoc", "contract"})
def times(a, i0, x, j0, out, k0, rows, cols):
    """out = a x for a matrix (rows, cols) and a vector; four rows a pass, in vector registers.

    Inlined, since handing over three arrays takes as long as a small product.  The views tell the compiler that no
    index is negative, without which it makes no vectors.
    """
    matrix, vector, result = a[i0 : i0 + rows * cols], x[j0 : j0 + cols], out[k0 : k0 + rows]
    i = 0
    while i + 4 <= rows:
        p, q, r, s = 0.0, 0.0, 0.0, 0.0
        for j in range(cols):
            b = vector[j]
            p += matrix[i * cols + j] * b
            q += matrix[(i + 1) * cols + j] * b
            r += matrix[(i + 2) * cols + j] * b
            s += matrix[(i + 3) * cols + j] * b
        result[i], result[i + 1], result[i + 2], result[i + 3] = p, q, r, s
        i += 4
    while i < rows:
        p = 0.0
        for j in range(cols):
            p += matrix[i * cols + j] * vector[j]
        result[i] = p
        i += 1


@kernel(forceinline=True, fastmath={"reassoc", "contract"})
def times_transposed(a, i0, x, j0, out, k0, rows, cols):
    """out = a^T x for a matrix (rows, cols) and a vector, as ``times`` goes."""
    matrix, result, p = a[i0 : i0 + rows * cols], out[k0 : k0 + cols], x[j0]
    first = 4 if rows >= 4 else 1
    if rows >= 4:
        q, r, s = x[j0 + 1], x[j0 + 2], x[j0 + 3]
        for j in range(cols):
            result[j] = (
                p * matrix[j] + q * matrix[cols + j] + r * matrix[2 * cols + j] + s * matrix[3 * cols + j]
            )
    else:
        for j in range(cols):
            result[j] = p * matrix[j]
    add_transposed(a, i0 + first * cols, x, j0 + first, out, k0, rows - first, cols)


@kernel(forceinline=True, fastmath={"reassoc", "contract"})
def add_transposed(a, i0, x, j0, out, k0, rows, cols):
    """out += a^T x for a matrix (rows, cols) and a vector, as ``times`` goes."""
    matrix, vector, result = a[i0 : i0 + rows * cols], x[j0 : j0 + rows], out[k0 : k0 + cols]
    i = 0
    while i + 4 <= rows:
        p, q, r, s = vector[i], vector[i + 1], vector[i + 2], vector[i + 3]
        for j in range(cols):
            result[j] += (
                p * matrix[i * cols + j]
                + q * matrix[(i + 1) * cols + j]
                + r * matrix[(i + 2) * cols + j]
                + s * matrix[(i + 3) * cols + j]
            )
        i += 4
    while i < rows:
        p = vector[i]
        for j in range(cols):
            result[j] += p * matrix[i * cols + j]
        i += 1
