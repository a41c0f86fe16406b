"""Cost growth: seconds of a gradient and of a step against width, depth, samples and number of runs.

All sizes of an axis are timed in turn.  The exponent of the seconds is fitted by least squares of logarithms over the larger half of the sizes, beside
that of the operation count (multiplications of the products) over the same sizes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import common
import numba
import numpy as np
from threadpoolctl import threadpool_limits

import gflow
from gflow.objective import Objective

STEPS = 30


@numba.njit(error_model="numpy")
def _gradients(
    gradient: Any, n: int, theta: np.ndarray, data: np.ndarray, dims: np.ndarray, work: np.ndarray, out: np.ndarray
) -> None:  # fmt: skip
    for _ in range(n):
        gradient(0.0, theta, data, dims, work, out)


def _chain(widths: tuple[int, ...], columns: int) -> float:
    """Multiplications of a gradient: forward, and back to both factors."""
    return 3.0 * columns * sum(a * b for a, b in pairwise(widths))


def by_width(size: int) -> tuple[Any, Any, float]:
    rng = np.random.default_rng(0)
    problem = gflow.Problem.factorization(rng.standard_normal((size, size)) / size)
    return gflow.DeepLinear((size,) * 4), problem, _chain((size,) * 4, size)


def by_depth(depth: int) -> tuple[Any, Any, float]:
    rng = np.random.default_rng(0)
    problem = gflow.Problem.factorization(rng.standard_normal((48, 48)) / 48)
    return gflow.DeepLinear((48,) * (depth + 1)), problem, _chain((48,) * (depth + 1), 48)


def by_samples(n: int) -> tuple[Any, Any, float]:
    """A ReLU network, which looks at each sample; a linear one keeps the moments only."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 16))
    return gflow.TwoLayerReLU(16, 64), gflow.Problem(x, x[:, 0]), 3.0 * n * 64 * 17


def by_samples_linear(n: int) -> tuple[Any, Any, float]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 16))
    return gflow.DeepLinear((16, 64, 1)), gflow.Problem(x, x[:, 0]), _chain((16, 64, 1), 16)


AXES: dict[str, tuple[Callable[[int], tuple[Any, Any, float]], tuple[int, ...], tuple[int, ...]]] = {
    "width of three linear layers": (by_width, (8, 16, 32, 64, 128, 256), (8, 32, 64)),
    "depth at width 48": (by_depth, (2, 4, 8, 16, 32, 64), (2, 8, 16)),
    "samples, ReLU 16-64-1": (by_samples, (64, 128, 256, 512, 1024, 2048, 4096, 8192), (64, 256, 512)),
    "samples, linear 16-64-1": (by_samples_linear, (64, 256, 1024, 4096, 16384), (64, 256, 1024)),
}


def measure(cases: list[tuple[Any, Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a gradient, and of a step, of each network on its problem."""
    jobs: dict[str, Callable[[], Any]] = {}
    steps = []
    for i, (model, problem) in enumerate(cases):
        o = Objective(model, problem)
        theta = 0.5 * np.random.default_rng(1).standard_normal(o.size) / np.sqrt(max(o.dims[1], 8))
        more = {"events": False} if isinstance(model, gflow.TwoLayerReLU) else {}
        solve = partial(gflow.flow, model, problem, theta, 1e9, max_steps=STEPS, method="dop853", **more)
        steps.append(len(solve().steps.t))
        arrays = o.gradient_kernel, 1, theta, o.data, o.dims, o.work, np.empty(o.size)
        jobs |= {f"gradient {i}": partial(_gradients, *arrays), f"solve {i}": solve}
    with threadpool_limits(1, user_api="blas"):
        seconds = common.interleaved(jobs, rounds)
    median = {name: statistics.median(kept) for name, kept in seconds.items()}
    return {
        "gradient": [median[f"gradient {i}"] for i in range(len(cases))],
        "step": [median[f"solve {i}"] / n for i, n in enumerate(steps)],
    }


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the logarithms over the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def runs(counts: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Seconds against the number of runs of an ensemble."""
    if not hasattr(gflow, "ensemble"):
        return {"skipped": "this version has no gflow.ensemble"}
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[1.0]])
    jobs = {
        str(count): partial(
            gflow.ensemble,
            model,
            problem,
            np.repeat(np.geomspace(1e-5, 1e-1, count)[:, None], 2, axis=1),
            20.0,
        )
        for count in counts
    }
    kept = common.interleaved(jobs, rounds)
    seconds = [statistics.median(kept[str(count)]) for count in counts]
    return {
        "sizes": counts, "solve_s": seconds, "exponent_solve": exponent(list(counts), seconds),
        "exponent_count": 1.0,
    }  # fmt: skip


def main() -> None:
    options = common.options(__doc__ or "")
    rounds = 3 if options.quick else 7
    results: dict[str, Any] = {"steps": STEPS}
    for name, (make, full, quick) in AXES.items():
        sizes = list(quick if options.quick else full)
        made = [make(size) for size in sizes]
        seconds = measure([(model, problem) for model, problem, _ in made], rounds)
        results[name] = {
            "sizes": sizes, "gradient_s": seconds["gradient"], "step_s": seconds["step"],
            "exponent_gradient": exponent(sizes, seconds["gradient"]),
            "exponent_solve": exponent(sizes, seconds["step"]),
            "exponent_count": exponent(sizes, [count for _, _, count in made]),
        }  # fmt: skip
        print(name, {k: v for k, v in results[name].items() if k.startswith("exponent")}, flush=True)
    results["number of runs"] = runs(
        (10, 100, 1000) if options.quick else (100, 1000, 10_000, 100_000), rounds
    )
    common.write(options.out, results)


if __name__ == "__main__":
    main()
