"""ensemble(): every run equals the single one bit for bit, on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES

import gflow
from gflow.ensembles import flows as many_flows
from gflow.ensembles import runs as many_runs
from gflow.kernels import explicit, stiff
from gflow.objective import Objective

SCALAR = gflow.DeepLinear((1, 1, 1))
UNIT = gflow.Problem.factorization([[1.0]])


def starts(model, runs=5, scale=0.5, seed=0):
    return scale * np.random.default_rng(seed).standard_normal((runs, model.size))


def same(run, single):
    """Two trajectories of the same bits."""
    np.testing.assert_array_equal(run.t, single.t)
    np.testing.assert_array_equal(run.theta, single.theta)
    assert run.counts == single.counts and run.outcome.code == single.outcome.code
    assert run.outcome.warnings == single.outcome.warnings
    if single.dissipation is not None:
        np.testing.assert_array_equal(run.dissipation, single.dissipation)
    if single.events is not None:
        for ours, theirs in zip(run.events, single.events, strict=True):
            np.testing.assert_array_equal(ours, theirs)


# ---- flows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "dop853"])
def test_runs_equal_single_flows(case, method):
    thetas, t = starts(case.model), np.linspace(0.0, case.end, 4)
    runs = gflow.ensemble(case.model, case.problem, thetas, t, method=method, rtol=1e-8)
    assert runs.status.code == "finished" and runs.status.ok and len(runs) == 5
    for r, theta in enumerate(thetas):
        single = gflow.flow(case.model, case.problem, theta, t, method=method, rtol=1e-8)
        same(runs[r], single)
        assert runs.atol[r] == single.spec["atol"]
        np.testing.assert_array_equal(runs.loss[r], single.loss)
        np.testing.assert_array_equal(runs.theta[r], single.theta)


@pytest.mark.parametrize("width", [8, 48, 130])
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_any_width_on_any_number_of_threads(width, jobs):
    rng = np.random.default_rng(1)
    model = gflow.DeepLinear((width, width, width))
    problem = gflow.Problem.factorization(rng.standard_normal((width, width)) / np.sqrt(width))
    thetas = starts(model, 3, 0.3 / np.sqrt(width))
    runs = gflow.ensemble(model, problem, thetas, [0.3, 0.6], rtol=1e-6, jobs=jobs)
    for run, theta in zip(runs, thetas, strict=True):
        same(run, gflow.flow(model, problem, theta, [0.3, 0.6], rtol=1e-6))


def test_more_runs_than_a_block_and_steps_than_a_stretch(monkeypatch):
    """Runs that share buffers, and are interrupted anywhere, leave nothing to one another."""
    monkeypatch.setattr(many_runs, "_STRETCH_SECONDS", 1e-6)
    monkeypatch.setattr(
        many_runs.Runs, "first_budget", property(lambda s: 7, lambda s, v: None), raising=False
    )
    thetas = np.random.default_rng(2).permutation(np.geomspace(1e-9, 2.0, 60))[:, None] * [1.0, -0.5]
    runs = gflow.ensemble(SCALAR, UNIT, thetas, [0.0, 3.0, 30.0], rtol=1e-7, jobs=2)
    for run, theta in zip(runs, thetas, strict=True):
        same(run, gflow.flow(SCALAR, UNIT, theta, [0.0, 3.0, 30.0], rtol=1e-7))


def test_the_escape_times_of_many_starts():
    """u = ab from a = b is logistic: u(t) = 1 / (1 + (1 / u0 - 1) e^(-2 t))."""
    a, t = np.geomspace(1e-5, 1e-1, 200), np.array([0.0, 5.0, 10.0, 20.0])
    runs = gflow.ensemble(SCALAR, UNIT, a[:, None] * [1.0, 1.0], t)
    exact = 1 / (1 + (1 / a[:, None] ** 2 - 1) * np.exp(-2 * t))
    np.testing.assert_allclose(runs.theta.prod(axis=-1), exact, rtol=1e-6)
    np.testing.assert_allclose(runs.loss, 0.5 * (runs.theta.prod(axis=-1) - 1) ** 2, rtol=1e-12)
    drift = [run.gauges.dissipation_defect.max() for run in runs]
    assert max(drift) < 1e-8


def relu(seed=3, n=10, m=12, d=3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    problem = gflow.Problem(x, x @ rng.standard_normal(d) + 0.3 * rng.standard_normal(n))
    model = gflow.TwoLayerReLU(d, m)
    return model, problem, np.stack([model.init("dominated", scale=0.2, rng=s) for s in range(4)])


@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("jobs", [1, 3])
def test_relu_runs_equal_single_flows(events, jobs):
    model, problem, thetas = relu()
    options = {"t": [1.0, 4.0], "events": events, "rtol": 1e-7 if events else 1e-3}
    runs = gflow.ensemble(model, problem, thetas, jobs=jobs, **options)
    total = 0
    for run, theta in zip(runs, thetas, strict=True):
        single = gflow.flow(model, problem, theta, **options)
        same(run, single)
        total += 0 if run.events is None else len(run.events.t)
    assert (total > 10) == events


def test_runs_that_fail_leave_the_others_alone():
    """L = |W - M|^2 / 2 of three layers overflows from 1e200; a long way takes more than 60 steps."""
    model = gflow.DeepLinear((1, 1, 1, 1))
    thetas = np.array([[1.0, 1.0, 0.9], [1e200, 1e200, 1e200], [1e-3, 1e-3, 1e-3], [0.9, 1.0, 1.0]])
    options = {"t": [0.0, 1.0, 1e4], "max_steps": 60, "method": "tsit5", "rtol": 1e-6}
    runs = gflow.ensemble(model, UNIT, thetas, **options)
    singles = [gflow.flow(model, UNIT, theta, **options) for theta in thetas]
    assert runs.codes.tolist() == [single.outcome.code for single in singles]
    assert {"non_finite", "max_steps"} <= set(runs.codes)
    for run, single in zip(runs, singles, strict=True):
        same(run, single)
    assert (
        runs.status.code == "mixed" and not runs.status.ok and "non_finite (first: run 1)" in str(runs.status)
    )
    assert np.isnan(runs.theta[1, 1:]).all() and np.isnan(runs.loss[1, 1:]).all()
    for r, single in enumerate(singles):
        np.testing.assert_array_equal(runs.last[r], single.end)
        assert runs.last_t[r] == single.t[-1]


def test_an_interrupt_keeps_what_was_done(monkeypatch):
    """Stiff runs of a long time, interrupted at the second look."""
    rng = np.random.default_rng(4)
    model = gflow.DeepLinear((4, 4, 4))
    problem = gflow.Problem.factorization(np.diag([100.0, 10.0, 1.0, 0.1]) @ rng.standard_normal((4, 4)))
    looks, wait = [], many_runs.wait

    def press(*arguments, **options):
        looks.append(0)
        if len(looks) == 2:
            raise KeyboardInterrupt
        return wait(*arguments, **options)

    monkeypatch.setattr(many_runs, "wait", press)
    monkeypatch.setattr(many_runs, "_STRETCH_SECONDS", 0.01)
    thetas = starts(model, 400)
    t = np.geomspace(1e-4, 1e3, 9)
    runs = gflow.ensemble(model, problem, thetas, t, method="tsit5", rtol=1e-8)
    assert "interrupted" in runs.codes and runs.status.code in ("mixed", "interrupted")
    started = np.flatnonzero(runs.counts["accepted"] > 0)
    r = int(started[0])
    single = gflow.flow(
        model, problem, thetas[r], t, method="tsit5", rtol=1e-8,
        max_steps=int(runs.counts["accepted"][r] + runs.counts["rejected"][r]),
    )  # fmt: skip
    np.testing.assert_array_equal(runs.last[r], single.end)
    np.testing.assert_array_equal(runs[r].theta, single.theta)
    untouched = np.flatnonzero(runs.counts["accepted"] == 0)
    np.testing.assert_array_equal(runs.last[untouched], thetas[untouched])
    assert np.isnan(runs.theta[untouched]).all()


def test_observables():
    case, t = CASES[3], [0.0, 1.0, 3.0]
    thetas = starts(case.model, 4)
    runs = gflow.ensemble(case.model, case.problem, thetas, t, observe=["loss", "mode_strengths"])
    assert runs["mode_strengths"].shape[:2] == (4, 3)
    np.testing.assert_allclose(runs["loss"], runs.loss, rtol=1e-14)
    single = gflow.flow(case.model, case.problem, thetas[2], t, observe=["loss", "mode_strengths"])
    for name in ("loss", "mode_strengths"):
        np.testing.assert_array_equal(runs[2][name], single[name])
    with pytest.raises(KeyError, match="sharpness"):
        runs["sharpness"]


def test_an_observable_that_raises_makes_one_run_a_failed_one():
    def picky(model, problem, theta):
        if theta[0] < 0:
            raise RuntimeError("too small")
        return theta[0]

    thetas = np.array([[0.1, 0.2], [-0.3, -0.2], [0.2, 0.2]])
    runs = gflow.ensemble(SCALAR, UNIT, thetas, [0.0, 2.0], observe=picky)
    assert runs.codes.tolist() == ["finished", "failed", "finished"]
    assert "too small" in runs[1].status.message and np.isnan(runs["picky"][1]).all()
    np.testing.assert_array_equal(runs["picky"][[0, 2]], runs.theta[[0, 2], :, 0])
    assert np.isfinite(runs.theta).all()


def test_atol_per_run():
    thetas = np.array([[1e-4, 2e-4], [0.1, 0.2]])
    runs = gflow.ensemble(SCALAR, UNIT, thetas, 9.0, atol=[1e-9, 1e-6], rtol=1e-6)
    for r, atol in enumerate((1e-9, 1e-6)):
        same(runs[r], gflow.flow(SCALAR, UNIT, thetas[r], 9.0, atol=atol, rtol=1e-6))


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_run_is_a_trajectory_with_its_cause(through_a_file, tmp_path):
    case, thetas = CASES[7], starts(CASES[7].model, 3)
    runs = gflow.ensemble(case.model, case.problem, thetas, [0.5, 1.0], rtol=1e-6, observe="loss")
    if through_a_file:
        with pytest.raises(ValueError, match=r"Ensemble\.load"):
            gflow.load(runs.save(tmp_path / "runs"))
        runs = gflow.Ensemble.load(tmp_path / "runs")
    again = gflow.ensemble(**runs.spec)
    np.testing.assert_array_equal(again.theta, runs.theta)
    np.testing.assert_array_equal(again.codes, runs.codes)
    run = runs[-1]
    whole = gflow.flow(**run.spec)
    same(run, whole)
    np.testing.assert_array_equal(run["loss"], whole["loss"])
    np.testing.assert_array_equal(run.gauges.dissipation_defect, whole.gauges.dissipation_defect)
    np.testing.assert_array_equal(run.error_estimate().theta, whole.error_estimate().theta)
    with pytest.raises(ValueError, match="repeats it"):
        run.sensitivity()
    with pytest.raises(ValueError, match="start must hold"):
        gflow.flow(case.model, case.problem, None, 2.0, start=run)
    with pytest.raises(IndexError):
        runs[3]


@pytest.mark.parametrize("more", [-1, 0, 1, 30])
def test_a_run_cut_about_the_first_look_at_its_method_is_the_single_one(more):
    model = gflow.DeepLinear((6, 6, 6))
    problem = gflow.Problem.factorization(np.diag(np.geomspace(1.0, 0.01, 6)))
    first = stiff.first_look(Objective(model, problem).nanoseconds)
    thetas = starts(model, 2, 0.1)
    runs = gflow.ensemble(model, problem, thetas, 1e3, rtol=1e-6, max_steps=first + more)
    for r in range(2):
        same(runs[r], gflow.flow(model, problem, thetas[r], 1e3, rtol=1e-6, max_steps=first + more))


def test_stretches_of_runs_that_may_change_their_method_do_not_grow_without_end():
    """A thread's budget is measured in steps that were made: with a run a block it once doubled its exponent each time."""
    model = gflow.DeepLinear((6, 6, 6))
    problem = gflow.Problem.factorization(np.diag(np.geomspace(1.0, 0.01, 6)))
    thetas = starts(model, 15, 0.1)
    runs = gflow.ensemble(model, problem, thetas, 1e3, rtol=1e-6, jobs=1)
    assert (runs.codes == "finished").all()
    same(runs[14], gflow.flow(model, problem, thetas[14], 1e3, rtol=1e-6))


