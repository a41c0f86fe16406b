"""10,000 networks ½(ab − 1)² from 1e-5 … 1e-1 to t = 20: seconds for all of them at equal error.

gflow.ensemble against numbalsoda looped inside njit and diffrax's vmap; gflow and numbalsoda with one thread and with
all.  Same starts, saved times, rtol and atol; the error is the largest relative one over runs and saved times, against
the closed form.  Each package has a process of its own; these are asked in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import common
import numpy as np
import race

import gflow

Run = Callable[[float], np.ndarray]
CAP_S = 120.0
ERRORS = (1e-4, 1e-6, 1e-8)


@dataclass(frozen=True)
class Task:
    """The networks; their states, a = b, are (R, T)."""

    runs: int
    rtols: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11)

    @property
    def name(self) -> str:
        return str(self.runs)

    @cached_property
    def starts(self) -> np.ndarray:
        return np.geomspace(1e-5, 1e-1, self.runs)

    @cached_property
    def t(self) -> np.ndarray:
        return np.linspace(0.0, 20.0, 5)

    @cached_property
    def exact(self) -> np.ndarray:
        return np.sqrt(1.0 / (1.0 + (self.starts[:, None] ** -2.0 - 1.0) * np.exp(-2.0 * self.t)))

    def atols(self, rtol: float) -> np.ndarray:
        """gflow's default, for everybody: (R,)."""
        return 1e-3 * rtol * self.starts

    def error(self, states: np.ndarray, reference: np.ndarray) -> float:
        if np.shape(states) != reference.shape or not np.all(np.isfinite(states)):
            return np.inf
        return float(np.max(np.abs(states / reference - 1.0)))


def gflow_(task: Task) -> dict[str, Run]:
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[1.0]])
    thetas = np.repeat(task.starts[:, None], 2, axis=1)

    def run(jobs: int | None, rtol: float) -> np.ndarray:
        return gflow.ensemble(model, problem, thetas, task.t, rtol=rtol, jobs=jobs).theta[:, :, 0]

    return {"gflow.ensemble, all cores": partial(run, None), "gflow.ensemble, one thread": partial(run, 1)}


def numbalsoda_(task: Task) -> dict[str, Run]:
    import numba
    import numbalsoda

    @numba.cfunc(numbalsoda.lsoda_sig)
    def right(t: Any, y: Any, dy: Any, p: Any) -> None:
        residual = y[0] * y[1] - 1.0
        dy[0], dy[1] = -residual * y[1], -residual * y[0]

    address, nothing = right.address, np.zeros(1)

    def make(solver: Any, parallel: bool) -> Run:
        @numba.njit(parallel=parallel)
        def loop(starts: np.ndarray, times: np.ndarray, rtol: float, atols: np.ndarray) -> np.ndarray:
            out = np.empty((starts.size, times.size))
            for r in numba.prange(starts.size):
                states, _ = solver(address, np.full(2, starts[r]), times, nothing, rtol, atols[r], 1_000_000)
                out[r] = states[:, 0]
            return out

        return lambda rtol: loop(task.starts, task.t, rtol, task.atols(rtol))

    return {
        f"numbalsoda {solver.__name__}, {'prange' if parallel else 'njit'}": make(solver, parallel)
        for parallel in (False, True)
        for solver in (numbalsoda.lsoda, numbalsoda.dop853)
    }


def diffrax_(task: Task) -> dict[str, Run]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import diffrax
    import jax.numpy as jnp

    times, starts = jnp.asarray(task.t), jnp.asarray(task.starts)
    term = diffrax.ODETerm(lambda t, y, args: -(y[0] * y[1] - 1.0) * y[::-1])

    def solve(solver: Any, proportional: float, integral: float, start: Any, rtol: Any, atol: Any) -> Any:
        control = diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=proportional, icoeff=integral)
        return diffrax.diffeqsolve(
            term, solver, times[0], times[-1], None, jnp.full(2, start), saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=control, max_steps=None, throw=False,
        ).ys[:, 0]  # fmt: skip

    def contestant(*settings: Any) -> Run:
        compiled = jax.jit(jax.vmap(partial(solve, *settings), in_axes=(0, None, 0)))
        return lambda rtol: np.asarray(compiled(starts, rtol, task.atols(rtol)))

    solvers = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}
    runs = {f"diffrax {name}, vmap": contestant(solver, 0.0, 1.0) for name, solver in solvers.items()}
    return runs | {
        f"diffrax {name} PI, vmap": contestant(solver, 0.4, 0.3) for name, solver in solvers.items()
    }


GROUPS: dict[str, tuple[str, Callable[[Task], dict[str, Run]]]] = {
    "gflow": ("gflow", gflow_),
    "numbalsoda": ("numbalsoda", numbalsoda_),
    "diffrax": ("diffrax", diffrax_),
}
TASKS = {str(runs): partial(Task, runs) for runs in (100, 10_000)}


def main() -> None:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=None, help="timing rounds, default 5 (--quick: 1)")
    options = parser.parse_args()
    task = Task(100, (1e-4, 1e-7)) if options.quick else Task(10_000)
    rounds = options.rounds or (1 if options.quick else 5)
    curves, absent = race.race(
        task, GROUPS, task.exact, CAP_S, rounds, lambda line: print(line, flush=True), module="03_ensemble"
    )
    table = {
        clock: {f"{error:.0e}": {c.name: c.seconds_at(error, clock) for c in curves} for error in ERRORS}
        for clock in ("seconds", "processor_seconds")
    }
    title = f"{task.runs} networks ½(ab − 1)² from 1e-5 … 1e-1 to t = 20"
    figure = common.work_precision(options.out / "ensemble", title, curves, 1e-15, CAP_S)
    common.write(
        options.out,
        {
            "runs": task.runs, "rounds": rounds, "absent": absent, "at_error": table, "figure": figure,
            "curves": [asdict(c) for c in curves],
        },
        show=False,
    )  # fmt: skip
    for clock, rows in table.items():
        for error, times in rows.items():
            print(f"{clock} at {error}: " + ", ".join(f"{k} {v:.3g}" for k, v in times.items() if v))


if __name__ == "__main__":
    main()
