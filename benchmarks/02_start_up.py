"""Time to import and to the first result, in fresh processes: cold cache, warm cache, bare numba; and of a later call.

Every figure is the median over processes that run in turn.  The cold cache is a new empty folder.  The later calls, of
problem (a) at rtol 1e-6, run in turn in one process; one that ends after a single step is their fixed cost.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial

import common
import problems

import gflow

CODE = """
import time
a = time.perf_counter()
import numba
b = time.perf_counter()
import gflow
c = time.perf_counter()
gflow.flow
d = time.perf_counter()
problem = gflow.Problem.factorization([[1.0]])
gflow.flow(gflow.DeepLinear((1, 1, 1)), problem, [1e-3, 1e-3], 20.0)
e = time.perf_counter()
from gflow.kernels import explicit
hits, misses = explicit.advance.stats.cache_hits, explicit.advance.stats.cache_misses
print(b - a, c - b, d - c, e - d, sum(hits.values()), sum(misses.values()))
"""
NAMES = (
    "import_numba_s", "import_gflow_more_s", "import_solver_more_s", "first_solve_s", "cache_hits", "cache_misses",
)  # fmt: skip


def start(cache: str | None) -> dict[str, float]:
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment
    )
    return dict(zip(NAMES, map(float, run.stdout.split()), strict=True))


def later_calls(rounds: int) -> dict[str, float]:
    task = problems.TASKS["a"]()

    def flow(t: problems.Array) -> gflow.Trajectory:
        return gflow.flow(task.model, task.problem, task.theta0, t, rtol=1e-6)

    short = 1e-6 * task.t
    assert flow(short).counts["accepted"] == 1
    jobs = {"whole": partial(flow, task.t), "one_step": partial(flow, short)}
    seconds = common.interleaved(jobs, rounds)
    return {f"{name}_us": 1e6 * statistics.median(seconds[name]) for name in jobs}


def main() -> None:
    options = common.options(__doc__ or "")
    rounds = 3 if options.quick else 11
    start(None)  # fill the cache
    warm = [start(None) for _ in range(rounds)]
    with tempfile.TemporaryDirectory() as folder:
        cold = [start(f"{folder}/{i}") for i in range(1 if options.quick else 3)]

    def medians(runs: list[dict[str, float]]) -> dict[str, float]:
        return {name: statistics.median(run[name] for run in runs) for name in NAMES}

    results = {
        "warm_cache": medians(warm),
        "cold_cache": medians(cold),
        "later_calls": later_calls(5 * rounds),
    }
    common.write(options.out, results)


if __name__ == "__main__":
    main()