def test_events_through_a_file(tmp_path):
    model, problem, thetas = relu()
    runs = gflow.ensemble(model, problem, thetas[:2], 4.0, rtol=1e-6)
    back = gflow.Ensemble.load(runs.save(tmp_path / "runs.npz"))
    for r in range(2):
        for ours, theirs in zip(back[r].events, runs[r].events, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="holds a trajectory"):
        gflow.Ensemble.load(runs[0].save(tmp_path / "run"))


def test_the_single_run_and_the_ensemble_share_their_machine_code():
    gflow.flow(SCALAR, UNIT, [0.1, 0.1], 1.0)
    gflow.ensemble(SCALAR, UNIT, [[0.1, 0.1]], 1.0)
    assert len(explicit.advance.signatures) == 1


def test_progress(capfd):
    gflow.ensemble(SCALAR, UNIT, np.full((50, 2), 0.1), 5.0, progress=True)
    assert "flows" in capfd.readouterr().out


# ---- descents ----------------------------------------------------------------------------------------------

WAYS = {
    "gd": {},
    "momentum": {"optimizer": "momentum", "momentum": 0.8},
    "adam": {"optimizer": "adam"},
    "batches": {"batch_size": 3, "rng": [5, 1, 9]},
    "batches, adam": {"batch_size": 2, "rng": [3, 4, 5], "optimizer": "adam", "replacement": True},
    "kink": {"kink": 0.5},
}
PICK = np.random.default_rng(8)
SAMPLES = gflow.Problem(PICK.standard_normal((7, 3)), PICK.standard_normal(7), weight_decay=0.1)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("jobs", [1, 3])
def test_descents_equal_single_descents(options, jobs):
    model = gflow.TwoLayerReLU(3, 4)
    thetas, sizes = starts(model, 3), np.array([0.01, 0.05, 0.1])
    runs = gflow.ensemble(
        model,
        SAMPLES,
        thetas,
        step_size=sizes,
        n_steps=50,
        save_every=7,
        jobs=jobs,
        observe="loss",
        **options,
    )
    for r in range(3):
        one = {**options, "rng": options["rng"][r]} if "rng" in options else options
        single = gflow.descend(model, SAMPLES, thetas[r], sizes[r], 50, save_every=7, observe="loss", **one)
        same(runs[r], single)
        np.testing.assert_array_equal(runs.t[r], single.t)
        np.testing.assert_array_equal(runs["loss"][r], single["loss"])
        np.testing.assert_array_equal(gflow.descend(**runs[r].spec).theta, single.theta)
        longer = gflow.descend(model, SAMPLES, None, sizes[r], 80, start=runs[r])
        whole = gflow.descend(model, SAMPLES, thetas[r], sizes[r], 80, **one)
        np.testing.assert_array_equal(longer.end, whole.end)
    np.testing.assert_array_equal(gflow.ensemble(**runs.spec).theta, runs.theta)


