"""gflow and its peers on a task, each as a function (rtol) ↦ states (T, P) at the task's times.

Each group stands on one package and is asked for its contestants in a process of its own; a package that
is not installed raises ImportError.  Everybody gets the same times and the same rtol and atol.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from problems import TASKS, Task  # noqa: F401  the race asks here for both

import gflow
from gflow.integrate import METHODS

Run = Callable[[float], np.ndarray]
_MANY = 2**31 - 1
#: gflow by the clock of the loss, beside the race.
BY_LOSS = "gflow clock='loss'"
_KRYLOV = 30


def _jitted(task: Task) -> Callable[[float, Any], Any]:
    """The right-hand side by gflow's compiled gradient."""
    o, out = task.objective, np.empty(task.theta0.size)
    kernel, data, dims, work = o.gradient_kernel.call, o.data, o.dims, o.work

    def field(t: float, y: Any) -> Any:
        kernel(0.0, np.ascontiguousarray(y), data, dims, work, out)
        return -out

    field(0.0, task.theta0)  # compile
    return field


def gflow_(task: Task) -> dict[str, Run]:
    """``"gflow"`` is what a user gets who names no method; the others are shown beside it."""

    def run(method: str, rtol: float) -> np.ndarray:
        return gflow.flow(
            task.model, task.problem, task.theta0, task.t, method=method, rtol=rtol, max_steps=_MANY
        ).theta

    def by_loss(rtol: float) -> np.ndarray:
        made = gflow.flow(
            task.model,
            task.problem,
            task.theta0,
            task.options["levels"],
            clock="loss",
            rtol=rtol,
            max_steps=_MANY,
        )
        return np.vstack([task.theta0, made.theta])

    methods = [m for m in METHODS if not (task.kinks and m == "bdf")]
    runs = {"gflow": partial(run, "auto"), **{f"gflow {m}": partial(run, m) for m in methods}}
    if "levels" in task.options:
        runs[BY_LOSS] = by_loss
    return runs


def scipy_(task: Task) -> dict[str, Run]:
    from scipy.integrate import solve_ivp

    right, jitted = task.field(np, task.constants), _jitted(task)

    def plain(t: float, y: Any) -> Any:
        return right(y)

    def run(method: str, field: Any, rtol: float) -> np.ndarray:
        with np.errstate(over="ignore"):
            made = solve_ivp(
                field, (0.0, task.t[-1]), task.theta0, method, t_eval=task.t, rtol=rtol, atol=task.atol(rtol)
            )
        return made.y.T

    def in_log_time(rtol: float) -> np.ndarray:
        s = np.log1p(task.t)
        made = solve_ivp(
            lambda s, y: np.exp(s) * jitted(0.0, y), (0.0, s[-1]), task.theta0, "DOP853", t_eval=s,
            rtol=rtol, atol=task.atol(rtol),
        )  # fmt: skip
        return made.y.T

    methods = ("RK45", "DOP853", "LSODA", "Radau", "BDF")
    runs: dict[str, Run] = {f"scipy {m}": partial(run, m, jitted) for m in methods}
    runs |= {f"scipy {m} numpy": partial(run, m, plain) for m in methods}
    if "levels" in task.options:
        runs["scipy DOP853 in log t, by hand"] = in_log_time
    return runs


def numbalsoda_(task: Task) -> dict[str, Run]:
    import numba
    import numbalsoda

    size, n_data = task.theta0.size, task.objective.data.size
    n_all = n_data + task.objective.work.size
    parameters = np.concatenate([task.objective.data, task.objective.work])
    dims, kernel = task.objective.dims, task.objective.model.gradient

    if task.name == "a":  # as one would write it

        @numba.cfunc(numbalsoda.lsoda_sig)
        def right(t: Any, y: Any, dy: Any, p: Any) -> None:
            residual = y[0] * y[1] - 1.0
            dy[0], dy[1] = -residual * y[1], -residual * y[0]

    else:

        @numba.cfunc(numbalsoda.lsoda_sig)
        def right(t: Any, y: Any, dy: Any, p: Any) -> None:
            out, numbers = numba.carray(dy, (size,)), numba.carray(p, (n_all,))
            kernel(0.0, numba.carray(y, (size,)), numbers[:n_data], dims, numbers[n_data:], out)
            for i in range(size):
                out[i] = -out[i]

    def run(solver: Any, rtol: float) -> np.ndarray:
        states, _ = solver(
            right.address, task.theta0, task.t, data=parameters, rtol=rtol, atol=task.atol(rtol), mxstep=_MANY
        )
        return states

    return {
        "numbalsoda lsoda": partial(run, numbalsoda.lsoda),
        "numbalsoda dop853": partial(run, numbalsoda.dop853),
    }


