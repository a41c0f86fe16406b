"""What the claims on linear teachers rest on: descent by an independent loop, limits at log(1/L) = 1e6, stopped runs."""

from __future__ import annotations

import numpy as np
import pytest

from gflow import iterate, observe
from gflow.claims import Claim, check
from gflow.papers import sarussi2021 as paper
from gflow.theory import clusters


def test_descent_on_single_samples_by_a_plain_loop():
    """The updates until no training error, and the mistakes on the way, from numpy alone on the same samples."""
    setup = paper.SetUp("teacher", each=3, scale=paper.MEDIUM, seed=2)
    x, y = setup.problem.X, setup.problem.Y[:, 0]
    run = setup.sgd(400, 1)
    order = np.asarray(iterate.batches(run)).ravel()
    w, a = (part.copy() for part in setup.model.unpack(setup.theta0))
    wrong, right = [], None
    for step, i in enumerate(order):
        z = w @ x.T
        f = a[0] @ np.where(z > 0, z, setup.slope * z)
        if right is None and step % 5 == 0 and step and np.all(y * f > 0):
            right = step
        wrong.append(y[i] * f[i] <= 0)
        slopes = np.where(z[:, i] > 0, 1.0, setup.slope)
        w += paper.STEP * y[i] / (1 + np.exp(y[i] * f[i])) * (a[0] * slopes)[:, None] * x[i]
    np.testing.assert_allclose(setup.model.first_layer(run.end), w, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(paper.mistakes(setup, run), wrong)
    assert paper.updates_until_right(setup, 400) == right and 5 < right < 400
    assert paper.updates_until_right(setup, 5) == np.inf


def test_the_width_changes_neither_bound():
    bounds = []
    for each in (2, 50):
        setup = paper.SetUp("clouds", each)
        theta0 = np.concatenate([np.zeros(4 * each), setup.theta0[4 * each :]])
        theta0[: 4 * each : 2] = each**-0.5
        arguments = setup.model, setup.problem, theta0, 0.1
        bounds.append(
            [clusters.training_time(*arguments).time, clusters.training_epochs(*arguments, step_size=0.5)]
        )
    np.testing.assert_allclose(bounds[0], bounds[1], rtol=1e-12)


def test_data_are_what_they_are_said_to_be():
    assert clusters.least_cosine(paper.data("clouds")) > 0.1
    assert all(clusters.least_cosine(paper.data(name)) < 0 for name in ("teacher", "few", "beside", "three"))
    assert clusters.symmetry_defect(paper.data("symmetric")) == 0
    for pair in paper.PAIRS:
        train, test = paper.digits(*pair)
        assert (
            len(train.X) == paper.TRAINING
            and len(test.X) > 100
            and np.abs(train.X.mean(axis=0)).max() < 1e-14
        )
        clusters.direction(train, paper.SLOPE)  # separable


def test_a_run_that_is_stopped_decides_nothing(monkeypatch):
    whole = paper.flow
    monkeypatch.setattr(paper, "flow", lambda *args, **options: whole(*args, **{**options, "max_steps": 40}))
    runs = (
        lambda rtol: paper.linear_boundary(paper.SetUp("teacher", each=10, scale=paper.LARGE), rtol),
        lambda rtol: paper.tends(paper.SetUp("few", seed=24), rtol, far=1e5),
        lambda rtol: paper.support_vectors(paper.SetUp("symmetric"), rtol),
    )
    for run in runs:
        verdict = check(Claim("stopped", "", "", run), rtol=1e-10)
        assert verdict.status == "inconclusive" and "max_steps" in verdict.note


def test_epochs_that_all_have_mistakes_hold_nothing_short_of_the_bound(monkeypatch):
    monkeypatch.setattr(paper, "mistakes", lambda setup, run: np.ones(len(run.t) - 1, dtype=bool))
    setup = paper.SetUp("clouds", each=1, scale=paper.MEDIUM)
    bound = clusters.training_epochs(setup.model, setup.problem, setup.theta0, np.log(2), paper.STEP)
    assert bound > 200
    verdict = check(Claim("", "", "", lambda rtol: paper.has_good_epoch(setup, rtol)))
    assert verdict.status == "inconclusive"


@pytest.mark.parametrize(("resolved", "status"), [(0.0, "inconclusive"), (1.0, "inapplicable")])
def test_signs_that_change_decide_only_where_kinks_are_resolved(monkeypatch, resolved, status):
    whole, seen = clusters.agreement, []

    def changing(*arguments):
        found = whole(*arguments)
        seen.append(found)
        return found if len(seen) % 5 else found._replace(positive=-found.positive)

    monkeypatch.setattr(clusters, "agreement", changing)
    monkeypatch.setattr(paper, "RESOLVED", resolved)
    setup = paper.SetUp("clouds", each=1)
    assert check(Claim("", "", "", lambda rtol: paper.tends(setup, rtol, far=1e3))).status == status
    assert len(seen) % 5 == 0  # the last of five states each time


@pytest.mark.parametrize("error", [1e-8, 2e-6, np.inf])
def test_an_extrapolated_distance_is_no_surer_than_its_limit(error):
    limit = observe.Limit(np.array([1.0, 3e-7]), error, 1.0, 2)

    def run(rtol):
        return paper.Evidence((), (paper.extrapolated("distance", limit, np.array([1.0, 0.0])),))

    verdict = check(Claim("", "", "", run))
    assert verdict.status == ("holds" if error < 5e-7 else "inconclusive")
    assert verdict.uncertainty >= error * (1 - 1e-12)


@pytest.mark.parametrize("pair", [(0, 1), (2, 7)])
def test_digits_told_apart_by_two_clusters(pair):
    found = paper.told_apart(pair, paper.SMALL, 50)
    assert found.agreements[-1, :2].tolist() == [1.0, 1.0]
    assert found.decided == 1.0 and found.different == 0.0 and found.test_error == found.linear_error < 0.05


@pytest.mark.slow
def test_a_direction_at_log_one_over_loss_of_a_million():
    setup = paper.SetUp("symmetric", each=1)
    run = setup.by_loss(paper.levels_to(1e6), 1e-10)
    assert run.status.code == "finished" and run.t[-1] >= 1e6
    found = clusters.agreement(setup.model, setup.problem, run.end)
    wanted = clusters.direction(setup.problem, setup.slope, found.signs).neurons(setup.numbers)
    limit = observe.limit(run, paper.heading)
    assert np.linalg.norm(paper.heading(setup.model, setup.problem, run.end) - wanted) <= paper.RAW
    assert np.linalg.norm(limit.value - wanted) <= limit.error <= paper.EXTRAPOLATED