def test_seeds_from_one_start():
    model = gflow.DeepLinear((3, 2, 1))
    theta = starts(model, 1)[0]
    runs = gflow.ensemble(
        model, SAMPLES, theta, step_size=[0.05] * 20, n_steps=30, batch_size=2, rng=100, save_every=30
    )
    for r in (0, 1, 19):
        single = gflow.descend(model, SAMPLES, theta, 0.05, 30, batch_size=2, rng=100 + r, save_every=30)
        np.testing.assert_array_equal(runs.theta[r], single.theta)
    assert len(np.unique(runs.theta[:, -1, 0])) == 20
    fresh = gflow.ensemble(model, SAMPLES, theta, step_size=0.05, n_steps=9, batch_size=2)
    np.testing.assert_array_equal(gflow.ensemble(**fresh.spec).theta, fresh.theta)


def test_schedules_and_their_times():
    model, theta = gflow.DeepLinear((3, 2, 1)), starts(gflow.DeepLinear((3, 2, 1)), 1)[0]
    sizes = np.array([[0.1], [0.02]]) / np.arange(1, 11)
    runs = gflow.ensemble(model, SAMPLES, theta, step_size=sizes, n_steps=10)
    for r in range(2):
        same(runs[r], gflow.descend(model, SAMPLES, theta, sizes[r], 10))
    common = gflow.ensemble(model, SAMPLES, [theta, 2 * theta], step_size=lambda k: 0.1 / (k + 1), n_steps=10)
    assert common.t.shape == (11,)
    np.testing.assert_array_equal(common.theta[0], runs.theta[0])


