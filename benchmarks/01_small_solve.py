"""One small solve against scipy's solve_ivp with the same compiled gradient, in one run.

Problem: L = (ab − 1)² / 2 from a = b = 1e-3 to t = 20, its end state saved.  Both take Dormand and
Prince's method of order 8 with the same tolerances; both errors are measured against the closed form.
The time is that of the whole call with its checks: back-to-back calls (steady state), and isolated ones.
"""

from __future__ import annotations

import statistics

import common
import numpy as np
from scipy.integrate import solve_ivp

import gflow
from gflow.kernels import explicit
from gflow.kernels.tableaus import dop853
from gflow.objective import Objective

START, END = 1e-3, 20.0


def main() -> None:
    options = common.options(__doc__ or "")
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[1.0]])
    theta0 = np.full(2, START)
    objective = Objective(model, problem)
    gradient, out = objective.gradient_kernel.call, np.empty(2)
    exact = 1.0 / (1.0 + (1.0 / START**2 - 1.0) * np.exp(-2.0 * END))

    def field(t: float, theta: np.ndarray) -> np.ndarray:
        gradient(t, theta, objective.data, objective.dims, objective.work, out)
        return -out

    tableau, history = dop853(), np.empty((4096, 3))
    tables = []
    for rtol in (1e-6, 1e-9, 1e-12):
        atol = rtol * 1e-3 * START

        def ours(rtol: float = rtol, atol: float = atol) -> np.ndarray:
            return gflow.flow(model, problem, theta0, END, method="dop853", rtol=rtol, atol=atol).end

        def theirs(rtol: float = rtol, atol: float = atol) -> np.ndarray:
            run = solve_ivp(field, (0.0, END), theta0, method="DOP853", rtol=rtol, atol=atol)
            return run.y[:, -1]

        def compiled(rtol: float = rtol, atol: float = atol) -> None:
            state = explicit.new_state(theta0, 0.0, tableau)
            places = np.zeros(3, dtype=np.int64), np.array([END]), np.empty((1, 2)), np.empty(1), history
            output = explicit.Output(*places, np.empty((0, 2)), np.empty((0, 1, 1)))
            o = objective
            explicit.advance(
                o.gradient_kernel, o.data, o.dims, o.work, tableau, state, output,
                rtol, np.full(2, atol), 10**6, 10**6,
            )  # fmt: skip

        jobs = {"gflow": ours, "scipy": theirs, "compiled": compiled}
        seconds = common.interleaved(jobs, 5 if options.quick else 51)
        isolated = common.interleaved(jobs, 5 if options.quick else 51, sample_seconds=0.0)
        tables.append(
            {
                "rtol": rtol,
                "gflow_median_us": 1e6 * statistics.median(seconds["gflow"]),
                "scipy_median_us": 1e6 * statistics.median(seconds["scipy"]),
                "scipy_over_gflow": common.median_ratio(seconds["scipy"], seconds["gflow"]),
                "scipy_over_compiled_part": common.median_ratio(seconds["scipy"], seconds["compiled"]),
                "scipy_over_gflow_isolated_calls": common.median_ratio(isolated["scipy"], isolated["gflow"]),
                "gflow_relative_error": abs(float(ours().prod()) / exact - 1.0),
                "scipy_relative_error": abs(float(theirs().prod()) / exact - 1.0),
            }
        )
    common.write(options.out, {"small_solve": tables})


if __name__ == "__main__":
    main()
