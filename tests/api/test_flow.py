"""flow(): continuation, observables, stopping, interruption, limits."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import CASES

import gflow
from gflow import _flows, _run
from gflow._flows import Flow
from gflow.kernels import abi, explicit, lossclock, stiff
from gflow.objective import Objective

SCALAR, MODES, DEEP = CASES[0], CASES[3], CASES[7]


def flow(case, t=None, **settings):
    return gflow.flow(case.model, case.problem, case.theta0, case.end if t is None else t, **settings)


def same_run(a, b):
    """Equal bit for bit in everything that was computed."""
    np.testing.assert_array_equal(a.t, b.t)
    np.testing.assert_array_equal(a.theta, b.theta)
    np.testing.assert_array_equal(a.dissipation, b.dissipation)
    np.testing.assert_array_equal(a.steps, b.steps)
    assert a.counts == b.counts and a.outcome == b.outcome
    for name in ("clock", "counters", "theta", "theta_before", "checkpoints", "checkpoint_times"):
        np.testing.assert_array_equal(a.state[name], b.state[name])


def test_one_time_saves_start_and_end():
    run = flow(SCALAR, 2.0)
    np.testing.assert_array_equal(run.t, [0.0, 2.0])
    np.testing.assert_array_equal(run.theta[0], SCALAR.theta0)
    np.testing.assert_array_equal(run.end, run.theta[-1])


def test_times_are_saved_as_given():
    times = [0.5, 0.6, 4.0]
    run = flow(SCALAR, times)
    np.testing.assert_array_equal(run.t, times)
    np.testing.assert_array_equal(flow(SCALAR, [0.0]).theta, [SCALAR.theta0])


def test_arguments_are_not_changed():
    theta0, times = DEEP.theta0.copy(), np.linspace(0.0, 1.0, 4)
    run = gflow.flow(DEEP.model, DEEP.problem, theta0, times)
    np.testing.assert_array_equal(theta0, DEEP.theta0)
    theta0[:], times[:] = 0.0, 0.0
    np.testing.assert_array_equal(run.spec["theta0"], DEEP.theta0)
    assert run.t[-1] == 1.0


def test_data_of_a_problem_cannot_change():
    x, y = np.ones((3, 2)), np.ones((3, 1))
    problem = gflow.Problem(x, y)
    x[:] = 5.0
    assert problem.X.max() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.X[0, 0] = 2.0


@pytest.mark.parametrize("method", ["tsit5", "dop853"])
@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_continuation_equals_the_uninterrupted_run(case, method, through_a_file, dense, tmp_path):
    # several times within one step, on both sides of the cut
    cut = 0.4 * case.end
    times = np.union1d(np.linspace(0.0, case.end, 5), cut * (1 + 1e-6 * np.arange(-3, 4)))
    whole = flow(case, times, method=method, rtol=1e-7, dense=dense)
    head = flow(case, times[times <= cut], method=method, rtol=1e-7, dense=dense)
    if through_a_file:
        head = gflow.load(head.save(tmp_path / "head"))
    tail = gflow.flow(case.model, case.problem, None, times[times > cut], start=head, dense=dense)
    np.testing.assert_array_equal(np.vstack([head.theta, tail.theta]), whole.theta)
    np.testing.assert_array_equal(np.append(head.dissipation, tail.dissipation), whole.dissipation)
    np.testing.assert_array_equal(np.concatenate([head.steps.t, tail.steps.t]), whole.steps.t)
    if not dense:
        np.testing.assert_array_equal(tail.state["theta"], whole.state["theta"])
        assert {k: v for k, v in tail.counts.items() if k != "gradients"} == {
            k: v for k, v in whole.counts.items() if k != "gradients"
        }
    np.testing.assert_array_equal(
        tail.gauges.dissipation_defect, whole.gauges.dissipation_defect[times > cut]
    )


def test_continuation_of_a_continuation_and_of_a_stopped_run():
    whole = flow(MODES, np.linspace(0.0, 7.0, 8))
    part = flow(MODES, 1.0)
    for end in range(2, 8):
        part = gflow.flow(MODES.model, MODES.problem, None, [float(end)], start=part)
        np.testing.assert_array_equal(part.end, whole.theta[end])
    stopped = flow(MODES, [0.0, 7.0], stop=lambda t, theta: t > 2.0)
    np.testing.assert_array_equal(
        gflow.flow(MODES.model, MODES.problem, None, [7.0], start=stopped).end, whole.end
    )
    limited = flow(MODES, [0.0, 7.0], max_steps=20)
    assert limited.status.code == "max_steps"
    np.testing.assert_array_equal(
        gflow.flow(MODES.model, MODES.problem, None, [7.0], start=limited, max_steps=1000).end, whole.end
    )


def test_continuation_leaves_its_start_as_it_was():
    head = flow(MODES, 1.0)
    before = {name: value.copy() for name, value in head.state.items()}
    first, second = (gflow.flow(MODES.model, MODES.problem, None, [3.0], start=head) for _ in range(2))
    same_run(first, second)
    for name, value in head.state.items():
        np.testing.assert_array_equal(value, before[name])


def test_the_spec_repeats_the_run(case):
    run = flow(case, np.linspace(0.0, case.end, 6), observe=["loss"])
    again = gflow.flow(**run.spec)
    same_run(run, again)
    np.testing.assert_array_equal(run["loss"], again["loss"])


def test_the_spec_of_a_continuation_repeats_its_states_from_the_start():
    tail = gflow.flow(MODES.model, MODES.problem, None, [4.0, 7.0], start=flow(MODES, 1.0))
    again = gflow.flow(**tail.spec)
    np.testing.assert_array_equal(again.t, [4.0, 7.0])
    np.testing.assert_array_equal(again.theta, tail.theta)
    # and so its error can be measured
    assert tail.error_estimate().theta.max() <= 30 * 1e-9


def test_dense_output_joins_the_saved_states(case):
    times = np.linspace(0.0, case.end, 9)
    run = flow(case, times, dense=True, rtol=1e-7)
    # the same polynomials, summed in another order
    np.testing.assert_allclose(run.at(times), run.theta, rtol=0, atol=1e-13 * abs(run.theta).max())
    assert run.at(0.1 * case.end).shape == (case.model.size,)
    assert run.at(np.full((2, 3), 0.1 * case.end)).shape == (2, 3, case.model.size)


def test_observables_by_name_callable_and_dict():
    def first(model, problem, theta):
        return theta[0]

    times = np.linspace(0.0, 5.0, 6)
    run = flow(MODES, times, observe=["singular_values", first, "loss"])
    np.testing.assert_array_equal(run["first"], run.theta[:, 0])
    np.testing.assert_array_equal(run["loss"], run.loss)
    assert run["singular_values"].shape == (6, 2)
    np.testing.assert_array_equal(
        run["singular_values"], np.linalg.svd(MODES.model.end_to_end(run.theta), compute_uv=False)
    )
    run = flow(MODES, times, observe={"top": gflow.observe.sharpness, "w": first, "named": "stable_rank"})
    assert set(run.observed) == {"top", "w", "named"}
    np.testing.assert_array_equal(gflow.observe.along(run, "stable_rank"), run["named"])
    np.testing.assert_array_equal(flow(MODES, times, observe="loss")["loss"], run.loss)
    np.testing.assert_array_equal(flow(MODES, times, observe=first)["first"], run.theta[:, 0])
    with pytest.raises(KeyError, match=r"'ntk' was not observed.*observe=\['ntk'\]"):
        run["ntk"]


def test_stop_is_asked_after_every_step_and_ends_the_run():
    asked = []

    def high(t, theta):
        asked.append(t)
        return theta[0] > 0.5

    times = np.linspace(0.0, 6.0, 61)
    run = flow(SCALAR, times, stop=high, observe="loss", rtol=1e-11)
    assert run.status.code == "stopped" and run.status.ok
    assert run.end[0] > 0.5 and run.t[-1] == asked[-1] == run.state["clock"][0]
    accepted = run.steps.accepted
    np.testing.assert_array_equal(asked, np.append(run.steps.t[accepted], run.t[-1]))
    whole = flow(SCALAR, times, rtol=1e-11)
    np.testing.assert_array_equal(run.t[:-1], times[times < run.t[-1]])
    np.testing.assert_array_equal(run.theta[:-1], whole.theta[: len(run.t) - 1])
    np.testing.assert_array_equal(run["loss"], run.loss)
    assert flow(SCALAR, 6.0, stop=lambda t, theta: True).counts["accepted"] == 0


def test_max_steps_returns_what_there_is():
    run = flow(MODES, np.linspace(0.0, 7.0, 50), max_steps=10, observe="loss")
    assert run.status.code == "max_steps" and not run.status.ok
    assert "max_steps = 10" in run.status.message
    assert run.counts["accepted"] + run.counts["rejected"] == 10
    assert run.t[-1] == run.state["clock"][0] and len(run["loss"]) == len(run.t)
    np.testing.assert_array_equal(run["loss"], run.loss)


@pytest.mark.parametrize("where", ["observe", "stop"])
def test_an_interrupt_returns_what_there_is(where):
    keys = []

    def observable(model, problem, theta):
        if theta[0] > 0.5 and not keys:
            keys.append("Ctrl-C")
            raise KeyboardInterrupt
        return theta[0]

    def stop(t, theta):
        return bool(observable(None, None, theta) > 1)

    run = flow(SCALAR, np.linspace(0.0, 6.0, 40), **{where: observable if where == "observe" else stop})
    assert run.status.code == "interrupted" and not run.status.ok
    assert "interrupted" in run.status.message and "start=" in run.status.message
    assert run.t[-1] == min(run.state["clock"][0], 6.0) > 0
    assert len(run.t) == len(run.theta)
    for values in run.observed.values():
        np.testing.assert_array_equal(values, run.theta[:, 0])
    on = gflow.flow(SCALAR.model, SCALAR.problem, None, [9.0], start=run)
    np.testing.assert_array_equal(on.end, flow(SCALAR, [9.0]).end)


@pytest.mark.parametrize("steps", [5, 40])
@pytest.mark.parametrize("method", ["tsit5", "auto", "bdf", "by the loss"])
def test_an_interrupt_of_a_short_run_returns_what_there_is(method, steps, monkeypatch):
    """Its signals are not watched: the interrupt shows as an exception right after the compiled code."""
    problem = gflow.Problem([[1.0, 2.0], [3.0, -1.0], [0.5, 0.1]], [1.0, 1.0, -1.0], "logistic")
    model, theta0, given = (
        gflow.DeepLinear((2, 20, 1)),
        gflow.DeepLinear((2, 20, 1)).init("gaussian", 0.5, rng=0),
        {},
    )
    times = np.geomspace(0.01, 1e6, 30)
    if method == "by the loss":
        given, times = {"clock": "loss"}, 0.5 + np.linspace(0.1, 10.0, 30)
    else:
        given = {"method": method}
    whole = gflow.flow(model, problem, theta0, times, rtol=1e-4, **given)
    call = abi.call

    def struck(loop, *arguments):
        if loop not in (explicit.run, stiff.run, lossclock.run):
            return call(loop, *arguments)
        *arguments, budget, most = arguments
        call(loop, *arguments, min(budget, steps), most)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Flow, "ready", property(lambda self: True))
        patch.setattr(_flows.abi, "call", struck)
        run = gflow.flow(model, problem, theta0, times, rtol=1e-4, **given)
    assert run.status.code == "interrupted" and run.counts["accepted"] + run.counts["rejected"] <= steps
    on = gflow.flow(model, problem, None, times[times > run.t[-1]], start=run, **given)
    np.testing.assert_array_equal(on.theta, whole.theta[-len(on.theta) :])
    changes = [name for run_ in (run, on) for name in run_.methods.name.tolist()]
    assert list(dict.fromkeys(changes)) == list(dict.fromkeys(whole.methods.name.tolist()))


def test_signals_are_watched_where_an_interrupt_could_lose_something(monkeypatch):
    """Events at kinks are taken out of the loop's table after each stretch; a loop not yet compiled takes its time."""
    relu = gflow.TwoLayerReLU(2, 3), gflow.Problem([[1.0, 0.5], [-0.3, 1.0]], [1.0, -1.0])
    theta0 = relu[0].init("balanced", scale=0.5, rng=0)
    for _ in range(2):
        gflow.flow(*relu, theta0, 1.0)
    seen = []
    enter = _run.Interrupts.__enter__
    monkeypatch.setattr(_run.Interrupts, "__enter__", lambda self: seen.append(1) or enter(self))
    gflow.flow(*relu, theta0, 1.0)
    assert seen == [1]
    flow(SCALAR, 5.0)
    before = len(seen)
    flow(SCALAR, 5.0)
    assert len(seen) == before
    monkeypatch.setattr(abi, "_ENTRIES", {})
    flow(SCALAR, 5.0)
    assert len(seen) == before + 1