def test_the_stability_limit_as_an_ensemble_over_step_sizes():
    model = gflow.DeepLinear((3, 1))
    sharpness = gflow.observe.sharpness(model, SAMPLES, np.zeros(3))
    sizes = np.linspace(0.5, 1.5, 21) * 2 / sharpness
    runs = gflow.ensemble(model, SAMPLES, np.ones(3), step_size=sizes, n_steps=3000, save_every=3000)
    grown = (runs.codes == "non_finite") | (runs.loss[:, -1] > runs.loss[:, 0])
    away = abs(sizes * sharpness - 2) > 0.01
    np.testing.assert_array_equal(grown[away], sizes[away] * sharpness > 2)
    assert 0 < grown.sum() < 21 and "non_finite" in runs.codes


def test_interrupted_descents_go_on(monkeypatch):
    looks, wait = [], many_runs.wait

    def press(*arguments, **options):
        looks.append(0)
        if len(looks) == 2:
            raise KeyboardInterrupt
        return wait(*arguments, **options)

    monkeypatch.setattr(many_runs, "wait", press)
    monkeypatch.setattr(many_runs, "_STRETCH_SECONDS", 0.01)
    n, thetas = 200_000, starts(SCALAR, 60)
    options = {"optimizer": "adam", "save_every": n}
    runs = gflow.ensemble(SCALAR, UNIT, thetas, step_size=1e-4, n_steps=n, **options)
    assert "interrupted" in runs.codes and len(runs.outcomes) == 60
    r = int(np.argmax((runs.codes == "interrupted") & (runs.counts["steps"] > 0)))
    assert 0 < runs.counts["steps"][r] < n and runs.last_t[r] == runs.counts["steps"][r] * 1e-4
    rest = gflow.descend(SCALAR, UNIT, None, 1e-4, n, start=runs[r], save_every=n)
    whole = gflow.descend(SCALAR, UNIT, thetas[r], 1e-4, n, **options)
    np.testing.assert_array_equal(rest.end, whole.end)


