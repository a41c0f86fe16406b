"""What the runs of huh2021 measure, on small ones."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
from scipy.stats import ttest_1samp

from gflow import observe, papers
from gflow._blas import one_thread
from gflow.papers import huh2021 as paper
from gflow.papers import rank_training as training
from gflow.papers.rank_training import Setting, Task
from gflow.theory import rank


def test_fraction_is_the_rank_of_roy_and_vetterli():
    matrix = np.random.default_rng(0).standard_normal((4, 7))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    known = observe.effective_ranks(matrix)
    assert 4 * training.fraction(sigma) == pytest.approx(known["roy_vetterli"], rel=1e-14)
    assert training.entropy(matrix) == known["entropy"]
    assert training.fraction(np.array([1.0, 0.0, 0.0, 0.0])) == 0.25


def test_a_mean_is_no_surer_than_its_confidence_interval():
    """The conclusion's uncertainty is that of Student's test, relative to what is predicted."""
    values = np.random.default_rng(0).normal(2.0, 0.1, 25)
    conclusion = paper._mean("x", values, 0.1, 2.0)
    uncertainty = np.finfo(float).eps * conclusion.amplification
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.99)
    assert uncertainty == pytest.approx((high - low) / 2 / 2.0, rel=1e-12)


def test_products_know_their_factors():
    drawn = {name: paper.products(name, 60, 3, (1, 2)) for name in paper.FACTORS}
    assert drawn["gaussian"].circle < 0.1 < drawn["orthogonal"].circle
    assert drawn["gaussian"].overlap < 0.1 < drawn["transposed"].overlap
    np.testing.assert_allclose(drawn["orthogonal"].ranks(1.0), 1.0, rtol=1e-12)
    # of A and its transpose the singular values are the squares of those of A
    sigma = drawn["transposed"].sigma
    np.testing.assert_allclose(sigma[:, 1], sigma[:, 0] ** 2, rtol=1e-10, atol=1e-12)


def test_random_linear_networks_follow_the_limit():
    nets = paper.random_nets(40)
    for i in (0, 1, 2):  # depths 1, 2 and 4, of width 32
        ranks = np.exp(nets.linear[:, i])
        limit = np.exp(rank.entropy_rank(paper.WIDTH, paper.NET_DEPTHS[i], 2.0))
        assert abs(ranks.mean() - limit) < 0.03 * limit + 4 * ranks.std() / np.sqrt(40)
    np.testing.assert_allclose(nets.linear[:, 0], nets.relu[:, 0], atol=0.2)  # no ReLU yet, other weights
    assert np.all(nets.relu.mean(axis=0)[1:] < nets.linear.mean(axis=0)[1:])


@pytest.mark.parametrize("name", training.TASKS)
def test_all_k_begin_as_one_function(name):
    task = Task(name, 3)
    x = task.samples[2][:20]
    one = task.model(1).function(task.start("same function", 1), x)
    for k in (2, 4):
        model, theta = task.model(k), task.start("same function", k)
        np.testing.assert_allclose(model.function(theta, x), one, rtol=0, atol=1e-13 * np.abs(one).max())
        other = model.function(task.start("Gaussian", k), x)
        assert np.abs(other - one).max() > 0.01
    zero = np.zeros(task.model(1).size)
    assert task.test_error(task.model(1), zero) == pytest.approx(
        1.0 if name == training.TASKS[0] else 0.9, abs=0.02
    )


def test_starts_have_the_size_they_say():
    for depth in (1, 2, 4):
        setting = Setting(2, depth)
        w = setting.model.end_to_end(setting.start("balanced"))
        np.testing.assert_allclose(w @ w.T, 0.01 * np.eye(16), atol=1e-15)
        assert observe.imbalance_norms(
            setting.model, setting.problem, setting.start("balanced")
        ) == pytest.approx(np.zeros(depth - 1), abs=1e-14)
        large, small = (setting.model.end_to_end(setting.start(s)) for s in training.STARTS[:2])
        np.testing.assert_allclose(small, 0.1 * large, rtol=1e-12, atol=1e-15)


def test_training_ends_in_an_interpolator_that_the_least_norm_one_bounds():
    """One matrix: every optimiser but Adam stays in the start's distance; all come down to the loss asked for."""
    with one_thread():  # as in a sweep
        runs = training.train(1, 0, 2, "N(0, 1/n)", 5000)
    assert tuple(runs.optimizer.values) == training.OPTIMIZERS
    assert np.all(runs.code == "stopped") and np.all(runs.loss <= training.TRAINED)
    by_name = {str(r.optimizer.values): float(r) for r in runs["rank"]}
    for name in ("gradient descent", "SGD", "momentum"):  # the same affine space, the same nearest point
        assert by_name[name] == pytest.approx(by_name["flow"], rel=0.02)
    assert abs(by_name["Adam"] - by_name["flow"]) > 0.1


