"""compare() measures what it says, and figures come out as publications need them."""

from __future__ import annotations

import numpy as np
import pytest

import gflow
from gflow import datasets, plot, theory


@pytest.fixture(scope="module")
def tree():
    problem = gflow.Problem(*datasets.hierarchy(2), factor=0.5)
    model = gflow.DeepLinear((4, 4, 7))
    theta0 = model.init("aligned", 0.1, problem=problem)
    trajectory = gflow.flow(model, problem, theta0, np.linspace(0, 4, 41), rtol=1e-9)
    return trajectory, theory.linear.modes(model, problem, theta0)


def test_error_is_the_largest_relative_difference(tree):
    trajectory, prediction = tree
    result = gflow.compare(trajectory, prediction)
    by_hand = np.abs(result.measured / prediction.predict(trajectory.t) - 1).max(axis=1)
    assert result.error == pytest.approx(by_hand, rel=1e-12)
    assert result.max_error == result.error.max() <= 30 * 1e-9
    assert result.hypotheses == prediction.hypotheses


def test_matrices_are_compared_relative_to_their_largest_entry(tree):
    trajectory, _ = tree
    spec = trajectory.spec
    prediction = theory.linear.two_layer(spec["model"], spec["problem"], spec["theta0"], force=True)
    result = gflow.compare(trajectory, prediction)
    assert result.measured.shape == (41, 7, 4)
    scale = np.abs(result.predicted).max(axis=(1, 2))
    assert result.error == pytest.approx(np.abs(result.measured - result.predicted).max(axis=(1, 2)) / scale)
    assert result.max_error <= 30 * 1e-9


def test_a_refused_prediction_refuses_to_be_compared(tree):
    trajectory, _ = tree
    model, problem = trajectory.spec["model"], trajectory.spec["problem"]
    start = model.init("gaussian", 0.1)
    with pytest.raises(theory.Refused, match="balanced start"):
        gflow.compare(trajectory, theory.linear.modes(model, problem, start))


def test_the_bound_is_that_of_the_prediction(tree):
    trajectory, prediction = tree
    result = gflow.compare(trajectory, prediction)
    assert result.bound.shape == (41,)
    np.testing.assert_array_equal(result.bound, prediction.bound(trajectory.t))


@pytest.mark.parametrize("observable", ["modes", "two_layer"])
@pytest.mark.parametrize("later", [False, True])
def test_a_prediction_for_another_start_is_refused(tree, observable, later):
    trajectory, _ = tree
    model, problem, theta0 = (trajectory.spec[name] for name in ("model", "problem", "theta0"))
    if later:  # the first saved time is after the start
        trajectory = gflow.flow(model, problem, theta0, np.linspace(1, 4, 41), rtol=1e-9)
    predict = getattr(theory.linear, observable)
    assert gflow.compare(trajectory, predict(model, problem, theta0)).max_error < 1e-7
    for other in (1.001 * theta0, model.init("aligned", 0.2, problem=problem)):
        with pytest.raises(ValueError, match="prediction must be for the start .* another start or problem"):
            gflow.compare(trajectory, predict(model, problem, other))


@pytest.mark.parametrize("observable", ["modes", "two_layer"])
def test_a_prediction_for_another_problem_is_refused(tree, observable):
    trajectory, _ = tree
    model, problem, theta0 = (trajectory.spec[name] for name in ("model", "problem", "theta0"))
    predict = getattr(theory.linear, observable)
    for other in (
        gflow.Problem(problem.X, problem.Y, factor=0.25),  # the same start, half as fast
        gflow.Problem(problem.X, 2 * problem.Y, factor=0.5),
    ):
        with pytest.raises(ValueError, match="it is for another problem"):
            gflow.compare(trajectory, predict(model, other, theta0))
    turned = gflow.Problem(problem.X, problem.Y[:, ::-1], factor=0.5)
    with pytest.raises(ValueError, match="refused|it is for another"):
        gflow.compare(trajectory, predict(model, turned, theta0))


def test_a_forced_prediction_is_compared_although_its_hypotheses_fail(tree):
    trajectory, _ = tree
    model, problem = trajectory.spec["model"], trajectory.spec["problem"]
    start = model.init("gaussian", 0.1)
    run = gflow.flow(model, problem, start, np.linspace(0, 4, 5))
    result = gflow.compare(run, theory.linear.modes(model, problem, start, force=True))
    assert result.max_error > 1e-3 and result.bound.max() > 0


def test_a_loaded_run_is_compared(tree, tmp_path):
    trajectory, prediction = tree
    back = gflow.load(trajectory.save(tmp_path / "run"))
    assert gflow.compare(back, prediction).max_error == gflow.compare(trajectory, prediction).max_error


def test_every_plot_returns_its_artists(tree):
    trajectory, prediction = tree
    result = gflow.compare(trajectory, prediction)
    with plot.style():
        fig, axes = plot.figure(1, 4)
        drawn = [
            result.plot(axes[0]),
            plot.error(axes[1], result),
            plot.loss(axes[2], trajectory),
            plot.steps(axes[3], trajectory),
        ]
        for artists, ax in zip(drawn, axes, strict=True):
            assert artists and all(artist.axes is ax for artist in artists)
            assert ax.get_xlabel() and ax.get_ylabel()


def test_figures_have_column_width_and_embedded_fonts(tree, tmp_path):
    trajectory, _ = tree
    with plot.style():
        fig, ax = plot.figure()
        assert fig.get_size_inches()[0] == pytest.approx(plot.COLUMN)
        plot.loss(ax, trajectory)
        pdf, png = plot.save(fig, tmp_path / "deep" / "loss")
    assert png.stat().st_size > 0
    content = pdf.read_bytes()
    assert b"/Type /Font" in content and b"/FontFile2" in content  # TrueType, embedded
    assert b"/Type3" not in content


def test_the_style_does_not_leak():
    import matplotlib as mpl

    before = mpl.rcParams["font.size"]
    with plot.style():
        assert mpl.rcParams["font.size"] == 8
    assert mpl.rcParams["font.size"] == before


def test_steps_of_a_descent_are_refused():
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[1.0]])
    descent = gflow.descend(model, problem, [0.5, 0.5], 0.1, 3)
    with plot.style():
        _, ax = plot.figure()
        with pytest.raises(ValueError, match="trajectory must be of the flow"):
            plot.steps(ax, descent)