def test_a_descent_that_diverges():
    thetas = np.array([[0.5, 0.5], [3.0, 2.0]])
    runs = gflow.ensemble(SCALAR, UNIT, thetas, step_size=0.7, n_steps=400, save_every=400)
    assert runs.codes.tolist() == ["finished", "non_finite"]
    single = gflow.descend(SCALAR, UNIT, thetas[1], 0.7, 400, save_every=400)
    same(runs[1], single)
    assert runs[1].outcome == single.outcome


def test_a_model_of_ones_own():
    import numba

    @numba.njit
    def bowl(t, theta, data, dims, work, out):
        work[0] += 1.0  # scratch: what a run leaves there is not the next one's
        for i in range(theta.size):
            out[i] = data[i] * theta[i] * (1.0 if work[0] < 1e9 else 2.0)

    class Bowl:
        size = 2
        gradient = bowl

        def kernel_arguments(self, problem):
            return np.array([1.0, 10.0]), [], 1

    thetas = np.array([[1.0, 1.0], [2.0, 1.0]])
    runs = gflow.ensemble(Bowl(), None, thetas, [0.5, 2.0], rtol=1e-8)
    exact = thetas[:, None] * np.exp(-np.array([1.0, 10.0]) * np.array([[0.5], [2.0]]))
    np.testing.assert_allclose(runs.theta, exact, rtol=1e-6, atol=1e-10)
    for run, theta in zip(runs, thetas, strict=True):
        same(run, gflow.flow(Bowl(), None, theta, [0.5, 2.0], rtol=1e-8))
    with pytest.raises(ValueError, match=r"model\.loss"):
        runs.loss  # noqa: B018


def test_what_does_not_fit_into_memory_is_refused():
    with pytest.raises(ValueError, match=r"thetas asks for .* GB"):
        gflow.ensemble(SCALAR, UNIT, np.full((10**5, 2), 0.1), np.linspace(0, 1, 10**7))
    with pytest.raises(ValueError, match=r"save_every asks for .* GB"):
        gflow.ensemble(SCALAR, UNIT, np.full((10**5, 2), 0.1), step_size=0.1, n_steps=10**8)


def test_large_products_use_the_threads_of_blas_instead():
    from gflow._run import blas_pays

    assert not blas_pays(Objective(SCALAR, UNIT))
    wide = gflow.DeepLinear((600, 600))
    assert blas_pays(Objective(wide, gflow.Problem.factorization(np.eye(600))))


def test_the_pace_of_stiff_flows_is_that_of_steps_taken(monkeypatch):
    """An allowance of steps that were not taken must not feed the next one, without end."""
    rng = np.random.default_rng(0)
    problem = gflow.Problem(rng.standard_normal((5, 10)), rng.standard_normal(5))
    model, allowed = gflow.Diagonal(10, depth=3), []
    advance = many_flows.SingleWorker.advance

    def watched(self, budget):
        before = self.steps
        done = advance(self, budget)
        allowed.append((budget, self.steps - before))
        return done

    monkeypatch.setattr(many_flows.SingleWorker, "advance", watched)
    runs = gflow.ensemble(model, problem, [model.init(scale=0.3)], 1e3, jobs=1)
    taken = int(runs.counts["accepted"][0] + runs.counts["rejected"][0])
    assert sum(steps for _, steps in allowed) == taken
    assert all(steps <= budget for budget, steps in allowed)
