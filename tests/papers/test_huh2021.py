"""What the runs of huh2021 measure, on small ones."""

from __future__ import annotations

import numpy as np
import pytest

from gflow import observe, papers
from gflow.claims import Conclusion
from gflow.papers import huh2021 as paper
from gflow.papers import rank_training as training
from gflow.papers.rank_training import Setting, Task, Trained
from gflow.theory import rank


def test_fraction_is_the_rank_of_roy_and_vetterli():
    matrix = np.random.default_rng(0).standard_normal((4, 7))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    known = observe.effective_ranks(matrix)
    assert 4 * training.fraction(sigma) == pytest.approx(known["roy_vetterli"], rel=1e-14)
    assert training.entropy(matrix) == known["entropy"]
    assert training.fraction(np.array([1.0, 0.0, 0.0, 0.0])) == 0.25


def test_a_mean_is_no_surer_than_its_standard_error():
    """The conclusion's uncertainty is three standard errors, relative to what is predicted."""
    values = np.random.default_rng(0).normal(2.0, 0.1, 25)
    conclusion = paper._mean("x", values, 0.1, 2.0)
    assert isinstance(conclusion, Conclusion)
    uncertainty = np.finfo(float).eps * conclusion.amplification
    assert uncertainty == pytest.approx(3 * np.std(values, ddof=1) / 5 / 2.0, rel=1e-12)


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
    setting = Setting(2, 1)
    runs = training._train(setting, "N(0, 1/n)", 5000)
    assert [r.optimizer for r in runs] == list(training.OPTIMIZERS)
    assert all(r.reached and r.loss <= training.TRAINED for r in runs)
    by_name = {r.optimizer: np.exp(r.rank) for r in runs}
    for name in ("gradient descent", "SGD", "momentum"):  # the same affine space, the same nearest point
        assert by_name[name] == pytest.approx(by_name["flow"], rel=0.02)
    assert abs(by_name["Adam"] - by_name["flow"]) > 0.1


def test_a_run_that_was_cut_off_is_counted_and_said():
    setting = Setting(2, 1)
    short = [
        Trained(setting, s, o, 1.0, 0.5, "finished", False)
        for s in training.STARTS
        for o in training.OPTIMIZERS
    ]
    deep = [
        Trained(Setting(t, d), r.start, r.optimizer, 1.0 / d, 1e-5, "stopped", True)
        for r in short for t in training.TEACHERS for d in (1, 2) if (t, d) != (2, 1)
    ]  # fmt: skip
    observed = training.linear_observations([*short, *deep])
    assert observed[-1].value == len(short)
    assert "SGD, small, depth 1" in observed[-1].note
    assert observed[-2].value == 1.0  # the rank falls in every pair


@pytest.mark.slow
def test_the_quick_page(tmp_path):
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
