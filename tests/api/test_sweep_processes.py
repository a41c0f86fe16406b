"""Sweeps by several processes: the same bits, and nothing lost by kills, interrupts and the loss of a cluster's workers."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import time

import joblib
import numpy as np
import pytest
import xarray
from sweeping import AXES, COUNT, SCRIPT, TIMEOUT, lines, points, product, python, start

import gflow


def test_processes_threads_and_this_process_give_the_same_bits():
    here = gflow.sweep(escape, ESCAPES, jobs=1)
    with joblib.parallel_config(backend="threading"):
        threads = gflow.sweep(escape, ESCAPES, jobs=2)
    assert gflow.sweep(escape, ESCAPES, jobs=2).identical(here) and threads.identical(here)
    for scale in ESCAPES["scale"]:
        assert here.value.sel(scale=scale, depth=2) == pytest.approx(2 * np.log(1 / scale) / 2, rel=1e-3)


ESCAPES = {"scale": [1e-3, 1e-2], "depth": [2, 3]}


def escape(scale, depth):
    """Time at which w = Π w_l has half its limit: of two layers, s(t) = 1 / (1 + (1/s₀ - 1) e^(-2t))."""
    problem = gflow.Problem.factorization([[1.0]])
    model = gflow.DeepLinear((1,) * (depth + 1))
    # measured at fixed times, interpolated: the same bits wherever it runs
    t = np.linspace(0.0, 200.0 if depth > 2 else 20.0, 4001)
    end_to_end = gflow.flow(model, problem, [scale] * depth, t).theta.prod(axis=1)
    return np.interp(0.5, end_to_end, t)


@pytest.mark.parametrize("jobs", [1, 2])
def test_blas_keeps_to_one_thread_in_every_worker(jobs):
    grid = gflow.sweep(blas_threads, {"n": range(4)}, jobs=jobs)
    assert (grid.value == 1).all()


def blas_threads(n):
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def test_partials_and_methods_run_in_workers(store):
    grid = gflow.sweep(functools.partial(product, factor=2.0), AXES, store, 2)
    assert (grid.value == 2.0 * grid.a * grid.b).all()
    assert gflow.sweep(functools.partial(product, factor=3.0), AXES, store, 2).identical(grid) is False


def wait_for(condition, process=None):
    """Poll until a condition holds; an error if the process ends before, or if it never does."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError("the process ended before:\n" + process.communicate()[1])
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill(process, how=signal.SIGKILL):
    """Send a signal to a process and its workers."""
    os.killpg(process.pid, how)


NORMS = """
import numpy as np
def norms(seed, scale):
    A = np.random.default_rng(seed).standard_normal((8, 8))
    return {"norm": scale * np.linalg.norm(A, 2), "values": np.linalg.svd(A)[1] * scale, "square": seed**2}
AXES = {"seed": range(400), "scale": [0.25, 0.5, 1.0, 2.0, 4.0]}
"""
LONG = f"""
import os, sys, time
import gflow
{COUNT}
{NORMS}
def f(seed, scale):
    count(f"{{seed}} {{scale}}")
    while sum(1 for line in open(sys.argv[1])) > int(sys.argv[4]):  # it is to be killed
        time.sleep(0.01)
    return norms(seed, scale)
if __name__ == "__main__":
    for _ in range(2):  # the second call computes nothing
        gflow.sweep(f, AXES, sys.argv[2], 2).to_netcdf(sys.argv[3])
"""


@pytest.mark.slow
def test_a_sweep_killed_three_times_loses_only_what_was_in_flight(tmp_path, record_property):
    calls, rng = tmp_path / "calls", random.Random()
    arguments = str(tmp_path / "store"), str(tmp_path / "grid.nc")
    repeats = [0]
    for part in range(3):
        enough = rng.randint(500 * part + 20, 500 * part + 480)  # a random moment, with some work left
        process = start(LONG, str(calls), *arguments, str(500 * part + 600))
        wait_for(lambda enough=enough: len(lines(calls)) >= enough, process)
        kill(process)
        process.communicate()
        assert len(lines(calls)) < 2000
        repeats.append(len(lines(calls)) - len(set(lines(calls))))
    python(LONG, str(calls), *arguments, "10000")
    seen = lines(calls)
    repeats.append(len(seen) - len(set(seen)))
    record_property("repeats", repeats)
    print("points computed twice, after each start:", repeats)
    assert len(set(seen)) == 2000
    # after each kill: at most those in flight in its two workers
    assert repeats[1] == 0 and all(b - a <= 2 for a, b in zip(repeats, repeats[1:], strict=False))

    names: dict = {}
    exec(NORMS, names)
    whole = gflow.sweep(names["norms"], names["AXES"], jobs=1)
    resumed = xarray.load_dataset(arguments[1])
    xarray.testing.assert_equal(resumed.drop_vars("error"), whole.drop_vars("error"))
    assert (resumed.error == "").all() and resumed.norm.shape == (400, 5)


