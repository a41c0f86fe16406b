"""10,000 networks ½(ab − 1)² from 1e-5 … 1e-1 to t = 20: seconds for all of them at equal error.

gflow.ensemble against numbalsoda looped inside njit (one thread, and all cores by prange) and diffrax's vmap, all
in one process and in turn.  The error is the largest over runs and saved times, against the closed form.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import common
import numpy as np
import race

import gflow

TIMES = np.linspace(0.0, 20.0, 5)
RTOLS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11)
ERRORS = (1e-4, 1e-6, 1e-8)
Run = Callable[[float], np.ndarray]


def exact(starts: np.ndarray) -> np.ndarray:
    """States a = b (R, T)."""
    return np.sqrt(1.0 / (1.0 + (starts[:, None] ** -2.0 - 1.0) * np.exp(-2.0 * TIMES)))


def ours(starts: np.ndarray) -> dict[str, Run]:
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[1.0]])
    thetas = np.repeat(starts[:, None], 2, axis=1)

    def loop(rtol: float) -> np.ndarray:
        return np.array([gflow.flow(model, problem, theta, TIMES, rtol=rtol).theta[:, 0] for theta in thetas])

    def ensemble(rtol: float) -> np.ndarray:
        return gflow.ensemble(model, problem, thetas, TIMES, rtol=rtol).theta[:, :, 0]

    runs = {"gflow.flow, one after another": loop}
    return {"gflow.ensemble": ensemble, **runs} if hasattr(gflow, "ensemble") else runs


def numbalsoda_(starts: np.ndarray) -> dict[str, Run]:
    import numba
    import numbalsoda

    @numba.cfunc(numbalsoda.lsoda_sig)
    def right(t: Any, y: Any, dy: Any, p: Any) -> None:
        residual = y[0] * y[1] - 1.0
        dy[0], dy[1] = -residual * y[1], -residual * y[0]

    address, nothing = right.address, np.zeros(1)

    def make(solver: Any, parallel: bool) -> Run:
        @numba.njit(parallel=parallel)
        def loop(starts: np.ndarray, times: np.ndarray, rtol: float) -> np.ndarray:
            out = np.empty((starts.size, times.size))
            for r in numba.prange(starts.size):
                states, _ = solver(
                    address, np.full(2, starts[r]), times, nothing, rtol, 1e-3 * rtol * starts[r], 1_000_000
                )
                out[r] = states[:, 0]
            return out

        return lambda rtol: loop(starts, TIMES, rtol)

    return {
        "numbalsoda lsoda, njit": make(numbalsoda.lsoda, False),
        "numbalsoda dop853, njit": make(numbalsoda.dop853, False),
        "numbalsoda lsoda, prange": make(numbalsoda.lsoda, True),
        "numbalsoda dop853, prange": make(numbalsoda.dop853, True),
    }


def diffrax_(starts: np.ndarray) -> dict[str, Run]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import diffrax
    import jax.numpy as jnp

    times, all_starts = jnp.asarray(TIMES), jnp.asarray(starts)
    term = diffrax.ODETerm(lambda t, y, args: -(y[0] * y[1] - 1.0) * y[::-1])

    def solve(solver: Any, start: Any, rtol: Any) -> Any:
        control = diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol * start, pcoeff=0.4, icoeff=0.3)
        return diffrax.diffeqsolve(
            term, solver, 0.0, times[-1], None, jnp.full(2, start), saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=control, max_steps=None, throw=False,
        ).ys[:, 0]  # fmt: skip

    def contestant(solver: Any) -> Run:
        compiled = jax.jit(jax.vmap(partial(solve, solver), in_axes=(0, None)))
        return lambda rtol: np.asarray(compiled(all_starts, rtol))

    return {
        f"diffrax {s.__class__.__name__} vmap": contestant(s) for s in (diffrax.Tsit5(), diffrax.Dopri8())
    }


def main() -> None:
    options = common.options(__doc__ or "")
    starts = np.geomspace(1e-5, 1e-1, 100 if options.quick else 10_000)
    reference, rtols = exact(starts), (1e-4, 1e-7) if options.quick else RTOLS
    contestants: dict[str, tuple[str, Run]] = {}
    absent = {}
    for group, make in {"gflow": ours, "numbalsoda": numbalsoda_, "diffrax": diffrax_}.items():
        try:
            contestants |= {name: (group, run) for name, run in make(starts).items()}
        except ImportError as error:
            absent[group] = str(error)
    if not hasattr(gflow, "ensemble"):
        absent["gflow.ensemble"] = "not offered by this version"
    curves = {name: race.Curve(name, group) for name, (group, _) in contestants.items()}
    for rtol in rtols:
        jobs = {name: partial(run, rtol) for name, (_, run) in contestants.items()}
        seconds = common.interleaved(jobs, 1 if options.quick else 5)
        for name, (_, run) in contestants.items():
            error = float(np.max(np.abs(run(rtol) / reference - 1.0)))
            point = race.Point(rtol, error, statistics.median(seconds[name]), len(seconds[name]))
            curves[name].points.append(point)
            print(f"{name}, rtol {rtol:g}: error {error:.1e}, {point.seconds:.3g} s", flush=True)
    table = {
        f"{error:.0e}": {name: curve.seconds_at(error) for name, curve in curves.items()} for error in ERRORS
    }
    title = f"{len(starts)} networks ½(ab − 1)² from 1e-5 … 1e-1 to t = 20"
    figure = common.work_precision(options.out / "ensemble", title, list(curves.values()), 1e-15, 0.0)
    common.write(
        options.out,
        {
            "runs": len(starts), "absent": absent, "seconds_at_error": table, "figure": figure,
            "curves": [asdict(c) for c in curves.values()],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