def test_what_is_collected_late_is_what_there_is():
    """A trajectory fills in most of its fields when one of them is asked for."""
    run = flow(SCALAR, 5.0)
    for other in (
        copy.copy(run),
        pickle.loads(pickle.dumps(run)),
        dataclasses.replace(flow(SCALAR, 5.0), solve=None),
    ):
        same_run(run, other)
        assert other.versions == run.versions and other.log_time is None and other.events is None
    kept = weakref.ref(flow(SCALAR, 5.0))
    assert kept() is None
    fresh = flow(SCALAR, 5.0)
    assert "_later" in vars(fresh) and fresh.counts == run.counts and "_later" not in vars(fresh)
    with pytest.raises(AttributeError, match="no attribute 'losss'"):
        getattr(run, "losss")  # noqa: B009  as a user would write run.losss
    for name in vars(gflow.trajectory.Trajectory(run.t, run.theta, run.outcome, run.counts)):
        getattr(run, name)


def test_what_is_collected_late_is_there_for_all_threads():
    for _ in range(20):
        run = flow(SCALAR, 5.0)
        with ThreadPoolExecutor(4) as pool:
            counts = list(
                pool.map(lambda name, run=run: getattr(run, name) is not None, ["counts", "state"] * 4)
            )
        assert all(counts)