def diffrax_(task: Task) -> dict[str, Run]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import diffrax
    import jax.numpy as jnp

    right = task.field(jnp, {k: jnp.asarray(v) for k, v in task.constants.items()})
    term = diffrax.ODETerm(lambda t, y, args: right(y))
    times, start = jnp.asarray(task.t), jnp.asarray(task.theta0)

    def solve(solver: Any, proportional: float, integral: float, exact: bool, rtol: Any, atol: Any) -> Any:
        control: Any = diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=proportional, icoeff=integral)
        if exact:  # its interpolation is of order three: step to the saved times
            control = diffrax.ClipStepSizeController(control, step_ts=times)
        return diffrax.diffeqsolve(
            term, solver, times[0], times[-1], None, start, saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=control, max_steps=None, throw=False,
        ).ys  # fmt: skip

    def contestant(*settings: Any) -> Run:
        compiled = jax.jit(partial(solve, *settings))
        return lambda rtol: np.asarray(compiled(rtol, task.atol(rtol)))

    explicit = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}
    runs = {f"diffrax {name}": contestant(solver, 0.0, 1.0, False) for name, solver in explicit.items()}
    runs |= {f"diffrax {name} PI": contestant(solver, 0.4, 0.3, False) for name, solver in explicit.items()}
    return runs | {"diffrax Kvaerno5": contestant(diffrax.Kvaerno5(), 0.0, 1.0, True)}


def torchdiffeq_(task: Task) -> dict[str, Run]:
    import torch
    from torchdiffeq import odeint

    torch.set_num_threads(1)
    right = task.field(torch, {k: torch.as_tensor(v.copy()) for k, v in task.constants.items()})
    times, start = torch.as_tensor(task.t), torch.as_tensor(task.theta0)

    def run(method: str, rtol: float) -> np.ndarray:
        with torch.no_grad():
            return odeint(
                lambda t, y: right(y), start, times, rtol=rtol, atol=task.atol(rtol), method=method
            ).numpy()

    return {f"torchdiffeq {method}": partial(run, method) for method in ("dopri5", "dopri8")}


def sundae_(task: Task) -> dict[str, Run]:
    from sksundae.cvode import CVODE, CVODEJacTimes

    o, size = task.objective, task.theta0.size
    gradient, data, dims, work = o.gradient_kernel.call, o.data, o.dims, o.work
    state, vector, out = np.empty(size), np.empty(size), np.empty(size)

    def field(t: float, y: Any, dy: Any) -> None:
        state[:] = y  # which is read-only
        gradient(0.0, state, data, dims, work, out)
        np.negative(out, dy)

    def product(t: float, y: Any, dy: Any, v: Any, jv: Any) -> None:
        state[:], vector[:] = y, v
        o.hvp_kernel.call(0.0, state, vector, data, dims, work, out)
        np.negative(out, jv)

    def run(options: dict[str, Any], rtol: float) -> np.ndarray:
        solver = CVODE(field, rtol=rtol, atol=task.atol(rtol), max_num_steps=_MANY, **options)
        return solver.solve(task.t, task.theta0).y

    krylov: dict[str, Any] = {"linsolver": "gmres", "krylov_dim": min(_KRYLOV, size)}
    field(0.0, task.theta0, np.empty(size))  # compile
    if o.has("hvp"):
        product(0.0, task.theta0, None, task.theta0, np.empty(size))
        krylov["jactimes"] = CVODEJacTimes(None, product)
    runs = {
        "CVODE BDF+GMRES": partial(run, {"method": "BDF", **krylov}),
        "CVODE BDF+GMRES, 5 vectors": partial(run, {"method": "BDF", **krylov, "krylov_dim": 5}),
        "CVODE Adams": partial(run, {"method": "Adams", **krylov}),
    }
    if size <= 1000:
        runs["CVODE BDF dense"] = partial(run, {"method": "BDF", "linsolver": "dense"})
    return runs