def test_a_run_that_was_cut_off_is_counted_and_said():
    dims = ("depth", "seed", "teacher", "start", "optimizer")
    axes = {"depth": [1, 2], "seed": [0], "teacher": training.TEACHERS, "start": training.STARTS}
    axes = {name: list(values) for name, values in axes.items()} | {"optimizer": list(training.OPTIMIZERS)}
    shape = [len(values) for values in axes.values()]
    rank, code = np.empty(shape), np.full(shape, "stopped ")
    rank[0], rank[1] = 2.0, 1.5
    code[:] = "stopped"
    code[0, 0, 0] = "finished"
    runs = xarray.Dataset(
        {"rank": (dims, rank), "code": (dims, code), "numerical_error": (dims, np.zeros(shape))}, axes
    )
    observed = training.linear_observations(runs)
    assert observed[-1].value == len(training.STARTS) * len(training.OPTIMIZERS)
    assert "SGD, small, depth 1" in observed[-1].note
    assert observed[-2].value == 1.0  # the rank falls in every pair


def test_changes_over_seeds_say_no_more_than_two_seeds_can():
    """A change of many standard errors of two seeds is undecided; the same of eight is not."""
    for seeds, said in ((2, "undecided"), (8, "lower")):
        dims, change = ("seed", "k", "start", "optimizer"), -1.0 + 0.2 * np.tile([-1.0, 1.0], seeds // 2)
        values = np.stack([np.full(seeds, 5.0), 5.0 + change], axis=1)[..., None, None]
        grid = xarray.Dataset(
            {
                "rank": (dims, values),
                "test_error": (dims, values),
                "code": (dims, np.full(values.shape, "stopped")),
            },
            {"seed": range(seeds), "k": [1, 4], "start": ["Gaussian"], "optimizer": ["momentum"]},
        )
        first = training.relu_observations({"digits": grid})[0]
        assert first.value == pytest.approx(-1.0) and first.note.endswith(f"at 95 % {said}")


def fails(point):
    if point == 2:
        raise ArithmeticError("no")
    return 1.0


def stops(point):
    if point == 2:
        raise KeyboardInterrupt
    return 1.0


def test_points_are_kept_and_what_stopped_a_sweep_ends_the_paper(tmp_path):
    def run(function):
        return training._swept(function, {"point": [1, 2]}, {}, tmp_path, 1, lambda part, note: None, "x")

    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="x: ArithmeticError: no"):
        run(fails)
    with pytest.warns(UserWarning), pytest.raises(KeyboardInterrupt):
        run(stops)


@pytest.mark.slow
def test_the_page_on_small_runs_and_again_from_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(training.LINEAR, "quick", ({"depth": [1, 2], "seed": [0]}, {"steps": 1000}))
    monkeypatch.setitem(training.RELU, "quick", ({"seed": [0, 1], "k": [1, 2]}, {"all_flows": False}))
    monkeypatch.setattr(paper, "claims", lambda size: [])  # each has a test of its own
    monkeypatch.setattr(paper, "DRAWS", 2)
    monkeypatch.setattr(paper, "SMALL_DRAWS", 2)
    monkeypatch.setattr(training, "RELU_STARTS", training.RELU_STARTS[:1])
    section = papers.reproduce("huh2021", tmp_path, "quick")
    assert not section.failures
    assert {p.path.stem for p in section.plates} == {
        "products",
        "random_nets",
        "training",
        "overparametrised",
    }
    assert all(
        p.path.exists() and p.path.with_suffix(".pdf").exists() and "2103.10427" in p.caption
        for p in section.plates
    )
    assert sum(row.verdict == "observation" for row in section.rows) > 20
    kept = sorted((tmp_path / "huh2021" / "points").rglob("*.point"))
    assert len(kept) == 12 + 8
    times = [path.stat().st_mtime_ns for path in kept]
    for size, train in (("quick", training.least_squares), ("quick", training.overparametrised)):
        train(size, tmp_path / "huh2021", lambda part, note: None)
    assert [path.stat().st_mtime_ns for path in kept] == times
