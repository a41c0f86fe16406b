"""The exact ReLU flow: what a general solver spends on neurons that slide, and how large networks may be.

``sliding``: 10 points in 3 dimensions, 12 neurons, to t = 60 at rtol 1e-9, against scipy's RK45 at rtol 1e-6 on
the same compiled gradient by signs.  RK45 chatters: it is stopped at ``most`` times gflow's gradients, and where
it has not come to the end by then the ratios are lower bounds; "reached" says how far it came.
``large``: 200 neurons, 100 samples, 10 dimensions, from 1e-3 until the speed is a thousandth of its largest.
``many``: 64 neurons, 50 samples, 5 dimensions to t = 16.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from scipy.integrate import RK45

import gflow
from gflow import datasets
from gflow.objective import Objective

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from cases import sliding  # noqa: E402


def rk45(case: Any, rtol: float, atol: float, most: int) -> tuple[float, int, float]:
    """Seconds, gradients and the time that it came to."""
    objective = Objective(case.model, case.problem)
    kernel, out, count = objective.gradient_kernel.call, np.empty(objective.size), 0

    def field(_: float, y: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        kernel(0.0, y, objective.data, objective.dims, objective.work, out)
        return -out

    start = time.perf_counter()
    solver = RK45(field, 0.0, case.theta0, case.end, rtol=rtol, atol=atol)
    while solver.status == "running" and count < most:
        solver.step()
    return time.perf_counter() - start, count, float(solver.t)


def against_rk45(case: Any, most: int) -> dict[str, Any]:
    def solve() -> gflow.Trajectory:
        return gflow.flow(case.model, case.problem, case.theta0, case.end, rtol=1e-9)

    run = solve()
    (seconds,) = (np.median(times) for times in common.interleaved({"gflow": solve}, 5).values())
    atol = 1e-9 * float(np.sqrt(np.mean(case.theta0**2)))
    theirs, count, reached = rk45(case, 1e-6, atol, most * run.counts["gradients"])
    assert run.events is not None
    return {
        "slides": int(np.sum(run.events.kind == "slide")), "events": len(run.events.t),
        "gradients": run.counts["gradients"], "milliseconds": 1e3 * float(seconds),
        "rk45_gradients": count, "rk45_seconds": theirs, "rk45_reached_t": reached,
        "ratio_gradients": count / run.counts["gradients"], "ratio_time": theirs / float(seconds),
    }  # fmt: skip


def timed(model: Any, problem: Any, theta0: Any, t: Any, **options: Any) -> dict[str, Any]:
    gflow.flow(model, problem, theta0, 1e-3 * np.max(t), **options)  # compile
    start = time.perf_counter()
    run = gflow.flow(model, problem, theta0, t, **options)
    seconds = time.perf_counter() - start
    assert run.events is not None
    return {
        "seconds": seconds, "status": run.status.code, "t": float(run.t[-1]), "events": len(run.events.t),
        "sliding_at_end": int(np.sum(run.state["mode"] == 0)), "gradients": run.counts["gradients"],
        "method": run.spec["method"], "rtol": run.spec["rtol"],
    }  # fmt: skip


def main() -> None:
    options = common.options(__doc__ or "")
    cases = [sliding(seed) for seed in range(2 if options.quick else 16)]
    results: dict[str, Any] = {
        "sliding": {case.name: against_rk45(case, 20 if options.quick else 400) for case in cases}
    }
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 5))
    Y = X @ rng.standard_normal(5) + 2.0 * rng.standard_normal(50)
    model = gflow.TwoLayerReLU(5, 64)
    start = model.init("gaussian", scale=0.3)
    results["many"] = timed(model, gflow.Problem(X, Y, factor=0.1), start, 16.0)
    if not options.quick:
        problem = gflow.Problem(*datasets.linear_teacher(100, 10, noise=0.5, rng=0))
        model = gflow.TwoLayerReLU(10, 200)
        start = model.init("balanced", scale=1e-3, rng=0)
        results["large"] = {
            f"rtol {rtol:g}": timed(model, problem, start, 1e5, rtol=rtol, rest=1e-3) for rtol in (1e-6, 1e-9)
        }
    common.write(options.out, results)


if __name__ == "__main__":
    main()