def nivp_(task: Task) -> dict[str, Run]:
    """The differential inclusion, for networks with kinks: signs s ∈ sign(z) of the pre-activations are variables.

    The state is (θ, s); s has no equation (a zero row of the mass matrix) and is found by projection onto [-1, 1], as in
    the package's own ``SignProjection``, but with a step of its own for every pair: the time step times what the sign
    adds to the pair's speed, so that crossings and slides alike are found in a few iterations.  The package's
    ``SignProjection``, with one step for all, and its semismooth Newton, either way, stick at the first crossings.
    """
    if not task.kinks:
        return {}
    from scipy.sparse import diags
    from solve_nivp import CompositeMethod, ImplicitEquationSolver, ODESolver, ODESystem
    from solve_nivp.projections import Projection

    size, x, labels = task.theta0.size, task.constants["x"], task.constants["y"]
    n, d = x.shape
    m, split = size // (d + 1), size // (d + 1) * d
    squares = np.sum(x * x, axis=1)

    def pushes(state: np.ndarray) -> Any:
        """Weights, second layer, slopes, activations, dL/df."""
        w, a = state[:split].reshape(m, d), state[split:size]
        slopes = 0.5 * (1.0 + state[size:].reshape(m, n))
        out = slopes * (w @ x.T)
        return w, a, slopes, out, (a @ out - labels) / n

    def field(t: float, state: np.ndarray) -> np.ndarray:
        _, a, slopes, out, dl = pushes(state)
        return np.concatenate([-((a[:, None] * slopes * dl) @ x).ravel(), -(out @ dl), np.zeros(m * n)])

    class Signs(Projection):
        speeds: tuple[Any, Any] = (None, None)

        def project(
            self, current_state: Any, candidate: Any, rhok: Any = None, t: Any = None, Fk_val: Any = None,
            prev_state: Any = None, step_size: Any = None,
        ) -> np.ndarray:  # fmt: skip
            if self.speeds[0] is not prev_state:
                _, a, _, _, dl = pushes(prev_state)
                self.speeds = prev_state, 0.25 * np.abs(np.outer(a, dl * squares)).ravel() + 1e-12
            if not np.all(np.isfinite(candidate)):
                raise RuntimeError(
                    "overflow"
                )  # which the package answers by a shorter step, where it may choose it
            z = (candidate[:split].reshape(m, d) @ x.T).ravel()
            new = candidate.copy()
            new[size:] = np.clip(candidate[size:] + z / (step_size * self.speeds[1]), -1.0, 1.0)
            return new

        def tangent_cone(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError  # only Newton's method asks for it

    def run(fixed: bool, rtol: float) -> np.ndarray:
        parts = [slice(0, size), slice(size, None)]
        solver = ImplicitEquationSolver(
            method="VI", proj=Signs(), tol=max(1e-3 * rtol, 1e-13), max_iter=200, component_slices=parts, rho0=1e-4,
            vi_strict_block_lipschitz=False,  # with it, steps are accepted that do not solve the equation
        )  # fmt: skip
        mass = diags(np.concatenate([np.ones(size), np.zeros(m * n)]), format="csr")
        signs = np.sign(task.theta0[:split].reshape(m, d) @ x.T).ravel()
        system = ODESystem(
            field, np.concatenate([task.theta0, signs]), method=CompositeMethod(solver=solver, A=mass),
            adaptive=not fixed, rtol=rtol, atol=task.atol(rtol), component_slices=parts, A=mass,
        )  # fmt: skip
        if not fixed:
            system.adaptive_stepper.skip_error_indices = {1}
        step, states = 10.0 * np.sqrt(rtol) if fixed else 1e-4, [task.theta0]
        for start, end in pairwise(task.t.tolist()):
            t, y, steps, *_ = ODESolver(system, (start, end), h=step).solve()
            if t[-1] < end:
                raise RuntimeError(f"no step found at t = {t[-1]:g}")
            if not fixed:
                step = steps[-2]  # the last one was cut
            states.append(y[-1, :size])
        return np.array(states)

    return {
        "solve-nivp TR-BDF2, signs as variables": partial(run, False),
        "solve-nivp TR-BDF2, fixed steps": partial(run, True),
    }


#: Group → (what must be installed, its contestants).
GROUPS: dict[str, tuple[str, Callable[[Task], dict[str, Run]]]] = {
    "gflow": ("gflow", gflow_),
    "scipy": ("scipy", scipy_),
    "numbalsoda": ("numbalsoda", numbalsoda_),
    "diffrax": ("diffrax", diffrax_),
    "torchdiffeq": ("torchdiffeq", torchdiffeq_),
    "scikit-sundae": ("sksundae", sundae_),
    "solve-nivp": ("solve_nivp", nivp_),
}