FLOW = """
import numpy as np
import gflow
def loss(n):
    problem = gflow.Problem.factorization(np.diag([1.0, 0.5]))
    model = gflow.DeepLinear((2, 2, 2))
    theta0 = model.init("gaussian", scale=0.1, rng=n)
    return gflow.flow(model, problem, theta0, [40.0, 1e4], rtol=1e-12, method="dop853").loss[-1]
"""
INTERRUPTED = f"""
import json, os, signal, sys, time
{COUNT}
{FLOW}
def f(n):
    count(n)
    while n > 40 and sys.argv[4] == "1000":  # it is to be interrupted
        time.sleep(0.01)
    return loss(n)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background inherit that it is ignored
    size = int(sys.argv[4])
    grid = gflow.sweep(f, {{"n": range(size)}}, sys.argv[2], int(sys.argv[3]))
    values = grid.value.values if "value" in grid else np.full(size, np.nan)
    print(json.dumps([values.tolist(), grid.error.values.tolist(), grid.attrs.get("notes", "")]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_returns_what_is_there_and_no_half_of_a_flow(tmp_path, jobs):
    calls, store = tmp_path / "calls", tmp_path / "store"
    process = start(INTERRUPTED, str(calls), str(store), str(jobs), "1000")
    wait_for(lambda: len(lines(calls)) >= 10, process)
    kill(process, signal.SIGINT)  # as a terminal does: to all of them
    out, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, error
    values, errors, notes = json.loads(out)
    gone = [text != "" for text in errors]
    assert 1 <= sum(gone) <= 999 and {text for text in errors if text} == {"not run: interrupted"}
    assert "points were not run and are missing; the same call goes on" in notes and "interrupted" in error
    assert 1000 - sum(gone) == len(points(store)) and 0 <= len(lines(calls)) - len(points(store)) <= jobs

    # as many again as were reached, with those in flight among them
    size = len(lines(calls)) + 4
    whole, errors, _ = json.loads(python(INTERRUPTED, str(calls), str(store), "1", str(size)))
    names: dict = {}
    exec(FLOW, names)
    assert errors == [""] * size and whole == [names["loss"](n) for n in range(size)]
    seen = lines(calls)
    assert len(set(seen)) == size and len(seen) <= size + jobs
    for before, after, missing in zip(values, whole, gone, strict=False):
        assert np.isnan(before) if missing else before == after


@pytest.mark.slow
def test_two_sweeps_at_once_share_a_store(tmp_path):
    """Two of the same function, and one of another of the same name: nothing is cleared, nothing mixed."""
    store = str(tmp_path / "store")
    call = f"gflow.sweep(f, {{'a': np.arange(60) / 4, 'b': range(4)}}, {store!r}, int(sys.argv[2]))"
    run = f"{call}; print({call}.value.values.tolist())"  # the second call computes nothing
    scripts = [SCRIPT.format(count=COUNT, body=body, run=run) for body in ("return a + b", "return a * b")]
    calls = [str(tmp_path / name) for name in ("sum", "sum", "product")]
    processes = [
        start(scripts[i], calls[n], jobs) for n, (i, jobs) in enumerate(((0, "2"), (0, "1"), (1, "1")))
    ]
    done = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], done
    a, b = np.arange(60)[:, None] / 4, np.arange(4)
    for (out, _), expected in zip(done, (a + b, a + b, a * b), strict=True):
        assert json.loads(out) == expected.tolist()
    sums, products = lines(calls[0]), lines(calls[2])
    assert len(set(sums)) == 240 and len(sums) <= 480 and len(products) == 240
    assert len(points(store)) == 480


DASK = f"""
import json, os, signal, sys, threading, time
import joblib
from dask.distributed import Client, LocalCluster
{COUNT}
{FLOW}
def f(n):
    count(f"{{n}} {{os.getpid()}}")
    matrix = np.random.default_rng(n).standard_normal((40, 40))
    return {{"loss": loss(n) if n % 4 == 0 else 0.0, "values": np.linalg.svd(matrix @ matrix.T)[1]}}

def deadly(n):
    if n == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return n

def seen():
    return [line.split() for line in open(sys.argv[1])] if os.path.exists(sys.argv[1]) else []

def murder(killed):
    while len(seen()) < 40:
        time.sleep(0.002)
    killed.append(int(seen()[-1][1]))
    os.kill(killed[0], signal.SIGKILL)

if __name__ == "__main__":
    killed = []
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=300):
            before = set(client.run(os.getpid).values())
            threading.Thread(target=murder, args=(killed,), daemon=True).start()
            grid = gflow.sweep(f, {{"n": range(160)}}, sys.argv[2])
            calls = seen()
            cluster.scheduler.allowed_failures = 0  # give a point up as soon as it has killed one worker
            dead = gflow.sweep(deadly, {{"n": range(12)}})
    here = gflow.sweep(f, {{"n": range(160)}}, jobs=1)
    print(json.dumps({{"same": bool(grid.identical(here)), "killed one of them": killed[0] in before,
                      "calls": len(calls), "points": len({{n for n, _ in calls}}),
                      "errors": int((grid.error != "").sum()),
                      "dead": [n for n in range(12) if dead.error[n] != ""], "why": dead.error[7].item()}}))
"""


@pytest.mark.slow
def test_a_dask_cluster_that_loses_workers_gives_the_same_bits(tmp_path):
    """One killed from outside, and one by the point that it runs."""
    pytest.importorskip("distributed")
    got = json.loads(python(DASK, str(tmp_path / "calls"), str(tmp_path / "store")).splitlines()[-1])
    calls, why = got.pop("calls"), got.pop("why")
    assert got == {"same": True, "killed one of them": True, "points": 160, "errors": 0, "dead": [7]}
    assert 160 <= calls <= 161  # the one in flight in the worker that was killed
    assert why.startswith("KilledWorker: the worker process that ran it died")