def test_an_attribute_error_of_a_users_model_is_not_taken_for_a_missing_field():
    class Careless(gflow.DeepLinear):
        def invariants(self, theta):
            return theta.losss

    model = Careless((1, 1, 1))
    run = gflow.flow(model, SCALAR.problem, [0.1, 0.2], 1.0)
    with pytest.raises(AttributeError, match="'numpy.ndarray' object has no attribute 'losss'"):
        run.gauges  # noqa: B018


LONG = """
    import signal
    import numpy as np, gflow
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background inherit that it is ignored
    rng = np.random.default_rng(0)
    model = gflow.DeepLinear((20, 20, 20))
    problem = gflow.Problem(rng.standard_normal((60, 20)), rng.standard_normal((60, 20)))
    announced = []

    def announce(model, problem, theta):
        announced.append(True)
        if len(announced) == 2:  # the first call is a check before anything runs
            print("running", flush=True)
        return theta[0]

    theta0, times = model.init("gaussian", scale=0.1), np.linspace(0, 1e7, 11)
    run = gflow.flow(model, problem, theta0, times, method="tsit5", max_steps=10**9, observe=announce)
    print(run.status.code, len(run.t) == len(run.theta), 0 < run.t[-1] < 1e7, np.isfinite(run.theta).all())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
def test_ctrl_c_returns_a_partial_trajectory():
    environment = {**os.environ, "PYTHONPATH": str(Path(gflow.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(LONG)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        try:
            assert child.stdout.readline().strip() == "running"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=300)
        finally:
            child.kill()
    assert out.split() == ["interrupted", "True", "True", "True"], err


def test_progress_needs_no_terminal(capsys):
    plain = flow(SCALAR, 5.0)
    shown = flow(SCALAR, 5.0, progress=True)
    same_run(plain, shown)
    run = gflow.descend(SCALAR.model, SCALAR.problem, SCALAR.theta0, 0.1, 20, progress=True)
    assert run.status.code == "finished"


def test_status_reads_as_a_sentence():
    run = flow(MODES, 1.0)
    assert run.status.ok and str(run.status).startswith("Reached t = 1 in")
    assert repr(run).startswith(f"Trajectory: 2 states of {MODES.model.size} parameters, t = 0 to 1.")


def test_at_needs_dense_and_stays_within_the_run():
    with pytest.raises(ValueError, match="dense=True"):
        flow(SCALAR, 1.0).at(0.5)
    run = flow(SCALAR, 1.0, dense=True)
    for outside in (-0.1, 1e3, np.nan):
        with pytest.raises(ValueError, match="t must lie within the run"):
            run.at(outside)


def test_a_gradient_flow_goes_down_and_ends_at_rest():
    run = flow(DEEP, np.linspace(0.0, 200.0, 50), observe="gradient_norm")
    assert np.all(np.diff(run.loss) <= 1e-12 * run.loss[0])
    assert run["gradient_norm"][-1] < 1e-3 * run["gradient_norm"][0]
    np.testing.assert_allclose(
        run["gradient_norm"][0], np.linalg.norm(Objective(DEEP.model, DEEP.problem).gradient(DEEP.theta0))
    )


def test_an_observer_that_fails_on_the_way_keeps_the_run():
    def fragile(model, problem, theta):
        if theta[0] > 0.5:
            raise RuntimeError("no such thing")
        return theta[0]

    run = flow(SCALAR, np.linspace(0.0, 6.0, 40), observe=fragile)
    assert run.status.code == "failed" and "observe['fragile'] raised RuntimeError" in run.status.message
    seen = np.isfinite(run["fragile"])
    assert 0 < seen.sum() < len(run.t)
    np.testing.assert_array_equal(run["fragile"][seen], run.theta[seen, 0])


def test_an_observer_that_fails_at_once_raises_before_anything_runs():
    def broken(model, problem, theta):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        flow(SCALAR, 6.0, observe=broken)


def test_a_stopped_dense_run_with_observers_keeps_all_of_it():
    run = flow(SCALAR, 6.0, observe="loss", dense=True, stop=lambda t, theta: t > 1.0)
    assert run.status.code == "stopped" and len(run["loss"]) == len(run.t)
    np.testing.assert_allclose(run.at(run.t[-1]), run.end, rtol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1e-30, 1e-200])
def test_the_default_atol_follows_the_size_of_the_start(size):
    run = gflow.flow(SCALAR.model, SCALAR.problem, [size, size], 1e-3, rtol=1e-8)
    assert run.spec["atol"] == pytest.approx(1e-8 * 1e-3 * size, rel=1e-12)
