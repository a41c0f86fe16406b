"""Limits at zero loss by extrapolation: the stated error holds, whichever states there are, and is not idle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import gflow
from gflow import observe
from gflow.theory import clusters
from gflow.theory.separable import max_margin

LEVELS = np.r_[0.5, 1.0, 3.0, np.geomspace(10, 1e5, 17)]


def separable(seed, n, d, gap=0.3):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((n, d)), rng.standard_normal(d)
    y = np.sign(x @ w)
    return gflow.Problem(x + gap * y[:, None] * w / np.linalg.norm(w), y, "logistic")


def some(trajectory, kept):
    """The trajectory with some of its saved states."""
    cut = {
        "t": trajectory.t[kept],
        "theta": trajectory.theta[kept],
        "log_time": trajectory.log_time[kept],
        "s": trajectory.s[kept],
    }
    return replace(trajectory, **cut, observed={})


def selections(count, rng):
    """Runs of states, from any to any, and four to seven of the last ones that lie further apart."""
    for low in range(0, count - 5, 3):
        for top in range(low + 5, count + 1, 4):
            yield np.arange(low, top)
    for _ in range(30):
        yield np.sort(rng.choice(np.arange(count // 3, count), int(rng.integers(4, 8)), replace=False))


def heading(model, problem, theta):
    w = model.first_layer(theta)
    return w / np.linalg.norm(w)


def linear(hidden, seed):
    problem = separable(seed, (6, 12, 30)[seed % 3], 2 + seed % 3)
    model = gflow.DeepLinear((problem.inputs, *hidden, 1))
    return model, problem, model.init("balanced", scale=0.1), "direction", max_margin(problem).direction


def leaky(seed, observable):
    problem = separable(seed, 12, 2)
    model = gflow.TwoLayerReLU(2, 4, slope=0.3, train_outer=False)
    theta0 = model.init("gaussian", 0.01, rng=seed, signs=[1, 1, -1, -1], outer=0.5)
    wanted = clusters.direction(problem, 0.3, None, (2, 2), 0.5)
    limit = wanted.margin if observable == "margin" else wanted.neurons((2, 2))
    return model, problem, theta0, observable, limit


CASES = {
    "linear, 4": lambda: linear((), 4),
    "linear, 2": lambda: linear((), 2),
    "two layers, 4": lambda: linear((4,), 4),
    "two layers, 2": lambda: linear((4,), 2),
    "three layers, 2": lambda: linear((3, 3), 2),
    "three layers, 10": lambda: linear((3, 3), 10),
    "leaky, neurons": lambda: leaky(0, heading),
    "leaky, margin": lambda: leaky(2, "margin"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_stated_error_holds_for_any_states(name):
    model, problem, theta0, observable, wanted = CASES[name]()
    got = gflow.flow(model, problem, theta0, LEVELS, clock="loss", max_steps=10**7)
    assert got.status.code == "finished"
    gains, shares = [], []
    for kept in selections(len(LEVELS), np.random.default_rng(0)):
        part = some(got, kept)
        found = observe.limit(part, observable)
        raw = np.linalg.norm(observe.along(part, observable)[-1] - wanted)
        off = np.linalg.norm(found.value - wanted)
        shares.append(off / found.error)
        if len(kept) >= 8 and LEVELS[kept[-1]] >= 1e4:
            gains.append(found.error / raw)
    assert max(shares) <= 1
    assert len(gains) >= 5 and max(gains) < 0.1


@pytest.fixture(scope="module")
def known():
    """A network of one weight under the exponential loss, whose log(1/L) is its weight, far down and closely."""
    model, problem = gflow.DeepLinear((1, 1)), gflow.Problem([[1.0]], [1.0], "exponential")
    return gflow.flow(model, problem, [0.5], np.geomspace(0.6, 1e6, 300), clock="loss", rtol=1e-12)


SERIES = {
    "a term of no series": lambda x: 1.0 + x**0.6,
    "logarithms": lambda x: 1.0 + x * np.log(x),
    "a logarithm alone": lambda x: 1.0 - 1.0 / np.log(x / 10),
    "a direction that turns late": lambda x: np.array([1.0, 200.0 * x]) / np.hypot(1.0, 200.0 * x),
    "a slow term": lambda x: 1.0 + 0.1 * x**0.2 + 20.0 * x,
}


@pytest.mark.parametrize("count", [5, 8, 13])
@pytest.mark.parametrize("name", SERIES)
def test_terms_that_no_series_has_are_seen(known, name, count):
    for top in range(150, 300, 10):
        kept = np.unique(np.linspace(0, top, count).astype(int))
        found = observe.limit(some(known, kept), lambda m, p, theta: SERIES[name](1 / float(theta[0])))
        wanted = [1.0, 0.0] if "turns" in name else 1.0
        assert np.linalg.norm(found.value - wanted) <= found.error


def test_a_state_before_the_series_begins_does_no_harm(known):
    """With one at log(1/L) < 1 the error was stated far too small; it may grow, and is true."""

    def turning(model, problem, theta):
        x = 1 / float(theta[0])
        return np.array([1.0, 30.0 * x]) / np.hypot(1.0, 30.0 * x)

    levels = -known.log_loss
    good = [int(np.argmin(np.abs(np.log(levels / level)))) for level in np.geomspace(1e2, 1e4, 7)]
    for kept in (good, [0, *good], [0, 5, 20, 40, *good]):
        found = observe.limit(some(known, np.array(kept)), turning)
        assert np.linalg.norm(found.value - [1.0, 0.0]) <= found.error < 1e-3


def test_values_that_agree_by_chance_are_not_taken_for_the_limit(known):
    """The last two states, or the lines through them, have one value, which is not the limit."""
    kept = np.array([140, 180, 220, 260, 299])
    x = 1 / known.theta[kept, 0]

    def turns(model, problem, theta):
        at = 1 / float(theta[0])
        return 1.0 + 1e6 * (at - x[-1]) * (at - x[-2]) + 1e8 * at**3

    found = observe.limit(some(known, kept), turns)
    limit = 1.0 + 1e6 * x[-1] * x[-2]
    assert abs(found.value - limit) <= found.error


def test_close_states_are_thinned_out(known):
    """Three hundred states say as much as every ninth; none within a factor of 1.5 are four."""

    def series(model, problem, theta):
        x = 1 / float(theta[0])
        return 2.0 + 3.0 * x - 40.0 * x**2

    everything = observe.limit(known, series)
    assert abs(everything.value - 2.0) <= everything.error < 1e-9
    with pytest.raises(ValueError, match="at least four states .* 1.5 times .* it has 2 of these"):
        observe.limit(some(known, np.arange(290, 300)), series)


def test_what_does_not_converge_has_no_error_bound(known):
    kept = np.arange(100, 300, 25)
    waves = observe.limit(some(known, kept), lambda m, p, theta: np.cos(3 * np.log(theta[0])))
    assert waves.error > 0.5
    grows = observe.limit(some(known, kept), lambda m, p, theta: float(np.log(theta[0])))
    assert grows.error > 1e6
    same = observe.limit(some(known, kept), lambda m, p, theta: 4.0)
    assert same.value == 4.0 and same.error < 1e-10
    lost = observe.limit(some(known, kept), lambda m, p, theta: np.nan)
    assert lost.error == np.inf
