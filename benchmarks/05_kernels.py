"""How near the gradient of a deep linear network is to the machine, and the solve to its gradients.

Wide networks: seconds of the gradient over those of the bare matrix products that it needs, of the same shapes
and by the same BLAS, in compiled code on matrices that stand ready.  Small networks: seconds of a whole
``gflow.flow`` over its count of gradients times the seconds of one.  All in turn.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import common
import numba
import numpy as np
from threadpoolctl import threadpool_limits

import gflow
from gflow.objective import Objective

DEPTH = 3
WIDE, WIDE_QUICK = (128, 192, 256, 384, 512), (128,)
SMALL, SMALL_QUICK = (2, 4, 8, 16, 32, 64), (2, 8)


@numba.njit(error_model="numpy")
def _products(
    weights: np.ndarray, below: np.ndarray, moment: np.ndarray, d: np.ndarray, out: np.ndarray
) -> None:
    """3 (N − 1) products of matrices, and one more with the moments of the inputs if they are given."""
    depth = weights.shape[0]
    for j in range(1, depth):
        np.dot(weights[j], below[j - 1], below[j])
    if moment.shape[0] > 0:
        np.dot(below[depth - 1], moment, d[0])
    for j in range(depth - 1, 0, -1):
        np.dot(d[0], below[j - 1].T, out[j])
        np.dot(weights[j].T, d[0], d[1])


@numba.njit(error_model="numpy")
def _gradients(
    gradient: Any, n: int, theta: np.ndarray, data: np.ndarray, dims: np.ndarray, work: np.ndarray, out: np.ndarray
) -> None:  # fmt: skip
    for _ in range(n):
        gradient(0.0, theta, data, dims, work, out)


def _objective(width: int, kind: str) -> Objective:
    rng = np.random.default_rng(width)
    model, n = gflow.DeepLinear((width,) * (DEPTH + 1)), 2 * width
    if kind == "factorization":
        problem = gflow.Problem.factorization(rng.standard_normal((width, width)))
    else:
        x = rng.standard_normal((n, width))
        problem = gflow.Problem(x, x @ rng.standard_normal((width, width)) / np.sqrt(width))
    return Objective(model, problem)


def wide(width: int, kind: str, rounds: int) -> dict[str, Any]:
    o = _objective(width, kind)
    theta = o.model.init("gaussian", 1.0 / np.sqrt(width))
    out = np.empty(o.size)
    matrices = theta.reshape(DEPTH, width, width).copy()
    matrices_out, below, d = np.empty_like(matrices), matrices.copy(), matrices[:2].copy()
    moment = np.eye(width) if kind == "regression" else np.empty((0, width))
    jobs = {
        "gradient": partial(_gradients, o.gradient_kernel, 1, theta, o.data, o.dims, o.work, out),
        "products": partial(_products, matrices, below, moment, d, matrices_out),
    }
    with threadpool_limits(1, user_api="blas"):
        seconds = common.interleaved(jobs, rounds)
    return {
        "width": width, "kind": kind, "products": 3 * (DEPTH - 1) + (kind == "regression"),
        "gradient_us": 1e6 * statistics.median(seconds["gradient"]),
        "products_us": 1e6 * statistics.median(seconds["products"]),
        "ratio": common.median_ratio(seconds["gradient"], seconds["products"]),
    }  # fmt: skip


def small(width: int, rtol: float, rounds: int) -> dict[str, Any]:
    o = _objective(width, "factorization")
    theta0 = o.model.init("gaussian", 0.3 / np.sqrt(width))
    solve = partial(gflow.flow, o.model, o.problem, theta0, 20.0, rtol=rtol)
    count, out = solve().counts["gradients"], np.empty(o.size)
    bare = partial(_gradients, o.gradient_kernel, count, theta0, o.data, o.dims, o.work, out)
    with threadpool_limits(1, user_api="blas"):
        seconds = common.interleaved({"solve": solve, "bare": bare}, rounds)
    return {
        "width": width, "rtol": rtol, "gradients": count, "solve_ms": 1e3 * statistics.median(seconds["solve"]),
        "bare_ms": 1e3 * statistics.median(seconds["bare"]),
        "ratio": common.median_ratio(seconds["solve"], seconds["bare"]),
    }  # fmt: skip


def main() -> None:
    options = common.options(__doc__ or "")
    rounds = 3 if options.quick else 11
    results: dict[str, Any] = {"depth": DEPTH, "wide": [], "small": []}
    for width in WIDE_QUICK if options.quick else WIDE:
        for kind in ("factorization", "regression"):
            results["wide"].append(wide(width, kind, rounds))
            print(results["wide"][-1], flush=True)
    for width in SMALL_QUICK if options.quick else SMALL:
        for rtol in (1e-9,) if options.quick else (1e-6, 1e-9, 1e-12):
            results["small"].append(small(width, rtol, rounds))
            print(results["small"][-1], flush=True)
    common.write(options.out, results)


if __name__ == "__main__":
    main()
